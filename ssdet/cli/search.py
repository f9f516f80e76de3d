"""`ssdet search`: what searches found, arms tuned alike, whether to trust early stopping."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ssdet.cli.experiment import Options, main, resolve, store_of
from ssdet.cli.experiment_files import load, study_of
from ssdet.cli.streams import standard_streams
from ssdet.system.console import plain_console
from ssdet.system.quiet import quiet_dependencies

if TYPE_CHECKING:
    from ssdet.execution.tuning import Choice
    from ssdet.search.trials import SearchResult, Trial
    from ssdet.studies import Search, Store, Study, Tuning

Scheduler = Literal["none", "asha", "median"]
File = Annotated[Path, tyro.conf.Positional]
Named = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class SearchOptions(Options):
    """Options of a search."""

    name: str | None = None
    """Name that it goes by in the store, instead of the file's: one name, one declaration."""
    trials: int | None = None
    """Trials in all, instead of the file's number; earlier calls' count."""
    scheduler: Scheduler | None = None
    """Stop trials early by their validations, instead of what the file says."""
    seed: int | None = None
    """Of the proposals and of every trial's training, instead of the file's."""
    seeds: tyro.conf.Suppress[int] = 1
    arms: tyro.conf.Suppress[tuple[str, ...]] = ()
    budget: tyro.conf.Suppress[float | None] = None
    smoke: tyro.conf.Suppress[bool] = False
    report: tyro.conf.Suppress[bool] = False
    price: tyro.conf.Suppress[float | None] = None
    dashboard: tyro.conf.Suppress[bool] = False
    log: tyro.conf.Suppress[tuple[Literal["mlflow", "wandb"], ...]] = ()


@dataclass(frozen=True)
class TuneOptions(Options):
    """Options of tuning: those of the experiment, and:"""

    trials: int | None = None
    """Trials of each arm: 10, or what the file's TUNING says."""
    scheduler: Scheduler | None = None
    """Stop trials early by their validations, instead of what the file says."""
    tuning_seed: int | None = None
    """Of proposals and of training in the trials, not one of the study's: 1000, or the file's."""
    dry_run: tyro.conf.Suppress[bool] = False
    assume: tyro.conf.Suppress[str | None] = None


@dataclass(frozen=True)
class TrustOptions(Options):
    """Options of the trust check: those of the experiment, and:"""

    short_preset: str | None = None
    """Compare with the same arms of this preset, whose schedule is shorter; without it, the first
    with the last validation of fine-tuning."""


def command(arguments: list[str]) -> int:
    """Run one of the subcommands; exit status 0 done, 1 failed, 2 wrong usage."""
    files: dict[str, Callable[[list[str]], int]] = {"tune": tune, "trust": check}
    if arguments and arguments[0] in files:
        return files[arguments[0]](arguments[1:])
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"ls": ls, "show": show},
            args=arguments,
            prog="ssdet search",
            description=f"{__doc__} Also: tune NAME|FILE.py, trust NAME|FILE.py.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def search_experiment(search: Search, arguments: list[str] | None = None) -> None:
    """Run a search from the command line and exit: 0 done, 1 failed, 2 wrong usage."""
    with standard_streams():
        prog = f"{search.name}.py"
        options = tyro.cli(SearchOptions, args=arguments, prog=prog, description=search.title)
        sys.exit(main_search(search, options))


