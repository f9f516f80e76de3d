"""State of a running study, read from its store: stages, scores so far, time left."""

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ssdet.results.watching.stage_status import StageStatus, stamp, status_source
from ssdet.store.base import Store
from ssdet.store.remote import RemoteStore
from ssdet.studies.graph.record import StudyRecord, parse_record, read_record

STATES = ("done", "running", "waiting", "blocked", "gone", "failed")
"""As in `ssdet.results.watching.stage_status`; a blocked stage waits for one that has failed."""
FIGURES = ("step", "steps", "loss", "clips_per_second", "validation")
VALIDATED = ("finetune", "fit_head")
"""Kinds of stages whose validation score estimates the arm's score."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class StageNow:
    """One stage of a study."""

    id: str
    kind: str
    arms: tuple[str, ...]
    """Titles of the arms that use it."""
    seed: int
    state: str
    """One of `STATES`."""
    attempts: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    """Latest values of `FIGURES` from its last attempt."""
    worked: float | None = None
    """Seconds of work: total of a finished stage, else until now."""
    seen: float | None = None
    """Epoch seconds of the last sign of life."""
    host: str = ""
    error: str = ""
    """First line of the error of a failed stage."""
    note: str = ""
    score: float | None = None
    """Dense mAP of the test videos, of a finished stage that has one."""


@dataclass(frozen=True)
class ArmNow:
    """One arm of a study."""

    name: str
    title: str
    seeds: tuple[int, ...]
    scores: Mapping[int, float]
    """Dense mAP of the test videos by finished seed, a fraction."""
    validation: Mapping[int, float]
    """Latest score of the validation videos by seed in training."""

    @property
    def mean(self) -> float | None:
        """Mean score of finished seeds; None without any."""
        return math.fsum(self.scores.values()) / len(self.scores) if self.scores else None


@dataclass(frozen=True)
class StudyNow:
    """A study at one moment."""

    study: str
    store: str
    plan: str
    stages: tuple[StageNow, ...]
    arms: tuple[ArmNow, ...]
    left: float | None
    """Estimated seconds until the end; None where no stage runs or none has finished."""
    uncounted: tuple[str, ...]
    """Kinds of stages that `left` excludes, since none of them has finished."""
    problems: tuple[str, ...]
    """Files that cannot be read, with reasons."""

    @property
    def counts(self) -> dict[str, int]:
        """Stages by state."""
        counts = Counter(stage.state for stage in self.stages)
        return {state: counts[state] for state in STATES}

    @property
    def retries(self) -> int:
        """Attempts beyond the first, of all stages."""
        return sum(max(0, stage.attempts - 1) for stage in self.stages)

    @property
    def over(self) -> bool:
        """Whether no stage can still run: all are done, have failed, or need a failed one."""
        return {stage.state for stage in self.stages} <= {"done", "failed", "blocked"}

    def of(self, state: str) -> list[StageNow]:
        """Stages in a state."""
        return [stage for stage in self.stages if stage.state == state]

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the current time."""
        arms = [{**asdict(arm), "mean": arm.mean} for arm in self.arms]
        more = {"counts": self.counts, "retries": self.retries, "over": self.over}
        return {**asdict(self), "arms": arms, **more, "time": time.time()}


