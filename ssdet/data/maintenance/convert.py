"""Training-friendly copies of videos: small H.264 files with close keyframes, or packs of JPEGs."""

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
    still_busy,
    sweep,
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
# Twice as fast to read at a quarter more bytes: no arithmetic coding and no deblocking; B-frames
# that no other refers to can be passed over.
_X264 = {"preset": "fast", "tune": "fastdecode", "x264-params": "b-pyramid=none"}
_SECONDS_APART = 0.001


@dataclass(frozen=True)
class Options:
    """How videos are converted; ValueError for what no encoder takes."""

    short_side: int = 256
    """Pixels; smaller videos are not enlarged. Sides become even."""
    gop: int = 12
    """Frames from keyframe to keyframe."""
    crf: int = 23
    """Quality of H.264: 0 lossless … 51 worst."""
    packed: bool = False
    """Packs of JPEG pictures (of which gop and crf say nothing) in place of H.264."""

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(
                f"short side {self.short_side}, GOP {self.gop}, CRF {self.crf}: expected at least "
                "16, at least 1, and 0 to 51"
            )

    @property
    def told(self) -> dict[str, object]:
        """Those that make a difference, by name."""
        if self.packed:
            return {"packed": True, "short_side": self.short_side, "jpeg_quality": QUALITY}
        return {**asdict(self), **_X264}


@dataclass(frozen=True)
class Conversion:
    """What became of the videos of a data set."""

    annotated: int
    missing: Mapping[str, str]
    """No file, or in quarantine: reason by id."""
    converted: int
    failed: Mapping[str, str]
    """Reason by id; another run does not try again unless the file has changed."""
    unread: Mapping[str, str]
    """Input/output errors and the like; another run tries again."""
    frames: int
    bytes: int


