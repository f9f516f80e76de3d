"""Moving Shapes: the same seed is the same files, labels are what is drawn, kills leave nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssdet.data import load_manifest, probe, read_clip
from ssdet.data.datasets.manifest import Manifest
from ssdet.data.datasets.moving_shapes import (
    DOWNSTREAM_CLASSES,
    FPS,
    UPSTREAM_CLASSES,
    Config,
    manifest,
    prepare,
    render_clip,
    render_video,
)

ROOT = Path(__file__).resolve().parents[3]
TINY = Config(upstream=24, train=3, val=2, test=3, clip_frames=10, video_frames=40, seed=5)
CLEAR = Config(noise=0.0, actors=1, contrast=0.6, size=32)

RENDER = f"""
import os, signal, sys
from pathlib import Path
from ssdet.data.datasets.moving_shapes import Config, prepare

def progress(done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

print(prepare({TINY!r}, Path(sys.argv[1]), progress, processes=2))
"""


def rendering(cache: Path, die_at: int) -> subprocess.Popen:
    command = [sys.executable, "-c", RENDER, str(cache), str(die_at)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(TINY, tmp_path_factory.mktemp("shapes"), processes=1)


@pytest.fixture(scope="module")
def clips(rendered: Path) -> Manifest:
    return load_manifest("moving_shapes", rendered, split="upstream")


@pytest.fixture(scope="module")
def videos(rendered: Path) -> Manifest:
    return load_manifest("moving_shapes", rendered, split="downstream")


def test_the_seed_decides_every_byte(rendered, tmp_path) -> None:
    again = prepare(TINY, tmp_path, processes=2)
    other = prepare(replace(TINY, seed=6), tmp_path, processes=1)
    assert again.name == rendered.name != other.name
    first, second = content(rendered), content(other)
    assert content(again) == first and first.keys() == second.keys()
    notes = "downstream/annotations.json"
    assert first[notes] != second[notes]
    assert not [name for name in first if name.endswith(".mp4") and first[name] == second[name]]


ENCODE = """
import sys
from pathlib import Path
from ssdet.data.datasets.moving_shapes import Config, render_clip, write_video

for index in range(4):
    write_video(Path(sys.argv[1]), render_clip(Config(seed=5, clip_frames=10), index)[0])
    print(Path(sys.argv[1]).read_bytes().hex())
"""


def test_what_lies_in_memory_decides_none(tmp_path) -> None:
    """x264's macroblock tree reads what it never wrote; the C library fills that as we choose."""
    found = set()
    for fill in ("1", "170"):
        command = [sys.executable, "-c", ENCODE, str(tmp_path / "clip.mp4")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": fill}
        found.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_every_field_names_another_folder() -> None:
    changes = [{"size": 26}, {"noise": 0.05}, {"contrast": 0.3}, {"actors": 2}, {"train": 4}]
    assert len({replace(TINY, **change).name for change in ({}, *changes)}) == 6


def test_a_rendered_set_is_not_rendered_again(rendered) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("rendered again")

    assert prepare(TINY, rendered.parent, never, processes=1) == rendered


def test_progress_counts_every_file(tmp_path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(
        replace(TINY, upstream=3, train=2, val=1, test=1),
        tmp_path,
        lambda *count: seen.append(count),
        1,
    )
    assert seen == [(done, 7) for done in range(1, 8)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("die_at", [1, 26])
def test_a_killed_rendering_leaves_nothing_that_is_read(rendered, tmp_path, die_at) -> None:
    killed = rendering(tmp_path, die_at)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / TINY.name).exists()
    # Orphans that held the lock would keep this waiting.
    assert content(prepare(TINY, tmp_path, processes=1)) == content(rendered)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [TINY.name]


@pytest.mark.timeout(240)
def test_two_processes_render_one_folder(rendered, tmp_path) -> None:
    both = [rendering(tmp_path, 0) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert said == [str(tmp_path / TINY.name)] * 2 and not any(p.returncode for p in both)
    assert content(tmp_path / TINY.name) == content(rendered)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [TINY.name]


def test_classes_of_upstream_and_downstream_are_disjoint(clips, videos) -> None:
    assert clips.classes == UPSTREAM_CLASSES and videos.classes == DOWNSTREAM_CLASSES
    assert len({*UPSTREAM_CLASSES, *DOWNSTREAM_CLASSES}) == 22


def test_clips_read_as_kinetics_and_videos_as_charades(rendered, clips, videos) -> None:
    up, down = rendered / "upstream", rendered / "downstream"
    table = load_manifest("kinetics", up / "annotations.csv", videos=up / "videos")
    assert table == clips and not clips.missing
    assert {v.label for v in clips.split("val").videos} == set(range(12))
    assert len(clips.split("train").videos) == 12 == len(clips.split("val").videos)
    assert [video.label for video in clips.videos] == [index % 12 for index in range(24)]
    published = load_manifest("charades", down / "annotations.json", videos=down / "videos")
    assert [(v.id, v.split, v.segments) for v in published.videos] == [
        (v.id, v.split, v.segments) for v in videos.videos
    ]
    assert [len(videos.split(name).videos) for name in ("train", "val", "test")] == [3, 2, 3]


def test_files_are_as_declared(clips, videos) -> None:
    for video in (*clips.videos[:3], *videos.videos[:3]):
        info = probe(video.path)
        assert (info.width, info.height, info.fps, info.codec) == (24, 24, FPS, "h264")
        assert info.frames == (40 if video in videos.videos else 10)
    assert {video.duration for video in videos.videos} == {40 / FPS}


def test_files_show_what_was_rendered(clips) -> None:
    drawn = [render_clip(TINY, index) for index in range(6)]
    for index, (_pictures, label) in enumerate(drawn):
        video = clips.videos[index]
        assert video.id.startswith(f"clip{index:06d}") and video.label == label
        decoded = read_clip(video.path, range(10)).astype(float)
        away = [np.abs(decoded - other).mean() for other, _ in drawn]
        assert int(np.argmin(away)) == index and away[index] < 12


def test_frame_targets_are_the_drawn_segments(videos) -> None:
    for index, video in enumerate(videos.videos):
        _, segments = render_video(TINY, index)
        drawn = np.zeros((len(DOWNSTREAM_CLASSES), 40), bool)
        for label, start, stop in segments:
            assert 0 <= start < stop <= 40 and stop - start >= 8
            drawn[label, start:stop] = True
        info = probe(video.path)
        assert np.array_equal(videos.frame_targets(video, info.frames, info.fps), drawn)


def test_an_actor_moves_in_its_segments_and_rests_between() -> None:
    """One actor without noise: a picture differs from the last one iff an action is going on, or
    has just ended (what swings returns to its place)."""
    moving = acting = 0
    for index in range(40):
        pictures, segments = render_video(CLEAR, index)
        changed = np.abs(np.diff(pictures.astype(int), axis=0)).max((1, 2, 3)) > 0
        active, after = np.zeros((2, len(pictures)), bool)
        for _, start, stop in segments:
            active[start:stop] = True
            after[stop : stop + 1] = True
        assert not (changed & ~(active | after)[1:]).any()
        moving, acting = moving + (changed & active[1:]).sum(), acting + active[1:].sum()
    assert moving > 0.97 * acting


def sprite(pictures_THWC: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centre (x, y) and area of what stands out from a smooth background, by frame."""
    values = pictures_THWC / 255
    away_THW = np.abs(values - np.median(values, axis=(0, 1, 2))).max(3) > 0.3
    area = away_THW.sum((1, 2))
    rows, columns = np.mgrid[: values.shape[1], : values.shape[2]]
    weights = np.maximum(area, 1)
    return (away_THW * columns).sum((1, 2)) / weights, (away_THW * rows).sum((1, 2)) / weights, area


MOTIONS = {
    "move left": (-1, 0, 0), "move right": (1, 0, 0), "move up": (0, -1, 0), "move down": (0, 1, 0),
    "grow": (0, 0, 1), "shrink": (0, 0, -1),
    "drift up left": (-1, -1, 0), "drift up right": (1, -1, 0),
    "drift down left": (-1, 1, 0), "drift down right": (1, 1, 0),
}  # fmt: skip


def follows(pictures: np.ndarray, label: str) -> bool:
    tracks = sprite(pictures)
    changes = [track[-1] - track[0] for track in tracks]
    scales = (0.05 * CLEAR.size, 0.05 * CLEAR.size, 0.1 * tracks[2].mean())
    wanted = MOTIONS[label]
    return all(
        sign == 0 or sign * change > scale
        for sign, change, scale in zip(wanted, changes, scales, strict=True)
    )


def test_what_is_drawn_is_what_the_label_says() -> None:
    right: list[bool] = []
    for index in range(72):
        pictures, code = render_clip(CLEAR, index)
        if UPSTREAM_CLASSES[code] in MOTIONS:
            right.append(follows(pictures, UPSTREAM_CLASSES[code]))
    assert len(right) == 36
    for index in range(40):
        pictures, segments = render_video(CLEAR, index)
        for code, start, stop in segments:
            if DOWNSTREAM_CLASSES[code] in MOTIONS:
                right.append(follows(pictures[start:stop], DOWNSTREAM_CLASSES[code]))
    assert len(right) > 60 and np.mean(right) > 0.9


def test_what_cannot_be_rendered_is_refused(rendered) -> None:
    for wrong in ({"size": 23}, {"size": 0}, {"actors": 0}):
        with pytest.raises(ValueError, match="even number"):
            Config(**wrong)
    with pytest.raises(ValueError, match="upstream"):
        manifest(rendered, "train")
