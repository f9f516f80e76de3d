"""Contract checks of data sets and their readers."""

import pickle
from collections.abc import Sequence

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import AnyPath, Manifest, Video
from ssdet.data.loading.frame_readers import Decoder, dense_targets
from ssdet.data.maintenance.check import examine
from ssdet.testing.expect import expect

SPLITS = ("train", "val", "test")


def check_data_set(
    format: str,
    path: AnyPath | Sequence[AnyPath],
    videos: AnyPath | None = None,
    split: str | None = None,
    files: int = 2,
) -> None:
    """Raise AssertionError unless a data set keeps the contract; arguments as of `load_manifest`.

    Ids, splits and segments hold together, the fingerprint is the same each time, and of each split
    the first and last `files` videos that have files are as long as annotated. CorruptVideo for
    one of these that cannot be read.
    """
    manifest = load_manifest(format, path, videos, split)
    told = f"data set {format!r}"
    expect(isinstance(manifest, Manifest), f"{told}: {type(manifest).__name__}, not a Manifest")
    expect(manifest.videos, f"{told}: no video; {len(manifest.missing)} have no file")
    classes = manifest.classes
    expect(len({*classes}) == len(classes) > 0, f"{told}: class names are empty or repeat")
    for video in manifest.videos:
        video_holds_together(told, video)
    annotated = any(video.segments or video.label is not None for video in manifest.videos)
    expect(annotated, f"{told}: no video has a label or a segment")
    splits_are_apart(told, manifest)
    for again in (load_manifest(format, path, videos, split), pickle.loads(pickle.dumps(manifest))):
        same = again == manifest and again.fingerprint == manifest.fingerprint
        expect(same, f"{told}: read again, or sent to a worker, it is another")
    for name in SPLITS:
        found = [video for video in manifest.split(name).videos if video.path]
        for video in {v.id: v for v in [*found[:files], *found[len(found) - files :]]}.values():
            frames_are_there(told, manifest, video)


def video_holds_together(told: str, video: Video) -> None:
    """A known split, one kind of annotation, segments inside the video."""
    told = f"{told}: video {video.id!r}"
    expect(video.id, f"{told}: empty id")
    expect(video.split in SPLITS, f"{told}: split {video.split!r}, expected one of {SPLITS}")
    expect(video.label is None or not video.segments, f"{told}: both a label and segments")
    for segment in video.segments:
        inside = video.duration is None or segment.start < video.duration
        expect(inside and segment.end > 0, f"{told}: {segment} is outside of {video.duration} s")


def splits_are_apart(told: str, manifest: Manifest) -> None:
    """Every video, missing ones too, is in one split, under one id."""
    ids = [video.id for video in manifest.videos] + [*manifest.missing]
    expect(len({*ids}) == len(ids), f"{told}: an id is there twice, or both found and missing")
    parts = [manifest.split(name) for name in SPLITS]
    shared = sorted(video.id for part in parts for video in part.videos)
    missing = sorted(name for part in parts for name in part.missing)
    expect(shared == sorted(video.id for video in manifest.videos), f"{told}: splits lose videos")
    expect(missing == sorted(manifest.missing), f"{told}: splits lose missing videos")


def frames_are_there(told: str, manifest: Manifest, video: Video) -> None:
    """The file decodes at both ends and in the middle, and is as long as annotated."""
    told, reader = f"{told}: video {video.id!r} ({video.path})", Decoder()
    record = examine(video)
    if video.duration is not None:
        off = abs(record["duration"] - video.duration)
        near = off <= max(0.5, 0.01 * video.duration)
        expect(near, f"{told}: lasts {record['duration']:.2f} s, annotated {video.duration:.2f} s")
    targets_KF = dense_targets(manifest, video, reader)
    expected = (manifest.num_classes, record["frames"])
    expect(targets_KF.shape == expected, f"{told}: labels {targets_KF.shape}, expected {expected}")
    seen = {segment.label for segment in video.segments}
    seen |= set() if video.label is None else {video.label}
    shown = {k for k, targets_F in enumerate(targets_KF) if targets_F.any()}
    expect(shown <= seen, f"{told}: frames show classes {sorted(shown - seen)} nobody annotated")
