"""The command line that every experiment shares."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table as RichTable
from rich.tree import Tree

from ssdet.results.figures import write_figure
from ssdet.results.tables import (
    HEADER,
    ResultTable,
    cells,
    footnotes,
    result_table,
    write_csv,
    write_markdown,
)
from ssdet.studies.data import Data, Source, moving_shapes
from ssdet.studies.estimate import seconds_per_step, stage_seconds
from ssdet.studies.plan import Plan, Stage, plan
from ssdet.studies.presets import Preset, preset
from ssdet.studies.progress import duration
from ssdet.studies.runner import StagesFailed, run
from ssdet.studies.store import Store
from ssdet.studies.study import Experiment, Study
from ssdet.training.recipe import TrainRecipe

Format = Literal["moving_shapes", "segments", "charades", "multithumos"]


@dataclass(frozen=True)
class Options:
    """Options of an experiment."""

    data: Format = "moving_shapes"
    """Format of the untrimmed videos to fine-tune and score on. All but moving_shapes need
    --upstream and --downstream."""
    preset: str = "tiny"
    """Network, clips and schedules: smoke, tiny, science, small or paper."""
    seeds: int = 3
    """Seeds 0 … N-1 of every arm."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder of stages and tables (SSDET_STORE); the same one resumes and reuses."""
    address: str | None = None
    """Ray cluster; without it RAY_ADDRESS, else an own Ray on this machine."""
    workers: int = 1
    """Training workers of each stage."""
    gpus_per_worker: float = 0
    """GPUs of each worker."""
    concurrent: int | None = None
    """Stages at once; all that fit by default."""
    loaders: int = 0
    """Processes per worker that decode ahead."""
    arms: tuple[str, ...] = ()
    """Only these arms (the baseline is always there)."""
    pretrain_steps: int | None = None
    """Optimiser steps of pretraining, instead of the preset's."""
    finetune_steps: int | None = None
    """Optimiser steps of fine-tuning, instead of the preset's."""
    dry_run: bool = False
    """Print the plan and what it would cost; run nothing."""
    upstream: str | None = None
    """Single-label clips to pretrain on: a CSV or folder of the kinetics format."""
    upstream_videos: str | None = None
    """Folder of those clips, if not beside the annotation."""
    downstream: str | None = None
    """Annotation of the untrimmed videos."""
    downstream_videos: str | None = None
    """Folder of the untrimmed videos."""


def experiment(study: Study, arguments: list[str] | None = None) -> None:
    """Run a study from the command line and exit: 0 done, 1 failed, 2 wrong usage."""
    options = tyro.cli(
        Options, args=arguments, prog=f"{study.name}.py", description=study.table.title
    )
    sys.exit(main(study, options))


def main(study: Study, options: Options, console: Console | None = None) -> int:
    """Run a study with these options; returns the exit status."""
    out = console or Console(highlight=False)
    try:
        study, store = resolve(study, options), Store.open(options.store)
        planned = plan(study)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.dry_run:
        show_plan(planned, store, options, out)
        return 0
    try:
        run(
            study,
            store,
            options.address,
            options.workers,
            options.gpus_per_worker,
            options.concurrent,
            options.loaders,
        )
        table = result_table(planned, store)
        show_table(table, out)
        folder = write_results(table, store)
    except (StagesFailed, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    out.print(f"written to {folder}", soft_wrap=True)
    return 0


def resolve(study: Study, options: Options) -> Study:
    """The study with the preset's base, the data, the seeds and the arms that were asked for."""
    chosen = preset(options.preset)
    arms = study.arms
    if options.arms:
        if unknown := set(options.arms) - {arm.name for arm in arms}:
            known = ", ".join(arm.name for arm in arms)
            raise ValueError(f"no arm named {', '.join(sorted(unknown))}: choose from {known}")
        wanted = {*options.arms, study.baseline}
        for arm in arms:
            if arm.name in options.arms:
                wanted |= {*arm.members, arm.seeds_of}
        arms = tuple(arm for arm in arms if arm.name in wanted)
    names = {arm.name for arm in arms}
    quoted = {name: value for name, value in study.table.quoted.items() if name in names}
    return replace(
        study,
        arms=arms,
        seeds=tuple(range(options.seeds)),
        base=_with_steps(chosen.experiment, options),
        data=data_of(options, chosen),
        table=replace(study.table, quoted=quoted),
    )


def _with_steps(base: Experiment, options: Options) -> Experiment:
    """The base with the schedule lengths that were asked for."""

    def lasting(recipe: TrainRecipe | None, steps: int | None) -> TrainRecipe | None:
        if recipe is None or steps is None:
            return recipe
        return replace(recipe, optim=replace(recipe.optim, steps=steps))

    tuned = lasting(base.finetune, options.finetune_steps)
    assert tuned is not None
    return replace(base, pretrain=lasting(base.pretrain, options.pretrain_steps), finetune=tuned)


def data_of(options: Options, chosen: Preset) -> Data:
    """The data that the options name; renders Moving Shapes where it has to."""
    if options.data == "moving_shapes":
        return moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache, _count)
    if options.upstream is None or options.downstream is None:
        raise ValueError(f"--data {options.data} needs --upstream and --downstream")
    return Data(
        Source("kinetics", options.upstream, options.upstream_videos),
        Source(options.data, options.downstream, options.downstream_videos),
        chosen.decode_size,
        chosen.cache,
    )


