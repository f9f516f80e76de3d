"""`ssdet search`: list and show searches, tune arms, check early stopping."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ssdet.cli import shared
from ssdet.cli.experiment import Options, main, resolve, store_of
from ssdet.cli.experiment_files import load, study_of
from ssdet.cli.streams import standard_streams
from ssdet.system.console import duration, plain_console
from ssdet.system.quiet import quiet_dependencies

if TYPE_CHECKING:
    from ssdet.execution.tuning import Choice
    from ssdet.search.trials import SearchResult, Trial
    from ssdet.studies import Search, Store, Study

Scheduler = Literal["none", "asha", "median"]
MEANS = ("address", "workers", "gpus_per_worker", "concurrent", "loaders", "decoders")
"""Options on where and how trials run."""


@dataclass(frozen=True)
class SearchOptions(Options):
    """Options of a search."""

    name: str | None = None
    """Name of the search in the store, instead of the file's; a name belongs to one declaration."""
    trials: int | None = None
    """Total number of trials, earlier ones included, instead of the file's."""
    scheduler: Scheduler | None = None
    """Scheduler that stops trials early by their validations, instead of the file's."""
    seed: int | None = None
    """Seed of the proposals and of every trial's training, instead of the file's."""
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
    """Trials of each arm, instead of 10 or the number in the file's TUNING."""
    scheduler: Scheduler | None = None
    """Scheduler that stops trials early by their validations, instead of the file's."""
    tuning_seed: int | None = None
    """Seed of proposals and of training in the trials, none of the study's, instead of 1000 or the
    file's."""
    dry_run: tyro.conf.Suppress[bool] = False
    assume: tyro.conf.Suppress[str | None] = None


@dataclass(frozen=True)
class TrustOptions(Options):
    """Options of the trust check: those of the experiment, and:"""

    short_preset: str | None = None
    """Preset with a shorter schedule to compare with; by default the first validation of
    fine-tuning is compared with the last."""


@shared.report_errors()
def command(arguments: list[str]) -> int:
    """Run one of the subcommands; return the exit status."""
    for name, function in (("tune", tune), ("trust", check)):
        if arguments[:1] == [name]:
            return function(arguments[1:])
    description = f"{__doc__} Also: tune NAME|FILE.py, trust NAME|FILE.py."
    return shared.run_subcommand({"ls": ls, "show": show}, arguments, "ssdet search", description)


def search_experiment(search: Search, arguments: list[str] | None = None) -> None:
    """Run a search from the command line and exit: 0 done, 1 failed, 2 wrong usage, 130
    interrupted."""
    with standard_streams():
        options = shared.parse(SearchOptions, arguments, f"{search.name}.py", search.title)
        sys.exit(main_search(search, options))


@quiet_dependencies()
@shared.report_errors(interrupted=shared.RESUMABLE)
def main_search(search: Search, options: SearchOptions, console: Console | None = None) -> int:
    """Run a search with these options; return the exit status, 1 where no trial finished."""
    from ssdet.cli.plan import Trials, assumed, show_plan
    from ssdet.execution.session import folder_for_ray
    from ssdet.studies import plan

    out = console or plain_console(200)
    with shared.wrong_usage():
        assumed(options)
        if not options.dry_run:
            folder_for_ray(options.address)
        search, study = _resolved(search, options)
        store = store_of(options)
        if options.dry_run:
            trials = Trials(search.trials, _left(search, store), search.scheduler)
            show_plan(plan(study), store, options, out, trials)
            return 0
    from ssdet.execution.search_driver import run_search

    result = run_search(search, store, **_means(options))
    report(result, out)
    result.best()
    return 0


def _means(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in MEANS}


def _resolved(search: Search, options: SearchOptions) -> tuple[Search, Study]:
    """The search with the values of the options, and a study of its base alone."""
    from ssdet.studies import Arm, Study

    study = resolve(Study(search.name, (Arm("base", search.change),)), options)
    assert study.base is not None
    study = replace(study, base=replace(study.base, probe=None))
    search = replace(
        search,
        base=study.base,
        data=study.data,
        change=study.arms[0].change,
        name=options.name or search.name,
        protocol=options.protocol or search.protocol,
        seed=search.seed if options.seed is None else options.seed,
    )
    return _with_trials(search, options), study


