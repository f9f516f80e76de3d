"""Record of a study in a store: its plan as JSON, readable without the study's code."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from ssdet.store.base import STAGE_ID, Store
from ssdet.studies.data import Data
from ssdet.studies.experiment import Experiment
from ssdet.studies.graph.identity import Stage, recorded_stage, short_hash, stage_id
from ssdet.studies.graph.lineage import experiment_of
from ssdet.studies.graph.plan import Plan, Run
from ssdet.studies.study import Arm, Study, Table
from ssdet.system.recipe_json import from_json
from ssdet.system.safe_files import make_folder, write_json

FORMAT = "ssdet-study/1"


@dataclass(frozen=True)
class RunRecord:
    """One arm with one seed, and the ids of the stages that score it."""

    arm: str
    seed: int
    predict: str
    probe: str | None


@dataclass(frozen=True)
class StudyRecord:
    """A study as it was planned: JSON values, from which `plan` makes the objects again."""

    study: Mapping[str, Any]
    """Name, seeds, protocol and table layout."""
    arms: tuple[Mapping[str, Any], ...]
    """Name, title, members and so on, without the function that changes the base."""
    runs: tuple[RunRecord, ...]
    stages: Mapping[str, Mapping[str, Any]]
    """Kind, recipe, parents and data of each stage by its id, parents first."""
    data: Mapping[str, Any]
    """`Data`: where the files lie, on the machine that wrote this."""
    written: float
    """Epoch seconds; of the records of one study the last written counts."""
    format: str = FORMAT

    @property
    def name(self) -> str:
        return str(self.study["name"])

    @property
    def digest(self) -> str:
        """Names the plan: equal for equal plans, whenever written and wherever the data lie."""
        values = {k: v for k, v in vars(self).items() if k not in ("written", "data")}
        runs = [vars(run) for run in self.runs]
        return short_hash({**values, "runs": runs, "stages": list(self.stages)})  # ids are hashes

    def finals(self, arm: str, readout: str = "finetuned") -> dict[int, str]:
        """Id of the stage that scores each seed of an arm, for a read-out (finetuned or probe)."""
        mine = [run for run in self.runs if run.arm == arm]
        found = {run.seed: run.predict if readout == "finetuned" else run.probe for run in mine}
        return {seed: stage for seed, stage in found.items() if stage is not None}

    def plan(self, data: Any = None) -> Plan:
        """The plan again, with `data` in place of the recorded one where it is given.

        Stages keep their recorded ids, also where a later version would name them differently.
        An arm's `change` gives the experiment of its first seed, whatever it is applied to.
        ValueError for recipes that this version does not know.
        """
        stages: dict[str, Stage] = {}
        for name, identity in self.stages.items():
            stages[name] = recorded_stage(name, identity, stages)
        runs = tuple(
            Run(run.arm, run.seed, stages[run.predict], stages[run.probe] if run.probe else None)
            for run in self.runs
        )
        known = {
            run.arm: experiment_of(run.predict, run.probe)
            for run in reversed(runs)
            if run.predict.parents
        }
        arms = tuple(_arm(values, known.get(values["name"])) for values in self.arms)
        study = from_json(Study, {**self.study, "arms": arms})
        base = known.get(study.baseline) or next(filter(None, known.values()), None)
        data = from_json(Data, self.data) if data is None else data
        return Plan(replace(study, base=base, data=data), runs)


def _arm(values: Mapping[str, Any], known: Experiment | None) -> Arm:
    arm = from_json(Arm, values)
    return arm if known is None else replace(arm, change=lambda base: known)


def record_of(plan: Plan, written: float) -> StudyRecord:
    """The record of a plan."""
    return StudyRecord(
        study=_values(plan.study, without=("arms", "base", "data", "table"))
        | {"table": _layout(plan.study.table)},
        arms=tuple(
            _values(replace(arm, declares=arm.declared), without=("change",))
            for arm in plan.study.arms
        ),
        runs=tuple(
            RunRecord(run.arm, run.seed, run.predict.id, run.probe.id if run.probe else None)
            for run in plan.runs
        ),
        stages={name: to_jsonable_python(stage.identity) for name, stage in plan.stages.items()},
        data=_values(plan.study.data),
        written=written,
    )


def _layout(table: Table) -> dict[str, Any]:
    """One baseline for all is not written: what records had no word for keeps its digest."""
    return _values(table, without=() if table.against else ("against",))


def _values(value: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    names = [field.name for field in fields(value) if field.name not in without]
    return {name: to_jsonable_python(getattr(value, name)) for name in names}


def write_record(store: Store, plan: Plan) -> Path:
    """Keep the plan of a study as its current one; from then on its stages are kept as well.

    Write it before looking what is done already. ValueError for a name that is no folder name.
    """
    record = record_of(plan, time.time())
    path = folder(store, record.name) / f"{record.digest}.json"
    with store.recording_lock():
        make_folder(store.studies, record.name)
        write_json(path, asdict(record))
        store.publish_files(path)
    return path


def folder(store: Store, study: str) -> Path:
    """Where the records of a study are; ValueError for a name that is no folder name."""
    if not study or study.startswith(".") or "/" in study or "\0" in study:
        raise ValueError(f"study {study!r}: its name is a folder's: no '/', no '.' in front")
    return store.studies / study


def read_records(store: Store) -> tuple[list[StudyRecord], dict[Path, str]]:
    """All records, the newest first, and the files that hold none, with the reason."""
    records, faults = [], {}
    for path in sorted(store.studies.glob("*/*.json")):
        try:
            records.append(read_record(path))
        except FileNotFoundError:
            continue  # removed by another process
        except ValueError as error:
            faults[path] = str(error)
    return sorted(records, key=lambda record: (-record.written, record.digest)), faults


def read_record(path: Path) -> StudyRecord:
    """One record; nothing in it is executed.

    ValueError where it is damaged, of another version, or not what its name says.
    """
    return named_record(path.read_bytes(), path)


def named_record(text: bytes, path: Path) -> StudyRecord:
    """`read_record` of a file's content."""
    try:
        record = parse_record(text)
        if (record.name, record.digest) != (path.parent.name, path.stem):
            raise ValueError(f"its content is study {record.name!r}, plan {record.digest}")
    except ValueError as error:
        raise ValueError(
            f"{path} is no record that can be read ({error}): restore it, or remove it and run "
            "the study again"
        ) from error
    return record


def parse_record(text: bytes, altered: Collection[str] = ()) -> StudyRecord:
    """Record from JSON; ValueError where stages, arms and runs do not hold together.

    altered: stages whose recipes are known not to be what their ids name.
    """
    try:
        values = json.loads(text)
        record = TypeAdapter(StudyRecord).validate_python(values)
        _check(record, altered)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return record


def _check(record: StudyRecord, altered: Collection[str]) -> None:
    if record.format != FORMAT:
        raise ValueError(f"format {record.format!r}, this version reads {FORMAT!r}")
    known: set[str] = set()
    for name, identity in record.stages.items():
        fits = name in altered or name == stage_id(identity)
        if not STAGE_ID.fullmatch(name) or not fits:
            raise ValueError(f"stage {name!r} is not what its name says")
        if missing := set(identity["parents"]) - known:
            raise ValueError(f"stage {name} comes before its parents {sorted(missing)}")
        known.add(name)
    arms = {arm["name"] for arm in record.arms}
    for run in record.runs:
        if run.arm not in arms or not {run.predict, run.probe or run.predict} <= known:
            raise ValueError(f"arm {run.arm!r} seed {run.seed}: its arm or stages are missing")
