"""Conversion of videos for training: small H.264 files with close keyframes, or JPEG packs."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.maintenance.isolated_pool import (
    Progress,
    Record,
    need_files,
    run_journaled,
    still_busy,
    write_json,
)
from ssdet.data.storage.filesystem import is_remote
from ssdet.data.video.frame_index import START_TAG, CorruptVideo
from ssdet.data.video.orientation import Orientation, frame_orientation
from ssdet.data.video.packs import PACK, QUALITY, FrameTimes, write_pack
from ssdet.data.video.reader import VideoInfo, decoding, probe
from ssdet.data.video.stream import video_clock

JOURNAL = "converted.jsonl"
SUMMARY = "conversion.json"
UNFINISHED = ".unfinished"
_VERSION = "convert-1"
# Without arithmetic coding and deblocking files decode twice as fast at a quarter more bytes;
# B-frames without references can be skipped.
_X264 = {"preset": "fast", "tune": "fastdecode", "x264-params": "b-pyramid=none"}
_SECONDS_APART = 0.001


@dataclass(frozen=True)
class ConvertOptions:
    """Options of the conversion. Raises ValueError for values that no encoder accepts."""

    short_side: int = 256
    """Pixels; smaller videos are not enlarged. Sides are made even."""
    gop: int = 12
    """Frames from keyframe to keyframe."""
    crf: int = 23
    """Quality of H.264: 0 lossless … 51 worst."""
    packed: bool = False
    """Packs of JPEG pictures instead of H.264; gop and crf do not apply."""

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(
                f"short side {self.short_side}, GOP {self.gop}, CRF {self.crf}: expected at least "
                "16, at least 1, and 0 to 51"
            )

    @property
    def effective(self) -> dict[str, object]:
        """Settings that affect the copies, by name."""
        if self.packed:
            return {"packed": True, "short_side": self.short_side, "jpeg_quality": QUALITY}
        return {**asdict(self), **_X264}


@dataclass(frozen=True)
class ConversionReport:
    """Result of converting a data set."""

    annotated: int
    missing: Mapping[str, str]
    """Reasons by id: no file, or in quarantine."""
    converted: int
    failed: Mapping[str, str]
    """Reasons by id; retried only if the file changes."""
    unread: Mapping[str, str]
    """Temporary errors by id, which another run retries."""
    frames: int
    bytes: int


def convert(
    manifest: Manifest,
    videos: str | os.PathLike[str],
    out: Path,
    options: ConvertOptions,
    processes: int | None = None,
    seconds: float = 300,
    progress: Progress = lambda done, total: None,
) -> ConversionReport:
    """Convert all videos of a data set into the folder `out`, with their names below `videos`, so
    that the same annotation applies.

    Copies have the same number of frames at the same times after the first, upright, without sound;
    each is verified before it gets its name. converted.jsonl in `out` records finished videos: an
    interrupted run continues, a later one converts changed files, or all with other options.
    conversion.json records options and outcome. A video that fails, or makes no progress for
    `seconds`, does not stop the others.

    Raises ValueError for unsuitable folders, OSError if nothing more can be written.
    """
    need_files(manifest)
    names = _names(manifest, os.fspath(videos), out, PACK if options.packed else ".mp4")
    _refuse_other_kind(out, options)
    out.mkdir(parents=True, exist_ok=True)
    _summarise(out, options, None)
    task = partial(convert_video, out=out, names=names, options=options)

    def is_valid(record: Record) -> bool:
        copy = out / names[record["id"]]
        return "fault" in record or (copy.is_file() and copy.stat().st_size == record["bytes"])

    digest = hashlib.sha256(json.dumps([_VERSION, options.effective]).encode()).hexdigest()[:16]
    records = run_journaled(
        manifest.videos, task, out / JOURNAL, digest, processes, seconds, progress, is_valid
    )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    report = _report(manifest, records)
    _summarise(out, options, report)
    return report


def convert_video(
    video: Video, out: Path, names: Mapping[str, str], options: ConvertOptions
) -> Record:
    """Convert one video; the copy appears complete or not at all.

    Raises `CorruptVideo` if it cannot be read or the copy differs in number of frames or times;
    OSError.
    """
    target, work = out / names[video.id], out / UNFINISHED / names[video.id]
    for path in (target, work):
        path.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # copy of an older original or with other options
    info = probe(video.path)
    times_T: list[Fraction] = []
    pictures = _pictures(video.path, info, options, times_T)
    try:
        if options.packed:
            write_pack(work, pictures, info.duration, _frame_times(video.path))
        else:
            _encode(work, pictures, info, options)
        _verify(video.path, work, info, times_T)
        with open(work, "rb") as file:
            os.fsync(file.fileno())
        size = os.path.getsize(work)
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)
    return {"bytes": size, "frames": len(times_T)}


def _names(manifest: Manifest, videos: str, out: Path, ending: str) -> dict[str, str]:
    """Name of each video's copy relative to `out`, by id."""
    source, target_folder = Path(videos).resolve(), out.resolve()
    if target_folder == source or source in target_folder.parents:
        raise ValueError(f"{out}: lies in the folder of the originals: choose another")
    folder = videos.partition("?")[0] if is_remote(videos) else videos
    names: dict[str, str] = {}
    owner: dict[str, str] = {}
    for video in manifest.videos:
        path = video.path.partition("?")[0] if is_remote(video.path) else video.path
        name = os.path.relpath(path, folder)
        if name.split(os.sep)[0] == os.pardir:
            raise ValueError(f"video {video.id!r}: {video.path} lies outside {videos}")
        stem = name if os.path.isdir(video.path) else os.path.splitext(name)[0]
        target = f"{stem}{ending}"
        if target in owner:
            raise ValueError(f"videos {owner[target]!r} and {video.id!r} would both be {target}")
        names[video.id], owner[target] = target, video.id
    return names