@quiet_dependencies()
def main_search(search: Search, options: SearchOptions, console: Console | None = None) -> int:
    """Run a search with these options; returns the exit status, 1 where no trial finished."""
    from ssdet.cli.plan import Trials, assumed, show_plan
    from ssdet.execution.session import folder_for_ray
    from ssdet.studies import plan

    out = console or _console()
    try:
        assumed(options)
        if not options.dry_run:
            folder_for_ray(options.address)
        search, study = _resolved(search, options)
        store = store_of(options)
        if options.dry_run:
            trials = Trials(search.trials, _left(search, store), search.scheduler)
            show_plan(plan(study), store, options, out, trials)
            return 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from ssdet.execution.search_driver import run_search

    means = (options.address, options.workers, options.gpus_per_worker, options.concurrent)
    try:
        found = run_search(search, store, *means, options.loaders, decoders=options.decoders)
        report(found, out)
        found.best()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _resolved(search: Search, options: SearchOptions) -> tuple[Search, Study]:
    """The search with what was asked for, and a study of its base alone."""
    from ssdet.studies import Arm, Study

    study = resolve(Study(search.name, (Arm("base", search.change),)), options)
    assert study.base is not None
    study = replace(study, base=replace(study.base, probe=None))
    asked: dict[str, Any] = {"base": study.base, "data": study.data}
    asked |= {"change": study.arms[0].change, "name": options.name or search.name}
    asked["protocol"] = options.protocol or search.protocol
    if options.trials is not None:
        asked["trials"] = options.trials
    if options.seed is not None:
        asked["seed"] = options.seed
    if options.scheduler is not None:
        asked["scheduler"] = None if options.scheduler == "none" else options.scheduler
    return replace(search, **asked), study


def _left(search: Search, store: Store) -> int:
    from ssdet.search.trials import ENDED, result, searches

    known = result(store, search.name).trials if search.name in searches(store) else ()
    return max(0, search.trials - sum(trial.state in ENDED for trial in known))