class Watcher:
    """Reads the state of one study of a store repeatedly.

    Without a name it is the study that was started last. FileNotFoundError where there is no
    store, ValueError where it has no such study.
    """

    def __init__(self, store: str | os.PathLike[str], study: str = "") -> None:
        self.store = Store.at(store)
        if not self.store.exists():
            raise FileNotFoundError(f"no store in {self.store.uri}: it has no folder 'stages'")
        self._source = status_source(self.store)
        self._records: dict[str, tuple[Any, StudyRecord | str]] = {}
        self.study = study or self._newest("")[0].name
        self._newest(self.study)

    def look(self) -> StudyNow:
        """Current state of the study. OSError where the store cannot be read."""
        record, problems = self._newest(self.study)
        self._source.prepare(record.stages)
        stages = _planned(record)
        for name, now in stages.items():
            try:
                now = _stage(now, self._source.find(name, record.written), problems)
            except OSError as error:
                problems.append(f"{name} cannot be read: {error}")
            parents = {stages[parent].state for parent in record.stages[name]["parents"]}
            blocked = now.state == "waiting" and parents & {"failed", "blocked"}
            stages[name] = replace(now, state="blocked") if blocked else now
        left, uncounted = _study_left(record, stages)
        return StudyNow(
            clean(self.study), self.store.uri, record.digest, tuple(stages.values()),
            tuple(_arms(record, stages)), left, uncounted, tuple(map(clean, problems)),
        )  # fmt: skip

    def _newest(self, study: str) -> tuple[StudyRecord, list[str]]:
        """The latest record of a study or of all, and reasons why others are left out."""
        listed = self._listed()
        names = [name for name in listed if study in ("", name.split("/")[1])]
        for name in names:
            if name not in self._records or self._records[name][0] != listed[name]:
                self._records[name] = listed[name], self._read(name)
        read = [self._records[name][1] for name in names]
        records = [record for record in read if isinstance(record, StudyRecord)]
        problems = [f"left out: {reason}" for reason in read if isinstance(reason, str)]
        if not records:
            studies = ", ".join(sorted({name.split("/")[1] for name in listed})) or "none"
            wanted = f"of study {study!r}" if study else "of any study"
            error = f"no record {wanted} in {self.store.uri}; of: {studies}"
            raise ValueError(clean("\n".join([error, *problems])))
        return max(records, key=lambda record: (record.written, record.digest)), problems

    def _listed(self) -> dict[str, Any]:
        """Names of records, each with a stamp of its version."""
        if isinstance(self.store, RemoteStore):
            files = self.store.remote.list("studies", deep=True)
            is_record = re.compile(r"studies/[^/]+/[^/]+\.json").fullmatch
            return {name: version for name, version in files.items() if is_record(name)}
        root = self.store.root
        paths = sorted(self.store.studies.glob("*/*.json"))
        return {str(path.relative_to(root)): when for path in paths if (when := stamp(path))}

    def _read(self, name: str) -> StudyRecord | str:
        try:
            if isinstance(self.store, RemoteStore):
                return parse_record(self.store.remote.read(name))
            return read_record(self.store.root / name)
        except (ValueError, FileNotFoundError) as error:
            return f"{name}: {error}"


def clean(text: str) -> str:
    """Text without control characters."""
    return CONTROL.sub(" ", text)


def _planned(record: StudyRecord) -> dict[str, StageNow]:
    """All stages of a plan, as waiting."""
    titles = {arm["name"]: _title(arm) for arm in record.arms}
    arms: dict[str, dict[str, None]] = {name: {} for name in record.stages}
    seeds: dict[str, int] = {}

    def visit(name: str, arm: str, seed: int) -> None:
        arms[name][titles[arm]] = None
        seeds.setdefault(name, seed)
        if record.stages[name]["kind"] != "ensemble":
            for parent in record.stages[name]["parents"]:
                visit(parent, arm, seed)

    for run in record.runs:
        for name in filter(None, (run.predict, run.probe)):
            visit(name, run.arm, run.seed)
    return {
        name: StageNow(name, stage["kind"], tuple(arms[name]), seeds.get(name, 0), "waiting")
        for name, stage in record.stages.items()
    }


def _title(arm: Mapping[str, Any]) -> str:
    return clean(str(arm.get("title") or arm["name"]))


def _stage(now: StageNow, status: StageStatus, problems: list[str]) -> StageNow:
    """State of a stage from its files; damaged files are added to `problems`."""

    def content(name: str) -> dict[str, Any]:
        values = _object(status.files.get(name, b"{}"))
        if values is None:
            problems.append(f"{now.id}/{name} is damaged: expected a JSON object")
        return values or {}

    host, note = clean(status.host), clean(status.note)
    now = replace(now, state=status.state, seen=status.seen, host=host, note=note)
    if status.state == "done":
        return _finished(now, content("provenance.json"), _object(status.files.get("DONE", b"")))
    attempt, figures = content("attempt.json"), _latest(status.files.get("metrics.jsonl", b""))
    if figures is None:
        problems.append(f"{now.id}/metrics.jsonl is damaged: no line of it can be read")
    started, before = number(attempt.get("started")), number(attempt.get("before")) or 0.0
    until = time.time() if status.state == "running" else status.seen or 0.0
    return replace(
        now,
        attempts=int(number(attempt.get("number")) or 0),
        figures=figures or {},
        worked=None if started is None else before + max(0.0, until - started),
        host=now.host or clean(str(attempt.get("host", ""))),
        error=_reason(status) if status.state == "failed" else "",
    )


