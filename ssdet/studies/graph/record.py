"""Records of studies in a store: plans as JSON, readable without the code of the study."""

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
    """An arm with a seed, and the ids of the stages that score it."""

    arm: str
    seed: int
    predict: str
    probe: str | None


@dataclass(frozen=True)
class StudyRecord:
    """The plan of a study as JSON values; `plan` converts it back to objects."""

    study: Mapping[str, Any]
    """Name, seeds, protocol and table layout."""
    arms: tuple[Mapping[str, Any], ...]
    """Fields of `Arm` except `change`, a function."""
    runs: tuple[RunRecord, ...]
    stages: Mapping[str, Mapping[str, Any]]
    """Kind, recipe, parents and data of each stage by its id, parents first."""
    data: Mapping[str, Any]
    """Fields of `Data`, with paths on the machine that wrote the record."""
    written: float
    """Unix time in seconds; the latest record of a study is the current one."""
    format: str = FORMAT

    @property
    def name(self) -> str:
        return str(self.study["name"])

    @property
    def digest(self) -> str:
        """Hash of the plan, without the time of writing and the paths of the data."""
        values = {k: v for k, v in vars(self).items() if k not in ("written", "data")}
        runs = [vars(run) for run in self.runs]
        # The ids of stages are hashes of their recipes.
        return short_hash({**values, "runs": runs, "stages": list(self.stages)})

    def scoring_stages(self, arm: str, readout: str = "finetuned") -> dict[int, str]:
        """Id of the scoring stage by seed, for an arm and a read-out (finetuned or probe)."""
        stages = {
            run.seed: run.predict if readout == "finetuned" else run.probe
            for run in self.runs
            if run.arm == arm
        }
        return {seed: stage for seed, stage in stages.items() if stage is not None}

    def plan(self, data: Any = None) -> Plan:
        """The recorded plan; `data`, if given, replaces the recorded data.

        Stages have their recorded ids, even where this version would compute others. An arm's
        `change` returns the experiment of its first seed, whatever it is applied to. ValueError
        for recipes that this version cannot read.
        """
        stages: dict[str, Stage] = {}
        for name, identity in self.stages.items():
            stages[name] = recorded_stage(name, identity, stages)
        runs = tuple(
            Run(run.arm, run.seed, stages[run.predict], stages[run.probe] if run.probe else None)
            for run in self.runs
        )
        experiments = {
            run.arm: experiment_of(run.predict, run.probe)
            for run in reversed(runs)
            if run.predict.parents
        }
        arms = tuple(_arm(values, experiments.get(values["name"])) for values in self.arms)
        study = from_json(Study, {**self.study, "arms": arms})
        base = experiments.get(study.baseline) or next(filter(None, experiments.values()), None)
        data = from_json(Data, self.data) if data is None else data
        return Plan(replace(study, base=base, data=data), runs)


def _arm(values: Mapping[str, Any], experiment: Experiment | None) -> Arm:
    arm = from_json(Arm, values)
    return arm if experiment is None else replace(arm, change=lambda base: experiment)


def record_of(plan: Plan, written: float) -> StudyRecord:
    """The record of a plan, with the time of writing in Unix seconds."""
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
    """Fields of a table; an empty `against` is left out, so that it does not alter the digest."""
    return _values(table, without=() if table.against else ("against",))


def _values(value: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    names = [field.name for field in fields(value) if field.name not in without]
    return {name: to_jsonable_python(getattr(value, name)) for name in names}


def write_record(store: Store, plan: Plan) -> Path:
    """Write the record of a plan and return its path; cleaning keeps the stages of records.

    Write it before looking for finished stages, which another process might remove. ValueError for
    a study name that is no folder name.
    """
    record = record_of(plan, time.time())
    path = record_folder(store, record.name) / f"{record.digest}.json"
    with store.recording_lock():
        make_folder(store.studies, record.name)
        write_json(path, asdict(record))
        store.publish_files(path)
    return path


def record_folder(store: Store, study: str) -> Path:
    """Folder of the records of a study; ValueError for a name that is no folder name."""
    if not study or study.startswith(".") or "/" in study or "\0" in study:
        raise ValueError(
            f"study {study!r}: the name is used for a folder: no '/', and no '.' at its start"
        )
    return store.studies / study


def read_records(store: Store) -> tuple[list[StudyRecord], dict[Path, str]]:
    """All records, newest first, and the unreadable files with the reason."""
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
    """Read one record; nothing in the file is executed.

    ValueError where it is damaged, of another version, or does not match its file name.
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
            f"{path}: not a readable record ({error}): restore it, or remove it and run the study "
            "again"
        ) from error
    return record


def parse_record(text: bytes, altered: Collection[str] = ()) -> StudyRecord:
    """Record from JSON; ValueError where stages, arms and runs are inconsistent.

    altered: ids of stages whose recipes were altered, so that they do not match their ids.
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
    stages: set[str] = set()
    for name, identity in record.stages.items():
        if not STAGE_ID.fullmatch(name) or (name not in altered and name != stage_id(identity)):
            raise ValueError(f"stage {name!r}: its recipe does not match its id")
        if missing := set(identity["parents"]) - stages:
            raise ValueError(f"stage {name} comes before its parents {sorted(missing)}")
        stages.add(name)
    arms = {arm["name"] for arm in record.arms}
    for run in record.runs:
        if run.arm not in arms or not {run.predict, run.probe or run.predict} <= stages:
            raise ValueError(f"arm {run.arm!r} seed {run.seed}: its arm or stages are missing")
