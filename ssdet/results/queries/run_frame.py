"""Rows of runs: scores, the recipes of the stages before them, and the studies that use them."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
SCORE = {
    "value": "number", "protocol": "text", "videos_scored": "whole", "videos_expected": "whole"
}  # fmt: skip
"""What is kept of a score, and of which type it is."""

Use = tuple[str, str | None, str | None]
"""Path of a study's record, the arm of a run, and the probe beside it; arm None: a stage before."""
Uses = Sequence[Use]


@dataclass(frozen=True)
class Summary:
    """What rows need to know of one stage, finished or planned. JSON values, checked."""

    kind: str
    parents: tuple[str, ...]
    data: str
    start: str
    """What its network starts from: the id of a pretraining, or a digest of the recipe of fresh
    weights."""
    training: Mapping[str, Any] | None = None
    """Of the recipe of a training, or of a probe's fresh network: seed, model, readout, augment,
    augment_options, steps, lr."""
    head: str | None = None
    """Model of features that `fit_head` trains."""
    finished: float | None = None
    """Epoch seconds; None for a stage that is planned."""
    seconds: float = 0.0
    revision: str | None = None
    host: str | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`SCORE` by split."""
    rescored: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """`SCORE` under further protocols by split and column."""

    @classmethod
    def parse(cls, text: str) -> "Summary":
        """A summary from `text`."""
        values = json.loads(text)
        return cls(**{**values, "parents": tuple(values["parents"])})

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(vars(self))

    @property
    def planned(self) -> "Summary":
        """The same stage before it was finished."""
        return Summary(self.kind, self.parents, self.data, self.start, self.training, self.head)


def summarise(identity: Mapping[str, Any]) -> Summary:
    """Summary of a planned stage from its identity (`recipe.json`).

    KeyError, TypeError, AttributeError or ValueError where the identity is not that of a stage.
    """
    kind, recipe = checked(identity["kind"], "text"), identity["recipe"]
    parents = tuple(checked(parent, "text") for parent in identity.get("parents", ()))
    if " ".join(parents).split() != [*parents]:
        raise ValueError(f"parents {parents}: expected ids of stages")
    trained = recipe.get("fresh") if kind == "probe" else recipe
    training = _training(trained) if trained and kind in ("pretrain", "finetune", "probe") else None
    start = parents[0] if parents else _digest(trained if kind == "probe" else recipe)
    head = checked(recipe["model"]["name"], "text") if kind == "fit_head" else None
    return Summary(kind, parents, checked(identity.get("data", ""), "text"), start, training, head)


def _training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    optim = recipe.get("optim", {})
    return {
        "seed": checked(recipe.get("seed"), "whole"),
        "model": checked(recipe.get("model", {}).get("name"), "text"),
        "readout": checked(recipe.get("readout"), "text"),
        "augment": checked(recipe.get("augment"), "text"),
        "augment_options": text(recipe.get("augment_options", {})),
        "steps": checked(optim.get("steps"), "whole"),
        "lr": checked(optim.get("lr"), "number"),
    }


def short_score(score: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a score that rows show; TypeError or ValueError for one of another type."""
    return {name: checked(score.get(name), kind) for name, kind in SCORE.items()}


def checked(value: Any, kind: str) -> Any:
    """A JSON value that must be a `text`, a `whole` number of 64 bits, a `number`, or null; a
    number is returned as a float. ValueError for anything else."""
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str):
        value.encode()  # JSON can hold half of a surrogate pair, which no file of text can
        return value
    if kind == "whole" and number and float(value).is_integer() and abs(value) < 2**63:
        return int(value)
    if kind == "number" and number:
        return float(value)
    raise ValueError(f"{value!r:.80}: expected a {kind}" + (" number" if kind == "whole" else ""))


@dataclass(frozen=True)
class Lineage:
    """Which stages came from which, finished and planned."""

    summaries: Mapping[str, Summary]

    def chain(self, name: str) -> Iterator[str]:
        """A stage and all before it, the nearest first."""
        waiting, seen = [name], {name}
        while waiting:
            yield (stage := waiting.pop(0))
            parents = self.summaries[stage].parents if stage in self.summaries else ()
            waiting += [parent for parent in dict.fromkeys(parents) if parent not in seen]
            seen.update(parents)

    def ancestor(self, name: str, kind: str) -> Summary | None:
        """The nearest stage of a kind that a single run or probe came from, itself included."""
        chain = (self.summaries.get(stage) for stage in self.chain(name))
        return next((stage for stage in chain if stage is not None and stage.kind == kind), None)

    def seconds(self, name: str) -> float:
        """Wall time of a stage and all before it, as far as they are finished."""
        chain = (self.summaries.get(stage) for stage in self.chain(name))
        return math.fsum(s.seconds for s in chain if s is not None and s.finished is not None)

    def is_run(self, name: str) -> bool:
        """Whether a stage is finished and has scores of its own."""
        stage = self.summaries.get(name)
        return bool(stage and stage.kind in KINDS and stage.finished is not None and stage.scores)


