"""Toyota Smarthome Untrimmed: frame numbers become the seconds of each file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssdet.data import load_manifest
from ssdet.data.datasets.moving_shapes import write_video
from ssdet.data.loading.frame_readers import Decoder, dense_targets

ENTRIES: dict[str, Any] = {
    "P01T01C01": {"subset": "training", "duration": 40, "actions": [[2, 10, 20], [0, 15, 40]]},
    "P02T01C01": {"subset": "testing", "duration": 40, "actions": [[1, 0, 5]]},
}


def annotation(folder: Path) -> Path:
    (folder / "smarthome_CS_51.json").write_text(json.dumps(ENTRIES))
    (folder / "Action_list").write_text("0\tEnter\n1\tWalk\n2\tMake_coffee\n")
    return folder / "smarthome_CS_51.json"


def test_without_files_frames_are_25_a_second(tmp_path: Path) -> None:
    found = load_manifest("tsu", annotation(tmp_path))
    assert found.classes == ("Enter", "Walk", "Make_coffee")
    first = found.videos[0]
    assert (first.split, first.duration) == ("train", 1.6)
    assert [(s.label, s.start, s.end) for s in first.segments] == [(2, 0.4, 0.8), (0, 0.6, 1.6)]
    assert sum(found.notes.values()) == 2


@pytest.mark.parametrize("fps", [10, 20, 25, 30])
def test_labels_are_on_the_annotated_frames_at_any_rate(fps: int, tmp_path: Path) -> None:
    """Frames strictly between the first and the last, as the published code labels them."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ENTRIES:
        write_video(videos / f"{name}.mp4", np.zeros((40, 16, 16, 3), np.uint8), fps)
    found = load_manifest("tsu", annotation(tmp_path), videos=videos)
    assert not found.notes
    labels_KF = dense_targets(found, found.videos[0], Decoder())
    inside = np.flatnonzero(labels_KF[2])
    assert set(range(11, 20)) <= set(inside.tolist()) <= set(range(10, 21))
    assert found.videos[0].duration == pytest.approx(40 / fps)


def test_a_class_that_is_not_there(tmp_path: Path) -> None:
    path = annotation(tmp_path)
    path.write_text(json.dumps({"v": {**ENTRIES["P02T01C01"], "actions": [[51, 0, 5]]}}))
    with pytest.raises(ValueError, match="class 51"):
        load_manifest("tsu", path)
