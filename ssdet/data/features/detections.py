"""Reader of object detections: one .npz per video, fully validated.

Arrays of T steps, N box slots and D features (docs/graphs.md has the table): ``boxes`` [T, N, 4],
``kind`` [T, N], ``features`` [T, N, D]; optional vectors per step of the whole picture in ``rgb``,
``flow``, ``scene`` [T, D']; the numbers ``fps``, ``stride``, ``frames``.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssdet.data.features.foreign_files import npy_header
from ssdet.data.features.stored_videos import StoredVideos

Array = np.ndarray[Any, Any]
ABSENT, ACTOR, OBJECT = -1, 0, 1
SEGMENTS = ("rgb", "flow", "scene")
"""Optional vectors of the whole picture."""
LIMIT = 1 << 31
"""Maximum bytes of the arrays of one video: a small file can declare any size."""
_AXES = {"boxes": "TN4", "kind": "TN", "features": "TND", **dict.fromkeys(SEGMENTS, "TD")}
_NUMBERS = ("fps", "stride", "frames")
_KINDS = {"kind": "iu", "stride": "iu", "frames": "iu", "fps": "fiu"}
"""Kinds of numpy types by field; others are floating point."""
_TYPES = {"f": "floating point", "iu": "integers", "fiu": "numbers"}


class BrokenDetections(ValueError):
    """A file of detections that is damaged, hostile or inconsistent."""


class Detections(NamedTuple):
    """Detections of B videos, padded to the longest (T steps) and to the most boxes (N slots).

    Models ignore the content of absent slots and of steps past the end.
    """

    boxes_BTN4: Tensor
    """Corners x1, y1, x2, y2 as shares of width and height."""
    kinds_BTN: Tensor
    """int64: ACTOR, OBJECT or ABSENT."""
    features_BTND: Tensor
    """RoI-pooled features of each box."""
    lengths_B: Tensor
    rgb_BTD: Tensor | None = None
    flow_BTD: Tensor | None = None
    scene_BTD: Tensor | None = None

    @property
    def mask_BT(self) -> Tensor:
        """bool: existing steps."""
        steps_T = torch.arange(self.kinds_BTN.shape[1], device=self.lengths_B.device)
        return steps_T < self.lengths_B[:, None]

    @property
    def present_BTN(self) -> Tensor:
        """bool: existing boxes."""
        return (self.kinds_BTN != ABSENT) & self.mask_BT[:, :, None]

    def to(self, device: torch.device | str) -> "Detections":
        """Move to a device."""
        return Detections(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class DetectionsHeader:
    """Shapes and timing from the headers of a file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    fps: float
    stride: int
    frames: int
    """Frames of the video; step i is at frame i · stride."""

    @property
    def steps(self) -> int:
        return self.shapes["kind"][0]

    @property
    def widths(self) -> dict[str, int]:
        """Channels of `features` and of the available vectors of the whole picture."""
        return {n: shape[-1] for n, shape in self.shapes.items() if n not in ("boxes", "kind")}


class DetectionSet(StoredVideos[DetectionsHeader]):
    """Read-only mapping from video id (the file's name) to its arrays, read on demand.

    Boxes and features of absent slots are 0.
    """

    def __init__(self, entries: Mapping[str, DetectionsHeader], folder: Path) -> None:
        self.entries, self.folder = dict(entries), folder
        self.widths = next(iter(entries.values())).widths

    @classmethod
    def open(cls, folder: str | Path) -> "DetectionSet":
        """Open a folder and check the headers of every .npz in it.

        Raises FileNotFoundError without files, BrokenDetections for a damaged file or one with
        other fields or channels than the first.
        """
        paths = sorted(Path(folder).glob("*.npz"))
        if not paths:
            raise FileNotFoundError(f"{folder}: no detections (VIDEO.npz) here")
        entries = {path.stem: read_header(path) for path in paths}
        first = entries[paths[0].stem]
        for entry in entries.values():
            if entry.widths != first.widths:
                raise BrokenDetections(
                    f"{entry.path}: channels {entry.widths}, {first.path.name} has {first.widths}: "
                    "give all videos the same fields"
                )
        return cls(entries, Path(folder))

    def batch(self, videos: Sequence[str], segments: Sequence[str] = SEGMENTS) -> Detections:
        """Padded batch of these videos, with the available ones of `segments`."""
        return padded([_arrays(self.entries[v], segments) for v in videos])

    def reason(self, video: str) -> str:
        """Reason why a video has no detections."""
        return f"no detections in {self.folder}"

    def __getitem__(self, video: str) -> dict[str, Array]:
        if video not in self.entries:
            raise KeyError(f"{self.folder}: no detections of video {video!r}")
        return _arrays(self.entries[video], SEGMENTS)


def padded(videos: Sequence[Mapping[str, Array]]) -> Detections:
    """Pad arrays of single videos with the same fields into a batch with at least one slot."""
    parts: dict[str, Tensor] = {}
    for name, first in videos[0].items():
        shape = np.max([video[name].shape for video in videos], axis=0)
        if "N" in _AXES[name]:
            shape[1] = max(shape[1], 1)
        fill = ABSENT if name == "kind" else 0
        stacked = np.full((len(videos), *shape), fill, first.dtype)
        for row, video in zip(stacked, videos, strict=True):
            row[tuple(map(slice, video[name].shape))] = video[name]
        parts[name] = torch.from_numpy(stacked)
    lengths_B = torch.tensor([len(video["kind"]) for video in videos])
    segments = {f"{name}_BTD": parts.get(name) for name in SEGMENTS}
    return Detections(parts["boxes"], parts["kind"], parts["features"], lengths_B, **segments)


