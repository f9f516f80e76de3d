"""Files of features: what is written is what is mapped, whatever is killed or damaged between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdet.data import CorruptVideo, Manifest, Segment, Video
from ssdet.data.features.shards import FeatureSet, FeatureWriter
from ssdet.data.loading.frame_readers import dense_targets

LEVELS = {"layer1": (3, 7, 7), "conv5": (5,)}


def rows(video: str, steps: int, shapes=LEVELS) -> dict[str, torch.Tensor]:
    seed = sum(map(ord, video))
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(steps, *shape, generator=draws) for name, shape in shapes.items()}


def write(out: FeatureWriter, video: str, steps: int, pass_: int = 4, shapes=LEVELS) -> None:
    """A video of 3 frames a step, pass after pass."""
    out.begin(video, 3 * steps - 1, 24.0, 3)
    parts = rows(video, steps, shapes)
    for first in range(0, steps, pass_):
        out.add({name: value[first : first + pass_] for name, value in parts.items()})
    out.commit()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_what_is_mapped(tmp_path, dtype) -> None:
    lengths = {"a": 9, "b": 1, "c": 4}
    with FeatureWriter(tmp_path, dtype) as out:
        for video, steps in lengths.items():
            write(out, video, steps)
        out.leave_out("d", "cut short")
    features = FeatureSet.open(tmp_path)
    features.verify()
    assert [*features] == [*lengths] and "d" not in features and len(features) == 3
    assert features.shapes == LEVELS and features.broken == {"d": "cut short"}
    for video, steps in lengths.items():
        for name, expected in rows(video, steps).items():
            found = features[video][name]
            assert found.dtype == np.dtype(dtype) and not found.flags.writeable
            assert isinstance(found.base, np.memmap) or isinstance(found, np.memmap)
            assert np.array_equal(found, expected.numpy().astype(dtype))
        entry = features.entries[video]
        assert (entry.frames, entry.fps, entry.stride) == (3 * steps - 1, 24.0, 3)


class Killed(Exception):
    """Stands for the end of a process: nothing is closed, what was written is there."""


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 60), st.booleans())
def test_a_killed_writer_is_gone_on_from(done, begun, torn, broken) -> None:
    """After `done` videos, in the middle of the next, with `torn` bytes of a last line."""
    import tempfile

    names = ["a", "b", "c", "d"]
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        with FeatureWriter(whole) as out:
            for name in names:
                write(out, name, 6)
            if broken:
                out.leave_out("x", "why")
        out = FeatureWriter(cut).__enter__()
        for name in names[:done]:
            write(out, name, 6)
        out.begin(names[done], 17, 24.0, 3)
        for _ in range(begun):
            out.add(rows("z", 2))
        for file in out._files.values():
            file.flush()
        before = (cut / "0.jsonl").read_bytes()
        (cut / "0.jsonl").write_bytes(before + b'00000000 {"video": {"id": "zz", "offs'[:torn])
        with pytest.raises(ValueError, match="unfinished"):
            FeatureSet.open(cut)
        with FeatureWriter(cut) as again:
            assert again.done == {*names[:done]}
            for name in names[done:]:
                write(again, name, 6)
            if broken:
                again.leave_out("x", "why")
        for path in whole.iterdir():
            assert (cut / path.name).read_bytes() == path.read_bytes()
        FeatureSet.open(cut).verify()


def test_finished_shards_take_more_videos_and_join(tmp_path) -> None:
    with FeatureWriter(tmp_path, shard="one") as out:
        write(out, "a", 5)
    with FeatureWriter(tmp_path, shard="one") as out:
        assert out.done == {"a"}
        write(out, "b", 2)
    with FeatureWriter(tmp_path, shard="two") as out:
        write(out, "c", 3)
    with FeatureWriter(tmp_path, shard="void") as out:
        out.leave_out("d", "empty")
    features = FeatureSet.open(tmp_path)
    features.verify()
    assert {*features} == {"a", "b", "c"} and features.broken == {"d": "empty"}
    with FeatureWriter(tmp_path, shard="two") as out:
        write(out, "a", 3)
    with pytest.raises(ValueError, match="'a' is there twice"):
        FeatureSet.open(tmp_path)


def test_a_video_that_was_not_finished_leaves_nothing(tmp_path) -> None:
    with FeatureWriter(tmp_path) as out:
        write(out, "a", 5)
        out.begin("b", 9, 24.0, 3)
        out.add(rows("b", 2))
        out.leave_out("b", "cut after 2 passes")
        out.begin("c", 9, 24.0, 3)
        out.add(rows("c", 2))
        write(out, "d", 4)
    features = FeatureSet.open(tmp_path)
    features.verify()
    assert [*features] == ["a", "d"] and features.broken == {"b": "cut after 2 passes"}


def test_what_cannot_be_kept_is_refused(tmp_path) -> None:
    one = {"x": (2,)}
    with FeatureWriter(tmp_path) as out:
        write(out, "a", 3, shapes=one)
        for bad, told in [
            (torch.full((1, 2), 1e5), "float32"),
            (torch.full((1, 2), torch.nan), "NaN"),
        ]:
            out.begin("b", 9, 24.0, 3)
            with pytest.raises(ValueError, match=told):
                out.add({"x": bad})
        with pytest.raises(ValueError, match=r"earlier \{'x': \(2,\)\}"):
            out.add({"x": torch.zeros(1, 3)})
        with pytest.raises(ValueError, match="already written"):
            out.begin("a", 9, 24.0, 3)
        with pytest.raises(ValueError, match="rows of its tensors"):
            out.begin("b", 9, 24.0, 3)
            out.commit()
    with pytest.raises(ValueError, match="asked for float32"):
        FeatureWriter(tmp_path, "float32").__enter__()
    with pytest.raises(ValueError, match="letters"):
        FeatureWriter(tmp_path, shard="../x")


@pytest.mark.parametrize(
    ("file", "told"), [("0.conv5.bin", "its index says"), ("0.jsonl", "unfinished")]
)
def test_truncated_files_are_told(tmp_path, file, told) -> None:
    with FeatureWriter(tmp_path) as out:
        write(out, "a", 5)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=told):
        FeatureSet.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="no features"):
        FeatureSet.open(tmp_path / "elsewhere")


def test_altered_rows_are_found_when_asked_for(tmp_path) -> None:
    with FeatureWriter(tmp_path) as out:
        write(out, "a", 5)
        write(out, "b", 5)
    data = bytearray((tmp_path / "0.layer1.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "0.layer1.bin").write_bytes(data)
    with pytest.raises(ValueError, match="layer1 of video 'b'"):
        FeatureSet.open(tmp_path).verify()


def test_labels_need_no_video(tmp_path) -> None:
    """Frames and rate come with the features: 14 frames annotated as 7 seconds, 2 a second."""
    video = Video("a", "", "train", segments=(Segment(1, 1.9, 3.1),), duration=7.0)
    manifest = Manifest("m", ("x", "y"), (video, Video("b", "b.mp4", "train")))
    with FeatureWriter(tmp_path) as out:
        write(out, "a", 5)
        out.leave_out("b", "no frames")
    features = FeatureSet.open(tmp_path)
    dense = dense_targets(manifest, video, features)
    assert dense.shape == (2, 14) and dense[1].nonzero()[0].tolist() == [4, 5, 6]
    with pytest.raises(CorruptVideo, match="no frames"):
        features.frames(manifest.videos[1])
