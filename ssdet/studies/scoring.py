"""Scores of finished stages under any protocol, from the prediction sets that they keep."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation.predictions import PredictionSet
from ssdet.evaluation.protocols.registry import (
    PROTOCOLS,
    Material,
    Protocol,
    Reading,
    from_json,
    protocol_of,
    refusals,
    to_json,
)
from ssdet.evaluation.statistics.bootstrap import Statistic
from ssdet.store.base import Store
from ssdet.studies.data import Data
from ssdet.studies.score_files import keep_scores, read_scores
from ssdet.studies.truth import annotated


@dataclass(frozen=True)
class Scoring:
    """Scores of a store's stages under one protocol."""

    store: Store
    data: Any
    """`Data`, or what stands in its place: its `truth(split)` is what predictions are scored
    against."""
    protocol: Protocol
    _truths: dict[str, Material] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, store: Store, data: Any, protocol: str) -> "Scoring":
        """By the name or id of a protocol; ValueError for an unknown one."""
        return cls(store, data, protocol_of(protocol))

    def reading(self, stage: str, split: str = "test") -> Reading:
        """A stage's score: what it reported itself, or what was computed from its predictions and
        kept beside it, now or earlier.

        ValueError where the stage is not finished, did not score the split, or where the protocol
        does not apply.
        """
        if (result := self.store.result(stage)) is None:
            raise ValueError(f"{stage} is not finished")
        if split not in result["scores"]:
            raise ValueError(f"{stage} has no score on {split!r}, only on {[*result['scores']]}")
        if self.protocol.id == DENSE:
            return from_json(result["scores"][split])
        known = read_scores(self.store, stage, self.protocol.name).get(split)
        readings = (
            self._scored(stage, split) if known is None else [*map(from_json, known.values())]
        )
        return self.protocol.chosen(readings)

    def value(self, stage: str, split: str = "test") -> float:
        """The number of `reading`, a fraction; ValueError where it has none."""
        return self.reading(stage, split).number

    def _scored(self, stage: str, split: str) -> Sequence[Reading]:
        try:
            readings = self.protocol.score(self.material(stage, split))
        except ValueError as error:
            raise ValueError(f"{stage}, {split}: {self.protocol.id}: {error}") from error
        columns = {one.column: to_json(one) for one in readings}
        keep_scores(self.store, stage, self.protocol.name, split, columns)
        return readings

    def material(self, stage: str, split: str = "test") -> Material:
        """Predictions of a stage, and what they are scored against."""
        part = f"predictions/{split}"
        predictions = PredictionSet.open(self.store.fetch(stage, part) / part)
        return replace(self.truth(split), predictions=predictions)

    def statistic(self, stage: str, split: str = "test") -> Statistic:
        """The score as a function of how often videos are drawn: see `paired_difference`."""
        return self.protocol.statistic(self.material(stage, split))

    def truth(self, split: str) -> Material:
        """What predictions of a split are scored against."""
        if split not in self._truths:
            self._truths[split] = self.data.truth(split)
        return self._truths[split]


def check_protocol(name: str, data: Data, split: str = "test") -> None:
    """ValueError where a split of the data cannot be scored under a protocol, naming those under
    which it can."""
    protocol = protocol_of(name)
    if protocol.id == DENSE:
        return
    material = annotated(data, split)
    try:
        protocol.check(material)
    except ValueError as error:
        others = [other for other in PROTOCOLS if other != protocol.name]
        refused = refusals(material, others)
        able = ", ".join(other for other in others if other not in refused)
        raise ValueError(
            f"protocol {protocol.name!r} cannot score the {split} videos of data set "
            f"{material.annotated.name!r}: {error}: choose from {able}"
        ) from error