def read_header(path: Path) -> DetectionsHeader:
    """Read shapes and numbers of a file, but no large array. Raises BrokenDetections."""
    with _opened(path) as archive:
        members = _members(archive, path)
        shapes = {name: _shape(archive, info, name, path) for name, info in members.items()}
        shapes = {name: shape for name, shape in shapes.items() if name in _AXES}
        _check_shapes(shapes, path)
        fps, stride, frames = (_load(archive, members[name].filename).item() for name in _NUMBERS)
    steps = shapes["kind"][0]
    if not (math.isfinite(fps) and fps > 0 and stride >= 1):
        raise BrokenDetections(f"{path}: fps {fps}, stride {stride}: expected more than 0")
    if not (steps - 1) * stride < frames <= steps * stride:
        raise BrokenDetections(
            f"{path}: {frames} frames in {steps} steps of {stride}: expected "
            f"{(steps - 1) * stride + 1} to {steps * stride}: a step for every stride-th frame"
        )
    return DetectionsHeader(path, shapes, float(fps), stride, frames)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (MemoryError, BrokenDetections):
            raise
        except Exception as error:  # damaged bytes can raise anything
            raise BrokenDetections(
                f"{path}: not a whole .npz ({error}): write it with numpy.savez"
            ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    required = {"boxes", "kind", "features", *_NUMBERS}
    missing, unknown = required - members.keys(), members.keys() - {*_AXES, *_NUMBERS}
    if missing or unknown or len(members) < len(archive.infolist()):
        raise BrokenDetections(
            f"{path}: missing {sorted(missing)}, unknown {sorted(unknown)[:5]}: expected each of "
            f"{sorted(required)} once, and perhaps {', '.join(SEGMENTS)}"
        )
    declared = sum(info.file_size for info in members.values())
    if declared > LIMIT:
        raise BrokenDetections(
            f"{path}: {declared} bytes of arrays, at most {LIMIT}: cut the video"
        )
    return members


def _shape(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path
) -> tuple[int, ...]:
    """Shape of an array, after checks of its type and of the bytes that the file has for it."""
    with archive.open(info) as file:
        shape, dtype = npy_header(file)
        available, declared = info.file_size - file.tell(), math.prod(shape) * dtype.itemsize
    axes, kinds = _AXES.get(name, ""), _KINDS.get(name, "f")
    if len(shape) != len(axes) or dtype.kind not in kinds:
        expected = f"{_TYPES[kinds]} [{', '.join(axes)}]"
        raise BrokenDetections(f"{path}: {name} {shape} of {dtype}, expected {expected}")
    if min(shape, default=0) < 0 or available != declared:
        raise BrokenDetections(
            f"{path}: {name} {shape} of {dtype} are {declared} bytes, it holds {available}: "
            "write it with numpy.savez"
        )
    return tuple(shape)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    steps, slots = shapes["kind"]
    sizes = {"T": steps, "N": slots, "4": 4}
    for name, shape in shapes.items():
        axes = zip(_AXES[name], shape, strict=True)
        expected = tuple(sizes.get(axis, max(size, 1)) for axis, size in axes)
        if shape != expected or steps < 1:
            raise BrokenDetections(
                f"{path}: {name} {shape}, expected [{', '.join(_AXES[name])}] with T={steps} > 0 "
                f"and N={slots} as in kind"
            )


def _load(archive: zipfile.ZipFile, member: str) -> Array:
    with archive.open(member) as file:
        values: Array = np.lib.format.read_array(file, allow_pickle=False)
        return values


def _arrays(entry: DetectionsHeader, segments: Sequence[str]) -> dict[str, Array]:
    """Read and check the arrays of a video. Raises BrokenDetections."""
    names = ("boxes", "kind", "features", *(name for name in segments if name in entry.shapes))
    with _opened(entry.path) as archive:
        read = {name: _load(archive, f"{name}.npy") for name in names}
    return _checked(read, entry.path)


def _checked(read: Mapping[str, Array], path: Path) -> dict[str, Array]:
    kind = read["kind"].astype(np.int64)
    if unknown := np.setdiff1d(kind, (ABSENT, ACTOR, OBJECT)).tolist():
        raise BrokenDetections(
            f"{path}: kind holds {unknown[:5]}, expected "
            f"{ACTOR} (actor), {OBJECT} (object) or {ABSENT} (absent)"
        )
    arrays = {"kind": kind}
    for name, values in read.items():
        if name != "kind":
            with np.errstate(over="ignore"):
                arrays[name] = values.astype(np.float32)
            if "N" in _AXES[name]:
                arrays[name][kind == ABSENT] = 0
            if bad := np.argwhere(~np.isfinite(arrays[name])).tolist():
                raise BrokenDetections(
                    f"{path}: {name}{bad[0]} is NaN or beyond float32: repair it, or make the box "
                    f"absent (kind {ABSENT})"
                )
    _check_boxes(arrays["boxes"], kind != ABSENT, path)
    return arrays


def _check_boxes(boxes_TN4: Array, present_TN: Array, path: Path) -> None:
    slack = 1e-3  # float16 rounds
    inside = (boxes_TN4 >= -slack) & (boxes_TN4 <= 1 + slack)
    right = inside.all(2) & (boxes_TN4[..., :2] < boxes_TN4[..., 2:]).all(2)
    if wrong := np.argwhere(present_TN & ~right).tolist():
        step, slot = wrong[0]
        raise BrokenDetections(
            f"{path}: boxes[{step}, {slot}] is {boxes_TN4[step, slot].tolist()}, expected x1 < "
            "x2, y1 < y2 from 0 to 1: divide pixels by width and height, drop empty boxes"
        )
