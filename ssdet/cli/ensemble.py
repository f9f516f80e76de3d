"""`ssdet ensemble`: build and score an ensemble of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from ssdet.cli import shared
from ssdet.evaluation.ensembling.choices import Method, Videos
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.evaluation import BootstrapResult
    from ssdet.results.queries.ensembles import Ensemble, EnsembleResult, Query


@dataclass(frozen=True)
class Options:
    """Build an ensemble of finished runs, and compare it with its best member."""

    store: shared.StoreOption = field(default_factory=shared.default_store)
    where: tuple[str, ...] = ()
    """Only runs with these values: COLUMN=VALUE; see `ssdet results ls --json` for columns."""
    method: Method = "mean_probability"
    """How scores are combined; weighted needs --fit."""
    fit: Literal["none", "weights", "greedy"] = "none"
    """Fit weights, or select members, on the held-out split."""
    size: int | None = None
    """Maximum number of candidates: the best on the held-out split."""
    pool: bool = False
    """One ensemble of the runs of all seeds, instead of one per seed."""
    split: str = "test"
    """Split to report."""
    held_out: str = "val"
    """Split to fit and choose on."""
    protocol: str = ""
    """Name or id of the protocol that members are fitted and chosen by, and scores are of; that of
    the study with --where studies=NAME, else dense mAP."""
    videos: Videos = "equal"
    """equal: members must have the same videos; common: use the videos that every member has."""
    resamples: int = 1000
    """Bootstrap resamples of videos and seeds for intervals."""
    as_json: shared.AsJson = False


@shared.report_errors()
def command(arguments: list[str]) -> None:
    """Print members, weights and comparisons."""
    options = shared.parse(Options, arguments, "ssdet ensemble")
    from ssdet.results.queries.ensembles import Query, build
    from ssdet.results.queries.results import Results
    from ssdet.results.queries.run_frame import COLUMNS

    with shared.wrong_usage():
        where = shared.parse_values(options.where, COLUMNS)
        fit = None if options.fit == "none" else options.fit
        query = Query(
            where, options.size, options.method, fit, not options.pool, options.held_out,
            options.protocol, options.videos,
        )  # fmt: skip
    result = build(Results.open(options.store), query, options.split, None, options.resamples)
    if options.as_json:
        shared.print_json(result.to_json())
    else:
        out = plain_console(160)
        out.soft_wrap = not out.is_terminal
        show(result, out)


def show(result: EnsembleResult, out: Console) -> None:
    """Print members and comparisons; scores in percent, differences in points."""
    for ensemble in result.ensembles:
        out.print(_members(ensemble, result.query))
        out.print(_correlations(ensemble))
    out.print(_comparisons(result))
    if result.no_control:
        out.print(f"No control of equal size: {result.no_control}.")
    for note in _notes(result):
        out.print(note)


def _members(ensemble: Ensemble, query: Query) -> Table:
    seed = "all seeds" if ensemble.seed is None else f"seed {ensemble.seed}"
    fitted = (
        "" if ensemble.held_out is None else f", {100 * ensemble.held_out:.2f} on {query.held_out}"
    )
    table = Table(title=f"{seed}: {100 * ensemble.score.number:.2f}{fitted}", title_justify="left")
    for name in ("", "run", "arms", "seed"):
        table.add_column(name)
    for name in ("weight", "alone", "without it", "beside the best"):
        table.add_column(name, justify="right")
    for position, member in enumerate(ensemble.members, 1):
        gain, lost = member.gain, member.gain.leave_one_out
        table.add_row(
            str(position), member.run, ", ".join(member.arms), str(member.seed),
            f"{member.weight:.3f}", f"{100 * gain.single:.2f}",
            "" if lost is None else f"{0 - 100 * lost:+.2f}", f"{100 * gain.added_to_best:+.2f}",
        )  # fmt: skip
    return table


def _correlations(ensemble: Ensemble) -> Table:
    table = Table(title="error correlation", title_justify="left")
    table.add_column("")
    for position in range(1, len(ensemble.members) + 1):
        table.add_column(str(position), justify="right")
    for position, row in enumerate(ensemble.correlation, 1):
        table.add_row(str(position), *(f"{value:.2f}" for value in row))
    return table


def _comparisons(result: EnsembleResult) -> Table:
    table = Table(title=f"{_method(result.query)}, {result.split} split", title_justify="left")
    for name in ("", "score", "ensemble's gain", "p"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("ensemble", _mean([ensemble.score.number for ensemble in result.ensembles]))
    table.add_row(
        f"best single: {result.best_single}", _mean(result.singles), *_difference(result.gain)
    )
    if result.control is not None:
        sizes = "/".join(map(str, sorted({len(runs) for runs in result.control.runs})))
        label = f"control: {sizes} seeds of {result.best_single}"
        apart = dict(zip(result.control.runs, result.control.scores, strict=True))
        table.add_row(label, _mean([*apart.values()]), *_difference(result.control.gain))
    return table


def _method(query: Query) -> str:
    return query.method + (f", {query.fit} fitted on {query.held_out}" if query.fit else "")


def _mean(values: Sequence[float]) -> str:
    from ssdet.evaluation import mean_and_sd

    mean, sd = mean_and_sd(values)
    return f"{100 * mean:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def _difference(gain: BootstrapResult) -> tuple[str, str]:
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.difference:+.2f} [{low:+.2f}, {high:+.2f}]", f"{gain.p_value:.3g}"


def _notes(result: EnsembleResult) -> list[str]:
    score = result.ensembles[0].score
    left_out = {video for ensemble in result.ensembles for video in ensemble.left_out}
    notes = [
        f"Protocol {score.protocol}: {score.videos_scored} of {score.videos_expected} videos, "
        f"{score.frames} frames. Scores in percent; intervals: paired bootstrap, "
        f"{result.gain.resamples} resamples of videos and seeds.",
        "“without it”: the score's change when a member is left out; “beside the best”: what it "
        "adds to the best single member. The best single member is chosen in hindsight, on the "
        f"{result.split} split.",
    ]
    if left_out:
        notes.append(f"{len(left_out)} videos are left out: some member has no scores of them.")
    return notes
