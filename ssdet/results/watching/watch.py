"""A study while it runs, as its store shows it: what each stage does, scores so far, time left."""

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ssdet.results.watching.stage_status import StageStatus, StatusSource
from ssdet.store.base import Store
from ssdet.studies.graph.record import StudyRecord, named_record

STATES = ("done", "running", "waiting", "blocked", "gone", "failed")
"""As in `signs`; a blocked stage waits for one that has failed."""
FIGURES = ("step", "steps", "loss", "clips_per_second", "validation")
VALIDATED = ("finetune", "fit_head")
"""Kinds of stages whose validation score is what the arm's own will be."""
RECORD = re.compile(r"studies/[^/]+/[^/]+\.json")
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
    """The latest of `FIGURES` that its last attempt has told."""
    worked: float | None = None
    """Seconds of work: of a finished stage in all, else until now."""
    seen: float | None = None
    """Epoch seconds of the last sign of life."""
    host: str = ""
    error: str = ""
    """First line of why it failed."""
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
    """Latest score of the validation videos by seed that is being trained."""

    @property
    def mean(self) -> float | None:
        """Mean over finished seeds."""
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
    """Seconds until all that can run is done; None where nothing runs, or nothing is known."""
    uncounted: tuple[str, ...]
    """Kinds of stages that `left` leaves out: none of them has finished."""
    problems: tuple[str, ...]
    """What cannot be read, and why."""

    @property
    def counts(self) -> dict[str, int]:
        """Stages by state."""
        found = Counter(stage.state for stage in self.stages)
        return {state: found[state] for state in STATES}

    @property
    def retries(self) -> int:
        """Attempts beyond the first, of all stages."""
        return sum(max(0, stage.attempts - 1) for stage in self.stages)

    @property
    def over(self) -> bool:
        """Whether nothing is left that could run: all is done, has failed, or needs what failed."""
        return {stage.state for stage in self.stages} <= {"done", "failed", "blocked"}

    def of(self, state: str) -> list[StageNow]:
        """Stages in a state."""
        return [stage for stage in self.stages if stage.state == state]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the time of the look."""
        arms = [{**asdict(arm), "mean": arm.mean} for arm in self.arms]
        more = {"counts": self.counts, "retries": self.retries, "over": self.over}
        return {**asdict(self), "arms": arms, **more, "time": time.time()}


class Watcher:
    """Looks at one study of a store, again and again.

    Without a name it is the study that was started last. FileNotFoundError where there is no
    store, ValueError where it has no such study.
    """

    def __init__(self, store: str | os.PathLike[str], study: str = "") -> None:
        self.store = Store.existing(store)
        self._stages = StatusSource(self.store)
        self._records: dict[str, tuple[Any, StudyRecord | str]] = {}
        self.study = study or self._newest("")[0].name
        self._newest(self.study)

    def look(self) -> StudyNow:
        """The study now. OSError where the store cannot be read."""
        record, problems = self._newest(self.study)
        self._stages.prepare(record.stages)
        stages = _planned(record)
        for name, now in stages.items():
            try:
                now = _stage(now, self._stages.find(name, record.written), problems)
            except OSError as error:
                problems.append(f"{name} cannot be looked at: {error}")
            needed = (stages[parent].state for parent in record.stages[name]["parents"])
            lost = now.state == "waiting" and {*needed} & {"failed", "blocked"}
            stages[name] = replace(now, state="blocked") if lost else now
        left, uncounted = _left(record, stages)
        return StudyNow(
            clean(self.study), self.store.uri, record.digest, tuple(stages.values()),
            tuple(_arms(record, stages)), left, uncounted, tuple(map(clean, problems)),
        )  # fmt: skip

    def _newest(self, study: str) -> tuple[StudyRecord, list[str]]:
        """The record that was written last, of a study or of all, and why others are left out."""
        there = {n: s for n, s in self._there().items() if study in ("", n.split("/")[1])}
        for name, when in there.items():
            if name not in self._records or self._records[name][0] != when:
                self._records[name] = when, self._read(name)
        found = [self._records[name][1] for name in there]
        records = [record for record in found if isinstance(record, StudyRecord)]
        problems = [f"left out: {text}" for text in found if isinstance(text, str)]
        if not records:
            known = ", ".join(sorted({name.split("/")[1] for name in self._there()})) or "none"
            asked = f"of study {study!r}" if study else "of any study"
            why = "\n".join([f"no record {asked} in {self.store.uri}; of: {known}", *problems])
            raise ValueError(clean(why))
        return max(records, key=lambda record: (record.written, record.digest)), problems

    def _there(self) -> dict[str, Any]:
        """Names of records, each with a stamp."""
        listed = self.store.list_shared("studies")
        return {name: stamp for name, stamp in listed.items() if RECORD.fullmatch(name)}

    def _read(self, name: str) -> StudyRecord | str:
        try:
            return named_record(self.store.read_shared(name), self.store.root / name)
        except (ValueError, FileNotFoundError) as error:
            return f"{name}: {error}"


def clean(text: str) -> str:
    """Text without what a terminal would obey."""
    return CONTROL.sub(" ", text)


def _planned(record: StudyRecord) -> dict[str, StageNow]:
    """Every stage, with what the plan says of it."""
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


def _stage(now: StageNow, found: StageStatus, problems: list[str]) -> StageNow:
    """What the files of a stage say; what is damaged goes to `problems`."""

    def of(name: str) -> dict[str, Any]:
        values = _object(found.files.get(name, b"{}"))
        if values is None:
            problems.append(f"{now.id}/{name} is damaged: it holds no JSON object")
        return values or {}

    host, note = clean(found.host), clean(found.note)
    now = replace(now, state=found.state, seen=found.seen, host=host, note=note)
    if found.state == "done":
        return _finished(now, of("provenance.json"), _object(found.files.get("DONE", b"")))
    attempt, figures = of("attempt.json"), _latest(found.files.get("metrics.jsonl", b""))
    if figures is None:
        problems.append(f"{now.id}/metrics.jsonl is damaged: no line of it can be read")
    started, before = number(attempt.get("started")), number(attempt.get("before")) or 0.0
    until = time.time() if found.state == "running" else found.seen or 0.0
    return replace(
        now,
        attempts=int(number(attempt.get("number")) or 0),
        figures=figures or {},
        worked=None if started is None else before + max(0.0, until - started),
        host=now.host or clean(str(attempt.get("host", ""))),
        error=_reason(found) if found.state == "failed" else "",
    )


def _finished(now: StageNow, how: Mapping[str, Any], result: Any) -> StageNow:
    if result is None:
        error = f"{now.id}/DONE is damaged: remove the folder, and it runs again"
        return replace(now, state="failed", error=error)
    score = result
    for name in ("scores", "test", "value"):
        score = score.get(name) if isinstance(score, Mapping) else None
    return replace(
        now,
        attempts=int(number(how.get("attempts")) or 1),
        worked=number(how.get("seconds")),
        host=clean(str(how.get("host", ""))),
        score=number(score),
    )


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if fits and abs(value) < 1e300 else None


def _latest(log: bytes) -> dict[str, float] | None:
    """The last value of each of `FIGURES`; None where no line of several can be read. The last
    line may be half written."""
    lines = [_object(line) for line in log.split(b"\n")[:-1] if line]
    if lines and not any(lines):
        return None
    found: dict[str, float] = {}
    for line in filter(None, reversed(lines)):
        for name in FIGURES:
            if name not in found and (value := number(line.get(name))) is not None:
                found[name] = value
    return found


def _reason(found: StageStatus) -> str:
    """First line of what was raised, behind the frames of the last traceback."""
    text = found.files.get("error.txt", b"").decode(errors="replace")
    last = text.rpartition("Traceback (most recent call last):")[2]
    said = [line for line in last.splitlines() if line.strip() and not line.startswith(" ")]
    return clean(said[0] if said else found.note or "error.txt is empty")[:500]


def _arms(record: StudyRecord, stages: Mapping[str, StageNow]) -> Iterator[ArmNow]:
    """Arms that run: one may wait for a network that is not there."""
    running = {run.arm for run in record.runs}
    for arm in (arm for arm in record.arms if arm["name"] in running):
        scores, validation, finals = {}, {}, record.scoring_stages(arm["name"])
        for seed, final in finals.items():
            if (score := stages[final].score) is not None:
                scores[seed] = score
            for parent in record.stages[final]["parents"]:
                now = stages[parent]
                if now.kind in VALIDATED and now.state == "running" and "validation" in now.figures:
                    validation[seed] = now.figures["validation"]
        yield ArmNow(clean(str(arm["name"])), _title(arm), tuple(finals), scores, validation)


def _left(
    record: StudyRecord, stages: Mapping[str, StageNow]
) -> tuple[float | None, tuple[str, ...]]:
    """Seconds until all that can run is done, with as many stages at once as run now, and kinds
    that are left out: what none of the finished ones says."""
    times: dict[str, list[float]] = {}
    for now in stages.values():
        if now.state == "done" and now.worked is not None:
            times.setdefault(now.kind, []).append(now.worked)
    typical = {kind: math.fsum(found) / len(found) for kind, found in times.items()}
    work, ends, unknown = [], dict[str, float](), dict[str, None]()
    for name, now in stages.items():
        seconds = _rest(now, typical.get(now.kind))
        if seconds is None:
            unknown[now.kind] = None
        work.append(seconds or 0.0)
        before = (ends[parent] for parent in record.stages[name]["parents"])
        ends[name] = max(before, default=0.0) + work[-1]
    at_once = sum(now.state == "running" for now in stages.values())
    if not at_once or not any(work):
        return None, tuple(unknown)
    return max(math.fsum(work) / at_once, *ends.values()), tuple(unknown)


def _rest(now: StageNow, typical: float | None) -> float | None:
    """Seconds of work that a stage still needs; None where nothing says so."""
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