def _finished(now: StageNow, provenance: Mapping[str, Any], result: Any) -> StageNow:
    if result is None:
        error = f"{now.id}/DONE is damaged: remove the folder, and it runs again"
        return replace(now, state="failed", error=error)
    score = result
    for name in ("scores", "test", "value"):
        score = score.get(name) if isinstance(score, Mapping) else None
    return replace(
        now,
        attempts=int(number(provenance.get("attempts")) or 1),
        worked=number(provenance.get("seconds")),
        host=clean(str(provenance.get("host", ""))),
        score=number(score),
    )


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None


def _latest(log: bytes) -> dict[str, float] | None:
    """The last value of each of `FIGURES`; None where all lines are damaged. The last line may be
    half written."""
    lines = [_object(line) for line in log.split(b"\n")[:-1] if line]
    if lines and not any(lines):
        return None
    latest: dict[str, float] = {}
    for line in filter(None, lines):
        values = {name: number(line.get(name)) for name in FIGURES}
        latest |= {name: value for name, value in values.items() if value is not None}
    return latest


def _reason(status: StageStatus) -> str:
    """First line of the error, after the frames of the last traceback."""
    text = status.files.get("error.txt", b"").decode(errors="replace")
    last = text.rpartition("Traceback (most recent call last):")[2]
    lines = [line for line in last.splitlines() if line.strip() and not line.startswith(" ")]
    return clean(lines[0] if lines else status.note or "error.txt is empty")[:500]


def _arms(record: StudyRecord, stages: Mapping[str, StageNow]) -> Iterator[ArmNow]:
    """Arms with runs; an arm may need a network that is not implemented."""
    with_runs = {run.arm for run in record.runs}
    for arm in (arm for arm in record.arms if arm["name"] in with_runs):
        scores, validation, finals = {}, {}, record.finals(arm["name"])
        for seed, final in finals.items():
            if (score := stages[final].score) is not None:
                scores[seed] = score
            for parent in record.stages[final]["parents"]:
                now = stages[parent]
                if now.kind in VALIDATED and now.state == "running" and "validation" in now.figures:
                    validation[seed] = now.figures["validation"]
        yield ArmNow(clean(str(arm["name"])), _title(arm), tuple(finals), scores, validation)


def _study_left(
    record: StudyRecord, stages: Mapping[str, StageNow]
) -> tuple[float | None, tuple[str, ...]]:
    """Seconds until all possible stages are done, with as many at once as run now, and the kinds
    that are left out because none of them has finished."""
    times: dict[str, list[float]] = {}
    for now in stages.values():
        if now.state == "done" and now.worked is not None:
            times.setdefault(now.kind, []).append(now.worked)
    typical = {kind: math.fsum(values) / len(values) for kind, values in times.items()}
    work, ends, unknown = [], dict[str, float](), dict[str, None]()
    for name, now in stages.items():
        seconds = _seconds_left(now, typical.get(now.kind))
        if seconds is None:
            unknown[now.kind] = None
        work.append(seconds or 0.0)
        before = (ends[parent] for parent in record.stages[name]["parents"])
        ends[name] = max(before, default=0.0) + work[-1]
    at_once = sum(now.state == "running" for now in stages.values())
    if not at_once or not any(work):
        return None, tuple(unknown)
    return max(math.fsum(work) / at_once, *ends.values()), tuple(unknown)


def _seconds_left(now: StageNow, typical: float | None) -> float | None:
    """Seconds of work that a stage still needs; None where unknown."""
    if now.state in ("done", "failed", "blocked"):
        return 0.0
    step, steps = now.figures.get("step", 0.0), now.figures.get("steps", 0.0)
    share = min(1.0, max(0.0, step / steps)) if steps > 0 else 0.0
    if typical is not None:
        if share or now.state != "running":
            return typical * (1 - share)
        return max(0.0, typical - (now.worked or 0.0))
    if now.state == "running" and share and now.worked:
        return now.worked * (1 - share) / share
    return None
