"""The index of a store: finished stages and rows of runs, always as the folders have them now.

The index is a cache in a file beside the folders, which may be deleted at any time. A listing and
the times of each stage's `DONE` and `scores` show which stages have changed since it was written;
only these are read, and only rows that depend on them are made again. Processes that update it at
once each replace the file whole: what the last one lacks, the next reader notices by the times.
"""

import json
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from ssdet.results.queries import index_file
from ssdet.results.queries.index_file import RUN, SCHEMA, STAMP, Content
from ssdet.results.queries.run_frame import (
    PROBE,
    Lineage,
    Summary,
    Uses,
    run_row,
    share_probes,
    start_of,
)
from ssdet.results.queries.stage_files import (
    ABSENT,
    Finished,
    Planned,
    Record,
    Stamp,
    other_stages,
    read_plans,
    read_stages,
    record_stamps,
    stage_stamps,
)

BATCH = 10_000
"""Rows that are made at once, to bound the memory of their Python objects."""


@dataclass
class Index:
    """What a store held at one moment."""

    content: Content = field(repr=False)
    faults: Mapping[str, str] = field(default_factory=dict)
    """Why stages, files of further scores and records cannot be read, by id and path."""
    note: str = ""
    """What was wrong with the file of the index, which was made again."""

    @property
    def records(self) -> Mapping[str, Record]:
        """Records of studies by their path below the folder `studies`, the newest first."""
        records = self.content.records
        return dict(sorted(records.items(), key=lambda item: (-item[1].written, item[1].digest)))

    @cached_property
    def table(self) -> pa.Table:
        """A row for every stage, finished or planned, ordered by id, without what updates need."""
        return self.content.table([*RUN, *STAMP, "odd"])

    @cached_property
    def finished(self) -> tuple[str, ...]:
        """Ids of the finished stages, in order."""
        return tuple(self._with("size", ("id",))["id"].to_pylist())

    @cached_property
    def stamps(self) -> np.ndarray:
        """Stamps int64 [stages, 4] of the finished stages."""
        stages = self._with("size", STAMP)
        # `to_numpy` would import pandas.
        columns = (np.from_dlpack(stages[name].combine_chunks()) for name in STAMP)
        return np.stack([*columns], axis=1)

    @cached_property
    def runs(self) -> pa.Table:
        """Columns `RUN` of the finished runs, ordered by id."""
        return self._with("kind", RUN)

    @cached_property
    def lineage(self) -> Lineage:
        """Which stages came from which, finished and planned."""
        return Lineage(Summaries(self.content.table(["id", "summary"])))

    def chain(self, stage: str) -> tuple[str, ...]:
        """A stage and all that it came from, the nearest first, as far as they are known."""
        chains = self._cells(stage, "chain")
        return tuple(chains[0].split()) if chains else tuple(self.lineage.chain(stage))

    def uses(self, stage: str) -> Uses:
        """Records that list a stage, and the arms of their runs that it scores."""
        return [use for text in self._cells(stage, "uses") for use in json.loads(text)]

    def _cells(self, stage: str, column: str) -> list[str]:
        """The value of a column for a stage; none where it has none."""
        ids, cells = self.table["id"], self.content.table([column])[column]
        place = bisect_left(range(len(ids)), stage, key=lambda i: ids[i].as_py())
        found = place < len(ids) and ids[place].as_py() == stage
        return [cells[place].as_py()] if found and cells[place].is_valid else []

    def _with(self, column: str, names: Sequence[str]) -> pa.Table:
        """Columns of the rows that have a value in one."""
        return self.table.select(names).filter(compute.is_valid(self.table[column]))

    @property
    def odd(self) -> dict[str, str]:
        """Why files of further scores are left out, by stage and file."""
        stages = self._with("odd", ("id", "odd"))
        pairs = zip(stages["id"].to_pylist(), stages["odd"].to_pylist(), strict=True)
        return {f"{n}/{file}": why for n, text in pairs for file, why in json.loads(text).items()}


