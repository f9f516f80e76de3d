"""`ssdet evaluate`: a folder, a submission and a detections file against one annotation."""

import csv
import io
import json

import av
import numpy as np
import pytest

from ssdet.cli.__main__ import main
from ssdet.evaluation import PredictionWriter, charades_localization, read_submission

CLASSES = 157
LENGTHS = {"AAAAA": 8.0, "BBBBB": 10.0, "CCCCC": 6.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Charades in small: CSV files, predictions of two of three test videos at 24 fps."""
    root, rng = tmp_path_factory.mktemp("charades"), np.random.default_rng(0)
    actions = {
        "AAAAA": "c000 0.0 4.0;c156 2 6",
        "BBBBB": "c000 5 9;c010 0.0 10.0",
        "CCCCC": "",
    }
    lines = [f"{video},{actions[video]},{length}" for video, length in LENGTHS.items()]
    (root / "Charades_v1_test.csv").write_text("\n".join(["id,actions,length", *lines]) + "\n")
    (root / "Charades_v1_train.csv").write_text("id,actions,length\nTTTTT,,5\n")
    with PredictionWriter(root / "predictions", CLASSES) as writer:
        for video in ("AAAAA", "CCCCC"):
            writer.add(video, rng.random((round(24 * LENGTHS[video]), CLASSES)), 24.0)
    return root


def told(capsys, *arguments) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_all_protocols_at_once_with_coverage(folder, capsys) -> None:
    asked = (folder / "predictions", folder / "Charades_v1_test.csv", "--json")
    found = json.loads(told(capsys, *asked))
    scores = {score["protocol"]: score for score in found["scores"]}
    assert {"dense_map/v1", "dense_map_apmeter/v1", "sampled25_map_cf/v1"} <= scores.keys()
    assert {"segment_map_tiou0.5/v1", "conditional_map_t20/v1"} <= scores.keys()
    assert not any(name.startswith("multithumos") for name in scores)
    dense = scores["dense_map/v1"]
    assert (dense["videos_scored"], dense["videos_expected"], dense["frames"]) == (2, 3, 336)
    official = scores["charades_official_map/v1"]
    assert official["value"] is None and official["empty_class_rule"] == "none"
    assert official["classes_scored"] == 3 and official["notes"]["points_missing"] == 25
    assert found["not_applicable"] == {}


def test_a_submission_scores_as_the_predictions_it_was_made_of(folder, tmp_path, capsys) -> None:
    out = tmp_path / "submission.txt"
    asked = ("--protocol", "charades_official", "--json")
    first = told(capsys, folder / "predictions", folder, *asked, "--submission", out)
    second = json.loads(told(capsys, out, folder, "--json"))["scores"]
    assert [s["per_class"] for s in json.loads(first)["scores"]] == [s["per_class"] for s in second]
    assert second[0]["notes"] == {
        "lines": 50, "lines_ignored": 0, "lines_repeated": 0, "points_missing": 25,
        "videos_ignored": 0,
    }  # fmt: skip
    read = read_submission(out, LENGTHS)
    expected = charades_localization(read.scores, folder / "Charades_v1_test.csv")
    assert second[0]["per_class"][156] == expected["ap"][156]


def test_tables_and_csv(folder, capsys) -> None:
    asked = (folder / "predictions", folder, "--protocol", "dense", "strata")
    lines = told(capsys, *asked, "--markdown").splitlines()
    assert lines[0].startswith("| protocol | value | videos |") and set(lines[1]) <= set("|-")
    assert "| dense_map/v1 |" in lines[2] and "| 2/3 | 336 |" in lines[2]
    rows = list(csv.DictReader(io.StringIO(told(capsys, *asked, "--csv"))))
    assert [row["protocol"] for row in rows][:2] == ["dense_map/v1", "dense_map.acts=0/v1"]
    assert f"{100 * float(rows[0]['value']):.2f}" in lines[2] and rows[1]["value"] == ""
    assert "dense_map.boundary_r3/v1" in told(capsys, *asked)


def test_a_detections_file(folder, tmp_path, capsys) -> None:
    path = tmp_path / "res.txt"
    path.write_text("AAAAA.mp4 0 4 0 0.9\nAAAAA 2 6 156 0.5\nBBBBB 5 9 0 0.3\nX 0 1 999 1\n")
    scores = json.loads(told(capsys, path, folder, "--json"))["scores"]
    assert [score["protocol"] for score in scores] == [
        f"segment_map_file_{which}/v1"
        for which in ("tiou0.3", "tiou0.4", "tiou0.5", "tiou0.6", "tiou0.7", "average_0.3_0.7")
    ]
    assert scores[0]["value"] == pytest.approx(2 / 3) and scores[0]["notes"]["lines_ignored"] == 1


def test_multithumos_classes_count_from_one(tmp_path, capsys) -> None:
    entry = {"subset": "testing", "duration": 20.0, "actions": [[1, 2.0, 8.0], [65, 5.0, 9.0]]}
    (tmp_path / "multithumos.json").write_text(json.dumps({"video_test_1": entry}))
    with PredictionWriter(tmp_path / "p", 65) as writer:
        writer.add("video_test_1", np.random.default_rng(0).random((500, 65)), 25.0)
    asked = (tmp_path / "p", tmp_path / "multithumos.json", "--format", "multithumos", "--json")
    scores = {s["protocol"]: s for s in json.loads(told(capsys, *asked))["scores"]}
    assert scores["multithumos_map_10fps/v1"]["frames"] == 200
    assert scores["multithumos_map_steps_25fps/v1"]["frames"] == 500
    assert not any(name.startswith("charades") for name in scores)
    (tmp_path / "res.txt").write_text("video_test_1 2 8 1 1\nvideo_test_1 5 9 65 1\n")
    found = json.loads(told(capsys, tmp_path / "res.txt", *asked[1:]))["scores"]
    assert [score["value"] for score in found] == [1.0] * 6


def test_frames_are_checked_against_the_videos(folder, tmp_path, capsys) -> None:
    with av.open(str(tmp_path / "AAAAA.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    asked = ["evaluate", str(folder / "predictions"), str(folder), "--videos", str(tmp_path)]
    assert main(asked) == 1
    assert "'AAAAA': 192 frames are scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (["P", "A", "--protocol", "densest"], 2, "no protocol densest; there are: dense,"),
        (["P"], 2, "give the annotations, or with --store"),
        (["P", "A", "--store", "S"], 2, "give the annotations, or with --store"),
        (["P", "A", "--json", "--csv"], 2, "--json and --csv: choose one"),
        (["absent", "A"], 1, "absent"),
        (["P", "A", "--split", "val"], 1, "no video of split 'val'"),
        (["P", "A", "--protocol", "dense_min162", "dense"], 0, ""),
        (["P", "A", "--format", "multithumos"], 1, "Is a directory"),
    ],
)
def test_status_and_errors(folder, asked, status, said, capsys) -> None:
    places = {"P": str(folder / "predictions"), "A": str(folder)}
    assert main(["evaluate", *(places.get(word, word) for word in asked)]) == status
    assert said in capsys.readouterr().err


def test_what_does_not_apply_is_told(folder, tmp_path, capsys) -> None:
    with PredictionWriter(tmp_path / "p", CLASSES) as writer:
        writer.add("AAAAA", np.random.default_rng(0).random((20, CLASSES)), 2.5)
    asked = ["evaluate", str(tmp_path / "p"), str(folder)]
    assert main([*asked, "--protocol", "sampled25_cf", "dense"]) == 1
    shown = capsys.readouterr()
    assert "not applicable: sampled25_cf: video 'AAAAA': 20 steps" in shown.err
    assert "dense_map/v1" in shown.out
    assert main(asked) == 0 and "sampled25_mstct: no scored video" in capsys.readouterr().err
    with PredictionWriter(tmp_path / "q", 5) as writer:
        writer.add("AAAAA", np.zeros((20, 5)), 2.5)
    assert main(["evaluate", str(tmp_path / "q"), str(folder)]) == 1
    assert "5 classes, the annotation has 157" in capsys.readouterr().err


@pytest.fixture
def activitynet(tmp_path):
    """Three videos of the validation split with an instance each, one of training."""
    entry = {"duration": 60.0, "annotations": [{"segment": [10, 20], "label": "Tai chi"}]}
    database = {f"v{n}": {"subset": "validation", **entry} for n in range(3)}
    database["t0"] = {"subset": "training", **entry}
    database["t0"]["annotations"] = [{"segment": [1, 2], "label": "Archery"}]
    (tmp_path / "anet.json").write_text(json.dumps({"version": "1.3", "database": database}))
    return tmp_path / "anet.json"


def results_of(*videos, label="Tai chi", segment=(10, 19)):
    item = {"label": label, "score": 0.9, "segment": list(segment)}
    return {"version": "1.3", "results": {v: [item] for v in videos}, "external_data": {}}


def test_activitynet_results(activitynet, tmp_path, capsys) -> None:
    asked = (activitynet, "--format", "activitynet", "--split", "val", "--json")
    for indent in (None, 2):
        path = tmp_path / "result.txt"
        path.write_text(json.dumps(results_of("v_v0", "v1", "other"), indent=indent))
        scores = {s["protocol"]: s for s in json.loads(told(capsys, path, *asked))["scores"]}
        # IoU 0.9 in two of three videos: 2/3 up to 0.9, 0 at 0.95.
        values = [scores[f"activitynet_map_file_tiou{t}/v1"]["value"] for t in (0.5, 0.9, 0.95)]
        assert values == pytest.approx([2 / 3, 2 / 3, 0])
        average = scores["activitynet_map_file_average_0.5_0.95/v1"]
        assert average["value"] == pytest.approx(0.9 * 2 / 3) and average["classes_scored"] == 1
        assert (average["videos_scored"], average["videos_expected"]) == (2, 3)
        assert average["notes"]["videos_ignored"] == 1
        assert scores["segment_map_file_tiou0.7/v1"]["value"] == pytest.approx(2 / 3)


def test_numbers_and_names_of_others_in_lines(activitynet, tmp_path, capsys) -> None:
    asked = (activitynet, "--format", "activitynet", "--split", "val")
    path = tmp_path / "det.txt"
    path.write_text("v0.webm 10 20 1 0.9\nx.webm 10 20 0 0.8\n")
    assert main(["evaluate", str(path), *map(str, asked)]) == 0
    shown = capsys.readouterr()
    assert "note: " in shown.err and "classes are numbers from 0" in shown.err
    assert "1 videos not in the split's annotation ('x.webm')" in shown.err
    assert "│ 33.33 │ 1/3" in shown.out
    path.write_text("v0.webm 10 20 1 0.9\n")
    assert main(["evaluate", str(path), *map(str, asked)]) == 2
    assert "--first-class" in capsys.readouterr().err
    chosen = json.loads(told(capsys, path, *asked, "--first-class", "0", "--json"))["scores"]
    assert chosen[0]["value"] == pytest.approx(1 / 3)
    thumos = (*asked, "--first-class", "0", "--json", "--protocol", "activitynet_thumos")
    ids = [score["protocol"] for score in json.loads(told(capsys, path, *thumos))["scores"]]
    assert ids[-1] == "activitynet_map_file_average_0.3_0.7/v1" and len(ids) == 6


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (results_of("t0"), 1, "1 of split 'train'"),
        (results_of("t0"), 1, "none of its videos ('t0', …) is in the split"),
        (results_of("v0", label="Walking"), 1, "none of its classes ('Walking', …)"),
        (results_of("v0", segment=(3, 2)), 1, "video 'v0': detection 0: segment [3, 2]"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], 2, "looks like COCO results"),
    ],
)
def test_files_that_cannot_be_scored(activitynet, tmp_path, content, status, said, capsys) -> None:
    path = tmp_path / "any"
    path.write_text(json.dumps(content))
    asked = [str(activitynet), "--format", "activitynet", "--split", "val"]
    assert main(["evaluate", str(path), *asked]) == status
    error = capsys.readouterr().err
    assert said in error and error.count("error: ") == 1


def test_a_submission_with_a_mark_and_extensions(folder, tmp_path, capsys) -> None:
    out = tmp_path / "submission.txt"
    asked = ("--protocol", "charades_official", "--json")
    first = told(capsys, folder / "predictions", folder, *asked, "--submission", out)
    other = out.read_text().replace("AAAAA ", "AAAAA.mp4 ").replace("\n", "\r\n")
    out.write_bytes(b"\xef\xbb\xbf" + other.encode())
    second = json.loads(told(capsys, out, folder, "--json"))["scores"]
    assert [s["per_class"] for s in json.loads(first)["scores"]] == [s["per_class"] for s in second]


def test_folders_of_a_stage_and_of_other_files(folder, tmp_path, capsys) -> None:
    (tmp_path / "stage" / "predictions").mkdir(parents=True)
    (folder / "predictions").rename(tmp_path / "stage/predictions/test")
    try:
        asked = (tmp_path / "stage", folder, "--protocol", "dense", "--json")
        assert json.loads(told(capsys, *asked))["scores"][0]["frames"] == 336
    finally:
        (tmp_path / "stage/predictions/test").rename(folder / "predictions")
    (tmp_path / "features").mkdir()
    (tmp_path / "features/AAAAA.npy").touch()
    assert main(["evaluate", str(tmp_path / "features"), str(folder)]) == 2
    assert "a folder of features" in capsys.readouterr().err