def _refuse_other_kind(out: Path, options: ConvertOptions) -> None:
    """Raise ValueError if `out` contains packs and H.264 files are to be written, or vice versa."""
    summary = out / SUMMARY
    if not summary.is_file():
        return
    packed = bool(json.loads(summary.read_bytes())["options"].get("packed"))
    if packed != options.packed:
        kinds = {True: "packs", False: "H.264 files"}
        raise ValueError(f"{out}: holds {kinds[packed]}: choose another folder for the others")


def _report(manifest: Manifest, records: Mapping[str, Record]) -> ConversionReport:
    whole = [record for record in records.values() if "fault" not in record]
    faults = {name: record for name, record in records.items() if "fault" in record}
    quarantined = {name: f"in quarantine: {why}" for name, why in manifest.quarantined.items()}
    reasons = {**manifest.missing_reasons, **quarantined}
    return ConversionReport(
        annotated=len(manifest.videos) + len(manifest.missing),
        missing={name: reasons.get(name, "no file") for name in manifest.missing},
        converted=len(whole),
        failed={name: fault["fault"] for name, fault in faults.items() if not fault["again"]},
        unread={name: fault["fault"] for name, fault in faults.items() if fault["again"]},
        frames=sum(record["frames"] for record in whole),
        bytes=sum(record["bytes"] for record in whole),
    )


def _summarise(out: Path, options: ConvertOptions, report: ConversionReport | None) -> None:
    """Write conversion.json; without a report for an unfinished conversion."""
    try:
        ssdet_version = version("ssdet")
    except PackageNotFoundError:  # run from a source folder
        ssdet_version = None
    content = {
        "format": 1,
        "finished": report is not None,
        "options": options.effective,
        "versions": {
            "ssdet": ssdet_version,
            "av": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
        },
    }
    if report is not None:
        content |= asdict(report)
    write_json(out / SUMMARY, content)


def _pictures(
    path: str, info: VideoInfo, options: ConvertOptions, times_T: list[Fraction]
) -> Iterator[VideoFrame]:
    """All frames, upright and scaled, with their times; appends the times in seconds to `times_T`.

    Files at a constant rate whose frames are counted, and files without times, get even times.
    """
    upright = _Upright(options)
    with decoding(path) as video:
        pts, tick = video.index.times, video.index.tick
        if pts is None or (video.index.pts is None and not video.index.irregularity):
            pts, tick = np.arange(video.index.count), 1 / _rate(info)
        lengths = np.diff(pts, append=pts[0] + round(info.duration / tick))
        for number, frame in video.decoded(list(range(video.index.count))):
            if number % 100 == 0:
                still_busy()
            picture, ticks = upright(frame), int(pts[number] - pts[0])
            picture.pts, picture.time_base = ticks, tick
            picture.duration = max(int(lengths[number]), 1)
            picture.pict_type = 0  # else the encoder repeats the original's keyframes
            times_T.append(ticks * tick)
            yield picture


