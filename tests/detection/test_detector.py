"""Trained networks on videos that they have never seen, of every kind."""

import json
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ssdet
from ssdet.data import CorruptVideo
from ssdet.data.loading.clips import ClipRecipe, centre_crop, normalise
from ssdet.data.video.reader import read_clip
from ssdet.data.video.stream import video_clock
from ssdet.detection.detector import Detector
from ssdet.inference.recipe import PredictRecipe
from ssdet.models import create
from ssdet.stages.checkpoint_loader import NO_NAMES, LoadedNetwork, load_networks
from ssdet.system.recipe_json import to_json
from ssdet.training.recipe import ModelRecipe, TrainRecipe

CLASSES = ("left", "right", "naïve 切")
CLIP = ClipRecipe(size=16, short_side=(16, 16))
CPU = torch.device("cpu")


def write_video(path: Path, frames: int, rate: int = 10, size: tuple[int, int] = (24, 32)) -> Path:
    """Random blocks that change from frame to frame."""
    rng = np.random.default_rng(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(frames):
            blocks = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
            picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def write_stage(
    folder: Path, clip: ClipRecipe = CLIP, seed: int = 0, task: str = "finetune", **more
) -> nn.Module:
    """A stage's folder with random weights; returns the network."""
    recipe = TrainRecipe(task, ModelRecipe("x3d_tiny", {"dropout": 0.0}), clip, **more)
    outputs = recipe.head_classes(len(CLASSES))
    model = create("x3d_tiny", outputs, generator=torch.Generator().manual_seed(seed), dropout=0.0)
    nn.init.normal_(model.head.proj.weight, 0, 3, generator=torch.Generator().manual_seed(seed))
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "last.pt")
    identity = {"kind": task, "recipe": to_json(recipe), "parents": []}
    (folder / "recipe.json").write_text(json.dumps(identity))
    data = {"classes": CLASSES, "decode_size": None, "fps": 0.0}
    (folder / "data.json").write_text(json.dumps(data))
    return model.eval()


@torch.inference_mode()
def one_pass(model: nn.Module, path: Path, stride: int = 1) -> np.ndarray:
    """Logits [every stride-th frame, outputs] with all frames in memory."""
    pictures = torch.from_numpy(read_clip(path, range(len(video_clock(path).times_T))))[::stride]
    return model(normalise(centre_crop(pictures, 16)[None], CLIP, CPU))[0].T.numpy()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("frames", [1, 3, 9, 40])
def test_a_checkpoint_scores_every_frame(frames, tmp_path) -> None:
    model = write_stage(tmp_path / "stage")
    video = write_video(tmp_path / "ü v.mp4", frames)
    found = ssdet.Detector(tmp_path / "stage").detect(video)
    assert found.classes == CLASSES and found.notes == () and found.video == str(video)
    np.testing.assert_allclose(found.probabilities, sigmoid(one_pass(model, video)), atol=1e-5)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.times, np.arange(frames) / 10)
    assert found.end == pytest.approx(frames / 10)
    assert found.probabilities.std() > 0.02


def test_names_of_checkpoints_lead_to_the_same_network(tmp_path) -> None:
    stage = tmp_path / "stages" / "finetune-0123456789abcdef"
    write_stage(stage)
    video = write_video(tmp_path / "v.mp4", 5)
    for kind, name in (("predict", "0" * 16), ("validate", "1" * 16)):
        folder = tmp_path / "stages" / f"{kind}-{name}"
        folder.mkdir()
        recipe = to_json(PredictRecipe(CLIP, window=7))
        identity = {"kind": kind, "recipe": recipe, "parents": [stage.name]}
        (folder / "recipe.json").write_text(json.dumps(identity))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "mine.pt").write_bytes((stage / "checkpoints" / "last.pt").read_bytes())
    training = json.loads((stage / "recipe.json").read_text())["recipe"]
    (bare / "recipe.json").write_text(json.dumps(training))
    whole = Detector(stage.name, store=tmp_path).detect(video)
    for name in (stage, stage / "checkpoints" / "last.pt", f"predict-{'0' * 16}",
                 f"validate-{'1' * 16}", bare / "mine.pt"):  # fmt: skip
        found = Detector(name, store=tmp_path).detect(video)
        np.testing.assert_array_equal(found.probabilities, whole.probabilities)
    assert found.classes == ("class 0", "class 1", "class 2") and found.notes == (NO_NAMES,)
    assert load_networks(f"predict-{'0' * 16}", tmp_path)[0].recipe.window == 7