class Summaries(Mapping[str, Summary]):
    """Summaries of stages by id: those of a table, parsed on access, and changes to them."""

    def __init__(self, table: pa.Table) -> None:
        texts = table["summary"].to_pylist()
        self._texts: dict[str, str] = dict(zip(table["id"].to_pylist(), texts, strict=True))
        self._parsed: dict[str, Summary] = {}

    def __getitem__(self, name: str) -> Summary:
        if name not in self._parsed:
            self._parsed[name] = Summary.parse(self._texts[name])
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def put(self, name: str, summary: Summary) -> None:
        """Add a summary, or replace one."""
        self._texts[name], self._parsed[name] = "", summary

    def remove(self, name: str) -> None:
        """Remove a summary."""
        del self._texts[name]
        self._parsed.pop(name, None)


def load(root: Path, write: bool = True) -> Index:
    """The store at `root` as it is now; with `write`, its index is brought up to date where it can
    be written.

    Raises FileNotFoundError where there is no folder `stages`.
    """
    content, note = index_file.read(root)
    known = Index(content)
    stages, gone, faults = _changed_stages(root / "stages", known)
    plans, lost, damaged = _changed_records(root / "studies", content.records)
    if stages or gone or plans or lost:
        content = _updated(content, stages, gone, plans, lost)
        if write:
            index_file.write(root, content)
        known = Index(content)
    known.faults, known.note = {**faults, **known.odd, **damaged}, note
    return known


def _changed_stages(
    folder: Path, known: Index
) -> tuple[dict[str, Finished], set[str], dict[str, str]]:
    """Stages that have finished or changed since, those that are not there any more, and why
    others cannot be read."""
    stamps = stage_stamps(folder, known.finished)
    (places,) = (stamps != known.stamps).any(axis=1).nonzero()
    changed = [known.finished[place] for place in places]
    more = other_stages(folder, known.finished)
    values = [*stamps[places].tolist(), *stage_stamps(folder, more).tolist()]
    pairs = zip([*changed, *more], values, strict=True)
    stages, faults = read_stages(
        folder, {name: Stamp(*stamp) for name, stamp in pairs if tuple(stamp) != ABSENT}
    )
    return stages, {*changed} - stages.keys(), faults


def _changed_records(
    folder: Path, known: Mapping[str, Record]
) -> tuple[dict[str, Planned], set[str], dict[str, str]]:
    """The same for records of studies."""
    stamps = record_stamps(folder)
    same = {path for path, record in known.items() if stamps.get(path) == record.stamp}
    plans, damaged = read_plans(folder, {p: s for p, s in stamps.items() if p not in same})
    return plans, known.keys() - same - plans.keys(), damaged


def _updated(
    content: Content,
    stages: Mapping[str, Finished],
    gone: Collection[str],
    plans: Mapping[str, Planned],
    lost: Collection[str],
) -> Content:
    """The content with stages and records that were read anew, and without those that are not
    there any more."""
    table = content.table(SCHEMA.names)
    records = {**content.records, **{path: plan.record for path, plan in plans.items()}}
    for path in lost:
        del records[path]
    uses = _changed_uses(table, plans, {*plans, *lost})
    summaries = _changed_summaries(table, stages, gone, plans, uses)
    chains = zip(table["id"].to_pylist(), table["chain"].to_pylist(), strict=True)
    changed = {*stages, *gone, *uses}
    changed |= {name for name, chain in chains if not changed.isdisjoint((chain or "").split())}
    old = compute.is_in(table["id"], pa.array(changed, pa.string()))
    before = {row["id"]: row for row in table.filter(old).to_pylist()}
    tables = [table.filter(compute.invert(old))]
    names = sorted(name for name in changed if name in summaries)
    for first in range(0, len(names), BATCH):
        rows = [
            _row(Lineage(summaries), name, before.get(name, {}), stages.get(name), uses, records)
            for name in names[first : first + BATCH]
        ]
        tables.append(pa.Table.from_pylist(rows, SCHEMA))
    table = _with_probes(pa.concat_tables(tables).combine_chunks().sort_by("id"))
    return Content(table.select, records)


