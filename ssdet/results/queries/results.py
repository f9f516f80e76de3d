"""Questions to a store: which runs there are, which is best, how two arms differ."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.data.loading.recipe import DENSE
from ssdet.results.queries import index
from ssdet.results.queries.index import Index
from ssdet.results.queries.run_frame import COLUMNS, SETTING
from ssdet.results.queries.run_table import RunTable
from ssdet.store.base import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

    from ssdet.evaluation import Material, PredictionSet
    from ssdet.results.queries.compare import Comparison
    from ssdet.results.queries.ensembles import EnsembleResult, Query
    from ssdet.results.tables.result_table import ResultTable
    from ssdet.studies.graph.record import StudyRecord
    from ssdet.training.recipe import TrainRecipe

METRICS = {
    "dense_map": ("single", "dense_map"),
    "probe_map": ("probe", "probe_map"),
    "ensemble_map": ("ensemble", "dense_map"),
}
"""Kind of run and column that a metric ranks."""


@dataclass(frozen=True)
class Run:
    """A finished run: a fine-tuned network's scores, a probe's, or an ensemble's."""

    results: Results
    id: str

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def row(self) -> Mapping[str, Any]:
        """Its row of `Results.runs`."""
        return self.results.table_of_runs.row(self.id)

    @property
    def kind(self) -> str:
        """single, probe or ensemble."""
        return str(self.row["kind"])

    @property
    def folder(self) -> Path:
        """Folder of the stage that scored it."""
        return self.results.store.folder(self.id)

    @property
    def checkpoint(self) -> Path:
        """The weights that were scored (a probe: that it read). ValueError for an ensemble."""
        return self.results.checkpoint(self.id)

    @property
    def recipe(self) -> TrainRecipe:
        """Of its fine-tuning. ValueError where nothing was fine-tuned."""
        return self._recipe("finetune")

    @property
    def pretrain_recipe(self) -> TrainRecipe:
        """Of its pretraining. ValueError where there was none."""
        return self._recipe("pretrain")

    def _recipe(self, kind: str) -> TrainRecipe:
        from ssdet.studies.graph.identity import recipe_of

        chain = () if self.kind == "ensemble" else self.results.index.chain(self.id)
        if (stage := next((s for s in chain if s.startswith(f"{kind}-")), None)) is None:
            raise ValueError(f"{self.id} ({self.kind}) has no {kind} stage of its own")
        recipe: TrainRecipe = recipe_of(kind, self.results.identity(stage)["recipe"])
        return recipe

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Score by split, with every class."""
        result = self.results.store.result(self.id)
        if result is None:
            raise FileNotFoundError(f"{self.id} was removed since the store was opened")
        return dict(result["scores"])

    @property
    def provenance(self) -> dict[str, Any]:
        """How its last stage ran: revision, packages, hardware, time."""
        return dict(json.loads((self.folder / "provenance.json").read_bytes()))

    @property
    def members(self) -> list[Run]:
        """Runs that an ensemble averages; none for other runs."""
        if self.kind != "ensemble":
            return []
        return [self.results.run(parent) for parent in self.row["parents"]]

    def predictions(self, split: str = "test") -> PredictionSet:
        """Its scores of every frame. FileNotFoundError for a split that was not scored."""
        from ssdet.evaluation import PredictionSet

        part = f"predictions/{split}"
        return PredictionSet.open(self.results.store.fetch(self.id, part) / part)

    def load_model(self) -> nn.Module:
        """The network that scored it, from clips to logits, on the CPU and ready to be evaluated.

        ValueError for ensembles (load their members) and probes (they keep no weights).
        """
        if self.kind != "single":
            hint = "load its members'" if self.kind == "ensemble" else "it keeps no weights"
            raise ValueError(f"{self.id} is an {self.kind} run and has no network: {hint}")
        from ssdet.stages.backbone_with_head import assemble
        from ssdet.studies.graph.identity import stored_stage

        classes = self.predictions(next(iter(self.scores))).classes
        find = self.results.store.fetch
        return assemble(stored_stage(find, self.id), classes, find)


@dataclass(frozen=True)
class Results:
    """What a store held when it was opened; open it again to see what has finished since."""

    store: Store
    index: Index
    """Finished stages, rows of runs, and which records of studies there are."""

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Results:
        """See `ssdet.results.open`. Warns of stages and records that cannot be read, and of an
        index that was damaged."""
        store = Store.existing(uri)
        store.refresh()
        found = index.load(store.root)
        if found.note:
            warnings.warn(f"{found.note}: the index was made again", stacklevel=3)
        for name, why in found.faults.items():
            warnings.warn(f"left out: {name}: {why}", stacklevel=3)
        return cls(store, found)

    @property
    def faults(self) -> Mapping[str, str]:
        """Stages and records that cannot be read, and why."""
        return self.index.faults

    @cached_property
    def stages(self) -> frozenset[str]:
        """Ids of the finished stages."""
        return frozenset(self.index.finished)

    @cached_property
    def records(self) -> tuple[StudyRecord, ...]:
        """Plans of studies, the newest first. All are read: see `record` and `record_with`."""
        return tuple(map(self._read_record, self.index.records))

    def _read_record(self, path: str) -> StudyRecord:
        from ssdet.studies.graph.record import read_record

        return read_record(self.store.studies / path)

    @cached_property
    def table_of_runs(self) -> RunTable:
        """Rows of the finished runs, by columns."""
        return RunTable(self.index.runs)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a finished run (single, probe or ensemble), ordered by id.

        `dense_map` is the run's own test score (a fraction), `probe_map` that of the probe on the
        same pretraining, `*_val` those of the validation split. `studies` and `arms` are tuples,
        from all plans that were run. `augment` to `lr` are of the recipes (an ensemble's where
        its members agree); nothing was pretrained where `pretrain_steps` is 0. `data` names the
        test videos; `seconds` is the wall time of the run's stages together.
        """
        return self.table_of_runs.frame()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `runs`: `COLUMNS`, and one for each protocol that runs were scored under
        since (`ssdet results rescore`), named by its id, with `_val` for that split."""
        return self.table_of_runs.names

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of `runs` by id, as plain values."""
        return {row["id"]: row for row in self.table_of_runs.rows()}

    def identity(self, stage: str) -> dict[str, Any]:
        """Kind, recipe, parents and data of a stage, from its folder, else from a record.

        ValueError where neither has it.
        """
        path = self.store.folder(stage) / "recipe.json"
        if path.is_file():
            return dict(json.loads(path.read_bytes()))
        if (record := self.record_with(stage)) is None:
            raise ValueError(f"{path} is gone, and no study has planned {stage}")
        return dict(record.stages[stage])

    def run(self, run: str) -> Run:
        """A run by its id; ValueError for one that is not there or not finished."""
        if run not in self.table_of_runs.places:
            raise ValueError(f"no finished run {run!r} in {self.store.root}: see `.runs`")
        return Run(self, run)

    def where(self, **where: Any) -> pd.DataFrame:
        """Rows of `runs` whose columns equal these values.

        `studies` and `arms` hold one of a row's; `augment_options` may be a mapping; None asks
        for rows without a value. ValueError for unknown columns.
        """
        self._check(where)
        return self.runs.iloc[self.table_of_runs.matching(where)]

    def best(self, metric: str = "", split: str = "test", **where: Any) -> Run:
        """The run with the highest score among those that `where` (see there) keeps.

        metric: "dense_map" ranks fine-tuned single networks, "probe_map" probes, "ensemble_map"
        ensembles; a column of `ssdet results rescore` ranks single networks by it, as does, without
        a metric, the protocol of the study that `where` names. To choose by the
        test split is not a selection rule that a score can be reported with: choose with
        split="val" and report the test score of what was chosen. Of equals the first id wins.
        ValueError for unknown metrics, splits and columns, where nothing is left, or where
        candidates differ in protocol, data or coverage.
        """
        metric = metric or self.protocol(where).rpartition("/")[0]
        kind, column = METRICS.get(metric, ("single", metric))
        if column not in self.metrics or split not in ("test", "val"):
            known = ", ".join(dict.fromkeys([*METRICS, *self.metrics]))
            raise ValueError(f"metric {metric!r}, split {split!r}: choose from {known}; test, val")
        column = column if split == "test" else f"{column}_val"
        self._check(where)
        runs = self.table_of_runs
        kinds, values = runs["kind"], runs[column]
        places = [
            place
            for place in runs.matching(where)
            if kinds[place] == kind and values[place] is not None and not isnan(values[place])
        ]
        if not places:
            asked = ", ".join(f"{name}={value!r}" for name, value in where.items())
            raise ValueError(
                f"no finished {kind} run in {self.store.root} has a number in {column!r}"
                f"{f' and {asked}' if asked else ''}: see `ssdet results ls`, or `rescore` old runs"
            )
        for name, settings in self._settings(places, metric, split).items():
            if len(settings) > 1:
                given = ", ".join(map(repr, sorted(settings, key=str)))
                raise ValueError(f"{metric}: runs differ in {name} ({given}): choose one")
        return Run(self, runs["id"][max(places, key=values.__getitem__)])

    def _check(self, where: Mapping[str, Any]) -> None:
        if unknown := where.keys() - set(self.columns):
            names = ", ".join(self.columns)
            raise ValueError(f"no column {', '.join(sorted(unknown))}: choose from {names}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns that `best` ranks by."""
        scores = self.table_of_runs.rescored.values()
        columns = {c for by_split in scores for of_split in by_split.values() for c in of_split}
        return ("dense_map", "probe_map", *sorted(columns - {*COLUMNS}))

    def _settings(self, places: Sequence[int], metric: str, split: str) -> dict[str, set[Any]]:
        """Protocols, data and coverage of these runs, under the protocol of a metric."""
        runs = self.table_of_runs
        settings = {name: set(map(runs[name].__getitem__, places)) for name in SETTING}
        if metric not in METRICS:
            scored = [runs.setting(place, metric, split) for place in places]
            settings |= {name: {score[name] for score in scored} for name in scored[0]}
        return settings

    def checkpoint(self, stage: str) -> Path:
        """Last weights of a training stage, or those that a run scored (a probe: read).

        ValueError for ensembles and what has no training, FileNotFoundError where they are gone.
        """
        trained = [s for s in self.index.chain(stage) if s.startswith(("finetune-", "pretrain-"))]
        if not trained or stage.startswith("ensemble-"):
            raise ValueError(f"{stage!r} has no weights of its own")
        part = "checkpoints/last.pt"
        path = self.store.fetch(trained[0], part) / part
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the weights of {stage} are gone")
        return path

    def record(self, study: str) -> StudyRecord:
        """The plan that a study ran last; ValueError where it is not known."""
        records = self.index.records.items()
        if (path := next((p for p, record in records if record.name == study), None)) is None:
            names = ", ".join(sorted({record.name for _, record in records})) or "none"
            raise ValueError(f"no record of study {study!r} in {self.store.root}; of: {names}")
        return self._read_record(path)

    def record_with(self, stage: str) -> StudyRecord | None:
        """The newest plan that has a stage, None where none has."""
        paths = {path for path, _, _ in self.index.uses(stage)}
        path = next((path for path in self.index.records if path in paths), None)
        return None if path is None else self._read_record(path)

    def targets(self, run: str, split: str = "test") -> dict[str, np.ndarray]:
        """Dense labels bool [T, K] of every expected video of a split.

        From the data of the newest plan that has the run; ValueError where none has.
        """
        labels: Any = self.truth(run, split).labels
        return dict(labels)

    def protocol(self, where: Mapping[str, Any]) -> str:
        """Id of the protocol of the study that `where` names, dense mAP where it names none."""
        study = where.get("studies")
        return DENSE if study is None else str(self.record(study).study["protocol"])

    def truth(self, run: str, split: str = "test") -> Material:
        """What predictions of a split are scored against, under any protocol: labels as `targets`
        has them, and the annotation."""
        if (record := self.record_with(run)) is None:
            raise ValueError(f"no study has {run}: where its videos are is not known")
        found: Material = record.plan().study.data.truth(split)
        return found

    def table(self, study: str) -> ResultTable:
        """Table of the plan that a study ran last, from its predictions and data."""
        from ssdet.results.tables.result_table import result_table

        return result_table(self.record(study).plan(), self.store)

    def compare(
        self,
        arm_a: str,
        arm_b: str,
        study: str | None = None,
        readout: str = "finetuned",
        resamples: int = 1000,
    ) -> Comparison:
        """Paired bootstrap of arm b against arm a over the test videos and common seeds.

        readout: "finetuned" or "probe". Without `study`, the one study that has both arms, else
        the one of each. A single ensemble of all seeds stands against every seed of the other
        arm, as in tables. ValueError where an arm is ambiguous or unknown, no seed is finished
        in both, or they differ in protocol, data or coverage.
        """
        from ssdet.results.queries.compare import compare

        return compare(self, arm_a, arm_b, study, readout, resamples)

    def ensemble(self, query: Query) -> EnsembleResult:
        """The ensemble that a query asks for; see `ssdet.results.queries.ensembles`."""
        from ssdet.results.queries.ensembles import build

        return build(self, query)
