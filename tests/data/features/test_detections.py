"""Files of detections: what is read, how videos are padded, and what is refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssdet.data.features.detections as module
from ssdet.data import Video
from ssdet.data.features.detections import BrokenDetections, DetectionSet, padded, read_header
from ssdet.data.video.reader import CorruptVideo


def arrays(steps: int = 5, places: int = 3, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A video of boxes of every kind."""
    draws = np.random.default_rng(seed)
    corner = draws.random((steps, places, 2)) * 0.6
    size = 0.1 + 0.3 * draws.random((steps, places, 2))
    kind = draws.integers(-1, 2, (steps, places))
    kind[0, :3] = [-1, 0, 1][:places]
    return {
        "boxes": np.concatenate([corner, corner + size], -1),
        "kind": kind,
        "features": draws.normal(size=(steps, places, 4)).astype(np.float32),
        "fps": 10.0,
        "stride": 4,
        "frames": steps * 4 - 1,
    } | more


def write(folder: Path, name: str = "v", **fields: Any) -> Path:
    np.savez(folder / f"{name}.npz", **fields)
    return folder / f"{name}.npz"


def test_a_file_is_what_was_written(tmp_path) -> None:
    given = arrays(rgb=np.ones((5, 7), ">f8"), boxes=np.asfortranarray(arrays()["boxes"]))
    given["boxes"][0, 0], given["features"][0, 0] = np.nan, np.inf  # absent: never looked at
    write(tmp_path, **given)
    found = DetectionSet.open(tmp_path)
    assert list(found) == ["v"] and found.widths == {"features": 4, "rgb": 7}
    there = given["kind"] >= 0
    for name in ("boxes", "features"):
        np.testing.assert_array_equal(
            found["v"][name][there], given[name][there].astype(np.float32)
        )
        assert not found["v"][name][~there].any()
    np.testing.assert_array_equal(found["v"]["kind"], given["kind"])
    assert (found["v"]["rgb"] == 1).all() and found["v"].keys() == {
        "boxes",
        "kind",
        "features",
        "rgb",
    }
    video = Video("v", "", "test")
    assert (found.frames(video), found.fps(video), found.entries["v"].steps) == (19, 10.0, 5)


def test_a_compressed_file_reads_the_same(tmp_path) -> None:
    given = arrays(features=arrays()["features"].astype(np.float16))
    np.savez_compressed(tmp_path / "v.npz", **given)
    read = DetectionSet.open(tmp_path)["v"]["features"]
    there = given["kind"] >= 0
    assert read.dtype == np.float32 and np.array_equal(read[there], given["features"][there])


def test_batches_are_padded_in_steps_and_places(tmp_path) -> None:
    sizes = {"a": (5, 2), "b": (3, 4), "empty": (2, 0)}
    for seed, (name, (steps, places)) in enumerate(sizes.items()):
        scene = np.full((steps, 6), seed, np.float32)
        write(tmp_path, name, **arrays(steps, places, seed, scene=scene))
    found = DetectionSet.open(tmp_path)
    batch = found.batch(list(sizes))
    assert batch.boxes_BTN4.shape == (3, 5, 4, 4) and batch.features_BTND.shape == (3, 5, 4, 4)
    assert batch.lengths_B.tolist() == [5, 3, 2] and batch.kinds_BTN.dtype == torch.int64
    assert batch.rgb_BTD is None and batch.scene_BTD is not None
    assert batch.scene_BTD[:, :, 0].tolist() == [[0] * 5, [1, 1, 1, 0, 0], [2, 2, 0, 0, 0]]
    for row, (name, (steps, places)) in enumerate(sizes.items()):
        kind = torch.from_numpy(found[name]["kind"])
        assert torch.equal(batch.kinds_BTN[row, :steps, :places], kind)
        assert torch.equal(batch.present_BTN[row, :steps, :places], kind >= 0)
        assert int(batch.present_BTN[row].sum()) == int((kind >= 0).sum())
        assert batch.mask_BT[row].tolist() == [t < steps for t in range(5)]
    assert found.batch(["a"], ()).scene_BTD is None
    assert found.batch(["empty"]).kinds_BTN.tolist() == [[[-1], [-1]]]
    moved = batch.to("meta")
    assert moved.boxes_BTN4.is_meta and moved.rgb_BTD is None
    assert torch.equal(padded([found["a"]]).kinds_BTN, found.batch(["a"]).kinds_BTN)


