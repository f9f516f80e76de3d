"""Questions to a store: which runs there are, which is best, how two arms differ."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from ssdet.evaluation import PredictionSet
from ssdet.results import index
from ssdet.results.assembled import assemble
from ssdet.results.compare import Comparison, compare
from ssdet.results.index import Entry
from ssdet.results.rows import COLUMNS, SETTING, Lineage, rows_of, text
from ssdet.results.tables import ResultTable, result_table
from ssdet.studies.identity import recipe_of, stored_stage
from ssdet.studies.record import StudyRecord, read_records
from ssdet.studies.store import Store
from ssdet.training.inference import frame_targets
from ssdet.training.recipe import TrainRecipe

if TYPE_CHECKING:
    from ssdet.results.ensembles import Query

METRICS = {
    "dense_map": ("single", "dense_map"),
    "probe_map": ("probe", "probe_map"),
    "ensemble_map": ("ensemble", "dense_map"),
}
"""Kind of run and column that a metric ranks."""


@dataclass(frozen=True)
class Run:
    """A finished run: a fine-tuned network's scores, a probe's, or an ensemble's."""

    results: "Results"
    id: str

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def row(self) -> Mapping[str, Any]:
        """Its row of `Results.runs`."""
        return self.results.rows[self.id]

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
        if (identity := self.results.lineage.ancestor(self.id, kind)) is None:
            raise ValueError(f"{self.id} ({self.kind}) has no {kind} stage of its own")
        recipe: TrainRecipe = recipe_of(kind, identity["recipe"])
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
    def members(self) -> list["Run"]:
        """Runs that an ensemble averages; none for other runs."""
        if self.kind != "ensemble":
            return []
        return [self.results.run(parent) for parent in self.row["parents"]]

    def predictions(self, split: str = "test") -> PredictionSet:
        """Its scores of every frame. FileNotFoundError for a split that was not scored."""
        part = f"predictions/{split}"
        return PredictionSet.open(self.results.store.local(self.id, part) / part)

    def load_model(self) -> nn.Module:
        """The network that scored it, from clips to logits, on the CPU and ready to be evaluated.

        ValueError for ensembles (load their members) and probes (they keep no weights).
        """
        if self.kind != "single":
            hint = "load its members'" if self.kind == "ensemble" else "it keeps no weights"
            raise ValueError(f"{self.id} is an {self.kind} run and has no network: {hint}")
        classes = self.predictions(next(iter(self.scores))).classes
        find = self.results.store.local
        return assemble(stored_stage(find, self.id), classes, find)


