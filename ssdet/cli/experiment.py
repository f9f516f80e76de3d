"""Command line of experiment files: options, running a study, writing its table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from ssdet.cli import shared
from ssdet.cli.streams import standard_streams
from ssdet.execution.errors import BudgetSpent, StagesFailed
from ssdet.system.console import plain_console
from ssdet.system.quiet import quiet_dependencies

if TYPE_CHECKING:
    from ssdet.results.tables.result_table import ResultTable
    from ssdet.studies import Data, Experiment, Plan, Preset, Store, Study
    from ssdet.studies.experiment import Change
    from ssdet.training.recipe import TrainRecipe

SMOKE_STEPS, SMOKE_VIDEOS = 2, 8


def _workers(words: list[str]) -> int | str:
    from ssdet.execution.session import Workers

    workers = Workers.of(words[0])
    return words[0] if workers.elastic else workers.low


COUNT = PrimitiveConstructorSpec[int | str](
    nargs=1,
    metavar="N|LOW:HIGH",
    instance_from_str=_workers,
    is_instance=lambda value: isinstance(value, int | str),
    str_from_instance=lambda value: [str(value)],
)


@dataclass(frozen=True)
class Options:
    """Options of an experiment."""

    data: str = "moving_shapes"
    """Format of the untrimmed videos to fine-tune and score on: moving_shapes, segments, charades,
    multithumos, activitynet, or a plugin's. All but moving_shapes need --upstream and
    --downstream."""
    preset: str = "tiny"
    """Network, clips and schedules: smoke, tiny, science, small, paper (the paper's recipe for the
    data), or released (the published code's)."""
    weights: str = ""
    """Initial weights of pretraining, with paper and released: a published name (`ssdet weights`)
    or the path of a checkpoint. With weights the schedule is the short one, else the long one."""
    protocol: str | None = None
    """Protocol of scores, differences and tables by name or id (docs/protocols.md), in place of the
    file's. No stage runs again for it."""
    seeds: int = 3
    """Seeds 0 … N-1 of every arm."""
    store: shared.StoreOption = field(default_factory=shared.default_store)
    address: str | None = None
    """Ray cluster; by default RAY_ADDRESS, else an own Ray on this machine."""
    workers: Annotated[int | str, COUNT] = 1
    """Training workers per stage; a range such as 2:8 takes as many as fit on the cluster."""
    gpus_per_worker: float = 0
    """GPUs per worker."""
    concurrent: int | None = None
    """Stages at once; all that fit by default."""
    loaders: int = 0
    """Decoding processes per worker."""
    decoders: int = 0
    """Decoding tasks of Ray per worker, in place of loaders; on nodes without GPUs where workers
    have GPUs."""
    arms: tuple[str, ...] = ()
    """Only these arms (and the baseline)."""
    pretrain_steps: int | None = None
    """Optimiser steps of pretraining, instead of the preset's."""
    finetune_steps: int | None = None
    """Optimiser steps of fine-tuning, instead of the preset's."""
    dry_run: bool = False
    """Print the plan and its estimated cost; run nothing."""
    assume: str | None = None
    """With --dry-run: a YAML file that describes a cluster (clusters/nodes_example.yaml)."""
    smoke: bool = False
    """Test run of everything, table and report included: two steps per training, eight videos per
    split, in STORE/smoke. The numbers mean nothing."""
    report: bool = False
    """Also write the report, one HTML page; `ssdet report` writes it later."""
    budget: float | None = None
    """GPU-hours (core-hours without GPUs) after which this command starts no more stages."""
    price: float | None = None
    """Price of one GPU-hour (core-hour without GPUs), for the plan."""
    dashboard: bool = False
    """Start Ray's dashboard with an own Ray; a cluster already has one."""
    log: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Experiment trackers that log every stage, beside TensorBoard files in the store."""
    json: bool = False
    """Print the plan of --dry-run as JSON."""
    upstream: str | None = None
    """Single-label clips to pretrain on: a CSV or folder of the kinetics format."""
    upstream_videos: str | None = None
    """Folder of those clips, if not beside the annotation."""
    downstream: str | None = None
    """Annotation of the untrimmed videos."""
    downstream_videos: str | None = None
    """Folder of the untrimmed videos."""


Also = Callable[["Plan", "Store", Console], None]
"""Function that writes further results of a study after its table."""


def experiment(study: Study, arguments: list[str] | None = None, also: Also | None = None) -> None:
    """Run a study from the command line and exit: 0 done, 1 failed, 2 wrong usage, 130
    interrupted."""
    with standard_streams():
        options = shared.parse(Options, arguments, f"{study.name}.py", study.table.title)
        sys.exit(main(study, options, also=also))


@quiet_dependencies()
@shared.report_errors(StagesFailed, BudgetSpent, ImportError, interrupted=shared.RESUMABLE)
def main(
    study: Study, options: Options, console: Console | None = None, also: Also | None = None
) -> int:
    """Run a study with these options; return the exit status."""
    from ssdet.cli.plan import assumed, show_plan
    from ssdet.execution.runner import run
    from ssdet.execution.session import folder_for_ray
    from ssdet.results.report.writer import write_report
    from ssdet.results.tables.result_table import result_table
    from ssdet.studies import plan
    from ssdet.studies.graph.audit import audit

    out = console or plain_console()
    with shared.wrong_usage():
        assumed(options)
        if not options.dry_run:
            folder_for_ray(options.address)
        study, store = resolve(study, options), store_of(options)
        planned = plan(study)
    if options.dry_run:
        show_plan(planned, store, options, out)
        return 0
    run(
        study,
        store,
        options.address,
        options.workers,
        options.gpus_per_worker,
        options.concurrent,
        options.loaders,
        budget=options.budget,
        dashboard=options.dashboard,
        log=options.log,
        decoders=options.decoders,
    )
    table = result_table(planned, store)
    show_table(table, out)
    folder = write_results(table, store)
    for difference in audit(planned, store).notes:
        out.print(f"not equal: {difference}", soft_wrap=True)
    if also is not None:
        also(planned, store, out)
    if options.report or options.smoke:
        write_report(planned, store, folder / "report.html")
    store.publish_files(folder)
    out.print(f"written to {folder}", soft_wrap=True)
    return 0


def resolve(study: Study, options: Options) -> Study:
    """The study with the base, data, seeds and arms of the options."""
    from ssdet.studies import preset

    chosen = preset(options.preset, options.data, options.weights)
    arms = study.arms
    if options.arms:
        if unknown := set(options.arms) - {arm.name for arm in arms}:
            names = ", ".join(arm.name for arm in arms)
            raise ValueError(f"no arm named {', '.join(sorted(unknown))}: choose from {names}")
        chosen_arms = {*options.arms, study.baseline}
        for arm in arms:
            if arm.name in options.arms:
                chosen_arms |= {*arm.members, arm.seeds_of, study.baseline_of(arm.name)}
        arms = tuple(arm for arm in arms if arm.name in chosen_arms)
    data = data_of(options, chosen)
    if options.smoke:
        arms = tuple(replace(arm, change=_shortened(arm.change)) for arm in arms)
        data = replace(data, limit=SMOKE_VIDEOS)
    return replace(
        study,
        arms=arms,
        seeds=tuple(range(options.seeds)),
        base=_with_steps(chosen.experiment, options.pretrain_steps, options.finetune_steps),
        data=data,
        protocol=options.protocol or study.protocol,
        table=study.table.only({arm.name for arm in arms}),
    )


def store_of(options: Options) -> Store:
    """The store of the options; with --smoke the store `smoke` inside it."""
    from ssdet.studies import Store

    store = Store.open(options.store)
    return store.substore("smoke") if options.smoke else store


def _shortened(change: Change) -> Change:
    """The change, followed by setting every training to two steps."""
    from ssdet.studies.experiment import declared, declaring

    @declaring(*declared(change))
    def shortened(base: Experiment) -> Experiment:
        return _with_steps(change(base), SMOKE_STEPS, SMOKE_STEPS)

    return shortened


def _with_steps(base: Experiment, pretrain: int | None, finetune: int | None) -> Experiment:
    """The base with these numbers of optimiser steps; None leaves them."""

    def with_steps(recipe: TrainRecipe, steps: int | None) -> TrainRecipe:
        if steps is None:
            return recipe
        return replace(recipe, optim=replace(recipe.optim, steps=steps))

    return replace(
        base,
        pretrain=base.pretrain and with_steps(base.pretrain, pretrain),
        finetune=with_steps(base.finetune, finetune),
    )


def data_of(options: Options, chosen: Preset) -> Data:
    """The data of the options; renders Moving Shapes if it is not in the cache yet."""
    from ssdet.studies.data import Data, Source, moving_shapes

    if options.data == "moving_shapes":
        with shared.Progress("rendering Moving Shapes:", " files") as progress:
            return moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache, progress)
    if options.upstream is None or options.downstream is None:
        raise ValueError(f"--data {options.data} needs --upstream and --downstream")
    return Data(
        Source("kinetics", options.upstream, options.upstream_videos),
        Source(options.data, options.downstream, options.downstream_videos),
        chosen.decode_size,
        chosen.cache,
        fps=chosen.fps,
    )


def show_table(table: ResultTable, out: Console) -> None:
    """Print a table and its footnotes, as wide as the terminal, elsewhere in full width."""
    from ssdet.results.tables.columns import footnotes
    from ssdet.results.tables.render import console_table

    wide = out if out.is_terminal else plain_console(200, file=out.file)
    wide.print(console_table(table))
    for note in footnotes(table):
        out.print(note, soft_wrap=True, markup=False)


def write_results(table: ResultTable, store: Store) -> Path:
    """Write `table.md`, `.csv`, `.tex`, `.html` and `figure.png`; returns their folder."""
    from ssdet.results.figures.study_figures import write_figure
    from ssdet.results.tables.render import write_html, write_latex, write_markdown
    from ssdet.results.tables.result_table import write_csv

    folder = store.table_folder(table.study)
    write_markdown(table, folder / "table.md")
    write_csv(table, folder / "table.csv")
    write_latex(table, folder / "table.tex")
    write_html(table, folder / "table.html")
    write_figure(table, folder / "figure.png")
    return folder
