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
    """Raise AssertionError unless a data set fulfils the contract; arguments as of `load_manifest`.

    Ids, splits and segments are consistent, the fingerprint is reproducible, and the first and last
    `files` videos with files of each split have the annotated duration. CorruptVideo for one of
    these that cannot be read.
    """
    manifest = load_manifest(format, path, videos, split)
    subject = f"data set {format!r}"
    expect(isinstance(manifest, Manifest), f"{subject}: {type(manifest).__name__}, not a Manifest")
    expect(manifest.videos, f"{subject}: no video; {len(manifest.missing)} have no file")
    classes = manifest.classes
    expect(len({*classes}) == len(classes) > 0, f"{subject}: class names are empty or repeat")
    for video in manifest.videos:
        video_is_consistent(subject, video)
    annotated = any(video.segments or video.label is not None for video in manifest.videos)
    expect(annotated, f"{subject}: no video has a label or a segment")
    splits_are_disjoint(subject, manifest)
    for again in (load_manifest(format, path, videos, split), pickle.loads(pickle.dumps(manifest))):
        same = again == manifest and again.fingerprint == manifest.fingerprint
        expect(same, f"{subject}: read again, or sent to a worker, it is another")
    for name in SPLITS:
        found = [video for video in manifest.split(name).videos if video.path]
        for video in {v.id: v for v in [*found[:files], *found[len(found) - files :]]}.values():
            file_matches_annotation(subject, manifest, video)


def video_is_consistent(subject: str, video: Video) -> None:
    """The split is valid, the annotation of one kind, segments are inside the video."""
    subject = f"{subject}: video {video.id!r}"
    expect(video.id, f"{subject}: empty id")
    expect(video.split in SPLITS, f"{subject}: split {video.split!r}, expected one of {SPLITS}")
    expect(video.label is None or not video.segments, f"{subject}: both a label and segments")
    for segment in video.segments:
        inside = video.duration is None or segment.start < video.duration
        expect(inside and segment.end > 0, f"{subject}: {segment} is outside of {video.duration} s")


def splits_are_disjoint(subject: str, manifest: Manifest) -> None:
    """Every video, missing ones included, is in one split, with a unique id."""
    ids = [video.id for video in manifest.videos] + [*manifest.missing]
    expect(len({*ids}) == len(ids), f"{subject}: an id is there twice, or both found and missing")
    parts = [manifest.split(name) for name in SPLITS]
    shared = sorted(video.id for part in parts for video in part.videos)
    missing = sorted(name for part in parts for name in part.missing)
    expect(
        shared == sorted(video.id for video in manifest.videos), f"{subject}: splits lose videos"
    )
    expect(missing == sorted(manifest.missing), f"{subject}: splits lose missing videos")


def file_matches_annotation(subject: str, manifest: Manifest, video: Video) -> None:
    """The file decodes at both ends and in the middle, and has the annotated duration."""
    subject, reader = f"{subject}: video {video.id!r} ({video.path})", Decoder()
    record = examine(video)
    if video.duration is not None:
        off = abs(record["duration"] - video.duration)
        near = off <= max(0.5, 0.01 * video.duration)
        expect(
            near, f"{subject}: lasts {record['duration']:.2f} s, annotated {video.duration:.2f} s"
        )
    targets_KF = dense_targets(manifest, video, reader)
    expected = (manifest.num_classes, record["frames"])
    expect(
        targets_KF.shape == expected, f"{subject}: labels {targets_KF.shape}, expected {expected}"
    )
    seen = {segment.label for segment in video.segments}
    seen |= set() if video.label is None else {video.label}
    shown = {k for k, targets_F in enumerate(targets_KF) if targets_F.any()}
    expect(shown <= seen, f"{subject}: frames show classes {sorted(shown - seen)} nobody annotated")
