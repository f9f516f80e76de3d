"""`ssdet data import-features`: from files of other tools to a folder that opens."""

import json

import numpy as np
import pytest

from ssdet.cli.__main__ import main
from ssdet.data.features.shards import FeatureSet


@pytest.fixture
def source(tmp_path):
    """Features of two of three annotated videos, and of one that is not annotated."""
    (tmp_path / "in").mkdir()
    for video, steps in (("v_a", 20), ("b.mp4", 30), ("x", 10)):
        np.save(tmp_path / f"in/{video}.npy", np.ones((steps, 1, 1, 8)))
    entry = {"subset": "validation", "annotations": [{"segment": [1, 2], "label": "run"}]}
    database = {video: {"duration": 10.0, **entry} for video in "abc"}
    (tmp_path / "anet.json").write_text(json.dumps({"database": database}))
    return tmp_path / "in"


def run(*arguments) -> int:
    return main(["data", "import-features", *map(str, arguments)])


def test_import_and_report(source, tmp_path, capsys) -> None:
    annotated = ("--annotation", tmp_path / "anet.json", "--format", "activitynet")
    assert run(source, *annotated, "--out", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["videos"], report["steps"], report["channels"]) == (2, 50, 8)
    assert report["missing"] == ["c"] and report["unused"] == [str(source / "x.npy")]
    features = FeatureSet.open(tmp_path / "out")
    assert {v: e.fps for v, e in features.entries.items()} == {"a": 2.0, "b": 3.0}
    timed = ("--stride", 16, "--fps", 32, "--out", tmp_path / "timed")
    assert run(source, *annotated, *timed) == 0
    shown = capsys.readouterr().out
    assert "b: features of 15.0 s, a video of 10.0 s" in shown
    assert "2 videos with 50 features of 8 channels, read as [T, D]" in shown
    assert "1 annotated, without features, 1 not used" in shown


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["IN", "--out", "OUT"], 2, "give --stride and --fps, --rate, or an --annotation"),
        (["IN", "--out", "OUT", "--stride", "8"], 2, "--stride needs --fps"),
        (["IN/x.npy", "--out", "OUT", "--rate", "1"], 2, "--layout td for [T, D]"),
        (["--out", "OUT", "--rate", "1"], 2, "give a folder with feature files"),
        (["IN", "--out", "OUT", "--rate", "1", "--annotation", "A"], 2, "go together"),
        (["IN", "--out", "OUT", "--rate", "1", "--annotation", "A", "--format", "x"], 2, "'x'"),
        (["IN", "--out", "OUT", "--rate", "-1"], 2, "above 0"),
        (["IN", "--out", "IN", "--rate", "1"], 1, "is there already"),
        (["absent", "--out", "OUT", "--rate", "1"], 1, "absent: no such file"),
        (["EMPTY", "--out", "OUT", "--rate", "1"], 1, "no feature files (.npy, .npz"),
    ],
)
def test_status_and_errors(source, tmp_path, options, status, said, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/._a.npy").touch()
    places = {"IN": source, "OUT": tmp_path / "out", "A": tmp_path / "anet.json",
              "EMPTY": tmp_path / "empty", "IN/x.npy": source / "x.npy"}  # fmt: skip
    assert run(*(places.get(word, word) for word in options)) == status
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("error: ") == 1
    assert not (tmp_path / "out").exists() and not shown.out
