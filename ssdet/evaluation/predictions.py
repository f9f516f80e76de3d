"""Prediction sets: per-frame float16 scores of one run on one split, with an index.

A folder has one shard per writing process: ``NAME.f16``, the matrix [frames, classes] of its
videos one after the other, and ``NAME.json``, the index, which is renamed into place last: data
without an index is an unfinished shard.
"""

import base64
import json
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch

from ssdet.data.video.clock import Clock
from ssdet.evaluation.average_precision import INFINITY, SIGN, Array

FORMAT = "ssdet-predictions/2"
_PAGE = 4096


class PredictionWriter:
    """Append-only writer of one shard, complete when the ``with`` block ends without an exception.

    ``folder`` is created; ``shard`` names the files and replaces a shard of that name.
    """

    def __init__(self, folder: str | Path, classes: int, shard: str = "0") -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", shard):
            raise ValueError(f"shard {shard!r}: use letters, digits, '-' and '_' only")
        if classes < 1:
            raise ValueError(f"classes={classes}: a prediction set has at least one class")
        self.folder, self.classes = Path(folder), int(classes)
        self._data_path = self.folder / f"{shard}.f16"
        self._index_path = self.folder / f"{shard}.json"
        self._videos: dict[str, tuple[int, float, Clock | None]] = {}

    def __enter__(self) -> "PredictionWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index_path.unlink(missing_ok=True)
        self._data_path.unlink(missing_ok=True)  # readers that have it mapped keep the old file
        self._file: IO[bytes] = self._data_path.open("wb", buffering=1 << 20)
        return self

    def add(self, video_id: str, probs_TK: Array | torch.Tensor, fps: float | Clock) -> None:
        """Append the scores [T, K] of one video as float16.

        fps: frames per second, or the clock of a video of variable rate. Raises ValueError for an
        id already written, another number of classes, no frame, a NaN, a finite score beyond
        float16, or an fps that is not positive and finite.
        """
        scores_TK = _as_tensor(probs_TK)
        clock = fps if isinstance(fps, Clock) else None
        if isinstance(fps, Clock):
            fps = fps.frames / (fps.end - float(fps.times_T[0]))
        self._check(video_id, scores_TK, fps, clock)
        half_TK = scores_TK.to(torch.float16).contiguous().numpy().astype("<f2", copy=False)
        top = int((half_TK.view(np.uint16) & (SIGN - 1)).max())
        if top > INFINITY:
            raise ValueError(f"video {video_id!r}: a score is NaN: repair the model or the input")
        if top == INFINITY and (np.isinf(half_TK) & ~torch.isinf(scores_TK).numpy()).any():
            raise ValueError(
                f"video {video_id!r}: a score is beyond float16 (65504): store probabilities"
            )
        self._file.write(half_TK.data)
        self._videos[video_id] = (len(half_TK), float(fps), clock)

    def _check(
        self, video_id: str, scores_TK: torch.Tensor, fps: float, clock: Clock | None
    ) -> None:
        if not isinstance(video_id, str) or not video_id:
            raise ValueError(f"video id {video_id!r}: expected a non-empty string")
        if video_id in self._videos:
            raise ValueError(f"video {video_id!r} was already written to {self._data_path}")
        if scores_TK.ndim != 2 or scores_TK.shape[1] != self.classes or not len(scores_TK):
            raise ValueError(
                f"video {video_id!r}: scores {tuple(scores_TK.shape)}, "
                f"expected [frames >= 1, {self.classes}]"
            )
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"video {video_id!r}: fps={fps}, expected frames per second > 0")
        if clock is not None and clock.frames != len(scores_TK):
            raise ValueError(
                f"video {video_id!r}: a clock of {clock.frames} frames, scores of {len(scores_TK)}"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is not None:
                return
            self._file.flush()
            os.fsync(self._file.fileno())
        self._publish()

    def _publish(self) -> None:
        frames = sum(frames for frames, *_ in self._videos.values())
        index = {
            "format": FORMAT,
            "dtype": "<f2",
            "classes": self.classes,
            "frames": frames,
            "data_checksum": _checksum(_map(self._data_path, frames, self.classes)),
            "videos": [
                [name, frames, fps, *([_packed(clock)] if clock else [])]
                for name, (frames, fps, clock) in self._videos.items()
            ],
        }
        index["index_checksum"] = _index_checksum(index)
        unfinished = self._index_path.with_suffix(".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._index_path)


class PredictionSet(Mapping[str, Array]):
    """Read-only mapping from video id to its scores, float16 [T, K] views of mapped files."""

    def __init__(self, folder: Path, classes: int) -> None:
        self.folder, self.classes = folder, classes
        self._shards: dict[Path, tuple[Array, int]] = {}  # data file -> scores, checksum
        self._rows: dict[str, tuple[Array, int, int, float]] = {}
        self._clocks: dict[str, Clock] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "PredictionSet":
        """Open all shards in ``folder``, sorted by name, without reading scores (see ``verify``).

        Raises FileNotFoundError without any shard, ValueError naming the file for an unfinished
        or truncated shard, an altered index, other class counts, or a duplicate video.
        """
        folder = Path(folder)
        shards = sorted({path.stem for end in ("f16", "json") for path in folder.glob(f"*.{end}")})
        if not shards:
            raise FileNotFoundError(f"{folder}: no prediction set (NAME.f16 and NAME.json) here")
        indices = {shard: _read_index(folder / f"{shard}.json") for shard in shards}
        opened = cls(folder, indices[shards[0]]["classes"])
        for shard, index in indices.items():
            opened._add_shard(folder / f"{shard}.json", index)
        return opened

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        """Pickle the folder's path; scores are not sent to other processes."""
        return PredictionSet.open, (self.folder,)

    def _add_shard(self, path: Path, index: dict[str, Any]) -> None:
        if index["classes"] != self.classes:
            raise _broken(path, f"{index['classes']} classes, other shards have {self.classes}")
        data = path.with_suffix(".f16")
        expected = index["frames"] * self.classes * 2
        size = data.stat().st_size if data.is_file() else 0
        if size != expected:
            raise _broken(data, f"{size} bytes, its index says {expected}")
        scores_NK = _map(data, index["frames"], self.classes)
        self._shards[data] = (scores_NK, index.get("data_checksum", -1))
        row = 0
        for video, frames, fps, *times in index["videos"]:
            if video in self._rows:
                raise _broken(path, f"video {video!r} is there twice")
            if times:
                self._clocks[video] = _unpacked(path, video, frames, times[0])
            self._rows[video] = (scores_NK, row, row + frames, fps)
            row += frames

    def renamed(self, sources: Mapping[str, str]) -> "PredictionSet":
        """The same scores under other names: a video by its new name, which may repeat.

        Not to be sent to another process.
        """
        view = PredictionSet(self.folder, self.classes)
        view._shards = self._shards
        view._rows = {name: self._entry(video) for name, video in sources.items()}
        clocks = self._clocks
        view._clocks = {name: clocks[video] for name, video in sources.items() if video in clocks}
        return view

    def verify(self) -> None:
        """Read all scores once; raises ValueError naming a file that is not what was written."""
        for data, (scores_NK, expected) in self._shards.items():
            if _checksum(scores_NK) != expected:
                raise _broken(data, "its checksum is not the one in its index")

    def release(self) -> None:
        """Release the memory of scores that were read; they stay accessible through their files."""
        for scores_NK, _ in self._shards.values():
            mapped = getattr(scores_NK, "_mmap", None)
            if mapped is not None:  # None for an empty shard
                mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def videos(self) -> tuple[str, ...]:
        """Video ids in the order of the shards."""
        return tuple(self._rows)

    def frames(self, video: str) -> int:
        """Number of scored frames of one video."""
        _, first, last, _ = self._entry(video)
        return last - first

    def fps(self, video: str) -> float:
        """Scored frames per second of one video, on average."""
        return self._entry(video)[3]

    def clock(self, video: str) -> Clock:
        """Times of the scored frames of one video: frame f at f / fps, unless its rate varies."""
        clock = self._clocks.get(video)
        return clock or Clock.regular(self.frames(video), self.fps(video))

    def _entry(self, video: str) -> tuple[Array, int, int, float]:
        if video not in self._rows:
            raise KeyError(f"{self.folder}: no predictions of video {video!r}")
        return self._rows[video]

    def __getitem__(self, video: str) -> Array:
        scores_NK, first, last, _ = self._entry(video)
        return scores_NK[first:last]

    def __contains__(self, video: object) -> bool:
        return video in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _broken(path, "missing: the writer of this shard did not finish")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not JSON ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("dtype") != "<f2":
        raise _broken(path, f"not an index of format {FORMAT} and dtype <f2")
    if index.pop("index_checksum", None) != _index_checksum(index):
        raise _broken(path, "its checksum does not fit its content")
    if fault := _index_fault(index):
        raise _broken(path, fault)
    return index


def _index_fault(index: dict[str, Any]) -> str | None:
    """Describe the first invalid field of an index; None for a valid one."""
    classes, frames, videos = (index.get(name) for name in ("classes", "frames", "videos"))
    if not _is_count(classes) or not isinstance(videos, list):
        return f"classes={classes!r} or its list of videos is malformed"
    for entry in videos:
        if not (isinstance(entry, list) and len(entry) in (3, 4) and isinstance(entry[0], str)):
            return f"entry {entry!r} is not [video id, frames, fps] with or without times"
        if not (_is_count(entry[1]) and isinstance(entry[2], float) and 0 < entry[2] < math.inf):
            return f"video {entry[0]!r}: frames {entry[1]!r} or fps {entry[2]!r} is not positive"
    total = sum(entry[1] for entry in videos)
    return None if total == frames else f"frames={frames!r}, its videos have {total}"


def _packed(clock: Clock) -> dict[str, Any]:
    times = base64.b64encode(clock.times_T.astype("<f8").tobytes()).decode()
    return {"times": times, "end": clock.end}


def _unpacked(path: Path, video: str, frames: int, packed: Any) -> Clock:
    try:
        times_T = np.frombuffer(base64.b64decode(packed["times"], validate=True), "<f8")
        clock = Clock.from_json({"times": times_T, "end": packed["end"]})
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(path, f"video {video!r}: unusable times: {error}") from error
    if clock.frames != frames:
        raise _broken(path, f"video {video!r}: {clock.frames} times of {frames} frames")
    return clock


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _as_tensor(scores_TK: Array | torch.Tensor) -> torch.Tensor:
    if isinstance(scores_TK, torch.Tensor):
        return scores_TK.detach().cpu()
    return torch.from_numpy(np.array(scores_TK, order="C"))  # torch shares no read-only memory


def _map(path: Path, frames: int, classes: int) -> Array:
    if not frames:
        return np.empty((0, classes), "<f2")  # an empty file cannot be mapped
    return np.memmap(path, "<f2", mode="r", shape=(frames, classes))


def _checksum(scores_NK: Array) -> int:
    """CRC-32 of the sums of all pages: much faster than a CRC of the bytes."""
    data = scores_NK.reshape(-1).view(np.uint8)
    pages = len(data) // _PAGE * _PAGE
    sums = data[:pages].view("<u8").reshape(-1, _PAGE // 8).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(data[pages:].data, zlib.crc32(sums.data))


def _index_checksum(index: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _broken(path: Path, fault: str) -> ValueError:
    return ValueError(f"{path}: {fault}; delete this shard and run the predict stage again")
