"""Ensembles by query: which runs, combined how, and what that is worth beside single runs and
beside an ensemble of equal size made of seeds of one arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation import BootstrapResult, PredictionSet, mean_and_sd
from ssdet.evaluation.average_precision import Array
from ssdet.evaluation.ensembling.alignment import Alignment, Videos, align, grid_of, same_grid
from ssdet.evaluation.ensembling.combination import METHODS, Method
from ssdet.evaluation.ensembling.selection import (
    Fit,
    MarginalGain,
    Measure,
    Targets,
    error_correlation,
    fit_weights,
    marginal_gains,
    select_greedily,
    weighted,
)
from ssdet.evaluation.protocols.registry import Material, Reading, protocol_of
from ssdet.evaluation.protocols.registry import Protocol as ScoreProtocol
from ssdet.evaluation.statistics.bootstrap import paired_difference
from ssdet.results.queries.candidates import EnsembleCandidates, candidates_of, seeds_of
from ssdet.results.queries.ensemble_cache import Stored, stored
from ssdet.store.base import Store

FITS: Mapping[str, Callable[..., Fit]] = {"weights": fit_weights, "greedy": select_greedily}


class Source(Protocol):
    """What is needed of `ssdet.results.open(uri)`; a run has `scores` and `predictions(split)`."""

    @property
    def store(self) -> Store: ...

    def where(self, **where: Any) -> pd.DataFrame: ...

    def run(self, run: str) -> Any: ...

    def truth(self, run: str, split: str = "test") -> Material: ...

    def protocol(self, where: Mapping[str, Any]) -> str: ...


@dataclass(frozen=True)
class Query:
    """Which finished runs to combine, and how."""

    where: Mapping[str, Any] = field(default_factory=dict)
    """Columns of `Results.runs` and their values, as `Results.where` takes them."""
    size: int | None = None
    """Only so many candidates, those that score best on the held-out split; all by default."""
    method: Method = "mean_probability"
    fit: Literal["weights", "greedy"] | None = None
    """Fit weights, or select members, on the held-out split."""
    per_seed: bool = True
    """One ensemble of all arms for each seed; False: one ensemble of all runs."""
    held_out: str = "val"
    protocol: str = ""
    """Name or id of the protocol by which members are fitted and chosen, and scores compared; that
    of the study that `where` names by default, else dense mAP."""
    videos: Videos = "equal"
    """Common: combine the videos that every member has, and count the others as not scored."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: choose one of {', '.join(METHODS)}")
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"fit={self.fit!r}: choose one of {', '.join(FITS)}, or None")
        if self.method == "weighted" and self.fit is None:
            raise ValueError("method='weighted' without fit: nothing says which weights")
        if self.where.get("kind") == "ensemble":
            raise ValueError("where kind=ensemble: combine the members of ensembles instead")
        if self.size is not None and self.size < 2:
            raise ValueError(f"size={self.size}: an ensemble has at least 2 members")


@dataclass(frozen=True)
class Member:
    """A candidate, its weight (0: fitted away), and what it is worth on the reported split."""

    run: str
    arms: tuple[str, ...]
    seed: int
    weight: float
    gain: MarginalGain


@dataclass(frozen=True)
class Ensemble:
    """One combination and its members."""

    seed: int | None
    """None: of all seeds together."""
    members: tuple[Member, ...]
    score: Reading
    held_out: float | None
    """Score that was fitted, on the held-out split: an optimistic number."""
    correlation: Array
    """Of the members' errors, [M, M]."""
    left_out: tuple[str, ...]
    """Videos that some member lacks."""
    folder: Path


@dataclass(frozen=True)
class Control:
    """Ensembles of equal size made of seeds of the best single arm, fitted in the same way."""

    runs: tuple[tuple[str, ...], ...]
    scores: tuple[float, ...]
    gain: BootstrapResult
    """Of the query's ensembles over these."""


