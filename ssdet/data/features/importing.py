"""Import of feature files of other tools into feature shards."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssdet.data.datasets.manifest import Manifest
from ssdet.data.datasets.video_names import VideoNames
from ssdet.data.features.foreign_files import FeatureArray
from ssdet.data.features.shards import FeatureWriter
from ssdet.data.loading.recipe import Dtype, Layout
from ssdet.data.video.clock import Clock
from ssdet.plugins import UsageError

Array = np.ndarray[Any, Any]
TENSOR = "features"
"""Tensor name that heads expect."""
MAX_LISTED = 10


@dataclass(frozen=True)
class Rate:
    """Rate of features: one for every `stride` frames at `fps`, or `per_second`.

    Without either, features are spread evenly over the annotated duration of their video. Raises
    UsageError for stride or fps alone or with a rate, and for numbers not above 0.
    """

    stride: int | None = None
    fps: float | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        if self.per_second is not None and (self.stride is not None or self.fps is not None):
            raise UsageError("--rate is what --stride and --fps give: choose one")
        if (self.stride is None) != (self.fps is None):
            given, missing = ("--stride", "--fps") if self.fps is None else ("--fps", "--stride")
            raise UsageError(f"{given} needs {missing}, or give --rate in place of both")
        for value in (self.stride, self.fps, self.per_second):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{value}: expected a stride, fps or rate above 0")

    def grid(self, steps: int, duration: float | None) -> tuple[int, float, int]:
        """(frames, frames a second, stride) of a video with `steps` features.

        Raises UsageError without a rate and a duration.
        """
        if self.stride is not None and self.fps is not None:
            expected = steps * self.stride if duration is None else round(duration * self.fps)
            frames = min(max(expected, (steps - 1) * self.stride + 1), steps * self.stride)
            return frames, self.fps, self.stride
        if self.per_second is not None:
            return steps, self.per_second, 1
        if duration is None:
            raise UsageError(
                "neither a rate of the features nor the duration of the video is known: give "
                "--stride and --fps, --rate, or an --annotation with durations"
            )
        return steps, steps / duration, 1


@dataclass
class ImportReport:
    """Result of an import."""

    layout: str = ""
    """Axes of the files: td or dt."""
    channels: int = 0
    steps: int = 0
    videos: int = 0
    """Videos whose features were written."""
    missing: list[str] = field(default_factory=list)
    """Annotated videos without features."""
    unused: list[str] = field(default_factory=list)
    """Features of videos that are not annotated, and files without features."""
    broken: dict[str, str] = field(default_factory=dict)
    """Reasons by video of features that were left out."""
    other_length: dict[str, str] = field(default_factory=dict)
    """Notes by video on features that end more than a tenth (and a second) off the end."""


def import_features(
    features: Sequence[FeatureArray],
    out: Path,
    rate: Rate,
    manifest: Manifest | None = None,
    layout: Layout | None = None,
    dtype: Dtype = "float32",
    skip_broken: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Write features [T, D] of other tools to a folder that `FeatureSet` opens.

    Axes of length 1 are dropped. Without ``layout`` ("td" or "dt") the axis of equal length in all
    videos is the channels. With a manifest, videos get its ids and others are left out. `out`
    appears complete or not at all. Other types are rounded to `dtype`.

    Raises UsageError for an unclear layout or rate, FileExistsError for an existing `out`,
    ValueError for two arrays of one video and, unless `skip_broken`, for arrays with NaN, infinity
    or another number of channels, and unreadable ones, with their names.
    """
    if out.exists():
        raise FileExistsError(f"{out}: is there already: choose another folder, or remove it")
    by_video, report = _match(features, manifest)
    shapes = {video: _axes(feature) for video, feature in by_video.items() if not feature.fault}
    report.layout = layout or _layout_of(shapes)
    channels = Counter(_in_layout(axes, report.layout)[1] for axes in shapes.values())
    report.channels = channels.most_common(1)[0][0] if channels else 0
    durations = {v.id: v.duration for v in manifest.videos} if manifest else {}
    work = out.with_name(f"{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with FeatureWriter(work, dtype) as writer:
            for done, (video, feature) in enumerate(by_video.items(), 1):
                _import_one(writer, video, feature, rate, durations.get(video), report)
                progress(done, len(by_video))
        _refuse_broken(report, skip_broken)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _match(
    features: Sequence[FeatureArray], manifest: Manifest | None
) -> tuple[dict[str, FeatureArray], ImportReport]:
    """Features by video id, and a report with missing and unused ones."""
    report = ImportReport()
    names = VideoNames(v.id for v in manifest.videos) if manifest else None
    by_video: dict[str, FeatureArray] = {}
    for feature in features:
        video = names.find(feature.name) if names else feature.name
        if video is None:
            report.unused.append(feature.where)
        elif video in by_video:
            raise ValueError(
                f"{feature.where}: video {video!r} has features in {by_video[video].where} too: "
                "leave one of them out, or choose by --names"
            )
        else:
            by_video[video] = feature
    if manifest is not None:
        report.missing = [v.id for v in manifest.videos if v.id not in by_video]
        if not by_video:
            raise ValueError(
                f"none of {len(features)} features ({features[0].name!r}, …) is of a video of the "
                f"annotation ({report.missing[0]!r}, …): see --names"
                if report.missing
                else "the annotation has no video"
            )
    return by_video, report


def _axes(feature: FeatureArray) -> tuple[int, ...]:
    """Lengths of the axes of an array of features, without axes of length 1 beyond two."""
    shape = feature.leaf.shape
    if len(shape) == 2:
        return shape
    axes = tuple(size for size in shape if size != 1)
    if len(shape) < 2 or len(axes) > 2:
        raise ValueError(
            f"{feature.where}: shape {list(shape)}, expected [T, D] or [D, T], and axes of length "
            "1 beside: reduce the others (crops, positions in a picture) to one before"
        )
    return axes or (1,)


def _in_layout(axes: tuple[int, ...], layout: str) -> tuple[int, int]:
    """(steps, channels) of axes in this layout."""
    if len(axes) == 1:
        return 1, axes[0]
    return (axes[0], axes[1]) if layout == "td" else (axes[1], axes[0])


def _layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Layout in which all videos have the same number of channels. Raises UsageError."""
    equal = {
        layout: len({_in_layout(axes, layout)[1] for axes in shapes.values()}) == 1
        for layout in ("td", "dt")
    }
    if equal["td"] != equal["dt"]:
        return "td" if equal["td"] else "dt"
    listed = ", ".join(f"{video} {list(axes)}" for video, axes in list(shapes.items())[:3])
    reason = "both axes are" if equal["td"] else "no axis is"
    raise UsageError(
        f"{reason} equal in all {len(shapes)} videos ({listed}), so which one is time is open: "
        "give --layout td for [T, D] or --layout dt for [D, T]"
    )


def _import_one(
    writer: FeatureWriter,
    video: str,
    feature: FeatureArray,
    rate: Rate,
    duration: float | None,
    report: ImportReport,
) -> None:
    try:
        rows_TD = _rows(feature, report, writer.dtype)
    except ValueError as error:
        report.broken[video] = str(error)
        writer.leave_out(video, str(error))
        return
    try:
        frames, fps, stride = rate.grid(len(rows_TD), duration)
    except UsageError as error:
        raise UsageError(f"video {video!r}: {error}") from error
    clock = Clock.regular(frames, fps)
    spread = duration is None or clock.of_annotation(duration).rate == frames / duration
    # Labels of evenly spread frames follow the annotated duration; others keep their own times.
    writer.begin(video, frames, fps if spread else clock, stride)
    writer.add({TENSOR: torch.from_numpy(rows_TD)})
    writer.commit()
    report.videos += 1
    report.steps += len(rows_TD)
    seconds = len(rows_TD) * stride / fps
    if duration and abs(seconds - duration) > max(1.0, duration / 10):
        report.other_length[video] = f"features of {seconds:.1f} s, a video of {duration:.1f} s"


def _rows(feature: FeatureArray, report: ImportReport, dtype: Dtype) -> Array:
    """Features [T, D] in the stored type. Raises ValueError with what is wrong with them."""
    if feature.fault:
        raise ValueError(feature.fault)
    steps, channels = _in_layout(_axes(feature), report.layout)
    if not steps or channels != report.channels:
        raise ValueError(
            f"{feature.where}: {steps} steps of {channels} channels, expected one or "
            f"more of {report.channels} channels, as most videos have"
        )
    array = feature.leaf.load()
    rows_TD = array.reshape(steps, channels) if report.layout == "td" else (
        array.reshape(channels, steps).T
    )  # fmt: skip
    _refuse_rows(feature.where, rows_TD, "hold NaN or infinity")
    with np.errstate(over="ignore"):
        written_TD = np.ascontiguousarray(rows_TD, dtype=dtype)
    way_out = " (65504): give --dtype float32" if dtype == "float16" else ""
    _refuse_rows(feature.where, written_TD, f"are beyond {dtype}{way_out}")
    return written_TD


def _refuse_rows(where: str, rows_TD: Array, fault: str) -> None:
    wrong_T = np.flatnonzero(~np.isfinite(rows_TD).all(axis=1)).tolist()
    if wrong_T:
        listed = ", ".join(map(str, wrong_T[:5])) + (", …" if len(wrong_T) > 5 else "")
        raise ValueError(f"{where}: {len(wrong_T)} of {len(rows_TD)} rows ({listed}) {fault}")


def _refuse_broken(report: ImportReport, skip_broken: bool) -> None:
    if not report.broken or (skip_broken and report.videos):
        return
    reasons = list(report.broken.values())
    more = f"; and {len(reasons) - MAX_LISTED} more" if len(reasons) > MAX_LISTED else ""
    raise ValueError(
        f"features of {len(reasons)} videos cannot be used: {'; '.join(reasons[:MAX_LISTED])}{more}"
        + ("" if skip_broken else ": repair them, or leave them out with --skip-broken")
    )