WRONG = {
    "an unknown field": ({"scenes": np.zeros((5, 2))}, r"unknown \['scenes'\]"),
    "places that differ": ({"features": np.zeros((5, 2, 4))}, r"features \(5, 2, 4\), expected \["),
    "steps that differ": ({"rgb": np.zeros((4, 4))}, r"rgb \(4, 4\), expected \[T, D\] with T=5"),
    "three corners": ({"boxes": np.zeros((5, 3, 3))}, r"boxes \(5, 3, 3\), expected \[T, N, 4\]"),
    "no channels": ({"features": np.zeros((5, 3, 0))}, r"features \(5, 3, 0\)"),
    "kinds of numbers": ({"kind": np.zeros((5, 3))}, r"kind .* of float64, expected integers"),
    "features of integers": ({"features": np.zeros((5, 3, 4), int)}, "expected floating point"),
    "words": ({"rgb": np.array([["a"]])}, r"rgb \(1, 1\) of <U1"),
    "a vector of rates": ({"fps": [1.0]}, r"fps \(1,\) of float64, expected numbers \[\]"),
    "no rate": ({"fps": np.nan}, "fps nan, stride 4: expected more than 0"),
    "a stride of half a frame": ({"stride": 0.5}, "stride .* expected integers"),
    "no stride": ({"stride": 0}, "stride 0: expected more than 0"),
    "too many frames": ({"frames": 21}, "21 frames in 5 steps of 4: expected 17 to 20"),
    "too few frames": ({"frames": 16}, "16 frames in 5 steps of 4"),
    "another kind": ({"kind": np.full((5, 3), 2)}, r"kind holds \[2\], expected 0 \(actor\)"),
    "pixels": ({"boxes": arrays()["boxes"] * 640}, r"boxes\[0, 1\] is \[.*: divide pixels"),
    "widths": ({"boxes": arrays()["boxes"][..., [2, 3, 0, 1]]}, r"boxes\[0, 1\].*expected x1 < x2"),
    "infinity": ({"flow": np.full((5, 2), 1e300)}, r"flow\[0, 0\] is NaN or beyond float32"),
    "NaN": ({"features": np.full((5, 3, 4), np.nan)}, r"features\[0, 1, 0\] is NaN"),
    "no step": (arrays(5) | {n: arrays()[n][:0] for n in ("boxes", "kind", "features")}, "T=0 > 0"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_hold_together_is_named(tmp_path, wrong) -> None:
    fields, said = WRONG[wrong]
    path = write(tmp_path, **(arrays() | fields))
    with pytest.raises(BrokenDetections, match=said) as error:
        DetectionSet.open(tmp_path)["v"]
    assert str(error.value).startswith(f"{path}: ")


def test_missing_fields_and_other_channels(tmp_path) -> None:
    fields = arrays()
    del fields["kind"], fields["fps"]
    write(tmp_path, "a", **fields)
    with pytest.raises(BrokenDetections, match=r"missing \['fps', 'kind'\]"):
        DetectionSet.open(tmp_path)
    write(tmp_path, "a", **arrays())
    path = write(tmp_path, "b", **arrays(rgb=np.zeros((5, 2))))
    with pytest.raises(BrokenDetections, match=f"{path}: channels .*'rgb': 2.* a.npz has"):
        DetectionSet.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="no detections"):
        DetectionSet.open(tmp_path / "elsewhere")


def test_videos_without_a_file(tmp_path) -> None:
    write(tmp_path, **arrays())
    found = DetectionSet.open(tmp_path)
    assert "w" not in found and len(found) == 1
    with pytest.raises(KeyError, match="no detections of video 'w'"):
        found["w"]
    with pytest.raises(CorruptVideo, match="no detections in"):
        found.fps(Video("w", "w.mp4", "test"))


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in ({n: npy(np.asarray(v)) for n, v in arrays().items()} | members).items():
            archive.writestr(f"{name}.npy", data)
    return path


class Trap:
    """Says when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.empty((5, 3, 4), object)
    trap[:] = Trap()
    with pytest.raises(BrokenDetections, match="features .* of object, expected floating point"):
        read_header(zipped(tmp_path / "v.npz", features=npy(trap)))
    assert not (tmp_path / "unpickled").exists()


def test_claims_are_checked_before_memory_is_asked_for(tmp_path, monkeypatch) -> None:
    head = npy(np.zeros((5, 3, 4)))[:128]
    claim = head.replace(b"(5, 3, 4), }" + b" " * 9, b"(5, 3, 4000000000), }")
    assert len(claim) == len(head) != head.count(b" ")
    with pytest.raises(BrokenDetections, match="are 480000000000 bytes, it holds 0"):
        read_header(zipped(tmp_path / "v.npz", features=claim))
    negative = head.replace(b"(5, 3, 4), }" + b" " * 2, b"(5, -3, -4), }")
    with pytest.raises(BrokenDetections, match="it holds 480"):
        read_header(zipped(tmp_path / "v.npz", features=negative + bytes(480)))
    monkeypatch.setattr(module, "LIMIT", 1000)
    with pytest.raises(BrokenDetections, match="bytes of arrays, at most 1000: cut the video"):
        read_header(zipped(tmp_path / "v.npz"))


def test_a_field_that_is_there_twice(tmp_path) -> None:
    path = zipped(tmp_path / "v.npz")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("kind.npy", npy(np.zeros((5, 3), int)))
    with pytest.raises(BrokenDetections, match="each of .* once"):
        read_header(path)


def test_damaged_bytes_are_told_or_harmless(tmp_path) -> None:
    whole = write(tmp_path, **arrays()).read_bytes()
    expected = DetectionSet.open(tmp_path)["v"]
    draws = np.random.default_rng(1)
    told = 0
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3:
            data[int(draws.integers(len(data)))] ^= int(draws.integers(1, 256))
        else:
            del data[int(draws.integers(len(data))) :]
        (tmp_path / "v.npz").write_bytes(data)
        try:
            found = DetectionSet.open(tmp_path)["v"]
        except BrokenDetections as error:
            told += str(tmp_path / "v.npz") in str(error)
            continue
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        told += 1
    assert told == 300