@dataclass(frozen=True)
class EnsembleResult:
    """Ensembles of a query with what they are compared with; scores are fractions."""

    query: Query
    split: str
    ensembles: tuple[Ensemble, ...]
    best_single: str
    """Arm of the best single member, by its mean over the ensembles on the reported split: a
    choice in hindsight, which can only favour the single member."""
    singles: tuple[float, ...]
    gain: BootstrapResult
    """Of the ensembles over the best single member."""
    control: Control | None
    no_control: str
    """Why there is no control; empty where there is one."""

    @property
    def mean(self) -> float:
        return mean_and_sd([one.score.number for one in self.ensembles])[0]

    @property
    def sd(self) -> float | None:
        return mean_and_sd([one.score.number for one in self.ensembles])[1]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; a correlation that is not defined is None."""
        told = {**asdict(self), "mean": self.mean, "sd": self.sd}
        told["query"]["where"] = dict(self.query.where)
        for one in told["ensembles"]:
            matrix = one["correlation"].tolist()
            one["correlation"] = [[r if np.isfinite(r) else None for r in row] for row in matrix]
            one["folder"] = str(one["folder"])
        return told


def build(
    results: Source,
    query: Query,
    split: str = "test",
    folder: str | Path | None = None,
    resamples: int = 1000,
) -> EnsembleResult:
    """Combine the runs that a query asks for, and compare with single runs and with seeds alone.

    Predictions are kept in ``folder``, by default `ensembles` in the store. Raises ValueError
    where the query leaves fewer than two members, seeds have other arms, runs differ in protocol
    or data, members do not fit (see `align`), or where something would be fitted or chosen on
    the split that is reported.
    """
    if split == query.held_out and (query.fit or query.size):
        raise ValueError(
            f"split={split!r} is the one that members are fitted or chosen on: report another"
        )
    teams = candidates_of(results.where(**{"kind": "single", **query.where}), query.per_seed)
    _check_setting(teams)
    place = Path(folder or results.store.root / "ensembles")
    protocol = protocol_of(query.protocol or results.protocol(query.where))
    query = replace(query, protocol=protocol.id)
    work = _Workshop(results, query, protocol, split, place, anchor=teams[0].runs[0])
    if query.size:
        kept = work.best_on_held_out(teams, query.size)
        teams = [team.keep(kept) for team in teams]
    made = [work.made(team.runs) for team in teams]
    ensembles = tuple(work.judged(team, one) for team, one in zip(teams, made, strict=True))
    singles = np.array([[m.gain.single for m in one.members] for one in ensembles])
    best = int(singles.mean(axis=0).argmax())
    stars = [work.alone(one, best) for one in made]
    gain = work.gain(stars, made, resamples)
    control, why = _control(work, teams, best, made, resamples)
    return EnsembleResult(
        query, split, ensembles, teams[0].label(best), tuple(singles[:, best].tolist()), gain,
        control, why,
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """Runs combined on the reported split."""

    runs: tuple[str, ...]
    aligned: Alignment
    fit: Fit | None
    stored: Stored

    @property
    def used(self) -> list[str]:
        """Runs that have a weight."""
        weights = self.fit.weights if self.fit else [1.0] * len(self.runs)
        return [run for run, weight in zip(self.runs, weights, strict=True) if weight]


@dataclass
class _Workshop:
    """Makes combinations of runs of one store, each once."""

    results: Source
    query: Query
    protocol: ScoreProtocol
    split: str
    place: Path
    anchor: str
    """A run whose videos all others share."""
    _truths: dict[str, Material] = field(default_factory=dict)
    _made: dict[tuple[str, ...], _Made] = field(default_factory=dict)

    def material(self, split: str) -> Material:
        """What predictions of a split are scored against."""
        if split not in self._truths:
            self._truths[split] = self.results.truth(self.anchor, split)
        return self._truths[split]

    def truth(self, split: str) -> Targets:
        """Labels of a split."""
        labels: Any = self.material(split).labels
        return labels

    def reading(self, predictions: PredictionSet, split: str) -> Reading:
        """Score of a prediction set."""
        return self.protocol.reading(replace(self.material(split), predictions=predictions))

    def measure(self, split: str) -> Measure | None:
        """What members are judged by, beside dense mAP, which needs no prediction set."""
        if self.protocol.id == DENSE:
            return None
        return lambda predictions: self.reading(predictions, split).number

    def aligned(self, runs: Sequence[str], split: str) -> Alignment:
        """Runs on the frames that are labelled, which one of them at least must have."""
        sets = [self.results.run(run).predictions(split) for run in runs]
        truth = self.truth(split)
        for one in sets:
            if all(video in truth and len(truth[video]) == one.frames(video) for video in one):
                return align(sets, grid_of(one), self.query.videos)
        raise ValueError(
            f"{split}: no member has the frames that are labelled: add one that was predicted at "
            "the rate of the labels"
        )

    def best_on_held_out(self, teams: Sequence[EnsembleCandidates], size: int) -> list[int]:
        """Positions of the candidates with the highest mean score on the held-out split."""
        if size > len(teams[0].rows):
            raise ValueError(f"size={size}: only {len(teams[0].rows)} candidates fit the query")
        scores = np.array([[self._held_out(run) for run in team.runs] for team in teams])
        return sorted(np.argsort(-scores.mean(axis=0), kind="stable")[:size].tolist())

    def _held_out(self, run: str) -> float:
        scores = self.results.run(run).scores
        if self.query.held_out not in scores:
            raise ValueError(f"{run} has no score on {self.query.held_out!r}, only on {[*scores]}")
        if (measure := self.measure(self.query.held_out)) is not None:
            return measure(self.results.run(run).predictions(self.query.held_out))
        return float(scores[self.query.held_out]["value"])

    def made(self, runs: Sequence[str]) -> _Made:
        """These runs combined as the query says."""
        if (key := tuple(runs)) not in self._made:
            aligned, query, fit = self.aligned(runs, self.split), self.query, None
            if query.fit is not None:
                held_out = self.aligned(runs, query.held_out)
                truth, measure = self.truth(query.held_out), self.measure(query.held_out)
                fit = FITS[query.fit](held_out, truth, query.method, score=measure)
                fit.check_unseen(set(aligned.grid))
            self._made[key] = _Made(key, aligned, fit, self._stored(runs, aligned, fit))
        return self._made[key]

    def _stored(self, runs: Sequence[str], aligned: Alignment, fit: Fit | None) -> Stored:
        method = weighted(self.query.method) if fit else self.query.method
        weights = fit.weights if fit else None
        return stored(self.place, runs, aligned, self.split, method, weights)

    def judged(self, team: EnsembleCandidates, made: _Made) -> Ensemble:
        """An ensemble with what its members are worth."""
        truth, fit = self.truth(self.split), made.fit
        weights = fit.weights if fit else (1 / len(made.runs),) * len(made.runs)
        measure = self.measure(self.split)
        gains = marginal_gains(made.aligned, truth, self.query.method, weights, measure)
        score = self.reading(made.stored.predictions, self.split)
        members = tuple(
            Member(row["id"], tuple(row["arms"]), int(row["seed"]), weight, gain)
            for row, weight, gain in zip(team.rows, weights, gains, strict=True)
        )
        return Ensemble(
            team.seed, members, score, fit.score if fit else None,
            error_correlation(made.aligned, truth), made.aligned.left_out, made.stored.folder,
        )  # fmt: skip

    def alone(self, made: _Made, position: int) -> PredictionSet:
        """Scores of one member on the frames of the ensemble."""
        member, grid = made.aligned.members[position], made.aligned.grid
        own = grid_of(member)
        if all(video in own and same_grid(own[video], row) for video, row in grid.items()):
            return member
        aligned = align([member], grid, "common")
        run = [made.runs[position]]
        return stored(self.place, run, aligned, self.split, "mean_probability", None).predictions

    def gain(
        self, others: Sequence[PredictionSet], made: Sequence[_Made], resamples: int
    ) -> BootstrapResult:
        """Of the ensembles over others, over the videos that all of them have."""
        ours = [one.stored.predictions for one in made]
        videos = [v for v in ours[0] if all(v in scores for scores in [*ours, *others])]
        truth, same = self.material(self.split), {video: video for video in videos}
        sides = [
            [self.protocol.statistic(replace(truth, predictions=one).drawn(same)) for one in side]
            for side in (others, ours)
        ]
        return paired_difference(sides[0], sides[1], resamples)


def _control(
    work: _Workshop,
    teams: Sequence[EnsembleCandidates],
    best: int,
    made: Sequence[_Made],
    resamples: int,
) -> tuple[Control | None, str]:
    """Seeds of the best single arm, as many as each ensemble uses; else why there are none."""
    star, names = teams[0].rows[best], teams[0].names[best]
    label = teams[0].label(best)
    try:
        seeds = seeds_of(work.results.where(kind=star["kind"]), star, names)
    except ValueError as error:
        return None, str(error)
    size = max(len(one.used) for one in made)
    if len(seeds) < size:
        return None, f"{size} seeds of {label} are needed, {len(seeds)} are finished"
    controls = []
    for team, one in zip(teams, made, strict=True):
        own = int(team.rows[best]["seed"])
        turned = [s for s in seeds if s >= own] + [s for s in seeds if s < own]
        controls.append(work.made(sorted(seeds[seed] for seed in turned[: len(one.used)])))
    if all({*one.runs} == {*other.used} for one, other in zip(controls, made, strict=True)):
        return None, f"the members are seeds of {label}: this is what seeds alone give"
    gain = work.gain([one.stored.predictions for one in controls], made, resamples)
    readings = (work.reading(one.stored.predictions, work.split) for one in controls)
    scores = tuple(one.number for one in readings)
    return Control(tuple(one.runs for one in controls), scores, gain), ""


def _check_setting(teams: Sequence[EnsembleCandidates]) -> None:
    """Runs that were scored on other videos are not combined."""
    rows = [row for team in teams for row in team.rows]
    if len(data := {row["data"] for row in rows}) > 1:
        raise ValueError(
            f"runs were scored on other videos (data {', '.join(sorted(map(str, data)))}): say "
            "which with data="
        )