@dataclass(frozen=True)
class Results:
    """What a store held when it was opened; open it again to see what has finished since."""

    store: Store
    entries: Mapping[str, Entry]
    """Finished stages by id."""
    records: tuple[StudyRecord, ...]
    """Plans of studies, the newest first."""
    faults: Mapping[str, str]
    """Stages and records that cannot be read, and why."""

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Results":
        """See `ssdet.results.open`. Warns of stages and records that cannot be read."""
        store = Store.at(uri)
        if not store.exists():
            raise FileNotFoundError(f"no store in {store.uri}: it has no folder 'stages'")
        store.refresh()
        found = index.load(store.root)
        records, damaged = read_records(store)
        faults = {**found.faults, **{str(path): why for path, why in damaged.items()}}
        for name, why in faults.items():
            warnings.warn(f"left out: {name}: {why}", stacklevel=3)
        return cls(store, found.entries, tuple(records), faults)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a finished run (single, probe or ensemble), ordered by id.

        `dense_map` is the run's own test score (a fraction), `probe_map` that of the probe on the
        same pretraining, `*_val` those of the validation split. `studies` and `arms` are tuples,
        from all plans that were run. `augment` to `lr` are of the recipes (an ensemble's where
        its members agree); nothing was pretrained where `pretrain_steps` is 0. `data` names the
        test videos; `seconds` is the wall time of the run's stages together.
        """
        frame = pd.DataFrame(list(self.rows.values()), columns=list(self.columns))
        whole = ["seed", "pretrain_steps", "finetune_steps", "videos_scored", "videos_expected"]
        frame[whole] = frame[whole].astype("Int64")
        maps = [name for name in self.columns if "_map" in name or name not in COLUMNS]
        frame[maps] = frame[maps].astype("float64")
        frame["finished"] = pd.to_datetime(frame["finished"], unit="s", utc=True)
        return frame

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `runs`: `COLUMNS`, and one for each protocol that runs were scored under
        since (`ssdet results rescore`), named by its id, with `_val` for that split."""
        further = next(iter(self.rows.values()), {}).keys() - {*COLUMNS}
        return (*COLUMNS, *sorted(further))

    @cached_property
    def lineage(self) -> Lineage:
        """Which stages came from which."""
        return Lineage(self.entries, self.records)

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of `runs` by id, as plain values."""
        return rows_of(self.lineage)

    def run(self, run: str) -> Run:
        """A run by its id; ValueError for one that is not there or not finished."""
        if run not in self.rows:
            raise ValueError(f"no finished run {run!r} in {self.store.root}: see `.runs`")
        return Run(self, run)

    def where(self, **where: Any) -> pd.DataFrame:
        """Rows of `runs` whose columns equal these values.

        `studies` and `arms` hold one of a row's; `augment_options` may be a mapping; None asks
        for rows without a value. ValueError for unknown columns.
        """
        if unknown := where.keys() - set(self.columns):
            known = ", ".join(self.columns)
            raise ValueError(f"no column {', '.join(sorted(unknown))}: choose from {known}")
        kept = [
            all(_fits(row[name], value) for name, value in where.items())
            for row in self.rows.values()
        ]
        return self.runs[kept]

    def best(self, metric: str, split: str = "test", **where: Any) -> Run:
        """The run with the highest score among those that `where` (see there) keeps.

        metric: "dense_map" ranks fine-tuned single networks, "probe_map" probes, "ensemble_map"
        ensembles; a column of `ssdet results rescore` ranks single networks by it. To choose by the
        test split is not a selection rule that a score can be reported with: choose with
        split="val" and report the test score of what was chosen. Of equals the first id wins.
        ValueError for unknown metrics, splits and columns, where nothing is left, or where
        candidates differ in protocol, data or coverage.
        """
        kind, column = METRICS.get(metric, ("single", metric))
        if column not in self.metrics or split not in ("test", "val"):
            known = ", ".join(dict.fromkeys([*METRICS, *self.metrics]))
            raise ValueError(f"metric {metric!r}, split {split!r}: choose from {known}; test, val")
        column = column if split == "test" else f"{column}_val"
        frame = self.where(**where)
        frame = frame[(frame["kind"] == kind) & frame[column].notna()] if column in frame else frame
        if frame.empty or column not in frame:
            asked = ", ".join(f"{name}={value!r}" for name, value in where.items())
            raise ValueError(
                f"no finished {kind} run in {self.store.root} has a number in {column!r}"
                f"{f' and {asked}' if asked else ''}: see `ssdet results ls`, or `rescore` old runs"
            )
        if metric not in METRICS:
            frame = frame.assign(**self._settings(frame["id"], metric, split))
        for name in SETTING:
            if len(values := frame[name].unique()) > 1:
                told = ", ".join(map(repr, sorted(values, key=str)))
                raise ValueError(f"{metric}: runs differ in {name} ({told}): choose one")
        return self.run(frame.loc[frame[column].idxmax(), "id"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns that `best` ranks by."""
        scored = [
            c for entry in self.entries.values() for one in entry.rescored.values() for c in one
        ]
        return ("dense_map", "probe_map", *sorted({*scored} - {*COLUMNS}))

    def _settings(self, runs: Iterable[str], column: str, split: str) -> dict[str, list[Any]]:
        """Protocol and coverage that runs were scored with under a further protocol."""
        scores = [self.entries[run].rescored[split][column] for run in runs]
        names = ("protocol", "videos_scored", "videos_expected")
        return {name: [score[name] for score in scores] for name in names}

    def checkpoint(self, stage: str) -> Path:
        """Last weights of a training stage, or those that a run scored (a probe: read).

        ValueError for ensembles and what has no training, FileNotFoundError where they are gone.
        """
        trained = [s for s in self.lineage.chain(stage) if s.startswith(("finetune-", "pretrain-"))]
        if not trained or stage.startswith("ensemble-"):
            raise ValueError(f"{stage!r} has no weights of its own")
        part = "checkpoints/last.pt"
        path = self.store.local(trained[0], part) / part
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the weights of {stage} are gone")
        return path

    def record(self, study: str) -> StudyRecord:
        """The plan that a study ran last; ValueError where it is not known."""
        found = next((record for record in self.records if record.name == study), None)
        if found is None:
            known = ", ".join(sorted({record.name for record in self.records})) or "none"
            raise ValueError(f"no record of study {study!r} in {self.store.root}; of: {known}")
        return found

    def targets(self, run: str, split: str = "test") -> dict[str, np.ndarray]:
        """Dense labels bool [T, K] of every expected video of a split.

        From the data of the newest plan that has the run; ValueError where none has.
        """
        record = next((record for record in self.records if run in record.stages), None)
        if record is None:
            raise ValueError(f"no study has {run}: where its videos are is not known")
        data = record.plan().study.data
        return frame_targets(data.split("downstream", split), data.reader("downstream"))

    def table(self, study: str) -> ResultTable:
        """Table of the plan that a study ran last, from its predictions and data."""
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
        return compare(self, arm_a, arm_b, study, readout, resamples)

    def ensemble(self, query: "Query") -> Any:
        """The ensemble that a query asks for; see `ssdet.results.ensembles`."""
        from ssdet.results.ensembles import build

        return build(self, query)


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(found, tuple) and not isinstance(wanted, tuple):
        return wanted in found
    return bool(found == (text(wanted) if isinstance(wanted, Mapping) else wanted))