def test_an_ensemble_is_the_mean_of_its_members_at_whatever_rate(tmp_path) -> None:
    stages = tmp_path / "stages"
    clips = {"finetune-" + "a" * 16: CLIP, "finetune-" + "b" * 16: replace(CLIP, stride=3)}
    for seed, (name, clip) in enumerate(clips.items()):
        write_stage(stages / name, clip, seed)
    (stages / ("ensemble-" + "c" * 16)).mkdir()
    (stages / ("ensemble-" + "c" * 16) / "recipe.json").write_text(
        json.dumps({"kind": "ensemble", "recipe": {}, "parents": list(clips)})
    )
    video = write_video(tmp_path / "v.mp4", 100)
    alone = [Detector(name, store=tmp_path, window=32).detect(video) for name in clips]
    for given in (list(clips), "ensemble-" + "c" * 16):
        detector = Detector(given, store=tmp_path, window=32)
        found = detector.detect(video)
        mean = (alone[0].probabilities + alone[1].probabilities) / 2
        np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)
        assert len(detector.members) == 2
    assert (alone[0].probabilities != alone[1].probabilities).any()


def test_networks_without_squeeze_score_any_length_as_in_one_pass(tmp_path) -> None:
    model = create("x3d_tiny", 3, generator=torch.Generator().manual_seed(0), se_ratio=0.0).eval()
    nn.init.normal_(model.head.proj.weight, generator=torch.Generator().manual_seed(0))
    video = write_video(tmp_path / "v.mp4", 300)
    expected = sigmoid(one_pass(model, video))
    detector = Detector(LoadedNetwork(model, CLASSES, PredictRecipe(CLIP)), window=40)
    np.testing.assert_allclose(detector.detect(video).probabilities, expected, atol=1e-6)
    with pytest.raises(ValueError, match="at least 15"):
        Detector(LoadedNetwork(model, CLASSES, PredictRecipe(CLIP)), window=14).detect(video)


class Bright(nn.Module):
    """Brightness of a frame in [0, 1], of which it makes a certain logit; counts frames."""

    temporal_context = 2

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.outputs, self.passes = outputs, []

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        self.passes.append(clips_BCTHW.shape[2])
        level_B1T = clips_BCTHW.mean((1, 3, 4))[:, None]
        return level_B1T * torch.arange(self.outputs)[:, None]

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        self.passes.append(clips_BCTHW.shape[2])
        return self(clips_BCTHW).mean(2)


PLAIN = PredictRecipe(replace(CLIP, mean=(0.0,) * 3, std=(1.0,) * 3, frames=8))


def test_minutes_of_video_pass_through_few_frames(tmp_path, monkeypatch) -> None:
    """Three minutes: at no time are more pictures alive than one pass takes."""
    from ssdet.detection import detector as module

    minute = write_video(tmp_path / "m.mp4", 600, size=(32, 32))
    alive: set[int] = set()
    most = 0

    def counted(path, numbers, size):
        nonlocal most
        for number, picture in enumerate(stream_frames(path, numbers, size)):
            alive.add(number)
            weakref.finalize(picture, alive.discard, number)
            most = max(most, len(alive))
            yield picture
            del picture

    stream_frames = module.stream_frames
    monkeypatch.setattr(module, "stream_frames", counted)
    video = repeated(minute, tmp_path / "long.mp4", 3)
    model = Bright()
    blocks = list(Detector(LoadedNetwork(model, CLASSES, PLAIN), window=50).stream(video))
    assert sum(len(rows.times_N) for rows in blocks) == 1800
    assert 45 <= max(model.passes) <= 50 and most <= 3
    assert max(len(rows.times_N) for rows in blocks) <= 50
    assert [rows.first for rows in blocks] == np.cumsum(
        [0, *(len(rows.times_N) for rows in blocks[:-1])]
    ).tolist()


