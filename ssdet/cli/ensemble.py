"""`ssdet ensemble`: build an ensemble of finished runs, and judge what it is worth."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ssdet.cli.conditions import conditions
from ssdet.evaluation.ensembling.choices import Method, Videos
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.evaluation import BootstrapResult
    from ssdet.results.queries.ensembles import Ensemble, EnsembleResult, Query


@dataclass(frozen=True)
class Options:
    """Build an ensemble of finished runs, and judge what it is worth."""

    store: str = os.environ.get("SSDET_STORE", "runs")
    """Folder or file:// URI of the store (SSDET_STORE)."""
    where: tuple[str, ...] = ()
    """Only runs with these values: COLUMN=VALUE; see `ssdet results ls --json` for columns."""
    method: Method = "mean_probability"
    """How scores are combined; weighted needs --fit."""
    fit: Literal["none", "weights", "greedy"] = "none"
    """Fit weights, or select members, on the held-out split."""
    size: int | None = None
    """Only so many candidates: the best on the held-out split."""
    pool: bool = False
    """One ensemble of the runs of all seeds, instead of one a seed."""
    split: str = "test"
    """Split to report."""
    held_out: str = "val"
    """Split to fit and choose on."""
    protocol: str = ""
    """Name or id of the protocol that members are fitted and chosen by, and scores are of; that of
    the study with --where studies=NAME, else dense mAP."""
    videos: Videos = "equal"
    """common: combine the videos that every member has."""
    resamples: int = 1000
    """How often videos and seeds are drawn for intervals."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def command(arguments: list[str]) -> int:
    """Run the command; exit status 0 done, 1 failed, 2 wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet ensemble", config=config)
    from ssdet.results.queries.ensembles import Query, build
    from ssdet.results.queries.results import Results
    from ssdet.results.queries.run_frame import COLUMNS

    try:
        where = conditions(options.where, COLUMNS)
        fit = None if options.fit == "none" else options.fit
        query = Query(
            where, options.size, options.method, fit, not options.pool, options.held_out,
            options.protocol, options.videos,
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        found = build(Results.open(options.store), query, options.split, None, options.resamples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.as_json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        out = plain_console(160)
        out.soft_wrap = not out.is_terminal
        show(found, out)
    return 0


def show(found: EnsembleResult, out: Console) -> None:
    """Print members and comparisons; scores in percent, differences in points."""
    for one in found.ensembles:
        out.print(_members(one, found.query))
        out.print(_correlations(one))
    out.print(_comparisons(found))
    if found.no_control:
        out.print(f"No control of equal size: {found.no_control}.")
    for note in _notes(found):
        out.print(note)


def _members(one: Ensemble, query: Query) -> Table:
    seed = "all seeds" if one.seed is None else f"seed {one.seed}"
    fitted = "" if one.held_out is None else f", {100 * one.held_out:.2f} on {query.held_out}"
    table = Table(title=f"{seed}: {100 * one.score.number:.2f}{fitted}", title_justify="left")
    for name in ("", "run", "arms", "seed"):
        table.add_column(name)
    for name in ("weight", "alone", "without it", "beside the best"):
        table.add_column(name, justify="right")
    for position, member in enumerate(one.members, 1):
        gain, lost = member.gain, member.gain.leave_one_out
        table.add_row(
            str(position), member.run, ", ".join(member.arms), str(member.seed),
            f"{member.weight:.3f}", f"{100 * gain.single:.2f}",
            "" if lost is None else f"{0 - 100 * lost:+.2f}", f"{100 * gain.added_to_best:+.2f}",
        )  # fmt: skip
    return table


def _correlations(one: Ensemble) -> Table:
    table = Table(title="error correlation", title_justify="left")
    table.add_column("")
    for position in range(1, len(one.members) + 1):
        table.add_column(str(position), justify="right")
    for position, row in enumerate(one.correlation, 1):
        table.add_row(str(position), *(f"{value:.2f}" for value in row))
    return table


def _comparisons(found: EnsembleResult) -> Table:
    table = Table(title=f"{_method(found.query)}, {found.split} split", title_justify="left")
    for name in ("", "score", "ensemble's gain", "p"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("ensemble", _mean([one.score.number for one in found.ensembles]))
    table.add_row(
        f"best single: {found.best_single}", _mean(found.singles), *_difference(found.gain)
    )
    if found.control is not None:
        sizes = "/".join(map(str, sorted({len(runs) for runs in found.control.runs})))
        label = f"control: {sizes} seeds of {found.best_single}"
        apart = dict(zip(found.control.runs, found.control.scores, strict=True))
        table.add_row(label, _mean([*apart.values()]), *_difference(found.control.gain))
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


def _notes(found: EnsembleResult) -> list[str]:
    score = found.ensembles[0].score
    left_out = {video for one in found.ensembles for video in one.left_out}
    notes = [
        f"Protocol {score.protocol}: {score.videos_scored} of {score.videos_expected} videos, "
        f"{score.frames} frames. Scores in percent; intervals: paired bootstrap, "
        f"{found.gain.resamples} resamples of videos and seeds.",
        "“without it”: the score's change when a member is left out; “beside the best”: what it "
        "adds to the best single member. The best single member is chosen in hindsight, on the "
        f"{found.split} split.",
    ]
    if left_out:
        notes.append(f"{len(left_out)} videos are left out: some member has no scores of them.")
    return notes