def _with_trials(declared: Any, options: SearchOptions | TuneOptions) -> Any:
    """A search or a tuning with the options' number of trials and scheduler, where given."""
    if options.trials is not None:
        declared = replace(declared, trials=options.trials)
    if options.scheduler is not None:
        scheduler = None if options.scheduler == "none" else options.scheduler
        declared = replace(declared, scheduler=scheduler)
    return declared


def _left(search: Search, store: Store) -> int:
    """Number of trials still to run."""
    from ssdet.search.trials import ENDED, result, searches

    trials = result(store, search.name).trials if search.name in searches(store) else ()
    return max(0, search.trials - sum(trial.state in ENDED for trial in trials))


def ls(store: shared.StoreOption = "", as_json: shared.AsJson = False) -> None:
    """List the searches of a store."""
    from ssdet.search.trials import result, searches

    opened = _open(store)
    results = [result(opened, name) for name in searches(opened)]
    if as_json:
        shared.print_json([{"name": found.name, "trials": found.counts()} for found in results])
        return
    rows = []
    for found in results:
        ranked = found.ranked()
        best = f"{ranked[0].values['map']:.4f}" if ranked else "-"
        rows.append([found.name, counted(found), found.protocol, best])
    shared.print_table(("search", "trials", "protocol", "best map"), rows)


def show(
    name: shared.Name, store: shared.StoreOption = "", top: int = 10, as_json: shared.AsJson = False
) -> None:
    """Show a search: best trials, Pareto set, failures, importance of parameters."""
    from ssdet.search.trials import result

    found = result(_open(store), name)
    if not as_json:
        report(found, plain_console(200), top)
        return
    shared.print_json({
        "name": found.name,
        "counts": found.counts(),
        "trials": [asdict(trial) for trial in found.trials],
        "pareto": [trial.number for trial in found.pareto()],
        "importance": found.importance(),
    })  # fmt: skip


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
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importance.items())
        out.print(f"share of the variance of map (fANOVA): {shares}", soft_wrap=True)
    else:
        out.print("importance: too few finished trials")
    finished = [trial for trial in found.ranked() if len(trial.rungs) > 1]
    if len(finished) > 1:
        out.print(f"first validation against result: {trust_of_search(found)}", soft_wrap=True)
    advice = "scores are of the validation split, one seed each: run the best as arms of a study"
    out.print(f"map: {found.protocol}", soft_wrap=True)
    out.print(advice, soft_wrap=True)
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


@shared.report_errors(interrupted=shared.RESUMABLE)
def tune(arguments: list[str]) -> int:
    """Tune nuisance parameters of each arm of an experiment file, then run its seeds with and
    without them."""
    from ssdet.execution.session import folder_for_ray
    from ssdet.execution.tuning import Tuning, choices, tuned

    with shared.wrong_usage(ValueError, OSError):
        study, module, options = _from_file("tune", arguments, TuneOptions)
        tuning = _with_trials(getattr(module, "TUNING", Tuning()), options)
        if options.tuning_seed is not None:
            tuning = replace(tuning, seed=options.tuning_seed)
        folder_for_ray(options.address)
        store, study = store_of(options), resolve(study, options)
    both = tuned(study, store, tuning, **_means(options))
    show_choices(choices(store, study.name), plain_console(200))
    return main(both, replace(options, arms=()))


def show_choices(chosen: list[Choice], out: Console) -> None:
    """Print the values that tuning chose for each arm, and its budget."""
    from ssdet.search.progress import shown

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


@shared.report_errors()
@shared.wrong_usage(ValueError, OSError)
def check(arguments: list[str]) -> None:
    """Print whether the arms of an experiment file rank early as they do at the end."""
    from ssdet.search.early_stopping_check import trust_of_studies, trust_of_validations
    from ssdet.studies import plan

    study, _, options = _from_file("trust", arguments, TrustOptions)
    store, full = store_of(options), plan(resolve(study, options))
    if options.short_preset is None:
        print(trust_of_validations(full, store))
    else:
        short = plan(resolve(study, replace(options, preset=options.short_preset)))
        print(trust_of_studies(short, full, store))


def _from_file(name: str, arguments: list[str], kind: type[Any]) -> tuple[Study, Any, Any]:
    """Study, module and options from an experiment file and its arguments."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"usage: ssdet search {name} NAME|FILE.py [options]")
    module = load(arguments[0])
    study = study_of(module)
    options = shared.parse(kind, arguments[1:], f"ssdet search {name} {arguments[0]}")
    return study, module, options


def _open(store: str) -> Store:
    from ssdet.studies import Store

    return Store.at(store or shared.default_store())
