"""Submission files: what is written reads back, and those of others read as the script has it."""

import tracemalloc

import numpy as np
import pytest

from ssdet.evaluation import read_submission, write_submission


@pytest.fixture
def file(tmp_path):
    """Writes lines to a file."""

    def write(*lines):
        path = tmp_path / "submission.txt"
        path.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
        return path

    return write


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_written_reads_back_exactly(tmp_path, dtype) -> None:
    rng = np.random.default_rng(0)
    scores = {f"V{n}": rng.normal(size=(25, 157)).astype(dtype) for n in range(3)}
    scores["V1"][7] = -np.inf
    assert write_submission(tmp_path / "out.txt", scores) == 74
    found = read_submission(tmp_path / "out.txt", [*scores, "V9"])
    assert found.scores.keys() == scores.keys()
    for video, rows in scores.items():
        np.testing.assert_array_equal(found.scores[video].astype(dtype), rows)
    assert (found.rows, found.missing, found.ignored, found.repeated) == (74, 26, 0, 0)
    first = (tmp_path / "out.txt").read_text().splitlines()[0].split()
    assert first[:2] == ["V0", "1"] and len(first) == 159


def test_frames_from_zero_are_shifted(file) -> None:
    path = file(*(f"A {j} {j} 0" for j in range(25)), "B 24 7 7", "B 25 8 8")
    found = read_submission(path, ["A", "B"], classes=2)
    assert found.shifted and found.scores["A"][:, 0].tolist() == list(range(25))
    assert found.scores["B"][24].tolist() == [7, 7]  # frame 25 would be the 26th point
    assert (found.rows, found.ignored, found.missing) == (27, 1, 24)


def test_frames_from_one_are_not(file) -> None:
    found = read_submission(file("A 1 5", "A 25 6", "A 26 7", "A -3 8", "C 2 9"), "AB", classes=1)
    assert not found.shifted and [*found.scores] == ["A"]
    assert found.scores["A"][[0, 24], 0].tolist() == [5, 6]
    assert np.isneginf(found.scores["A"][1:24]).all()
    assert (found.ignored, found.missing) == (3, 48)
    shifted = read_submission(file("A 1 5", "X 0 1"), "A", classes=1)  # of any video of the file
    assert shifted.shifted and shifted.scores["A"][1, 0] == 5


def test_of_equal_keys_the_last_wins(file) -> None:
    found = read_submission(file("A 3 1", "A 4 2", "", "A 3 9", "A\t3\t-inf"), "A", classes=1)
    assert found.scores["A"][2:4, 0].tolist() == [-np.inf, 2]
    assert (found.rows, found.repeated, found.missing) == (4, 2, 23)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("A 1 1 2 3", "line 2: 3 scores, expected 2; the official script accepts one more"),
        ("A 1 1", "line 2: 1 scores, expected 2$"),
        ("A 1", "line 2: 2 fields"),
        ("A one 1 2", "line 2: begins b'A one 1 2"),
        ("A 1.5 1 2", "line 2: begins"),
        ("A 1_0 1 2", "line 2: begins"),
        ("A,1,1,2", "line 2: 1 fields"),
        ("A 1 1 x", "line 2: could not convert"),
        ("A 1 1 nan", "line 2: a score is NaN"),
        ("A 1 1 1_0", "line 2: a score is NaN or not a number"),
        ("A " + "9" * 5000 + " 1 2", "line 2: .*(longer|begins)"),
        ("A 1 " + "1 " * 100_000, "line 2: longer than"),
    ],
)
def test_a_line_that_does_not_fit_is_named(file, line, told) -> None:
    with pytest.raises(ValueError, match=told):
        read_submission(file("A 2 1 2", line), "A", classes=2)


def test_157_classes_and_what_is_no_text(tmp_path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe 1 " + b"0 " * 157)
    with pytest.raises(ValueError, match="line 1: begins"):
        read_submission(path, "A")
    path.write_bytes(b"A 1 " + b"0 " * 158)
    with pytest.raises(ValueError, match="line 1: 158 scores, expected 157; the official script"):
        read_submission(path, "A")
    path.write_bytes(b"")
    empty = read_submission(path, "AB")
    assert empty.rows == 0 and not empty.scores and empty.missing == 50


def test_memory_does_not_grow_with_the_file(tmp_path) -> None:
    path = tmp_path / "large"
    with open(path, "w") as out:
        for number in range(6_000):
            out.write(f"hostile{number} 1 {'0.123456789 ' * 20}\n")
    tracemalloc.start()
    found = read_submission(path, ["A"], classes=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.ignored == 6_000 and path.stat().st_size > 1.4e6 and peak < 3e5


def test_what_cannot_be_written_leaves_no_file(tmp_path) -> None:
    for scores, told in (
        ({"a b": np.zeros((25, 2))}, "are separated by spaces"),
        ({"a": np.zeros((24, 2))}, r"'a': scores \(24, 2\)"),
        ({"a": np.full((25, 2), np.nan)}, "without NaN"),
    ):
        with pytest.raises(ValueError, match=told):
            write_submission(tmp_path / "out.txt", {"good": np.zeros((25, 2)), **scores})
    assert not [*tmp_path.iterdir()]