def repeated(video: Path, out: Path, times: int) -> Path:
    """The same packets again and again."""
    with av.open(str(video)) as source:
        packets = [p for p in source.demux(video=0) if p.size]
        stream = source.streams.video[0]
        length = round(Fraction(source.duration, 1_000_000) / stream.time_base)
        with av.open(str(out), "w") as target:
            copy = target.add_stream_from_template(stream)
            starts = [(p.pts, p.dts) for p in packets]
            for turn in range(times):
                for packet, (pts, dts) in zip(packets, starts, strict=True):
                    packet.pts, packet.dts = pts + turn * length, dts + turn * length
                    packet.stream = copy
                    target.mux(packet)
    return out


def test_times_are_those_at_which_frames_are_shown(tmp_path) -> None:
    times, path = [0, 40, 100, 500, 520, 560, 1500], tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            picture = np.full((32, 32, 3), 30 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = Detector(LoadedNetwork(Bright(), CLASSES, PLAIN)).detect(path)
    np.testing.assert_allclose(found.times, np.array(times) / 1000, atol=1e-3)
    logits = -np.log(1 / found.probabilities[:, 1] - 1)
    np.testing.assert_allclose(logits * 255, 30 * np.arange(7), atol=3)
    [one] = [s for s in found.segments(0.58) if s.label == 2]
    assert one.start == pytest.approx(0.1, abs=2e-3) and one.end == found.end
    # Read at two frames a second: frames 0, 3 and, 0.44 s before it, 5 at 0, 0.5 and 1 s.
    coarse = Detector(LoadedNetwork(Bright(), CLASSES, PLAIN, fps=2.0)).detect(path)
    probs = [1 / (1 + np.exp(-30 * n / 255)) for n in (0, 3, 5)]
    expected = np.interp(np.array(times) / 1000, [0, 0.5, 1], probs)
    np.testing.assert_allclose(coarse.probabilities[:, 1], expected, atol=5e-3)
    assert len(coarse.times) == 7


def test_clip_level_networks_are_slid(tmp_path) -> None:
    model = Bright(5)
    names = ("a", "b", "c", "d", "e")
    member = LoadedNetwork(model, names, PLAIN, "clip", exclusive=True)
    for frames in (1, 5, 30):
        video = write_video(tmp_path / f"{frames}.mp4", frames)
        found = Detector(member).detect(video)
        assert found.probabilities.shape == (frames, 5)
        np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert set(model.passes) == {8}


def test_published_weights_are_named(monkeypatch, tmp_path) -> None:
    from ssdet.models.weights import published

    def load(name: str):
        if name != "mine":
            raise ValueError(f"no published weights {name!r}: choose from mine")
        return Bright(2), ("a", "b"), PLAIN.clip

    monkeypatch.setattr(published, "load", load)
    monkeypatch.setattr(published, "named", lambda name: type("P", (), {"fps": 25.0}))
    found = Detector("mine").detect(write_video(tmp_path / "v.mp4", 7))
    assert found.classes == ("a", "b") and found.probabilities.shape == (7, 2)
    with pytest.raises(ValueError, match="no stage id, no folder or file here.* choose from mine"):
        Detector("yours")


@pytest.mark.parametrize("background", ["class", "zero"])
def test_a_pretrained_network_scores_its_actions(background, tmp_path) -> None:
    model = write_stage(tmp_path / "s", task="pretrain", background=background)
    video = write_video(tmp_path / "v.mp4", 12)
    found = Detector(tmp_path / "s").detect(video)
    logits = torch.from_numpy(one_pass(model, video))
    expected = logits.softmax(1)[:, background == "class" :]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.classes == CLASSES and found.probabilities.shape == (12, 3)


def test_members_must_agree_on_classes(tmp_path) -> None:
    two = LoadedNetwork(Bright(2), ("a", "b"), PLAIN)
    with pytest.raises(ValueError, match="2 and 3 classes"):
        Detector([two, LoadedNetwork(Bright(3), ("a", "b", "c"), PLAIN)])
    with pytest.raises(ValueError, match="'b', 'c'"):
        Detector([two, LoadedNetwork(Bright(2), ("a", "c"), PLAIN)])
    nameless = LoadedNetwork(Bright(2), ("class 0", "class 1"), PLAIN, notes=(NO_NAMES,))
    assert Detector([nameless, two]).classes == ("a", "b")
    with pytest.raises(ValueError, match="at least one"):
        Detector([])


def test_checkpoints_that_are_none_are_told_apart(tmp_path) -> None:
    write_stage(tmp_path / "s")
    (tmp_path / "weights.pt").write_bytes(b"")
    probe = tmp_path / "p"
    probe.mkdir()
    (probe / "recipe.json").write_text('{"kind": "probe", "recipe": {}, "parents": []}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.json").write_text("[1]")
    with pytest.raises(FileNotFoundError, match="no recipe.json beside it"):
        Detector(tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="no such stage"):
        Detector("finetune-" + "0" * 16, store=tmp_path)
    with pytest.raises(ValueError, match="a probe stage keeps no network"):
        Detector(probe)
    with pytest.raises(ValueError, match="neither a stage nor a training recipe"):
        Detector(tmp_path / "other")
    (tmp_path / "s" / "data.json").write_text('{"classes": ["one"], "decode_size": null}')
    with pytest.raises(ValueError, match="1 classes, the checkpoint has 3"):
        Detector(tmp_path / "s")
    (tmp_path / "s" / "checkpoints" / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint that can be read safely"):
        Detector(tmp_path / "s")


def test_videos_that_cannot_be_read_are_errors(tmp_path) -> None:
    detector = Detector(LoadedNetwork(Bright(), CLASSES, PLAIN))
    (tmp_path / "empty.mp4").write_bytes(b"")
    content = write_video(tmp_path / "whole.mp4", 60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    for name in ("empty.mp4", "cut.mp4"):
        with pytest.raises(CorruptVideo):
            detector.detect(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        detector.detect(tmp_path / "none.mp4")


def test_scores_that_are_no_numbers_are_an_error(tmp_path) -> None:
    class Broken(Bright):
        def forward(self, clips_BCTHW: Tensor) -> Tensor:
            return super().forward(clips_BCTHW) / 0

    video = write_video(tmp_path / "v.mp4", 3)
    with pytest.raises(ValueError, match="NaN"):
        Detector(LoadedNetwork(Broken(), CLASSES, PLAIN)).detect(video)


def test_a_finished_study_scores_its_own_test_videos(shapes, tmp_path) -> None:
    """What a stage predicted is what a detector says, classes by name."""
    from ssdet.evaluation import PredictionSet
    from ssdet.stages.job import Job
    from ssdet.stages.kinds import run_stage
    from ssdet.studies import Arm, Store, Study, Table, plan, preset, scratch
    from ssdet.studies.data import moving_shapes

    chosen = preset("smoke")
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    study = Study("s", (Arm("a", scratch),), (0,), table=Table(baseline="a"),
                  base=chosen.experiment, data=data)  # fmt: skip
    run = plan(study).runs[0]
    for stage in (*run.predict.parents, run.predict):
        run_stage(Job(stage, str(tmp_path), data))
    folder = Store.open(tmp_path).folder(run.predict.id) / "predictions" / "test"
    scores = PredictionSet.open(folder)
    manifest = data.split("downstream", "test")
    detector = Detector(run.predict.id, store=tmp_path)
    assert detector.classes == manifest.classes
    for video in manifest.videos[:3]:
        found = detector.detect(video.path).probabilities
        np.testing.assert_allclose(found, scores[video.id].astype("f4"), atol=1e-3)


def test_real_videos(shared_data) -> None:
    detector = Detector(LoadedNetwork(Bright(), CLASSES, PLAIN), window=64)
    avi = sorted((shared_data / "video" / "ut-interaction").glob("*.avi"))[0]
    mp4 = min((shared_data / "video" / "fir-action").glob("*.mp4"), key=lambda p: p.stat().st_size)
    for path in (avi, mp4):
        found = detector.detect(path)
        with av.open(str(path)) as container:
            assert len(found.times) == sum(1 for _ in container.decode(video=0))
        assert (np.diff(found.times) > 0).all() and found.end > found.times[-1]
        segments = found.segments(0.5)
        assert segments[0].start == found.times[0] and segments[0].end == pytest.approx(found.end)