def convert(
    manifest: Manifest,
    videos: str | os.PathLike[str],
    out: Path,
    options: Options,
    processes: int | None = None,
    seconds: float = 300,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Copy all videos of a data set, converted, to the folder `out`, where the same annotation
    finds them: names and folders are those that they have below `videos`.

    The copies have as many frames as the originals, at the same times after the first, upright,
    without sound; each is checked for that before it gets its name. converted.jsonl in `out` tells
    what is done: a run after an interruption goes on, a later one converts changed files, or all of
    them where the options are others. conversion.json says how and with what outcome. A video that
    fails, or that makes no headway for `seconds`, does not stop the others.

    Raises ValueError for folders that would not do, OSError where nothing more can be written.
    """
    need_files(manifest)
    names = _names(manifest, os.fspath(videos), out, PACK if options.packed else ".mp4")
    _refuse_other_kind(out, options)
    out.mkdir(parents=True, exist_ok=True)
    _summarise(out, options, None)
    task = partial(convert_video, out=out, names=names, options=options)

    def there(record: Record) -> bool:
        return "fault" in record or _size(out / names[record["id"]]) == record["bytes"]

    digest = hashlib.sha256(json.dumps([_VERSION, options.told]).encode()).hexdigest()[:16]
    records = sweep(
        manifest.videos, task, out / JOURNAL, digest, processes, seconds, progress, there
    )  # fmt: skip
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    done = _outcome(manifest, records)
    _summarise(out, options, done)
    return done


def convert_video(video: Video, out: Path, names: Mapping[str, str], options: Options) -> Record:
    """Convert one video; the copy appears whole or not at all.

    Raises `CorruptVideo` for one that cannot be read, or whose copy is not equal in number of
    frames and times; OSError.
    """
    target, work = out / names[video.id], out / UNFINISHED / names[video.id]
    for place in (target, work):
        place.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an older original, or with other options
    info = probe(video.path)
    times_T: list[Fraction] = []
    pictures = _pictures(video.path, info, options, times_T)
    try:
        if options.packed:
            write_pack(work, pictures, info.duration, _frame_times(video.path))
        else:
            _encode(work, pictures, info, options)
        _verify(video.path, work, info, times_T)
        _to_disk(work)
        size = os.path.getsize(work)
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)
    return {"bytes": size, "frames": len(times_T)}


def _names(manifest: Manifest, videos: str, out: Path, ending: str) -> dict[str, str]:
    """Name of each video's copy, relative to the folder of the copies."""
    source, place = Path(videos).resolve(), out.resolve()
    if place == source or source in place.parents:
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


def _refuse_other_kind(out: Path, options: Options) -> None:
    summary = out / SUMMARY
    if not summary.is_file():
        return
    packed = bool(json.loads(summary.read_bytes())["options"].get("packed"))
    if packed != options.packed:
        kinds = {True: "packs", False: "H.264 files"}
        raise ValueError(f"{out}: holds {kinds[packed]}: choose another folder for the others")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _outcome(manifest: Manifest, records: Mapping[str, Record]) -> Conversion:
    whole = [record for record in records.values() if "fault" not in record]
    faults = {name: record for name, record in records.items() if "fault" in record}
    listed = {name: f"in quarantine: {why}" for name, why in manifest.quarantined.items()}
    reasons = {**manifest.missing_reasons, **listed}
    return Conversion(
        annotated=len(manifest.videos) + len(manifest.missing),
        missing={name: reasons.get(name, "no file") for name in manifest.missing},
        converted=len(whole),
        failed={name: fault["fault"] for name, fault in faults.items() if not fault["again"]},
        unread={name: fault["fault"] for name, fault in faults.items() if fault["again"]},
        frames=sum(record["frames"] for record in whole),
        bytes=sum(record["bytes"] for record in whole),
    )


def _summarise(out: Path, options: Options, done: Conversion | None) -> None:
    try:
        own = version("ssdet")
    except PackageNotFoundError:  # run from a source folder
        own = None
    content = {
        "format": 1,
        "finished": done is not None,
        "options": options.told,
        "versions": {"ssdet": own, "av": av.__version__, "ffmpeg": av.ffmpeg_version_info},
    }
    if done is not None:
        content |= asdict(done)
    write_json(out / SUMMARY, content)


def _pictures(
    path: str, info: VideoInfo, options: Options, times_T: list[Fraction]
) -> Iterator[VideoFrame]:
    """All frames, upright and scaled, with their times, of which `times_T` gets the seconds.

    Files whose frames are counted at a constant rate, or have no times, get that rate.
    """
    turned = _Upright(options)
    with decoding(path) as video:
        pts, tick = video.index.times, video.index.tick
        if pts is None or (video.index.pts is None and not video.index.irregularity):
            pts, tick = np.arange(video.index.count), 1 / _rate(info)
        lengths = np.diff(pts, append=pts[0] + round(info.duration / tick))
        for number, frame in video.decoded(list(range(video.index.count))):
            if number % 100 == 0:
                still_busy()
            picture, ticks = turned(frame), int(pts[number] - pts[0])
            picture.pts, picture.time_base = ticks, tick
            picture.duration = max(int(lengths[number]), 1)
            picture.pict_type = 0  # the encoder would repeat the original's keyframes
            times_T.append(ticks * tick)
            yield picture


def _frame_times(path: str) -> FrameTimes | None:
    """Times of the frames for a pack, unless they are spread evenly from the file's start on."""
    with decoding(path) as video:
        index = video.index
    if index.times is None or video_clock(path).rate is not None:
        return None
    return FrameTimes(index.times, index.tick, index.start)


class _Upright:
    """Turns and scales pictures; their size follows from the first."""

    def __init__(self, options: Options) -> None:
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
        # Colours keep their matrix. Where chroma is halved, only averaging takes in all of it.
        how = Interpolation.BILINEAR if "420" in frame.format.name else Interpolation.AREA
        return self._reformatter.reformat(
            frame, width, height, format=self._format, interpolation=how,
            dst_color_range=self._range, threads=1,
        )  # fmt: skip

    def _scaled(self, *native: int) -> tuple[int, int]:
        scale = min(1.0, self._options.short_side / min(native))
        width, height = (max(round(side * scale), 2) for side in native)
        return width & ~1, height & ~1  # halves of odd sides would shift the chroma


def _encode(path: Path, pictures: Iterator[VideoFrame], info: VideoInfo, options: Options) -> None:
    first = next(pictures)
    movie = {"movflags": "faststart+use_metadata_tags"}
    with av.open(str(path), "w", format="mp4", container_options=movie) as container:
        if info.start:  # without the sound that began before, nothing else would show it
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
    try:
        copy, its_clock = probe(work), video_clock(work)
    except CorruptVideo as error:
        raise CorruptVideo(source, f"its copy cannot be read: {error.reason}") from error
    if copy.frames != info.frames or copy.frames != len(times_T):
        raise CorruptVideo(source, f"its copy has {copy.frames} frames, it has {info.frames}")
    apart = abs(copy.duration - info.duration) * info.fps / 2  # of two frames
    since_T = its_clock.times_T - its_clock.times_T[0]
    shown = since_T - np.array([float(time) for time in times_T])
    late = its_clock.times_T[0] - video_clock(source).times_T[0]
    apart = max(apart, np.abs(shown).max() / _SECONDS_APART, abs(late) / _SECONDS_APART)
    if apart > 1:
        raise CorruptVideo(source, "frames of its copy are not shown at its times")


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