def run_row(lineage: Lineage, name: str, names: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The row of a run, without the score of the probe beside it.

    names: studies and arms that use it, the newest record first.
    """
    stage, pairs = lineage.summaries[name], list(names)
    test = stage.scores.get("test") or next(iter(stage.scores.values()))
    column = "probe_map" if stage.kind == "probe" else "dense_map"
    return {
        **dict.fromkeys(COLUMNS),
        "id": name,
        "kind": KINDS[stage.kind],
        "studies": tuple(dict.fromkeys(study for study, _ in pairs)),
        "arms": tuple(dict.fromkeys(arm for _, arm in pairs)),
        column: stage.scores.get("test", {}).get("value"),
        f"{column}_val": stage.scores.get("val", {}).get("value"),
        **{key: test.get(key) for key in SETTING},
        **_described(lineage, name),
        "parents": stage.parents,
        "revision": stage.revision,
        "seconds": lineage.seconds(name),
        "host": stage.host,
        "finished": stage.finished,
    }


def _described(lineage: Lineage, name: str) -> dict[str, Any]:
    """Columns `RECIPES` of a run."""
    stage = lineage.summaries[name]
    if stage.kind == "ensemble":
        members = [_described(lineage, one) for one in _members(lineage, name)]
        return {column: _agreed([member[column] for member in members]) for column in RECIPES}
    first, last = (_training_of(lineage, name, kind) for kind in ("pretrain", "finetune"))
    trained = last or first or stage.training or {}
    head, model = lineage.ancestor(name, "fit_head"), trained.get("model")
    return {
        "seed": trained.get("seed"),
        "data": _test_data(stage.data),
        "readout": first.get("readout"),
        "augment": first.get("augment"),
        "augment_options": first.get("augment_options"),
        "model": model and f"{model} + {head.head}" if head else model,
        "pretrain_steps": first["steps"] if first else 0,
        "pretrain_lr": first.get("lr"),
        "finetune_steps": last.get("steps"),
        "lr": last.get("lr"),
    }


def _members(lineage: Lineage, name: str) -> Iterator[str]:
    """Runs of single networks and probes that an ensemble, or one inside it, averages."""
    waiting, seen = [name], {name}
    while waiting:
        parents = [one for one in lineage.summaries[waiting.pop()].parents if one not in seen]
        seen.update(parents)
        for one in filter(lineage.is_run, parents):
            if lineage.summaries[one].kind == "ensemble":
                waiting.append(one)
            else:
                yield one


def _training_of(lineage: Lineage, name: str, kind: str) -> Mapping[str, Any]:
    stage = lineage.ancestor(name, kind)
    return (stage and stage.training) or {}


def _agreed(values: Sequence[Any]) -> Any:
    """The value that all have, None where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _test_data(fingerprint: str) -> str:
    """Short name of the test videos in a stage's data: all but the decoded size, the last part."""
    parts = fingerprint.split(",")
    return (parts[-2] if len(parts) > 1 else parts[0])[:12]


def start_of(lineage: Lineage, name: str) -> str:
    """What the network of a run started from; runs and probes of one pretraining have the same."""
    stage = lineage.summaries[name]
    if stage.kind == "probe":
        return stage.start
    tuned = lineage.summaries.get(stage.parents[0]) if stage.parents else None
    return tuned.start if tuned else _digest({})


PROBE = ("probe_map", "probe_map_val")


def share_probes(
    rows: Collection[Mapping[str, Any]],
) -> Callable[[str | None, str, str], Sequence[float | None]]:
    """A function that gives the scores `PROBE` of the probe beside a fine-tuned run: of the probe
    of its plan (the first argument), else of the only probe with the same start (`start_of`) and
    data, else None.

    rows: id, start, data and scores of all probes.
    """
    by_id = {row["id"]: [row[name] for name in PROBE] for row in rows}
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        alike.setdefault((row["start"], row["data"]), []).append(row["id"])

    def probe_of(planned: str | None, start: str, data: str) -> Sequence[float | None]:
        same = alike.get((start, data), [])
        name = planned if planned in by_id else same[0] if len(same) == 1 else ""
        return by_id.get(name or "", (None, None))

    return probe_of


def _digest(recipe: Any) -> str:
    return hashlib.sha256(text(recipe).encode()).hexdigest()[:16]


def text(value: Any) -> str:
    """JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True)
