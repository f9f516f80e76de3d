"""Scores of finished runs under further protocols, kept beside the stage whose scores they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ssdet.data.loading.recipe import DENSE
from ssdet.evaluation import dense_map
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.protocols.registry import PROTOCOLS, Material, Reading, score_all, to_json
from ssdet.studies.score_files import keep_scores
from ssdet.studies.truth import annotated

if TYPE_CHECKING:
    from ssdet.results.queries.results import Results

OWN = "dense"
"""Protocol that stages report themselves."""


@dataclass(frozen=True)
class Rescored:
    """What came of scoring one run again."""

    run: str
    readings: Mapping[str, tuple[Reading, ...]]
    """By split."""
    refused: Mapping[str, str]
    """Why protocols do not apply, by name and split."""


def rescore(
    results: "Results",
    run: str,
    protocols: Sequence[str] | None = None,
    splits: Sequence[str] = ("test",),
) -> Rescored:
    """Score a finished run's predictions under further protocols and keep the numbers beside it.

    All that apply by default. Before anything is written, the dense score is computed again and
    must be the one that the stage reported. ValueError where it is not, where the run, its plan or
    a protocol is unknown, or where a protocol that was asked for does not apply; FileNotFoundError
    without annotation or predictions.
    """
    names = [name for name in PROTOCOLS if name != OWN] if protocols is None else list(protocols)
    if OWN in names:
        raise ValueError(f"{OWN} is what runs report themselves: see their dense_map")
    found: dict[str, tuple[Reading, ...]] = {}
    refused: dict[str, str] = {}
    for split in splits:
        material = run_material(results, run, split)
        _check(results, run, split, material)
        for name in names:
            readings, why = score_all(material, [name], chosen=protocols is not None)
            refused |= {f"{name}, {split}": reason for reason in why.values()}
            if why and protocols is not None:
                raise ValueError(f"{run}: {name} does not apply to split {split}: {why[name]}")
            if readings:
                columns = {one.column: to_json(one) for one in readings}
                keep_scores(results.store, run, name, split, columns)
            found[split] = (*found.get(split, ()), *readings)
    return Rescored(run, found, refused)


def run_material(results: "Results", run: str, split: str) -> Material:
    """What a run of a store gives to score: its predictions, and the annotation of its data. Their
    videos need not be there."""
    predictions = results.run(run).predictions(split)
    if (record := results.record_with(run)) is None:
        raise ValueError(f"no study has {run}: where its annotation is is not known")
    material = annotated(record.plan().study.data, split)
    labels = frame_labels(material.annotated, predictions)
    return replace(material, labels=labels, predictions=predictions)


def _check(results: "Results", run: str, split: str, material: Material) -> None:
    reported = results.run(run).scores.get(split, {})
    if reported.get("protocol") != DENSE:
        return
    again = dense_map(*material.dense).value
    if again != reported["value"]:
        raise ValueError(
            f"{run}: dense_map of split {split} is {again!r}, the stage reported "
            f"{reported['value']!r}: its predictions or the annotation are not what they were"
        )
