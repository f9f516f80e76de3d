"""Text as spreadsheets and editors write it, through the readers that users call."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from ssdet.data import load_manifest
from ssdet.data.storage.folders import read_quarantine
from ssdet.data.storage.text import class_list, clean, read_json, read_table, read_text
from ssdet.evaluation import read_detections, read_submission
from ssdet.evaluation.protocols.segments import read_kit

ENTRY = {"subset": "training", "duration": 9, "actions": [["a", 1, 2]]}
BLANK = "\u00a0"


@pytest.mark.parametrize(
    "text",
    ["kick", " kick", "kick\t", f"kick{BLANK}", f"{BLANK} kick \u200b", "\ufeffkick",
     "\u200b kick\ufeff "],
)  # fmt: skip
def test_blanks_at_the_ends_mean_nothing(text: str) -> None:
    assert clean(text) == "kick"


def test_names_are_composed_and_keep_their_middle() -> None:
    assert clean("cafe\u0301") == "caf\u00e9"
    assert clean(f"a{BLANK}b  c") == f"a{BLANK}b  c"
    assert clean("\udcff x") == "\udcff x", "bytes of file names that are no UTF-8"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_marks_lose_no_line(mark: bytes, tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(mark + text.encode())
        return path

    detections = read_detections(write("d.txt", "v 1 2 0 0.9\nw 1 2 0 0.8\n"), {"0": 0})
    assert sorted(detections.detections) == ["v", "w"]
    lines = "".join(f"AAAAA {n} 0.5 0.5\n" for n in range(1, 26))
    assert read_submission(write("s.txt", lines), ["AAAAA"], 2).missing == 0
    write("detclasslist.txt", "7 Run\n9 Jump\n")
    for name in ("Run_test.txt", "Jump_test.txt", "Ambiguous_test.txt"):
        write(name, "video_test_1 1.0 2.0\n")
    kit = read_kit(tmp_path)
    assert kit.names == ("Run", "Jump") and kit.numbers["7"] == 0
    assert len(kit.truth["video_test_1"]) == 2
    assert class_list(write("c.txt", "1 a\n2 b\n")) == (("a", "b"), 1)
    assert read_table(write("t.csv", "file,label\nx,y\n")) == [{"file": "x", "label": "y"}]
    assert read_quarantine(write("q.json", '{"format": 1, "videos": {"v": "w"}}')) == {"v": "w"}
    assert read_json(write("j.json", '{"v": 1}')) == {"v": 1}
    assert load_manifest("segments", write("a.json", json.dumps({"v": ENTRY | {"actions": []}})))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_where_a_mark_says_so(encoding: str, tmp_path: Path) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    path = tmp_path / "a.csv"
    path.write_bytes(mark + "file,label\r\nä,ö\r\n".encode(encoding))
    assert read_table(path) == [{"file": "ä", "label": "ö"}]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_any_line_ending(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(ending.join(["file, label", " a ,b", "", f"c,d{BLANK}", "", ""]).encode())
    assert read_table(path) == [{"file": "a", "label": "b"}, {"file": "c", "label": "d"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,label\nä,b\n".encode("cp1252"), "line 2: .*not UTF-8.*save as UTF-8"),
        (b"file;label\na;b\n", "line 1: .*commas, not ';'"),
        (b"file,label\na,b,c\n", "line 2: 3 columns"),
    ],
)
def test_what_is_refused_names_its_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.csv: {words}"):
        read_table(tmp_path / "a.csv")


def test_twins_that_differ_by_blanks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"v": ENTRY, f"v{BLANK}": ENTRY}))
    with pytest.raises(ValueError, match="'v' is there twice"):
        read_json(tmp_path / "a.json")


def test_labels_that_differ_by_blanks_are_one_class(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("file,label,split\n0.mp4,kick,train\n1.mp4,kick ,VAL \n")
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).touch()
    found = load_manifest("kinetics", tmp_path / "clips.csv")
    assert found.classes == ("kick",) and [v.split for v in found.videos] == ["train", "val"]
    labels = ("Zumba", f"Zumba{BLANK}", "Zumba ")
    database: dict[str, Any] = {
        name: {"subset": "training", "duration": "92.5",
               "annotations": [{"segment": ["1.5", 2], "label": name}]} for name in labels
    }  # fmt: skip
    database = {str(n): entry for n, entry in enumerate(database.values())}
    database["t"] = {"subset": "testing", "duration": 9}
    (tmp_path / "anet.json").write_text(json.dumps({"database": database}))
    found = load_manifest("activitynet", tmp_path / "anet.json")
    assert found.classes == ("Zumba",) and len(found.videos) == 3
    assert found.videos[0].duration == 92.5 and found.videos[0].segments[0].start == 1.5
    assert sum(found.notes.values()) == 1, "the test video without annotations"


@pytest.mark.parametrize("action", [["0", "1.5", "2"], [f"a{BLANK}", 1.5, 2], ["0 ", 1.5, 2]])
def test_classes_and_times_as_text(action: list[Any], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a \nb\n")
    (tmp_path / "a.json").write_text(json.dumps({"v": ENTRY | {"actions": [action]}}))
    (segment,) = load_manifest("segments", tmp_path / "a.json").videos[0].segments
    assert (segment.label, segment.start, segment.end) == (0, 1.5, 2.0)


def test_withheld_test_videos_are_counted(tmp_path: Path) -> None:
    withheld = {"subset": "testing", "duration": 9}
    (tmp_path / "a.json").write_text(json.dumps({"v": ENTRY, "w": withheld}))
    (tmp_path / "classes.txt").write_text("a\n")
    found = load_manifest("segments", tmp_path / "a.json")
    assert [v.id for v in found.videos] == ["v"]
    assert found.notes["test videos left out: their labels are not published"] == 1
    (tmp_path / "a.json").write_text(json.dumps({"v": {"subset": "training", "duration": 9}}))
    with pytest.raises(ValueError, match="actions"):
        load_manifest("segments", tmp_path / "a.json")


UCF = ("ApplyEyeMakeup", "Archery", "BabyCrawling")


def ucf(folder: Path, first: int, kinds: tuple[str, ...] = UCF) -> Path:
    lines = [f"{k}/v_{k}_g08_c01.avi {UCF.index(k) + first}\n" for k in kinds]
    (folder / "trainlist01.txt").write_text("".join(lines))
    for k in UCF:
        (folder / k).mkdir(exist_ok=True)
        for group in ("g01", "g08"):
            (folder / k / f"v_{k}_{group}_c01.avi").touch()
    return folder / "trainlist01.txt"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("listed", ["", "{}", "1 {}", "0 {}"])
@pytest.mark.parametrize("kinds", [UCF, UCF[:2], UCF[1:]])
def test_every_clip_has_the_class_of_its_folder(
    first: int, listed: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    """Numbers from 0 or from 1, with or without a list of classes, numbered or not."""
    path = ucf(tmp_path, first, kinds)
    if listed:
        numbers = range(int(listed[0]), 9) if listed[0] != "{" else range(9)
        names = [
            listed.format(k) if listed == "{}" else f"{n} {k}"
            for n, k in zip(numbers, UCF, strict=False)
        ]
        (tmp_path / "classes.txt").write_text("\n".join(names))
    found = load_manifest("kinetics", path, videos=tmp_path)
    labels = [found.classes[v.label] for v in found.videos if v.label is not None]
    assert labels == list(kinds)
    assert not listed or found.classes == UCF


def test_test_lists_without_numbers_take_the_folder(tmp_path: Path) -> None:
    train = ucf(tmp_path, 1)
    test = tmp_path / "testlist01.txt"
    test.write_text("".join(f"{k}/v_{k}_g01_c01.avi\n" for k in UCF))
    found = load_manifest("kinetics", [train, test], videos=tmp_path)
    assert [found.classes[v.label or 0] for v in found.split("test").videos] == list(UCF)
    test.write_text("Yoga/v_Yoga_g01_c01.avi\n")
    with pytest.raises(ValueError, match="testlist01.txt: line 1: no label.*'Yoga' is no class"):
        load_manifest("kinetics", [train, test], videos=tmp_path)


def test_unreadable_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8"):
        read_text(tmp_path / "a.txt")
