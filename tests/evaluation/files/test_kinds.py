"""Files of predictions are recognised by their content; others are named, with the way out."""

import io
import json
import pickle
import sqlite3
import zipfile

import numpy as np
import pytest
import torch

from ssdet.evaluation.files.kinds import UnusableFile, describe_folder, recognise

ITEM = {"label": "run", "score": 0.5, "segment": [1, 2]}
RESULTS = {"version": "VERSION 1.3", "results": {"v1": [ITEM], "v2": []}, "external_data": {}}


def kind(tmp_path, content, classes=157):
    path = tmp_path / "any.name"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return recognise(path, classes)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RESULTS),
        json.dumps(RESULTS, indent=2),
        "\ufeff" + json.dumps(RESULTS),
        "\n  " + json.dumps(RESULTS),
        json.dumps(RESULTS, indent=1).replace("\n", "\r\n"),
        json.dumps({"results": RESULTS["results"]}),  # OpenTAD
        json.dumps({"external_data": {"used": True}, **RESULTS}),
        json.dumps({"version": 1, "results": {}}),
        json.dumps(RESULTS["results"]),
        json.dumps(RESULTS).encode("utf-16"),
    ],
)
def test_activitynet_results(tmp_path, content) -> None:
    found = kind(tmp_path, content)
    assert found.kind == "activitynet" and found.results in (RESULTS["results"], {})


@pytest.mark.parametrize(
    ("content", "classes", "expected"),
    [
        ("v1.mp4 0.5 4 7 0.9\n", 20, "detections"),
        ("v1\t0.5\t4\tTaichi chuan\t0.9\n", 20, "detections"),
        ("v1 0.5 4 Taichi chuan 0.9\n", 20, "detections"),
        ("my video.mp4 0.5 4 3 0.9\n", 20, "detections"),
        ("\ufeff\r\nv1 0 4 7 1e-3\r\n", 20, "detections"),
        ("v1 0 4 Hold 2 of 3 cups up high for long 0.9\n", 20, "detections"),
        ("A 1 " + "0.1 " * 157, 157, "submission"),
        ("A 1 " + "0.1 " * 158, 157, "submission"),
        ("A 1.5 " + "0.1 " * 157, 157, "submission"),
        ("A 1 x " + "0.1 " * 156, 157, "submission"),
        ("A 1 nan -inf", 2, "submission"),
        ("A 1 2 3 0.5\n", 3, "detections"),
    ],
)
def test_lines_of_text(tmp_path, content, classes, expected) -> None:
    assert kind(tmp_path, content, classes).kind == expected


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def torch_file(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def npy():
    out = io.BytesIO()
    np.save(out, np.zeros((3, 4)))
    return out.getvalue()


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


BOXES = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 3, 4], "score": 0.5}]
COCO = {"images": [], "annotations": [], "categories": []}
DATABASE = {"database": {"a": {"subset": "val", "duration": 3, "annotations": []}}}
ACTIONFORMER = {"video-id": ["a"], "t-start": np.zeros(1), "label": np.zeros(1)}


def results(**item):
    return json.dumps({"results": {"v": [], "w": [item]}})


