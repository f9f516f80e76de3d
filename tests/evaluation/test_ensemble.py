import numpy as np
import pytest

from ssdet.evaluation import PredictionSet, PredictionWriter
from ssdet.evaluation.ensemble import mean_probability


def member(folder, frames, classes=3, seed=0, fps=24.0):
    rng = np.random.default_rng(seed)
    with PredictionWriter(folder, classes) as writer:
        for video, count in frames.items():
            writer.add(video, rng.random((count, classes)), fps)
    return PredictionSet.open(folder)


FRAMES = {"a": 5, "b": 5000, "c": 1}


def test_mean_of_the_members_whatever_their_order(tmp_path):
    members = [
        member(tmp_path / str(i), dict(reversed(FRAMES.items())) if i % 2 else FRAMES, seed=i)
        for i in range(5)
    ]
    ensemble = mean_probability(members, tmp_path / "mean")
    assert ensemble.videos == members[0].videos
    for video in FRAMES:
        expected = np.mean([m[video].astype(np.float64) for m in members], axis=0)
        assert ensemble.fps(video) == 24
        assert np.abs(ensemble[video] - expected).max() <= 2**-12  # half a step of float16


def test_one_member_is_itself(tmp_path):
    single = member(tmp_path / "a", FRAMES)
    ensemble = mean_probability([single], tmp_path / "mean")
    assert all(np.array_equal(ensemble[video], single[video]) for video in FRAMES)


def test_equal_members_lose_nothing(tmp_path):
    single = member(tmp_path / "a", FRAMES)
    ensemble = mean_probability([single] * 3, tmp_path / "mean")
    assert all(np.array_equal(ensemble[video], single[video]) for video in FRAMES)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"frames": FRAMES | {"d": 1}}, r"differ in 1 videos \(d\)"),
        ({"frames": {"a": 5, "c": 1}}, r"differ in 1 videos \(b\)"),
        ({"frames": FRAMES | {"a": 6}}, r"video 'a' has \(frames, fps\) \(6, 24.0\)"),
        ({"frames": FRAMES, "fps": 10.0}, r"video 'a' has \(frames, fps\) \(5, 10.0\)"),
        ({"frames": FRAMES, "classes": 4}, "4 classes"),
    ],
)
def test_members_that_do_not_fit_are_named(tmp_path, other, message):
    members = [member(tmp_path / "a", FRAMES), member(tmp_path / "b", **other)]
    with pytest.raises(ValueError, match=message):
        mean_probability(members, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_members_are_never_overwritten(tmp_path):
    single = member(tmp_path / "a", FRAMES)
    with pytest.raises(ValueError, match="elsewhere"):
        mean_probability([single], tmp_path / "x" / ".." / "a")
    assert PredictionSet.open(tmp_path / "a").videos == single.videos


def test_altered_members_are_refused(tmp_path):
    single = member(tmp_path / "a", FRAMES)
    content = bytearray((tmp_path / "a" / "0.f16").read_bytes())
    content[100] ^= 1
    (tmp_path / "a" / "0.f16").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.f16: its checksum"):
        mean_probability([single], tmp_path / "mean")


def test_no_member(tmp_path):
    with pytest.raises(ValueError, match="at least one member"):
        mean_probability([], tmp_path)