def ls(store: str = "", as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """List the searches of a store."""
    from ssdet.search.trials import result, searches

    place = _store(store)
    found = [result(place, name) for name in searches(place)]
    if as_json:
        print(json.dumps([{"name": f.name, "trials": f.counts()} for f in found]))
        return
    table = Table("search", "trials", "protocol", "best map")
    for item in found:
        ranked = item.ranked()
        best = f"{ranked[0].values['map']:.4f}" if ranked else "-"
        table.add_row(item.name, counted(item), item.protocol, best)
    _console().print(table)


def show(
    name: Named,
    store: str = "",
    top: int = 10,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Show a search: best trials, Pareto set, what failed, which values mattered."""
    from ssdet.search.trials import result

    found = result(_store(store), name)
    if as_json:
        values = {
            "name": found.name,
            "counts": found.counts(),
            "trials": [asdict(trial) for trial in found.trials],
            "pareto": [trial.number for trial in found.pareto()],
            "importance": found.importance(),
        }
        print(json.dumps(values))
        return
    report(found, _console(), top)


def report(found: SearchResult, out: Console, top: int = 10) -> None:
    """Print the results of a search."""
    from ssdet.search.early_stopping_check import trust_of_search
    from ssdet.search.progress import outcome

    out.print(f"{found.name}: {counted(found)}")
    out.print(_table("best trials", found.ranked()[:top], found.objectives))
    if len(found.objectives) > 1:
        out.print(_table("Pareto set", found.pareto(), found.objectives))
    for trial in found.trials:
        if trial.state in ("failed", "diverged"):
            out.print(outcome(trial), soft_wrap=True, markup=False)
    if importance := found.importance():
        told = ", ".join(f"{name} {share:.2f}" for name, share in importance.items())
        out.print(f"share of the variance of map (fANOVA): {told}", soft_wrap=True)
    else:
        out.print("importance: too few finished trials to say")
    finished = [trial for trial in found.ranked() if len(trial.rungs) > 1]
    if len(finished) > 1:
        out.print(f"first validation against result: {trust_of_search(found)}", soft_wrap=True)
    told = "scores are of the validation split, one seed each: run the best as arms of a study"
    out.print(f"map: {found.protocol}", soft_wrap=True)
    out.print(told, soft_wrap=True)
    out.print(f"optuna-dashboard sqlite:///{found.folder / 'optuna.db'}", soft_wrap=True)


def _table(title: str, trials: list[Trial], objectives: tuple[str, ...]) -> Table:
    from ssdet.search.progress import shown

    table = Table(title=title)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for column in ("trial", *objectives, *names, "run"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        chosen = [shown(trial.params[name]) if name in trial.params else "" for name in names]
        values = [shown(trial.values[name]) for name in objectives]
        table.add_row(str(trial.number), *values, *chosen, trial.stages.get("validate", ""))
    return table


def counted(found: SearchResult) -> str:
    """Trials by state."""
    return ", ".join(f"{count} {state}" for state, count in sorted(found.counts().items()))


def tune(arguments: list[str]) -> int:
    """Tune nuisance knobs for each arm of an experiment file, then run its seeds both ways."""
    from ssdet.execution.session import folder_for_ray
    from ssdet.execution.tuning import Tuning, choices, tuned

    try:
        study, module, options = _from_file("tune", arguments, TuneOptions)
        tuning = _tuning(getattr(module, "TUNING", Tuning()), options)
        folder_for_ray(options.address)
        store, study = store_of(options), resolve(study, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    means = {
        name: getattr(options, name)
        for name in ("address", "workers", "gpus_per_worker", "concurrent", "loaders", "decoders")
    }
    try:
        both = tuned(study, store, tuning, **means)
        show_choices(choices(store, study.name), _console())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return main(both, replace(options, arms=()))


def _tuning(tuning: Tuning, options: TuneOptions) -> Tuning:
    if options.trials is not None:
        tuning = replace(tuning, trials=options.trials)
    if options.tuning_seed is not None:
        tuning = replace(tuning, seed=options.tuning_seed)
    if options.scheduler is not None:
        scheduler = None if options.scheduler == "none" else options.scheduler
        tuning = replace(tuning, scheduler=scheduler)
    return tuning


def show_choices(chosen: list[Choice], out: Console) -> None:
    """What tuning chose for each arm, and its budget."""
    from ssdet.search.progress import shown
    from ssdet.system.console import duration

    columns = ("arm", "trials", "chosen", "val score untuned", "tuned", "training steps", "time")
    table = Table(*columns, title="nuisance knobs, by the validation split")
    for choice in chosen:
        values = ", ".join(f"{name} {shown(value)}" for name, value in choice.params.items())
        trials = ", ".join(f"{count} {state}" for state, count in sorted(choice.trials.items()))
        before = "-" if choice.untuned_map is None else f"{choice.untuned_map:.4f}"
        table.add_row(
            choice.arm, trials, values, before, f"{choice.map:.4f}", str(choice.steps),
            duration(choice.seconds),
        )  # fmt: skip
    out.print(table)


def check(arguments: list[str]) -> int:
    """Say whether the arms of an experiment file rank early as they do at the end."""
    from ssdet.search.early_stopping_check import trust_of_studies, trust_of_validations
    from ssdet.studies import plan

    try:
        study, _, options = _from_file("trust", arguments, TrustOptions)
        store, full = store_of(options), plan(resolve(study, options))
        if options.short_preset is None:
            verdict = trust_of_validations(full, store)
        else:
            short = plan(resolve(study, replace(options, preset=options.short_preset)))
            verdict = trust_of_studies(short, full, store)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(verdict)
    return 0


def _from_file(name: str, arguments: list[str], kind: type[Any]) -> tuple[Study, Any, Any]:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"usage: ssdet search {name} NAME|FILE.py [options]")
    module = load(arguments[0])
    study = study_of(module)
    options = tyro.cli(kind, args=arguments[1:], prog=f"ssdet search {name} {arguments[0]}")
    return study, module, options


def _store(given: str) -> Store:
    from ssdet.studies import Store

    return Store.at(given or os.environ.get("SSDET_STORE", "runs"))


def _console() -> Console:
    """As wide as the terminal, elsewhere as wide as tables need."""
    return plain_console(200)
