"""Videos that a check of the files found unusable: out of the training, in the coverage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssdet.data.datasets.load import load_manifest
from ssdet.data.datasets.manifest import Manifest

Clips = Callable[..., Path]
LIST = {"format": 1, "videos": {"b": "packet 3 is damaged", "elsewhere": "empty file"}}


@pytest.fixture
def annotation(tmp_path: Path, clips: Clips) -> Path:
    clips(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    entry = {"duration": 9, "actions": [[0, 1, 2]]}
    subsets = {"a": "training", "b": "training", "c": "testing", "d": "training"}
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({name: {**entry, "subset": s} for name, s in subsets.items()}))
    return path


def read(annotation: Path, **more: object) -> Manifest:
    return load_manifest("segments", annotation, annotation.parent / "videos", **more)  # type: ignore[arg-type]


def test_quarantine_beside_the_annotation(annotation: Path) -> None:
    before = read(annotation)
    assert [v.id for v in before.videos] == ["a", "b", "c"] and not before.quarantined
    annotation.with_name("quarantine.json").write_text(json.dumps(LIST))
    after = read(annotation)
    assert [v.id for v in after.videos] == ["a", "c"]
    assert dict(zip(after.missing, after.missing_splits, strict=True)) == {
        "d": "train",
        "b": "train",
    }
    assert after.quarantined == {"b": "packet 3 is damaged"}
    assert after.fingerprint != before.fingerprint
    assert after.split("train").quarantined == after.quarantined
    assert after.split("test").quarantined == {} and after.split("test").missing == ()
    assert read(annotation, split="train").missing == ("d", "b")
    assert after.first(1).quarantined == {}
    total = len(before.videos) + len(before.missing)
    assert len(after.videos) + len(after.missing) == total


def test_quarantine_of_files_does_not_touch_an_annotation_alone(annotation: Path) -> None:
    annotation.with_name("quarantine.json").write_text(json.dumps(LIST))
    assert len(load_manifest("segments", annotation).videos) == 4
    assert len(read(annotation, quarantine=False).videos) == 3


def test_quarantine_given_by_its_path(annotation: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.json"
    other.write_text(json.dumps({"format": 1, "videos": {"a": "no video stream"}}))
    annotation.with_name("quarantine.json").write_text(json.dumps(LIST))
    assert read(annotation, quarantine=other).quarantined == {"a": "no video stream"}
    with pytest.raises(FileNotFoundError):
        read(annotation, quarantine=tmp_path / "nowhere.json")


def test_quarantine_of_clips(tmp_path: Path, clips: Clips) -> None:
    folder = clips(tmp_path, "sit/a.mp4", "walk/b.mp4")
    (folder / "quarantine.json").write_text(
        json.dumps({"format": 1, "videos": {"walk/b": "empty file"}})
    )
    found = load_manifest("kinetics", folder)
    assert [v.id for v in found.videos] == ["sit/a"] and found.missing == ("walk/b",)
    assert found.classes == ("sit", "walk")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"videos": {}}, "format None, expected 1"),
        ({"format": 2, "videos": {}}, "format 2"),
        ({"format": 1, "videos": ["a"]}, "videos list"),
        ({"format": 1, "videos": {"a": 3}}, "'a': reason 3"),
        ({"format": 1, "videos": {"a": ""}}, "'a': reason ''"),
        ([], "list"),
    ],
)
def test_quarantines_that_are_none(content: object, words: str, annotation: Path) -> None:
    annotation.with_name("quarantine.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as caught:
        read(annotation)
    assert "quarantine.json" in str(caught.value)
