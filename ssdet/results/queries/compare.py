"""Two arms side by side, of one study or of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssdet.evaluation import BootstrapResult
from ssdet.evaluation.statistics.bootstrap import paired_difference
from ssdet.results.queries.run_frame import SETTING, text
from ssdet.results.tables.result_table import READOUTS
from ssdet.studies.graph.record import StudyRecord
from ssdet.studies.scoring import Scoring

if TYPE_CHECKING:
    from ssdet.results.queries.results import Results, Run


@dataclass(frozen=True)
class Comparison:
    """Arm b against arm a over the seeds and videos that both have."""

    arm_a: str
    arm_b: str
    study_a: str
    study_b: str
    readout: str
    seeds: tuple[int, ...]
    mean_a: float
    mean_b: float
    """Mean over these seeds, a fraction."""
    bootstrap: BootstrapResult
    """Difference b - a with its interval."""
    protocol: str
    videos_scored: int
    videos_expected: int


def compare(
    results: "Results", arm_a: str, arm_b: str, study: str | None, readout: str, resamples: int
) -> Comparison:
    """See `Results.compare`."""
    if readout not in READOUTS:
        raise ValueError(f"readout {readout!r}: choose from {', '.join(READOUTS)}")
    record_a, record_b = _resolved(results, arm_a, arm_b, study)
    every_a = _finished(results, record_a, arm_a, readout)
    every_b = _finished(results, record_b, arm_b, readout)
    by_seed_a, by_seed_b = _against_all(every_a, every_b), _against_all(every_b, every_a)
    seeds = sorted(by_seed_a.keys() & by_seed_b.keys())
    if not seeds:
        raise ValueError(f"{arm_a!r} and {arm_b!r} have no finished seed in common")
    runs_a, runs_b = ([by_seed[seed] for seed in seeds] for by_seed in (by_seed_a, by_seed_b))
    _check(arm_a, arm_b, [*runs_a, *runs_b])
    scoring = _scoring(results, record_a, record_b)
    sides = [[scoring.statistic(run.id) for run in runs] for runs in (runs_a, runs_b)]
    found = paired_difference(sides[0], sides[1], resamples)
    readings = [[scoring.reading(run.id) for run in runs] for runs in (runs_a, runs_b)]
    mean_a, mean_b = (float(np.mean([one.number for one in side])) for side in readings)
    first = readings[0][0]
    return Comparison(
        arm_a, arm_b, record_a.name, record_b.name, readout, tuple(seeds), mean_a, mean_b, found,
        first.protocol, first.videos_scored, first.videos_expected,
    )  # fmt: skip


def _scoring(results: "Results", record_a: StudyRecord, record_b: StudyRecord) -> Scoring:
    """Scores under the protocol of both studies; ValueError where they have two."""
    study = record_a.plan().study
    if study.protocol != (other := str(record_b.study["protocol"])):
        raise ValueError(
            f"study {study.name!r} is scored by {study.protocol}, {record_b.name!r} by {other}: "
            "plan one of them with the protocol of the other"
        )
    return Scoring.of(results.store, study.data, study.protocol)


def _resolved(
    results: "Results", arm_a: str, arm_b: str, study: str | None
) -> tuple[StudyRecord, StudyRecord]:
    """The studies that two arms belong to; the same one where one has both."""
    newest = {record.name: record for record in reversed(results.records)}
    records = list(newest.values()) if study is None else [results.record(study)]
    with_a, with_b = (
        [record for record in records if any(one["name"] == arm for one in record.arms)]
        for arm in (arm_a, arm_b)
    )
    if both := [record for record in with_a if record in with_b]:
        with_a = with_b = both
    return _only(arm_a, with_a, study), _only(arm_b, with_b, study)


def _only(arm: str, records: Sequence[StudyRecord], study: str | None) -> StudyRecord:
    """The study of an arm; any of those that give it the same runs and protocol."""
    choices = {text([record.scoring_stages(arm), record.study["protocol"]]) for record in records}
    if len(choices) == 1:
        return records[0]
    if not records:
        where = "no study that ran here" if study is None else f"study {study!r}"
        raise ValueError(f"{where} has an arm {arm!r}" if study is None else f"{where}: no {arm!r}")
    names = ", ".join(sorted(record.name for record in records))
    raise ValueError(
        f"arm {arm!r} stands for other runs or scores in each of {names}: say which study"
    )


def _finished(results: "Results", record: StudyRecord, arm: str, readout: str) -> dict[int, "Run"]:
    finals, runs = record.scoring_stages(arm, readout), results.table_of_runs.places
    return {seed: results.run(stage) for seed, stage in finals.items() if stage in runs}


def _against_all(runs: dict[int, "Run"], others: dict[int, "Run"]) -> dict[int, "Run"]:
    """One ensemble of all seeds, once for every seed of the other arm."""
    alone = len(runs) == 1 and next(iter(runs.values())).kind == "ensemble"
    return dict.fromkeys(others, *runs.values()) if alone and others else runs


def _check(arm_a: str, arm_b: str, runs: Sequence["Run"]) -> None:
    for name in SETTING:
        values = {run.row[name] for run in runs}
        if len(values) > 1:
            told = " and ".join(sorted(map(str, values)))
            raise ValueError(
                f"{arm_a!r} and {arm_b!r} differ in {name} ({told}): they are not compared"
            )
