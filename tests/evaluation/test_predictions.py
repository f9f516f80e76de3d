import json
import warnings
import zlib

import numpy as np
import pytest
import torch

from ssdet.evaluation import PredictionSet, PredictionWriter


def write(folder, videos, classes=5, shard="0", fps=24.0):
    with PredictionWriter(folder, classes, shard) as writer:
        for video, scores_TK in videos.items():
            writer.add(video, scores_TK, fps)


def rand(*frames, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((count, classes)).astype(np.float32) for count in frames]


def reindex(path, **changes):
    """Change fields of an index and sign it again, as a hostile writer would."""
    index = json.loads(path.read_text()) | changes
    del index["index_checksum"]
    index["index_checksum"] = zlib.crc32(json.dumps(index, sort_keys=True).encode())
    path.write_text(json.dumps(index))


def test_round_trip_keeps_order_values_and_rates(tmp_path):
    a, b, c = rand(7, 1, 3000)
    with PredictionWriter(tmp_path / "deep" / "val", 5) as writer:
        writer.add("z", a, 24)
        writer.add("a b/ü", torch.tensor(b, requires_grad=True), 23.976)
        writer.add("m", c[::-1], 10.0)
    opened = PredictionSet.open(str(tmp_path / "deep" / "val"))
    assert opened.videos == ("z", "a b/ü", "m") == tuple(opened) and len(opened) == 3
    assert opened.classes == 5
    assert [opened.frames(video) for video in opened] == [7, 1, 3000]
    assert [opened.fps(video) for video in opened] == [24.0, 23.976, 10.0]
    for video, expected in zip(opened, (a, b, c[::-1]), strict=True):
        assert opened[video].dtype == np.float16
        assert np.array_equal(opened[video], torch.tensor(expected.copy()).half().numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_any_real_type_is_stored_as_float16(tmp_path, dtype):
    scores_TK = (rand(40)[0] * 9).astype(dtype)
    write(tmp_path, {"v": scores_TK})
    assert np.array_equal(PredictionSet.open(tmp_path)["v"], scores_TK.astype(np.float16))


def test_views_are_read_only_maps_of_the_file(tmp_path):
    write(tmp_path, {"v": rand(50)[0], "w": rand(60)[0]})
    view = PredictionSet.open(tmp_path)["w"]
    assert isinstance(view, np.memmap) and not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_a_prediction_set_can_be_written_again_without_warnings(tmp_path):
    write(tmp_path / "a", {"v": rand(50)[0]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "b", PredictionSet.open(tmp_path / "a"))
    assert (tmp_path / "a" / "0.f16").read_bytes() == (tmp_path / "b" / "0.f16").read_bytes()


def test_shards_read_as_one_set_and_may_be_empty(tmp_path):
    a, b = rand(4, 6)
    write(tmp_path, {"b": b}, shard="rank-1")
    write(tmp_path, {"a": a}, shard="rank-0")
    write(tmp_path, {}, shard="rank-2")
    opened = PredictionSet.open(tmp_path)
    opened.verify()
    assert opened.videos == ("a", "b")
    assert np.array_equal(opened["b"], b.astype(np.float16))


def test_infinities_are_stored_but_overflow_and_nan_are_not(tmp_path):
    write(tmp_path, {"v": np.array([[-np.inf, np.inf]])}, classes=2)
    assert PredictionSet.open(tmp_path)["v"].tolist() == [[-np.inf, np.inf]]
    with pytest.raises(ValueError, match=r"'w'.*beyond float16"):
        write(tmp_path, {"w": np.array([[1e6, -np.inf]])}, classes=2)
    with pytest.raises(ValueError, match=r"'w'.*NaN"):
        write(tmp_path, {"w": np.array([[np.nan, 0]])}, classes=2)


@pytest.mark.parametrize(
    ("video", "shape", "fps", "message"),
    [
        ("", (3, 5), 24, "non-empty"),
        (7, (3, 5), 24, "non-empty"),
        ("v", (3, 5), 24, "already written"),
        ("w", (3, 4), 24, r"'w'.*\(3, 4\), expected .*5"),
        ("w", (0, 5), 24, "frames >= 1"),
        ("w", (5,), 24, r"\(5,\)"),
        ("w", (3, 5), 0, "fps=0"),
        ("w", (3, 5), float("inf"), "fps=inf"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, video, shape, fps, message):
    with (
        pytest.raises(ValueError, match=message),
        PredictionWriter(tmp_path, 5) as writer,
    ):
        writer.add("v", np.zeros((2, 5)), 24)
        writer.add(video, np.zeros(shape), fps)


@pytest.mark.parametrize("shard", ["../0", "a/b", "", ".", "..", "a.b", "/tmp/x", "a\n"])
def test_shard_names_cannot_leave_the_folder(tmp_path, shard):
    with pytest.raises(ValueError, match="shard"):
        PredictionWriter(tmp_path, 5, shard)


def test_at_least_one_class(tmp_path):
    with pytest.raises(ValueError, match="classes=0"):
        PredictionWriter(tmp_path, 0)


def test_a_crash_never_leaves_what_reads_as_complete(tmp_path):
    write(tmp_path, {"old": rand(9)[0]})
    with pytest.raises(RuntimeError), PredictionWriter(tmp_path, 5) as writer:
        writer.add("v", rand(2)[0], 24)
        raise RuntimeError("killed")
    with pytest.raises(ValueError, match=r"0\.json: missing.*did not finish.*delete"):
        PredictionSet.open(tmp_path)
    write(tmp_path, {"new": rand(3)[0]})
    assert PredictionSet.open(tmp_path).videos == ("new",)


def test_a_reader_keeps_the_shard_that_is_replaced_under_it(tmp_path):
    (former,) = rand(2000)
    write(tmp_path, {"v": former})
    opened = PredictionSet.open(tmp_path)
    write(tmp_path, {"w": rand(1)[0]})
    assert np.array_equal(opened["v"], former.astype(np.float16))


def test_one_unfinished_shard_spoils_the_set(tmp_path):
    write(tmp_path, {"v": rand(9)[0]})
    (tmp_path / "1.f16").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.json: missing"):
        PredictionSet.open(tmp_path)


@pytest.mark.parametrize("folder", ["absent", "."])
def test_no_prediction_set(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no prediction set"):
        PredictionSet.open(tmp_path / folder)


def test_an_unknown_video(tmp_path):
    write(tmp_path, {"v": rand(2)[0]})
    opened = PredictionSet.open(tmp_path)
    assert "w" not in opened and opened.get("w") is None
    with pytest.raises(KeyError, match="no predictions of video 'w'"):
        opened["w"]


@pytest.mark.parametrize("change", ["truncate", "extend", "remove"])
def test_data_of_another_size(tmp_path, change):
    write(tmp_path, {"v": rand(9)[0]})
    data = tmp_path / "0.f16"
    content = data.read_bytes()
    data.write_bytes(content[:-2] if change == "truncate" else content + b"00")
    if change == "remove":
        data.unlink()
    with pytest.raises(ValueError, match=r"0\.f16: \d+ bytes, its index says 90.*delete"):
        PredictionSet.open(tmp_path)


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_altered_data(tmp_path, place):
    write(tmp_path, {"v": rand(1000)[0]})
    content = bytearray((tmp_path / "0.f16").read_bytes())
    content[place] ^= 1
    (tmp_path / "0.f16").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.f16: its checksum.*delete"):
        PredictionSet.open(tmp_path).verify()


def test_data_without_a_checksum_are_not_vouched_for(tmp_path):
    write(tmp_path, {"v": rand(9)[0]})
    reindex(tmp_path / "0.json", data_checksum=None)
    with pytest.raises(ValueError, match=r"0\.f16: its checksum"):
        PredictionSet.open(tmp_path).verify()


def test_swapped_pages_are_noticed(tmp_path):
    write(tmp_path, {"v": rand(1000)[0]})
    content = (tmp_path / "0.f16").read_bytes()
    (tmp_path / "0.f16").write_bytes(content[4096:8192] + content[:4096] + content[8192:])
    with pytest.raises(ValueError, match=r"0\.f16: its checksum"):
        PredictionSet.open(tmp_path).verify()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": "other"}']
)
def test_an_index_that_is_none(tmp_path, content):
    write(tmp_path, {"v": rand(9)[0]})
    (tmp_path / "0.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.json"):
        PredictionSet.open(tmp_path)


def test_an_altered_index(tmp_path):
    write(tmp_path, {"v": rand(9)[0]})
    text = (tmp_path / "0.json").read_text()
    (tmp_path / "0.json").write_text(text.replace('"v"', '"w"'))
    with pytest.raises(ValueError, match=r"0\.json: its checksum"):
        PredictionSet.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "<f4"}, "dtype"),
        ({"format": "ssdet-predictions/99"}, "format"),
        ({"classes": 4}, r"0\.f16: 90 bytes"),
        ({"classes": -5}, "classes=-5"),
        ({"classes": "5"}, "classes='5'"),
        ({"frames": 8}, "frames=8"),
        ({"frames": 10**9, "videos": [["v", 10**9, 24.0]]}, "90 bytes"),
        ({"videos": [["v", 9, 24.0], ["v", 1, 24.0]], "frames": 10}, "90 bytes"),
        ({"videos": [["v", 10, 24.0], ["w", -1, 24.0]]}, "'w': frames -1"),
        ({"videos": [["v", 9, -1.0]]}, "fps -1.0"),
        ({"videos": [["v", 9, float("nan")]]}, "fps nan"),
        ({"videos": [["v", 9, float("inf")]]}, "fps inf"),
        ({"videos": [["v", True, 24.0]]}, "frames True"),
        ({"videos": [["v", 9]]}, "entry"),
        ({"videos": [[["v"], 9, 24.0]]}, "entry"),
        ({"videos": {"v": 9}}, "malformed"),
        ({"videos": None}, "malformed"),
        ({"videos": [["v", 4, 24.0], ["v", 5, 24.0]]}, "'v' is there twice"),
    ],
)
def test_a_signed_index_that_does_not_fit(tmp_path, changes, message):
    write(tmp_path, {"v": rand(9)[0]})
    reindex(tmp_path / "0.json", **changes)
    with pytest.raises(ValueError, match=message):
        PredictionSet.open(tmp_path)


def test_shards_that_do_not_belong_together(tmp_path):
    write(tmp_path, {"v": rand(9)[0]}, shard="0")
    write(tmp_path, {"w": rand(9, classes=4)[0]}, classes=4, shard="1")
    with pytest.raises(ValueError, match=r"1\.json: 4 classes, other shards have 5"):
        PredictionSet.open(tmp_path)
    write(tmp_path, {"v": rand(9)[0]}, shard="1")
    with pytest.raises(ValueError, match=r"1\.json: video 'v' is there twice"):
        PredictionSet.open(tmp_path)
