"""The runs of a store as columns, of which only those that are asked for become Python values."""

import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import compute

from ssdet.results.queries.run_frame import COLUMNS, SCORE, text

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("seed", "pretrain_steps", "finetune_steps", "videos_scored", "videos_expected")
TUPLES = ("studies", "arms", "parents")


class RunTable:
    """Columns of all finished runs: `COLUMNS`, and one for each protocol that runs were scored
    under since, named by its id, with `_val` for that split."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._values: dict[str, Sequence[Any]] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every column, the further protocols' at the end."""
        scores = ((split, column) for by_split in self.rescored.values()
                  for split, columns in by_split.items() for column in columns)  # fmt: skip
        further = {c + s for split, c in scores if (s := _SUFFIX.get(split)) is not None}
        return (*COLUMNS, *sorted(further - {*COLUMNS}))

    @cached_property
    def rescored(self) -> dict[int, Mapping[str, Mapping[str, Mapping[str, Any]]]]:
        """Scores under further protocols by split and column, by the place of their run."""
        valid = compute.is_valid(self.table["rescored"])
        places = compute.indices_nonzero(valid).to_pylist()
        texts = self.table["rescored"].filter(valid).to_pylist()
        return {place: json.loads(t) for place, t in zip(places, texts, strict=True)}

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of each run by its id."""
        return {name: place for place, name in enumerate(self["id"])}

    def __getitem__(self, name: str) -> Sequence[Any]:
        """Values of a column, None where a run has none."""
        if name not in self._values:
            self._values[name] = self._read(name)
        return self._values[name]

    def _read(self, name: str) -> Sequence[Any]:
        if name not in COLUMNS:
            column, split = (name[:-4], "val") if name.endswith("_val") else (name, "test")
            scores = (self.rescored.get(place, {}).get(split, {}) for place in range(len(self)))
            return [of_run.get(column, {}).get("value") for of_run in scores]
        values: Sequence[Any] = self.table[name].to_pylist()
        if name == "parents":
            return [tuple(value.split()) for value in values]
        if name in TUPLES:
            parsed = {value: tuple(json.loads(value)) for value in {*values}}
            return [parsed[value] for value in values]
        return values

    def row(self, run: str) -> dict[str, Any]:
        """The row of a run by its id; KeyError for one that is not there."""
        if run not in self["id"]:
            raise KeyError(run)
        one = self.take([self["id"].index(run)])
        return {name: one[name][0] for name in self.names}

    def take(self, places: Sequence[int]) -> "RunTable":
        """These runs alone, in this order."""
        # `pa.array` would import pandas.
        buffer = pa.py_buffer(array("q", places))
        return RunTable(
            self.table.take(pa.Array.from_buffers(pa.int64(), len(places), [None, buffer]))
        )

    def rows(self) -> list[dict[str, Any]]:
        """All rows."""
        columns = [self[name] for name in self.names]
        return [dict(zip(self.names, values, strict=True)) for values in zip(*columns, strict=True)]

    def setting(self, place: int, column: str, split: str) -> dict[str, Any]:
        """What a run was scored with under a further protocol: fields of `SCORE` but the value."""
        score = self.rescored[place][split][column]
        return {name: score[name] for name in SCORE if name != "value"}

    def matching(self, where: Mapping[str, Any]) -> list[int]:
        """Places of the runs whose columns equal these values; see `Results.where`."""
        places = list(range(len(self)))
        for name, value in where.items():
            values = self[name]
            places = [place for place in places if _fits(values[place], value)]
        return places

    def frame(self) -> "pd.DataFrame":
        """As a pandas frame, ordered by id."""
        import pandas as pd

        simple = [name for name in COLUMNS if name not in TUPLES]
        types = {pa.int64(): pd.Int64Dtype()}
        frame = self.table.select(simple).to_pandas(types_mapper=types.get)
        frame["finished"] = pd.to_datetime(frame["finished"], unit="s", utc=True)
        columns: dict[str, Any] = {name: frame[name] for name in simple}
        columns |= {name: pd.Series(self[name], dtype=object) for name in TUPLES}
        further = self.names[len(COLUMNS) :]
        columns |= {name: pd.Series(self[name], dtype="float64") for name in further}
        return pd.DataFrame({name: columns[name] for name in self.names})


_SUFFIX = {"test": "", "val": "_val"}


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(value, tuple) and not isinstance(wanted, tuple):
        return wanted in value
    return bool(value == (text(wanted) if isinstance(wanted, Mapping) else wanted))
