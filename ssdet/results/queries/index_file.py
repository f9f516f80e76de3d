"""The file of a store's index: a Parquet table with a row for each stage."""

import errno
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ssdet.results.queries.run_frame import COLUMNS
from ssdet.results.queries.stage_files import Record, Stamp
from ssdet.system.safe_files import write_bytes

FORMAT = "ssdet-index/2"
PATTERN = "index-????????.parquet"
"""Of the file's name; the hex digits are the CRC-32 of its content, so that damage is noticed."""
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
ATTEMPTS = 3
"""At the newest file, which another process may replace at any moment."""

RUN = (*COLUMNS, "rescored")
"""Columns of runs; they are null for other stages, which have no `kind`. `studies`, `arms` and
`rescored` are JSON, `parents` are joined by spaces."""
STAMP = Stamp._fields
"""Null for a stage that is only planned."""
UPDATING = ("summary", "chain", "uses", "start", "planned")
"""Columns that only an update reads: JSON of the `Summary`; the stages that a run came from, itself
included, joined by spaces; JSON of `Uses`; what `share_probes` needs."""
TYPES = {
    **dict.fromkeys(("seed", "pretrain_steps", "finetune_steps"), pa.int64()),
    **dict.fromkeys(("videos_scored", "videos_expected", *STAMP), pa.int64()),
    **dict.fromkeys(("dense_map", "probe_map", "dense_map_val", "probe_map_val"), pa.float64()),
    **dict.fromkeys(("pretrain_lr", "lr", "seconds", "finished"), pa.float64()),
}
"""Of the columns that are no strings."""
SCHEMA = pa.schema(
    [(name, TYPES.get(name, pa.string())) for name in (*RUN, *STAMP, "odd", *UPDATING)]
)
REPEATED = [
    "kind", "studies", "arms", "protocol", "data", "readout", "augment", "augment_options", "model",
    "revision", "host", "rescored", "odd",
]  # fmt: skip
"""Columns with few different values."""


@dataclass(frozen=True)
class Content:
    """What a file of an index holds."""

    table: Callable[[list[str]], pa.Table]
    """Reads columns of `SCHEMA`; rows are ordered by id."""
    records: Mapping[str, Record]
    """By path below the folder `studies`."""


def empty() -> Content:
    """What a store without an index has."""
    return Content(SCHEMA.empty_table().select, {})


def read(root: Path) -> tuple[Content, str]:
    """The newest index of a store, empty where there is none that can be used, and what is wrong
    with it, if anything is."""
    for _ in range(ATTEMPTS):
        if (path := _newest(root)) is None:
            return empty(), ""
        try:
            return _parsed(path.read_bytes(), path)
        except FileNotFoundError:
            continue  # replaced meanwhile
        except OSError as error:
            return empty(), f"{path} cannot be read ({error.strerror})"
    return empty(), ""


def _newest(root: Path) -> Path | None:
    times = {}
    for path in root.glob(PATTERN):
        with suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime_ns
    return max(times, key=lambda path: (times[path], path.name), default=None)


def _parsed(data: bytes, path: Path) -> tuple[Content, str]:
    if path.stem != f"index-{zlib.crc32(data):08x}":
        return empty(), f"{path} is damaged (its checksum is another one)"
    file = parquet.ParquetFile(pa.BufferReader(data))
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(b"format") != FORMAT.encode():
        return empty(), ""
    records = {
        path: Record(Stamp(*stamp), *values)
        for path, (stamp, *values) in json.loads(metadata[b"records"]).items()
    }
    return Content(file.read, records), ""


def write(root: Path, content: Content) -> None:
    """Replace the index of a store; nothing is written where the store cannot be written to."""
    metadata = {"format": FORMAT, "records": json.dumps(content.records)}
    table = content.table(SCHEMA.names).replace_schema_metadata(metadata)
    buffer = BytesIO()
    parquet.write_table(
        table, buffer, compression="zstd", compression_level=1, use_dictionary=REPEATED,
        write_statistics=False,
    )  # fmt: skip
    data = buffer.getbuffer()
    older = set(root.glob(PATTERN))
    path = root / f"index-{zlib.crc32(data):08x}.parquet"
    try:
        write_bytes(path, data)
        for other in older - {path}:
            other.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise  # else the next reader looks at the folders again
