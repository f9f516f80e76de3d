"""One row a finished run: what scored how, what it was made of, and which studies use it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ssdet.results.index import Entry
from ssdet.studies.record import StudyRecord

KINDS = {"predict": "single", "probe": "probe", "ensemble": "ensemble"}
"""What runs are called, by the kind of stage that scores them."""
SETTING = ("protocol", "data", "videos_scored", "videos_expected")
"""Scores that differ in one of these are not ranked together."""
RECIPES = (
    "seed", "data", "readout", "augment", "augment_options", "model", "pretrain_steps",
    "pretrain_lr", "finetune_steps", "lr",
)  # fmt: skip
"""Columns that an ensemble has where its members agree."""
COLUMNS = (
    "id", "kind", "studies", "arms", "dense_map", "probe_map", "dense_map_val", "probe_map_val",
    "protocol", "videos_scored", "videos_expected", *RECIPES, "parents", "revision", "seconds",
    "host", "finished",
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Lineage:
    """Which stages came from which: those in the folders, and those of plans that are gone."""

    entries: Mapping[str, Entry]
    records: tuple[StudyRecord, ...]

    @cached_property
    def identities(self) -> dict[str, Mapping[str, Any]]:
        """Kind, recipe, parents and data by stage."""
        planned = {k: v for record in self.records for k, v in record.stages.items()}
        return {**planned, **{name: entry.identity for name, entry in self.entries.items()}}

    def chain(self, name: str) -> Iterator[str]:
        """A stage and all before it, the nearest first."""
        waiting, seen = [name], {name}
        while waiting:
            yield (stage := waiting.pop(0))
            parents = self.identities.get(stage, {}).get("parents", ())
            waiting += [parent for parent in dict.fromkeys(parents) if parent not in seen]
            seen.update(parents)

    def ancestor(self, name: str, kind: str) -> Mapping[str, Any] | None:
        """Identity of the stage of a kind that a single run or probe came from."""
        if self.identities[name]["kind"] == "ensemble":
            return None
        found = (self.identities.get(stage, {}) for stage in self.chain(name))
        return next((identity for identity in found if identity.get("kind") == kind), None)

    def seconds(self, name: str) -> float:
        """Wall time of a stage and all before it, as far as it is known."""
        chain = [self.entries[stage] for stage in self.chain(name) if stage in self.entries]
        return math.fsum(entry.provenance.get("seconds", 0.0) for entry in chain)


def rows_of(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Rows by the id of the stage that scored the run, ordered by it."""
    uses = _uses(lineage.records)
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:  # an ensemble is described by its members
        for name, entry in lineage.entries.items():
            if entry.identity["kind"] == kind and entry.scores:
                found[name] = _row(lineage, entry, uses.get(name, []), found)
    _add_probes(lineage, found)
    further = sorted({name for row in found.values() for name in row.keys() - {*COLUMNS}})
    return {
        name: {**found[name], **{column: found[name].get(column) for column in further}}
        for name in sorted(found)
    }


def _uses(records: Iterable[StudyRecord]) -> dict[str, list[tuple[str, str]]]:
    """Study and arm by run, the newest plan first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for run in record.runs:
            for stage in filter(None, (run.predict, run.probe)):
                found.setdefault(stage, []).append((record.name, run.arm))
    return found


def _row(
    lineage: Lineage, entry: Entry, uses: list[tuple[str, str]], others: Mapping[str, Row]
) -> dict[str, Any]:
    kind = KINDS[entry.identity["kind"]]
    test = entry.scores.get("test") or next(iter(entry.scores.values()))
    column = "probe_map" if kind == "probe" else "dense_map"
    described = _of_members(entry, others) if kind == "ensemble" else _described(lineage, entry)
    return {
        **dict.fromkeys(COLUMNS),
        "id": entry.id,
        "kind": kind,
        "studies": tuple(dict.fromkeys(study for study, _ in uses)),
        "arms": tuple(dict.fromkeys(arm for _, arm in uses)),
        column: entry.scores.get("test", {}).get("value"),
        f"{column}_val": entry.scores.get("val", {}).get("value"),
        **{name: test.get(name) for name in SETTING},
        **described,
        "parents": tuple(entry.identity["parents"]),
        "revision": entry.provenance.get("revision"),
        "seconds": lineage.seconds(entry.id),
        "host": entry.provenance.get("host"),
        "finished": entry.finished,
        **_rescored(entry),
    }


def _rescored(entry: Entry) -> dict[str, float | None]:
    """Scores under further protocols, each in a column of its own."""
    return {
        column + suffix: score["value"]
        for split, suffix in (("test", ""), ("val", "_val"))
        for column, score in entry.rescored.get(split, {}).items()
        if column not in COLUMNS
    }


def _of_members(entry: Entry, others: Mapping[str, Row]) -> dict[str, Any]:
    members = [others[name] for name in entry.identity["parents"] if name in others]
    columns = {name: [member[name] for member in members] for name in RECIPES}
    return {
        name: values[0] if values and all(value == values[0] for value in values) else None
        for name, values in columns.items()
    }


def _described(lineage: Lineage, entry: Entry) -> dict[str, Any]:
    before, tuned = (lineage.ancestor(entry.id, kind) for kind in ("pretrain", "finetune"))
    first, last = before and before["recipe"], tuned and tuned["recipe"]
    trained = last or first or entry.identity["recipe"].get("fresh") or {}
    head, model = lineage.ancestor(entry.id, "fit_head"), trained.get("model", {}).get("name")
    return {
        "seed": trained.get("seed"),
        "data": _test_data(entry.identity["data"]),
        "readout": first and first["readout"],
        "augment": first and first["augment"],
        "augment_options": first and text(first["augment_options"]),
        "model": model and f"{model} + {head['recipe']['model']['name']}" if head else model,
        "pretrain_steps": first["optim"]["steps"] if first else 0,
        "pretrain_lr": first and first["optim"]["lr"],
        "finetune_steps": last and last["optim"]["steps"],
        "lr": last and last["optim"]["lr"],
    }


def _test_data(fingerprint: str) -> str:
    """Short name of the test videos in a stage's data: all but the decoded size, the last part."""
    parts = fingerprint.split(",")
    return (parts[-2] if len(parts) > 1 else parts[0])[:12]


def _add_probes(lineage: Lineage, rows: Mapping[str, dict[str, Any]]) -> None:
    """Give fine-tuned runs the score of the probe that shares their pretraining: the probe of
    their plan, else the only one there is."""
    planned = {
        run.predict: run.probe for record in reversed(lineage.records) for run in record.runs
    }
    probes: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        if row["kind"] == "probe":
            probes.setdefault(_start(lineage.identities[row["id"]], "fresh"), []).append(row)
    for name, row in rows.items():
        if row["kind"] != "single":
            continue
        tuned = lineage.identities.get(row["parents"][0], {}) if row["parents"] else {}
        same = [p for p in probes.get(_start(tuned, None), []) if p["data"] == row["data"]]
        probe = rows.get(planned.get(name) or "") or (same[0] if len(same) == 1 else None)
        if probe is not None:
            row |= {key: probe[key] for key in ("probe_map", "probe_map_val")}


def _start(identity: Mapping[str, Any], field: str | None) -> str:
    """What a network starts from: a pretraining's id, or the recipe of fresh weights."""
    if identity.get("parents"):
        return str(identity["parents"][0])
    recipe = identity.get("recipe", {})
    return text(recipe.get(field) if field else recipe)


def text(value: Any) -> str:
    """JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True)