def _frame_times(path: str) -> FrameTimes | None:
    """Times of the frames for a pack; None if spread evenly from the start of the file."""
    with decoding(path) as video:
        index = video.index
    if index.times is None or video_clock(path).rate is not None:
        return None
    return FrameTimes(index.times, index.tick, index.start)


class _Upright:
    """Turn and scale pictures to the size that follows from the first one."""

    def __init__(self, options: ConvertOptions) -> None:
        self._options, self._reformatter = options, VideoReformatter()
        self._orientation, self._shape = Orientation(), (0, 0)
        full, limited = ("yuvj420p", "JPEG"), ("yuv420p", "MPEG")
        self._format, self._range = full if options.packed else limited

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        if not self._shape[0]:
            self._orientation = frame_orientation(frame)
            self._shape = self._scaled(frame.width, frame.height)
        width, height = self._shape
        if self._orientation != Orientation():
            rgb = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1)
            turned = np.ascontiguousarray(self._orientation.upright(rgb.to_ndarray()), np.uint8)
            frame = VideoFrame.from_ndarray(turned, "rgb24")
            width, height = frame.width, frame.height
        # The colour matrix is unchanged. If chroma is halved, only averaging uses all of it.
        interpolation = Interpolation.BILINEAR if "420" in frame.format.name else Interpolation.AREA
        return self._reformatter.reformat(
            frame, width, height, format=self._format, interpolation=interpolation,
            dst_color_range=self._range, threads=1,
        )  # fmt: skip

    def _scaled(self, *native: int) -> tuple[int, int]:
        scale = min(1.0, self._options.short_side / min(native))
        width, height = (max(round(side * scale), 2) for side in native)
        return width & ~1, height & ~1  # halves of odd sides would shift the chroma


def _encode(
    path: Path, pictures: Iterator[VideoFrame], info: VideoInfo, options: ConvertOptions
) -> None:
    first = next(pictures)
    movie = {"movflags": "faststart+use_metadata_tags"}
    with av.open(str(path), "w", format="mp4", container_options=movie) as container:
        if info.start:  # lost with the sound that began earlier
            container.metadata[START_TAG] = f"{info.start:.9f}"
        stream = container.add_stream("libx264", rate=_rate(info))
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count, codec.time_base = 1, first.time_base or 1 / _rate(info)
        codec.colorspace, codec.color_range = first.colorspace, first.color_range
        codec.flags |= Flags.frame_duration
        codec.options = {
            **_X264, "crf": str(options.crf), "g": str(options.gop),
            "keyint_min": str(options.gop), "sc_threshold": "0",
        }  # fmt: skip
        for picture in chain([first], pictures):
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _rate(info: VideoInfo) -> Fraction:
    return Fraction(info.fps).limit_denominator(1001)


def _verify(source: str, work: Path, info: VideoInfo, times_T: list[Fraction]) -> None:
    """Raise CorruptVideo unless the copy has the same number of frames at the same times."""
    try:
        copy, copy_times_T = probe(work), video_clock(work).times_T
    except CorruptVideo as error:
        raise CorruptVideo(source, f"its copy cannot be read: {error.reason}") from error
    if copy.frames != info.frames or copy.frames != len(times_T):
        raise CorruptVideo(source, f"its copy has {copy.frames} frames, it has {info.frames}")
    errors_T = copy_times_T - copy_times_T[0] - np.array([float(time) for time in times_T])
    start_error = abs(copy_times_T[0] - video_clock(source).times_T[0])
    if (
        abs(copy.duration - info.duration) * info.fps > 2
        or max(np.abs(errors_T).max(), start_error) > _SECONDS_APART
    ):
        raise CorruptVideo(source, "frames of its copy are not shown at its times")