def _count(done: int, total: int) -> None:
    """Rendering's progress: a line that is rewritten on a terminal, ten lines elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"rendering Moving Shapes: {done} of {total} files", end=end, file=sys.stderr)
    elif done % max(1, total // 10) == 0 or done == total:
        print(f"rendering Moving Shapes: {done} of {total} files", file=sys.stderr, flush=True)


def show_plan(planned: Plan, store: Store, options: Options, out: Console) -> None:
    """Stages by arm, what is shared and done, and the time that the rest takes here."""
    shared: dict[str, int] = {}
    for stage in planned.unshared:
        shared[stage.id] = shared.get(stage.id, 0) + 1
    done = {name for name in planned.stages if store.result(name) is not None}
    study = planned.study
    tree = Tree(f"{study.name}: {len(study.arms)} arms × {len(study.seeds)} seeds")
    for arm in planned.study.arms:
        branch = tree.add(arm.label)
        for item in planned.of(arm.name):
            kinds = [stage for stage in _chain(item.predict) + ([item.probe] if item.probe else [])]
            names = [
                f"{stage.kind}{' (done)' if stage.id in done else ''}"
                f"{f' (shared by {shared[stage.id]})' if shared[stage.id] > 1 else ''}"
                for stage in kinds
            ]
            branch.add(f"seed {item.seed}: {' → '.join(names)}")
    out.print(tree)
    out.print(
        f"{len(planned.stages)} stages, {len(done)} done; {len(planned.unshared)} if every run "
        f"trained its own: sharing saves {len(planned.unshared) - len(planned.stages)}"
    )
    rates = seconds_per_step(planned)
    left = [stage for name, stage in planned.stages.items() if name not in done]
    seconds = sum(stage_seconds(stage, rates) for stage in left)
    naive = sum(stage_seconds(stage, rates) for stage in planned.unshared)
    for kind, rate in rates.items():
        out.print(f"measured here: {rate:.3f} s a step of {kind}, one process")
    slots = options.concurrent or max(1, len(os.sched_getaffinity(0)) // options.workers)
    out.print(
        f"about {duration(seconds)} of work left ({duration(naive)} without sharing and from "
        f"nothing), {duration(seconds / slots)} with {slots} at once"
    )


def _chain(stage: Stage) -> list[Stage]:
    """A stage after its ancestors, in order."""
    before = [ancestor for parent in stage.parents for ancestor in _chain(parent)]
    return [*before, stage] if stage.kind != "ensemble" else [*stage.parents, stage]


def show_table(table: ResultTable, out: Console) -> None:
    """Print a table as wide as it is."""
    shown = RichTable(title=table.title)
    for name in HEADER:
        shown.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for row in cells(table):
        shown.add_row(*row)
    wide = out if out.is_terminal else Console(file=out.file, width=160, highlight=False)
    wide.print(shown)
    for note in footnotes(table):
        out.print(note, soft_wrap=True)


def write_results(table: ResultTable, store: Store) -> Path:
    """Write `table.md`, `table.csv` and `figure.png`; returns their folder."""
    folder = store.table_folder(table.study)
    write_markdown(table, folder / "table.md")
    write_csv(table, folder / "table.csv")
    write_figure(table, folder / "figure.png")
    return folder
