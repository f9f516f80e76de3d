"""The command line that every experiment shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from ssdet.cli.streams import standard_streams
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

    found = Workers.of(words[0])
    return words[0] if found.elastic else found.low


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
    """Network, clips and schedules: smoke, tiny, science, small, paper (its recipe for the data),
    or released (as the published code has it)."""
    weights: str = ""
    """What pretraining starts from, with paper and released: a published name (`ssdet weights`) or
    the path of a checkpoint. Theirs is the short schedule; without weights it is the long one."""
    protocol: str | None = None
    """What scores, differences and tables are of: name or id of a protocol (docs/protocols.md)
    instead of the file's. No stage runs again for it."""
    seeds: int = 3
    """Seeds 0 … N-1 of every arm."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder of stages and tables (SSDET_STORE); the same one resumes and reuses."""
    address: str | None = None
    """Ray cluster; without it RAY_ADDRESS, else an own Ray on this machine."""
    workers: Annotated[int | str, COUNT] = 1
    """Training workers of each stage; a range such as 2:8: as many as there is room for."""
    gpus_per_worker: float = 0
    """GPUs of each worker."""
    concurrent: int | None = None
    """Stages at once; all that fit by default."""
    loaders: int = 0
    """Processes per worker that decode ahead."""
    decoders: int = 0
    """Instead, CPU tasks of Ray per worker that do, on nodes without GPUs where workers have
    GPUs."""
    arms: tuple[str, ...] = ()
    """Only these arms (the baseline is always there)."""
    pretrain_steps: int | None = None
    """Optimiser steps of pretraining, instead of the preset's."""
    finetune_steps: int | None = None
    """Optimiser steps of fine-tuning, instead of the preset's."""
    dry_run: bool = False
    """Print the plan and what it would cost; run nothing."""
    assume: str | None = None
    """With --dry-run: a YAML file that describes a cluster (clusters/nodes_example.yaml)."""
    smoke: bool = False
    """Try everything, table and report included: two steps a training, eight videos a split, in
    STORE/smoke. The numbers mean nothing."""
    report: bool = False
    """Write the table's report, one HTML page, as well; `ssdet report` does it later."""
    budget: float | None = None
    """GPU-hours (core-hours without GPUs) after which this command starts no more stages."""
    price: float | None = None
    """Of one GPU-hour (core-hour without GPUs), for the plan."""
    dashboard: bool = False
    """Start Ray's dashboard with an own Ray; a cluster has one."""
    log: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers to tell of every stage, beside TensorBoard files in the store."""
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
"""What a study reports beside its table: called when that is written. Its ValueError and OSError
fail the command as those of the table do."""


def experiment(study: Study, arguments: list[str] | None = None, also: Also | None = None) -> None:
    """Run a study from the command line and exit: 0 done, 1 failed, 2 wrong usage."""
    with standard_streams():
        options = tyro.cli(
            Options, args=arguments, prog=f"{study.name}.py", description=study.table.title
        )
        sys.exit(main(study, options, also=also))


@quiet_dependencies()
def main(
    study: Study, options: Options, console: Console | None = None, also: Also | None = None
) -> int:
    """Run a study with these options; returns the exit status."""
    from ssdet.cli.plan import assumed, show_plan
    from ssdet.execution.runner import BudgetSpent, StagesFailed, run
    from ssdet.execution.session import folder_for_ray
    from ssdet.results.report.writer import write_report
    from ssdet.results.tables.result_table import result_table
    from ssdet.studies import plan
    from ssdet.studies.graph.audit import audit

    out = console or plain_console()
    try:
        assumed(options)
        if not options.dry_run:
            folder_for_ray(options.address)
        study, store = resolve(study, options), store_of(options)
        planned = plan(study)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
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
        for note in audit(planned, store).notes:
            out.print(f"not equal: {note}", soft_wrap=True)
        if also is not None:
            also(planned, store, out)
        if options.report or options.smoke:
            write_report(planned, store, folder / "report.html")
        store.publish_files(folder)
    except (StagesFailed, BudgetSpent, ImportError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    out.print(f"written to {folder}", soft_wrap=True)
    return 0


def resolve(study: Study, options: Options) -> Study:
    """The study with the preset's base, the data, the seeds and the arms that were asked for."""
    from ssdet.studies import preset

    chosen = preset(options.preset, options.data, options.weights)
    arms = study.arms
    if options.arms:
        if unknown := set(options.arms) - {arm.name for arm in arms}:
            known = ", ".join(arm.name for arm in arms)
            raise ValueError(f"no arm named {', '.join(sorted(unknown))}: choose from {known}")
        wanted = {*options.arms, study.baseline}
        for arm in arms:
            if arm.name in options.arms:
                wanted |= {*arm.members, arm.seeds_of, study.baseline_of(arm.name)}
        arms = tuple(arm for arm in arms if arm.name in wanted)
    names = {arm.name for arm in arms}
    data = data_of(options, chosen)
    if options.smoke:
        arms = tuple(replace(arm, change=_hurried(arm.change)) for arm in arms)
        data = replace(data, limit=SMOKE_VIDEOS)
    return replace(
        study,
        arms=arms,
        seeds=tuple(range(options.seeds)),
        base=_with_steps(chosen.experiment, options.pretrain_steps, options.finetune_steps),
        data=data,
        protocol=options.protocol or study.protocol,
        table=study.table.only(names),
    )


def store_of(options: Options) -> Store:
    """The store of these options; a trial run has one of its own inside it."""
    from ssdet.studies import Store

    store = Store.open(options.store)
    return store.substore("smoke") if options.smoke else store


def _hurried(change: Change) -> Change:
    """The change, and two steps for every training, whatever it makes of the schedule."""
    from ssdet.studies.experiment import declared, declaring

    @declaring(*declared(change))
    def hurried(base: Experiment) -> Experiment:
        return _with_steps(change(base), SMOKE_STEPS, SMOKE_STEPS)

    return hurried


def _with_steps(base: Experiment, pretrain: int | None, finetune: int | None) -> Experiment:
    """The base with the schedule lengths that were asked for."""

    def lasting(recipe: TrainRecipe, steps: int | None) -> TrainRecipe:
        if steps is None:
            return recipe
        return replace(recipe, optim=replace(recipe.optim, steps=steps))

    return replace(
        base,
        pretrain=base.pretrain and lasting(base.pretrain, pretrain),
        finetune=lasting(base.finetune, finetune),
    )


def data_of(options: Options, chosen: Preset) -> Data:
    """The data that the options name; renders Moving Shapes where it has to."""
    from ssdet.studies.data import Data, Source, moving_shapes

    if options.data == "moving_shapes":
        return moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache, _count)
    if options.upstream is None or options.downstream is None:
        raise ValueError(f"--data {options.data} needs --upstream and --downstream")
    return Data(
        Source("kinetics", options.upstream, options.upstream_videos),
        Source(options.data, options.downstream, options.downstream_videos),
        chosen.decode_size,
        chosen.cache,
        fps=chosen.fps,
    )


def _count(done: int, total: int) -> None:
    """Rendering's progress: a line that is rewritten on a terminal, ten lines elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"rendering Moving Shapes: {done} of {total} files", end=end, file=sys.stderr)
    elif done % max(1, total // 10) == 0 or done == total:
        print(f"rendering Moving Shapes: {done} of {total} files", file=sys.stderr, flush=True)


def show_table(table: ResultTable, out: Console) -> None:
    """Print a table and its footnotes, as wide as the terminal, elsewhere as wide as it needs."""
    from ssdet.results.tables.formatted import footnotes
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
