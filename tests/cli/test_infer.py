"""`ssdet infer`: files of every kind, from videos of every kind."""

import csv
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn

from ssdet.cli.__main__ import main
from ssdet.data.loading.clips import ClipRecipe
from ssdet.detection.output_files import FILES, OVERLAY, folder_for
from ssdet.models import create
from ssdet.system.recipe_json import to_json
from ssdet.training.recipe import ModelRecipe, TrainRecipe

CLASSES = ("left $x$", "rechts, oben", "切る")


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A stage with random weights for 16-pixel clips of three classes."""
    folder = tmp_path_factory.mktemp("stages") / "finetune-0123456789abcdef"
    recipe = TrainRecipe("finetune", ModelRecipe("x3d_tiny"), ClipRecipe(16, 2, 16, (16, 16)))
    model = create("x3d_tiny", 3, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model.head.proj.weight, 0, 9, generator=torch.Generator().manual_seed(1))
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "last.pt")
    (folder / "recipe.json").write_text(json.dumps(to_json(recipe)))
    data = {"classes": CLASSES, "decode_size": None, "fps": 0.0}
    (folder / "data.json").write_text(json.dumps(data))
    return folder


def write_video(
    path: Path, frames: int = 30, size: tuple[int, int] = (48, 64), times: list[int] | None = None
) -> Path:
    """Brightness moves from left to right; times in milliseconds, by default 10 a second."""
    with av.open(str(path), "w") as container:
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if times else 10)
        for number in range(frames):
            picture = np.zeros((*size, 3), np.uint8)
            picture[:, : size[1] * number // frames] = 40
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts = times[number] if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def infer(*arguments: object) -> int:
    return main(["infer", *map(str, arguments)])


def test_every_file_is_written(stage, tmp_path, capsys) -> None:
    video = write_video(tmp_path / "Küche & 切.mp4")
    out = tmp_path / "out"
    assert infer(video, "--checkpoint", stage, "--out", out, "--overlay", "--merge", "0.3") == 0
    folder = out / video.stem
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, OVERLAY])
    kept = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
    assert kept["classes"] == list(CLASSES) and kept["file"] == str(video.resolve())
    scores = np.array([frame["probabilities"] for frame in kept["frames"]])
    assert scores.shape == (30, 3) and scores.std() > 0.01
    with open(folder / "frames.csv", encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["frame", "time", *CLASSES] and len(lines) == 30
    np.testing.assert_array_equal(np.array([line[2:] for line in lines], float), scores)
    segments = json.loads((folder / "segments.json").read_text(encoding="utf-8"))
    assert segments["rule"]["merge"] == 0.3 and segments["seconds"] == pytest.approx(3)
    for one in segments["segments"]:
        inside = [one["start"] - 1e-6 <= frame["time"] < one["end"] for frame in kept["frames"]]
        assert scores[inside, one["label"]].max() == pytest.approx(one["peak"], abs=2e-6)
    assert (folder / "timeline.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr()
    assert "30 frames, 3.0 s" in told.out and CLASSES[2] in told.out


def test_the_overlay_is_the_video_with_labels(stage, tmp_path) -> None:
    times = [0, 100, 150, 900, 1000, 1500, 1540, 2000]
    video = write_video(tmp_path / "v.mkv", len(times), (50, 70), times)
    options = ["--out", tmp_path, "--overlay", "--threshold", "0.01", "--top", "2"]
    assert infer(video, "--checkpoint", stage, *options) == 0
    with av.open(str(tmp_path / "v" / OVERLAY)) as container:
        frames = list(container.decode(video=0))
    assert [round(1000 * frame.time) for frame in frames] == times
    with av.open(str(video)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, before in zip(frames, plain, strict=True):
        drawn = frame.to_ndarray(format="rgb24").astype(int)
        assert drawn.shape == before.shape == (50, 70, 3)
        changed = np.abs(drawn - before).max(2) > 40
        assert changed[:28, :30].mean() > 0.1, "labels stand at the top"
        assert changed[32:].mean() < 0.02, "the rest is the video"


def test_odd_sizes_and_turned_videos(stage, tmp_path) -> None:
    from ssdet.detection import overlay

    assert np.shape(overlay.draw_labels(np.zeros((31, 41, 3), np.uint8), [("a", 0.5)],
                                        overlay._font(10))) == (31, 41, 3)  # fmt: skip
    odd = tmp_path / "odd.avi"
    with av.open(str(odd), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 49, 65, "yuvj420p"
        for number in range(4):
            picture = np.full((49, 65, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(with_rotation(write_video(tmp_path / "plain.mp4", 4)))
    assert infer(odd, turned, "--checkpoint", stage, "--out", tmp_path / "o", "--overlay") == 0
    for name, size in (("odd", (48, 64)), ("turned", (64, 48))):
        with av.open(str(tmp_path / "o" / name / OVERLAY)) as container:
            frames = list(container.decode(video=0))
        assert [(frame.height, frame.width) for frame in frames] == [size] * 4


def with_rotation(path: Path) -> bytes:
    """The MP4 with a display matrix that turns it by 90 degrees, in its track header."""
    content = path.read_bytes()
    plain = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    turn = (0, 65536, 0, (1 << 32) - 65536, 0, 0, 0, 0, 1 << 30)
    matrix = b"".join(n.to_bytes(4, "big") for n in turn)
    header = content.index(b"tkhd")
    place = content.index(plain, header)
    return content[:place] + matrix + content[place + 36 :]


def broken(folder: Path) -> list[Path]:
    """Truncated, empty, no video, sound alone, text, absent."""
    whole = write_video(folder / "whole.mkv", 200).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), "f4"), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    names = ("cut.mkv", "empty.mp4", "text.mp4", "sound.mp4", "none.mkv", "absent.mp4")
    return [folder / name for name in names]


def test_broken_videos_are_reported_and_the_others_done(stage, tmp_path, capsys) -> None:
    bad = broken(tmp_path)
    good = write_video(tmp_path / "good.mp4"), write_video(tmp_path / "one.avi", 1)
    out = tmp_path / "out"
    options = ["--checkpoint", stage, "--out", out, "--json"]
    assert infer(good[0], *bad, good[1], *options) == 1
    told = capsys.readouterr()
    entries = json.loads(told.out)["videos"]
    assert [entry["video"] for entry in entries] == list(map(str, (good[0], *bad, good[1])))
    assert [("error" in entry) for entry in entries] == [False, *[True] * len(bad), False]
    assert entries[0]["frames"] == 30 and entries[-1]["frames"] == 1
    for path in bad:
        assert f"{path.name}" in told.err
        assert not (out / path.stem / "frames.json").exists()
    assert not list(out.rglob("*partial*"))


def test_names_that_collide_get_folders_of_their_own(stage, tmp_path) -> None:
    videos = []
    for place in ("a/v.mp4", "b/V.mp4", "b/v.avi"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        videos.append(write_video(tmp_path / place, 3))
    out = tmp_path / "out"
    arguments = [*videos, "--checkpoint", stage, "--out", out]
    for _ in range(2):  # the second time every video finds its own again
        assert infer(*arguments) == 0
        found = {
            json.loads((f / "segments.json").read_text())["file"]: f.name for f in out.iterdir()
        }
        assert len(found) == 3 and set(found) == {str(video) for video in videos}
    assert found[str(videos[0])] == "v"
    assert infer(videos[2], "--checkpoint", stage, "--out", out) == 0
    assert len(list(out.iterdir())) == 3


def test_folders_are_named_after_videos(tmp_path) -> None:
    taken: set[Path] = set()
    names = [
        folder_for(name, tmp_path, taken).name
        for name in ("x/a.b.mp4", "s3://bucket/y/a.b.mp4", "x/.hidden", "s3://c/a.b.mp4")
    ]
    assert names == ["a.b", "a.b.mp4", ".hidden", "a.b-2"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "segments.json").write_text("[]")
    assert folder_for("own.mp4", tmp_path, taken).name == "own.mp4"


def test_an_overlay_of_an_earlier_call_goes(stage, tmp_path) -> None:
    video = write_video(tmp_path / "v.mp4", 3)
    arguments = [video, "--checkpoint", stage, "--out", tmp_path]
    assert infer(*arguments, "--overlay") == 0 and (tmp_path / "v" / OVERLAY).exists()
    assert infer(*arguments) == 0 and not (tmp_path / "v" / OVERLAY).exists()


def test_several_checkpoints_are_averaged(stage, tmp_path, capsys) -> None:
    video = write_video(tmp_path / "v.mp4", 9)
    ids = ["--store", stage.parent.parent, "--out", tmp_path / "o"]
    both = f"{stage},{stage / 'checkpoints' / 'last.pt'}"
    assert infer(video, "--checkpoint", stage, "--out", tmp_path / "a") == 0
    assert infer(video, "--ensemble", both, *ids) == 0
    assert (tmp_path / "a/v/frames.csv").read_text() == (tmp_path / "o/v/frames.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["v.mp4"], 2, "--checkpoint"),
        (["--checkpoint", "x"], 2, "give videos"),
        (["v.mp4", "--checkpoint", "x", "--threshold", "0"], 2, "threshold"),
        (["v.mp4", "--checkpoint", "x", "--top", "0"], 2, "--top"),
        (["v.mp4", "--checkpoint", "no-such-thing"], 1, "no-such-thing"),
        (["v.mp4", "--checkpoint", "finetune-0000000000000000"], 1, "no such stage"),
    ],
)
def test_wrong_usage_and_unknown_checkpoints(arguments, status, text, tmp_path, monkeypatch,
                                             capsys) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSDET_STORE", str(tmp_path))
    assert infer(*arguments) == status
    assert text in capsys.readouterr().err


def test_a_file_name_that_is_not_utf8(stage, tmp_path, capsys) -> None:
    """As archives from Windows leave: nothing is lost, and a second call finds its folder again."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/Stra\xdfe_$1$.mp4")
    os.rename(write_video(tmp_path / "a.mp4"), odd)
    for style in ([], ["--json"]):
        assert (
            infer(odd, "--checkpoint", stage, "--out", tmp_path / "out", "--overlay", *style) == 0
        )
    (folder,) = (tmp_path / "out").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, OVERLAY])
    for name in ("frames.json", "segments.json"):
        kept = json.loads((folder / name).read_text(encoding="utf-8"))
        assert os.fsencode(kept["video"]) == b"Stra\xdfe_$1$.mp4" and kept["file"] == odd
    told = capsys.readouterr().out
    printed = json.loads(told[told.index("{\n") :])
    assert printed["videos"][0]["video"] == odd and "error" not in printed["videos"][0]
