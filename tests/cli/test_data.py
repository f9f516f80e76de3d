"""`ssdet data`: what it prints and returns, and the way from a check to a training's data."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ssdet.data.maintenance.check
from ssdet.cli.__main__ import main
from ssdet.data import load_manifest
from ssdet.data.datasets.moving_shapes import write_video
from ssdet.studies.data import Data, Source


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Annotation of four videos of 2 s: two whole, one broken, one missing."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "videos"
    folder.mkdir()
    scene = np.kron(rng.integers(0, 255, (24, 6, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    for name in ("v 1", "é2"):
        write_video(folder / f"{name}.mp4", scene, fps=12)
    (folder / "bad.mp4").write_text("no longer available")
    entry = {"subset": "training", "duration": 2.0, "actions": [["a", 0.5, 1.5]]}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({name: entry for name in ("v 1", "é2", "bad", "gone")}))
    (tmp_path / "classes.txt").write_text("a\n")
    return path


def asked(dataset: Path, *rest: str) -> list[str]:
    videos = str(dataset.with_name("videos"))
    return [rest[0], "--format", "segments", str(dataset), "--videos", videos, *rest[1:]]


@pytest.fixture
def run(dataset: Path) -> Callable[..., int]:
    return lambda *rest: main(["data", *asked(dataset, *rest), "--processes", "1"])


def test_check_tells_and_quarantines(dataset, run, capsys) -> None:
    assert run("check") == 0
    told = capsys.readouterr().out
    assert "4 annotated videos: 2 fine, 1 missing, 1 unreadable, 0 suspicious" in told
    assert "bad: not an MP4" in told and "gone: no file" in told
    place = dataset.with_name("quarantine.json")
    assert f"{place}: 1 in quarantine" in told
    assert list(json.loads(place.read_text())["videos"]) == ["bad"]


def test_check_as_json_and_strict(dataset, run, tmp_path, capsys) -> None:
    place = tmp_path / "elsewhere" / "list.json"
    assert run("check", "--json", "--strict", "--quarantine", str(place)) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["annotated"], told["fine"], told["missing"]) == (4, 2, ["gone"])
    assert told["unreadable"].keys() == {"bad"} and told["fps"] == 12
    assert place.exists() and not dataset.with_name("quarantine.json").exists()


def test_what_is_wrong_with_the_check_itself(dataset, run, monkeypatch, capsys) -> None:
    def fail(video: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ssdet.data.maintenance.check, "examine", fail)
    assert run("check") == 1
    assert "3 could not be checked" in capsys.readouterr().out
    for videos, said in {"videos/v 1.mp4": "not there", "empty": "no file of its"}.items():
        dataset.with_name("empty").mkdir(exist_ok=True)
        given = ["--format", "segments", str(dataset), "--videos", str(dataset.parent / videos)]
        assert main(["data", "check", *given]) == 1
        assert said in capsys.readouterr().err
    assert main(["data", "check", "--format", "segments", str(dataset) + "x"]) == 1


@pytest.mark.parametrize("given", [[], ["chekc"], ["check"], ["convert", "--format", "nothing"]])
def test_wrong_usage(given, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", *given])
    assert end.value.code == 2


def test_stats_are_reached(dataset, capsys) -> None:
    assert main(["data", "stats", "--format", "segments", str(dataset), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("packed", [False, True])
def test_from_check_to_the_frames_of_a_study(packed, dataset, run, tmp_path, capsys) -> None:
    assert run("check") == 0
    manifest = load_manifest("segments", dataset, dataset.with_name("videos"))
    assert [video.id for video in manifest.videos] == ["v 1", "é2"]
    assert set(manifest.missing) == {"bad", "gone"}
    assert "not an MP4" in manifest.quarantined["bad"]
    out, kind = tmp_path / "small", ["--packed"] if packed else ["--gop", "6", "--crf", "15"]
    assert run("convert", "--out", str(out), "--short-side", "32", *kind) == 0
    assert "2 converted, 2 missing, 0 failed; 48 frames" in capsys.readouterr().out
    source = Source("segments", str(dataset), str(out))
    data = Data(source, source, cache=False)
    reader, train = data.reader("downstream"), data.split("downstream", "train")
    assert set(train.missing) == {"bad", "gone"} and set(train.quarantined) == {"bad"}
    for video in train.videos:
        assert (reader.frames(video), reader.fps(video)) == (24, 12)
        assert reader.read(video, [23, 0]).shape == (2, 32, 42, 3)
    again = run("convert", "--out", str(out), "--short-side", "32", *kind, "--json")
    told = json.loads(capsys.readouterr().out)
    assert again == 0 and told["converted"] == 2 and set(told["missing"]) == {"bad", "gone"}
    assert run("convert", "--out", str(out), "--short-side", "32", *kind, "--strict") == 1


def test_convert_fails_where_nothing_can_be_written(dataset, run, capsys) -> None:
    assert run("convert", "--out", str(dataset.with_name("videos") / "v 1.mp4" / "out")) == 1
    assert run("convert", "--out", str(dataset / "out")) == 1
    assert "Not a directory" in capsys.readouterr().err
    assert run("convert", "--out", str(dataset.with_name("out")), "--crf", "70") == 1
    assert "CRF 70" in capsys.readouterr().err
