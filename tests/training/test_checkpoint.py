"""Checkpoints: whole or refused, never executed, whole under the name at every moment."""

import io
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdet.training.checkpoint import BrokenCheckpoint, clean, load, load_weights, save


def state(number: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    model = {"a.weight": torch.randn(8, 3, generator=generator), "a.split_mean": torch.zeros(4)}
    return {
        "recipe": {"task": "pretrain", "milestones": [0.8]},
        "model": model,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(8, 3)}}, "param_groups": []},
        "averaged": None,
        "step": number,
        "scores": {"validation": 0.25},
    }


pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.pt"


def test_what_is_saved_is_loaded(path) -> None:
    save(path, state())
    found = load(path)
    assert found["recipe"] == state()["recipe"] and found["step"] == 3
    assert torch.equal(found["model"]["a.weight"], state()["model"]["a.weight"])
    assert torch.equal(found["optimizer"]["state"][0]["momentum_buffer"], torch.ones(8, 3))
    save(path, state(4))
    assert load(path)["step"] == 4
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_truncated_file_is_refused_wherever_it_ends(path, layout) -> None:
    save(path, state())
    data = path.read_bytes() if layout == "zip" else legacy(state())
    for length in [*range(0, len(data), 29), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(BrokenCheckpoint, match=r"last\.pt.*restore it from a copy"):
            load(path)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_damaged_bytes_are_no_other_error(path, layout) -> None:
    save(path, state())
    data = path.read_bytes() if layout == "zip" else legacy(state())
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[rng.randrange(min(1200, len(data)))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load(path)
        except BrokenCheckpoint:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04", b"\x80\x02}.", b"."])
def test_what_is_no_checkpoint_is_refused(path, content) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=str(path)):
        load(path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(path, tmp_path, layout) -> None:
    marker = tmp_path / "was-here"
    content = {"model": Malicious(marker), "step": 1}
    path.parent.mkdir()
    if layout == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(legacy(content) if layout == "legacy" else pickle.dumps(content))
    for read in (load, load_weights):
        with pytest.raises(BrokenCheckpoint, match=str(path)):
            read(path)
        assert not marker.exists()
    if layout != "pickle":  # a reader that trusts does run it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_other_contents_are_refused(path) -> None:
    path.parent.mkdir()
    torch.save([1, 2], path)
    with pytest.raises(BrokenCheckpoint, match="is a list"):
        load(path)
    save(path, {"step": 1})
    with pytest.raises(BrokenCheckpoint, match="no entry 'model'"):
        load_weights(path)


def test_a_file_that_cannot_be_opened_is_not_called_broken(path) -> None:
    with pytest.raises(FileNotFoundError):
        load(path)
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        load(path)


def test_weights_are_the_average_where_there_is_one(path) -> None:
    save(path, state())
    assert load_weights(path).keys() == {"a.weight"}
    average = {"a.weight": torch.full((8, 3), 7.0), "a.split_var": torch.ones(4)}
    save(path, {**state(), "averaged": average})
    weights = load_weights(path)
    assert weights.keys() == {"a.weight"} and (weights["a.weight"] == 7).all()


def write_for_ever(path: Path) -> None:
    number = 0
    while True:
        number += 1
        save(path, {"step": number, "model": {"w": torch.full((200_000,), float(number))}})


@pytest.mark.timeout(240)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    last = 0
    for _ in range(8):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = context.Process(target=write_for_ever, args=(path,))
        process.start()
        while not path.exists() or path.stat().st_mtime_ns == before:
            load(path) if path.exists() else time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        found = load(path)
        assert (found["model"]["w"] == found["step"]).all() and found["step"] >= 1
        last = found["step"]
    save(path, {**load(path), "step": last + 1})
    assert load(path)["step"] == last + 1
    clean(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_write_that_fails_leaves_the_old_one(path) -> None:
    save(path, state())
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save(path, {"model": lambda: None})
    assert load(path)["step"] == 3
    save(path.with_name("best.pt"), state(9))
    assert load(path)["step"] == 3 and load(path.with_name("best.pt"))["step"] == 9