def _changed_uses(
    table: pa.Table, plans: Mapping[str, Planned], changed: Collection[str]
) -> dict[str, Uses]:
    """New uses of the stages that these records list now, or listed before."""
    if not changed:
        return {}
    stored = {
        name: json.loads(text)
        for name, text in zip(table["id"].to_pylist(), table["uses"].to_pylist(), strict=True)
    }
    left = {name: [use for use in uses if use[0] not in changed] for name, uses in stored.items()}
    names = {name for name, uses in left.items() if len(uses) < len(stored[name])}
    names |= {name for plan in plans.values() for name in plan.uses}
    return {
        name: [*left.get(name, ()), *(u for p in plans.values() for u in p.uses.get(name, ()))]
        for name in names
    }


def _changed_summaries(
    table: pa.Table,
    stages: Mapping[str, Finished],
    gone: Collection[str],
    plans: Mapping[str, Planned],
    uses: Mapping[str, Uses],
) -> Summaries:
    """Summaries of all stages that are finished or planned now."""
    summaries = Summaries(table)
    for name, stage in stages.items():
        summaries.put(name, stage.summary)
    for plan in plans.values():
        for name, summary in plan.summaries.items():
            if name not in summaries:
                summaries.put(name, summary)
    used = compute.not_equal(table["uses"], "[]")
    planned = {*table.filter(used)["id"].to_pylist(), *uses} - {
        n for n, of in uses.items() if not of
    }
    for name in gone:
        summaries.put(name, summaries[name].planned)
    for name in {*gone, *uses} - planned:
        if name in summaries and summaries[name].finished is None:
            summaries.remove(name)
    return summaries


def _row(
    lineage: Lineage,
    name: str,
    before: Mapping[str, Any],
    stage: Finished | None,
    uses: Mapping[str, Uses],
    records: Mapping[str, Record],
) -> dict[str, Any]:
    """Row of a stage, without the score of the probe beside a run. before: the row that it had."""
    summary = lineage.summaries[name]
    of_stage = uses[name] if name in uses else json.loads(before.get("uses", "[]"))
    row: dict[str, Any] = {"id": name, "summary": summary.text, "uses": json.dumps(of_stage)}
    if stage is not None:
        row |= {**stage.stamp._asdict(), "odd": json.dumps(stage.odd) if stage.odd else None}
    elif summary.finished is not None:
        row |= {column: before[column] for column in (*STAMP, "odd")}
    if not lineage.is_run(name):
        return row
    runs = [use for use in of_stage if use[1] is not None]
    # The sort is stable: runs of one record keep their order.
    runs.sort(key=lambda use: (-records[use[0]].written, records[use[0]].digest))
    arms = [(records[path].name, str(arm)) for path, arm, _ in runs]
    run = run_row(lineage, name, arms)
    return {
        **row,
        **run,
        "studies": json.dumps(run["studies"]),
        "arms": json.dumps(run["arms"]),
        "parents": " ".join(run["parents"]),
        "rescored": json.dumps(summary.rescored) if summary.rescored else None,
        "chain": " ".join(lineage.chain(name)),
        "start": start_of(lineage, name),
        "planned": next((probe for path, _, probe in runs[::-1] if path == runs[0][0]), None),
    }


def _with_probes(table: pa.Table) -> pa.Table:
    """The table with the score of the probe that shares its pretraining in each single run."""
    probes = table.filter(compute.equal(table["kind"], "probe"))
    probe_of = share_probes(probes.select(["id", "start", "data", *PROBE]).to_pylist())
    columns = (table[name].to_pylist() for name in ("kind", "planned", "start", "data", *PROBE))
    scores = [
        probe_of(planned, start, data) if kind == "single" else own
        for kind, planned, start, data, *own in zip(*columns, strict=True)
    ]
    for number, name in enumerate(PROBE):
        values = pa.array([score[number] for score in scores], pa.float64())
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table