@pytest.mark.parametrize(
    ("content", "named", "advice"),
    [
        (json.dumps(BOXES), "COCO results", "segments in time"),
        (json.dumps(COCO), "COCO annotation", "segments in time"),
        (json.dumps(DATABASE), "an annotation (ActivityNet's JSON)", "give it second"),
        (json.dumps({"A": {"subset": "testing", "actions": []}}), "an annotation", "second"),
        (results(score=1, segment=[1, 2]), "proposals in JSON", "labels of a video classifier"),
        (results(label="a", score=1), "classification", "not scored"),
        (results(verb=1, noun=2, action="1,2", score=1, segment=[1, 2]), "EPIC", "`label`"),
        (results(sentence="a", timestamp=[1, 2]), "captions", "not scored"),
        (results(bbox=[1, 2, 3, 4], score=1), "boxes of objects", "segments in time"),
        (results(label="a", segment=[1, 2]), "items of label, segment", "label, score and"),
        (json.dumps({"video": "a.mp4", "frames": []}), "JSON of `ssdet infer`", "as lines"),
        (json.dumps({"a": 1, "b": 2}), "JSON with 'a', 'b'", '{"results"'),
        (json.dumps({}), "JSON with nothing", '{"results"'),
        ("[1, 2]", "a JSON list", '{"results"'),
        ('{"a": 1}\n{"a": 2}\n', "JSON lines", "convert it"),
        (pickle.dumps(ACTIONFORMER), "a Python pickle", "not opened"),
        (npz(rgb=np.zeros(3)), "a NumPy archive (.npz) of rgb", "import-features"),
        (npy(), "a NumPy array", "import-features"),
        (torch_file({"a": torch.zeros(2)}), "a PyTorch file", "import-features"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file", "import-features"),
        (zipped("result.json"), "a zip archive", "unpack it"),
        (zipped("[Content_Types].xml", "xl/a.xml"), "an Office document", "as text"),
        (b"PK\x03\x04 cut short", "a damaged zip archive", "write it again"),
        (b"\x1f\x8b\x08" + bytes(9), "a gzip archive", "unpack it"),
        (bytes(4) + b"ftypisom", "a video", "ssdet infer"),
        (b"\x00\x01\x02", "a binary file", "convert it"),
        ("label,youtube_id,time_start,time_end,split\n", "of Kinetics clips", "whole clips"),
        ("abseiling/a.mp4 0\nyoga/b.mp4 399\n", "a list of clips with labels", "whole clips"),
        ("frames/a 120 7\n", "a list of clips with labels", "whole clips"),
        ("id,actions,length\nA,,3\n", "Charades' annotation", "give it second"),
        ("video,start,end,label,score\nv,1,2,a,.5\n", "a CSV table (video, start", "as lines"),
        ("v1,1,2,a,.5\n", "a CSV table (v1, 1, 2", "as lines"),
        ("video start end class score\nv 1 2 a .5\n", "detections below a header", "first line"),
        ("video\tstart\tend\n1\t2\t3\n", "a TSV table", "as lines"),
        ("frame,time,run,jump\n0,0.0,0.1,0.2\n", "frames.csv of `ssdet infer`", "prediction set"),
        ("1\n00:00:01,000 --> 00:00:02,000\nrun\n", "subtitles", "write lines"),
        ("A " + "0.1 " * 157, "scores of whole videos", "25 frames"),
        ("v1 1.0 2.0 7\n", "without a score", "fifth field"),
        ("<html>", "XML or HTML", "convert"),
        ("hello\n", "text with lines such as 'hello'", "write lines"),
        ("", "an empty file", "wrote its results"),
        (" \n\n", "an empty file", "wrote its results"),
        (("A 1 " + "0.1 " * 157).encode("utf-16"), "in UTF-16", "UTF-8"),
    ],
)
def test_other_files_are_named_in_one_line(tmp_path, content, named, advice) -> None:
    with pytest.raises(UnusableFile) as error:
        kind(tmp_path, content)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'any.name'}: looks like ") and "\n" not in message
    assert named in message and advice in message


def test_broken_json_and_databases(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"any\.name: not usable JSON"):
        kind(tmp_path, json.dumps(RESULTS)[:-9])
    path = tmp_path / "data.db"
    with sqlite3.connect(path) as database:
        database.execute("create table a (b)")
    with pytest.raises(UnusableFile, match="an SQLite database"):
        recognise(path, 3)
    with pytest.raises(FileNotFoundError):
        recognise(tmp_path / "absent", 3)


@pytest.mark.parametrize(
    ("file", "named"),
    [("a.npy", "features"), ("0.features.bin", "features"), ("a.mp4", "videos"), ("a.txt", "f16")],
)
def test_folders(tmp_path, file, named) -> None:
    (tmp_path / file).touch()
    assert named in str(describe_folder(tmp_path))
