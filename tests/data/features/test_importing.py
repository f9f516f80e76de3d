"""Feature files of other tools become shards that heads read."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdet.data import Manifest, Segment, Video
from ssdet.data.datasets.video_names import VideoNames
from ssdet.data.features.foreign_files import find_features
from ssdet.data.features.importing import Rate, import_features
from ssdet.data.features.shards import FeatureSet
from ssdet.data.loading.frame_readers import dense_targets
from ssdet.plugins import UsageError
from ssdet.training import Context, ModelRecipe, OptimRecipe, checkpoint
from ssdet.training.heads.feature_heads import FeatureBatches, build_head, fit_head, predict_head
from ssdet.training.recipe import HeadRecipe

SECONDS = {"a": 10.0, "b": 7.5, "c": 20.0}
STEPS = {"a": 20, "b": 15, "c": 40}
CHANNELS = 6
HALF = Rate(per_second=2.0)


def manifest(seconds=SECONDS) -> Manifest:
    """Class 0 in the first half of each video, class 1 never."""
    videos = tuple(
        Video(v, "", "train", segments=(Segment(0, -0.01, (d or 8.0) / 2),), duration=d)
        for v, d in seconds.items()
    )
    return Manifest("m", ("half", "never"), videos)


def matrix(video: str, dtype="float32") -> np.ndarray:
    """[T, D]; channel 1 tells class 0."""
    rng = np.random.default_rng(ord(video[0]))
    rows = rng.normal(size=(STEPS[video], CHANNELS))
    rows[:, 1] += 4 * (np.arange(len(rows)) < len(rows) / 2)
    return rows.astype(dtype)


def imported(source: Path, out: Path, rate=HALF, data=None, key="", pattern="{id}", **options):
    names = VideoNames(v.id for v in data.videos) if data else None
    features, _ = find_features([source], key, pattern, names)
    report = import_features(features, out, rate, data, **options)
    return report, FeatureSet.open(out)


def folder_of(path: Path, save, suffix: str, name="{}") -> Path:
    path.mkdir()
    for video in STEPS:
        save(path / f"{name.format(video)}{suffix}", matrix(video))
    return path


def save_pickle(path: Path, value, protocol=4) -> None:
    path.write_bytes(pickle.dumps(value, protocol))


def save_torch(path: Path, value) -> None:
    torch.save(torch.from_numpy(value), path)


def save_hdf5(path: Path, value) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["features"] = value


SAVE = {
    ".npy": np.save,
    ".npz": lambda path, value: np.savez(path, feats=value, fps=25.0, times=np.arange(3)),
    ".pkl": save_pickle,
    ".pickle": lambda path, value: save_pickle(path, {"rgb": value, "name": "x", "fps": 25}, 2),
    ".pt": save_torch,
    ".hdf5": save_hdf5,
}


@pytest.mark.parametrize("suffix", SAVE)
def test_every_kind_of_file_in_a_folder(tmp_path, suffix) -> None:
    source = folder_of(tmp_path / "in", SAVE[suffix], suffix)
    report, features = imported(source, tmp_path / "out", data=manifest())
    features.verify()
    assert [*features] == [*STEPS] and features.shapes == {"features": (CHANNELS,)}
    for video in STEPS:
        assert np.array_equal(features[video]["features"], matrix(video))
    assert (report.layout, report.videos, report.steps, report.channels) == ("td", 3, 75, CHANNELS)
    assert not (report.missing or report.unused or report.broken or report.other_length)


def test_one_file_for_all_videos(tmp_path) -> None:
    arrays = {f"v_{video}": matrix(video) for video in STEPS}
    np.savez(tmp_path / "all.npz", **arrays)
    save_pickle(tmp_path / "all.pkl", {"fps": 25, **arrays})
    save_pickle(tmp_path / "two.pkl", {v: {"rgb": a, "flow": -a} for v, a in arrays.items()})
    torch.save({v: torch.from_numpy(a) for v, a in arrays.items()}, tmp_path / "all.pt")
    for name, key in (("all.npz", ""), ("all.pkl", ""), ("two.pkl", "rgb"), ("all.pt", "")):
        _, features = imported(tmp_path / name, tmp_path / f"{name} out", data=manifest(), key=key)
        assert all(np.array_equal(features[v]["features"], matrix(v)) for v in STEPS)
    with pytest.raises(ValueError, match=r"'v_a': 2 arrays of features \(rgb \[20, 6\], .*key"):
        imported(tmp_path / "two.pkl", tmp_path / "o", data=manifest())
    with pytest.raises(ValueError, match="no array 'audio', there are: rgb, flow"):
        imported(tmp_path / "two.pkl", tmp_path / "o", key="audio")


def test_hdf5_of_all_videos_without_links_to_other_files(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for video in STEPS:
            file.create_dataset(f"{video}/c3d_features", data=matrix(video), compression="gzip")
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
        file["again"] = h5py.SoftLink("/")
    _, features = imported(tmp_path / "all.h5", tmp_path / "out")
    assert [*features] == [*STEPS]
    assert np.array_equal(features["b"]["features"], matrix("b"))


def test_hdf5_without_its_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "all.h5").touch()
    with pytest.raises(ImportError, match=r"pip install 'ssdet\[h5\]'"):
        find_features([tmp_path / "all.h5"])


@pytest.mark.parametrize(
    ("shaped", "layout"),
    [
        (lambda a: a, "td"),
        (lambda a: a.T, "dt"),
        (lambda a: a[:, :, None, None], "td"),
        (lambda a: a[:, None, None, :], "td"),
        (lambda a: a[None], "td"),
        (lambda a: a.T[None, :, :, None, None], "dt"),
        (np.asfortranarray, "td"),
    ],
)
def test_axes(tmp_path, shaped, layout) -> None:
    source = folder_of(tmp_path / "in", lambda path, a: np.save(path, shaped(a)), ".npy")
    np.save(source / "d.npy", shaped(np.ones((1, CHANNELS), np.float32)))
    report, features = imported(source, tmp_path / "out")
    assert report.layout == layout and features.entries["d"].steps == 1
    assert all(np.array_equal(features[v]["features"], matrix(v)) for v in STEPS)


def test_axes_that_are_open_are_refused(tmp_path) -> None:
    for video in "ab":
        np.save(tmp_path / f"{video}.npy", np.arange(12.0).reshape(3, 4))
    with pytest.raises(UsageError, match=r"both axes are equal in all 2 .*--layout td for \[T"):
        imported(tmp_path, tmp_path / "out")
    _, rows = imported(tmp_path, tmp_path / "td", layout="td")
    assert rows["a"]["features"].tolist()[0] == [0, 1, 2, 3]
    _, columns = imported(tmp_path, tmp_path / "dt", layout="dt")
    assert columns["a"]["features"].tolist()[0] == [0, 4, 8]
    np.save(tmp_path / "b.npy", np.zeros((5, 6)))
    with pytest.raises(UsageError, match=r"no axis is equal in all 2 videos \(a \[3, 4\], b"):
        imported(tmp_path, tmp_path / "out")
    np.save(tmp_path / "b.npy", np.zeros((5, 10, 6)))
    with pytest.raises(ValueError, match=r"b\.npy: shape \[5, 10, 6\], expected \[T, D\]"):
        imported(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_noise_and_coverage(tmp_path) -> None:
    source = tmp_path / "in"
    for name in ("train/v_a_rgb.npy", "train/v_a_flow.npy", "b.mp4_rgb.npy", "x_rgb.npy"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(source / name, matrix("a"))
    for noise in ("._b_rgb.npy", ".DS_Store", "__MACOSX/b_rgb.npy", "Thumbs.db", "README.txt"):
        (source / noise).parent.mkdir(exist_ok=True)
        (source / noise).write_bytes(b"noise")
    names = VideoNames(SECONDS)
    features, others = find_features([source], pattern="{id}_rgb", names=names)
    report = import_features(features, tmp_path / "out", HALF, manifest(), layout="td")
    assert [*FeatureSet.open(tmp_path / "out")] == ["b", "a"] and report.missing == ["c"]
    assert others == [str(source / "README.txt"), str(source / "train/v_a_flow.npy")]
    assert report.unused == [str(source / "x_rgb.npy")]
    assert report.other_length == {"b": "features of 10.0 s, a video of 7.5 s"}
    np.save(source / "a_rgb.npy", matrix("a"))
    with pytest.raises(ValueError, match="video 'a' has features in .* too"):
        imported(source, tmp_path / "o", data=manifest(), pattern="{id}_rgb")
    with pytest.raises(ValueError, match="none of 1 features .* is of a video of the annotation"):
        imported(source, tmp_path / "o", data=manifest(), pattern="{id}_a_flow")
    with pytest.raises(ValueError, match=r"no feature files .* that are named \{id\}_audio"):
        imported(source, tmp_path / "o", data=manifest(), pattern="{id}_audio")
    with pytest.raises(ValueError, match=r"expected \{id\} in it"):
        imported(source, tmp_path / "o", pattern="rgb")


def test_rates(tmp_path) -> None:
    source = folder_of(tmp_path / "in", np.save, ".npy")
    _, given = imported(source, tmp_path / "rate")
    entry = given.entries["a"]
    assert (entry.steps, entry.frames, entry.fps, entry.stride) == (20, 20, 2.0, 1)
    _, spread = imported(source, tmp_path / "spread", Rate(), manifest())
    assert [e.fps for e in spread.entries.values()] == [20 / 10.0, 15 / 7.5, 40 / 20.0]
    # 12 frames from feature to feature at 25 a second: 20 features are 229 to 240 frames, 10 s are
    # 250; 15 are 169 to 180, 7 s are 175.
    data = manifest({"a": 10.0, "b": 7.0, "c": None})
    _, strided = imported(source, tmp_path / "stride", Rate(12, 25.0), data)
    grid = {v: (e.frames, e.fps, e.stride) for v, e in strided.entries.items()}
    assert grid == {"a": (240, 25.0, 12), "b": (175, 25.0, 12), "c": (480, 25.0, 12)}
    for video in data.videos:
        frames = grid[video.id][0]
        assert np.array_equal(strided.clock(video).times_T, np.arange(frames) / 25)
    with pytest.raises(UsageError, match="video 'c': neither a rate .* --stride and --fps"):
        imported(source, tmp_path / "out", Rate(), data)
    with pytest.raises(UsageError, match="video 'a': neither"):
        imported(source, tmp_path / "out", Rate())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 8}, "--stride needs --fps"),
        ({"fps": 25.0}, "--fps needs --stride"),
        ({"stride": 8, "fps": 25.0, "per_second": 1.0}, "choose one"),
        ({"per_second": 0.0}, "above 0"),
        ({"stride": 0, "fps": 25.0}, "above 0"),
        ({"stride": 8, "fps": float("nan")}, "above 0"),
    ],
)
def test_rates_that_do_not_go_together(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        Rate(**options)


def test_types_are_rounded_and_limits_kept(tmp_path) -> None:
    source = folder_of(tmp_path / "in", lambda path, a: np.save(path, a.astype(float) / 3), ".npy")
    for dtype in ("float32", "float16"):
        _, features = imported(source, tmp_path / dtype, dtype=dtype)
        expected = (matrix("a").astype(float) / 3).astype(dtype)
        assert features.dtype == dtype and np.array_equal(features["a"]["features"], expected)
    np.save(source / "b.npy", np.full((5, CHANNELS), 1e5))
    with pytest.raises(ValueError, match=r"b\.npy: 5 of 5 rows .* beyond float16 \(65504\): give"):
        imported(source, tmp_path / "out", dtype="float16")
    np.save(source / "b.npy", np.full((5, CHANNELS), 1e300))
    with pytest.raises(ValueError, match=r"b\.npy: 5 of 5 rows .* beyond float32"):
        imported(source, tmp_path / "out")
    np.save(source / "b.npy", np.arange(12, dtype=np.uint8).reshape(2, 6))
    _, features = imported(source, tmp_path / "whole")
    assert features["b"]["features"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_broken_features_are_refused_by_name_or_left_out(tmp_path) -> None:
    source = folder_of(tmp_path / "in", np.save, ".npy")
    wrong = matrix("a")
    wrong[[3, 7], 2] = np.nan, np.inf
    np.save(source / "a.npy", wrong)
    whole = (source / "b.npy").read_bytes()
    (source / "b.npy").write_bytes(whole[:-5])
    np.save(source / "d.npy", np.zeros((4, CHANNELS + 1)))
    np.save(source / "e.npy", np.array([{"a": 1}], object))
    np.save(source / "f.npy", np.zeros((0, CHANNELS)))
    parts = (
        r"a\.npy: 2 of 20 rows \(3, 7\) hold NaN", r"b\.npy: not a whole \.npy file",
        r"d\.npy: 4 steps of 7 channels", r"e\.npy: Python objects .*savez", r"f\.npy: 0 steps",
    )  # fmt: skip
    with pytest.raises(ValueError, match="5 videos cannot be used: .*" + ".*".join(parts)):
        imported(source, tmp_path / "out", layout="td")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    report, features = imported(source, tmp_path / "out", layout="td", skip_broken=True)
    assert [*features] == ["c"] and features.broken == report.broken
    assert sorted(report.broken) == ["a", "b", "d", "e", "f"]
    with pytest.raises(FileExistsError, match="is there already"):
        imported(source, tmp_path / "out")


class Runs:
    def __reduce__(self):
        return Path.mkdir, (Path("proof"),)


def test_nothing_is_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    save_pickle(tmp_path / "in/a.pkl", {"a": Runs()})
    torch.save({"a": Runs()}, tmp_path / "in/b.pt")
    np.save(tmp_path / "in/c.npy", np.array([Runs()], object), allow_pickle=True)
    np.savez(tmp_path / "in/d.npz", a=np.array([Runs()], object))
    (tmp_path / "in/e.npz").write_bytes(b"PK\x03\x04 cut short")
    np.save(tmp_path / "in/f.npy", matrix("a"))
    report, _ = imported(tmp_path / "in", tmp_path / "out", layout="td", skip_broken=True)
    assert sorted(report.broken) == ["a", "b", "c", "d", "e"]
    assert not (tmp_path / "proof").exists()
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 6)}
    with open(tmp_path / "claims.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"claims\.npy: an array .* bytes, at most"):
        find_features([tmp_path / "claims.npy"])


@pytest.mark.parametrize(("name", "lr"), [("linear", 0.1), ("tgm", 0.01)])
def test_heads_learn_from_imported_features(tmp_path, name, lr) -> None:
    source = folder_of(tmp_path / "in", np.save, ".npy")
    data = manifest()
    _, features = imported(source, tmp_path / "out", Rate(), data)
    for video in data.videos:
        # Spread over the duration: feature i is at i / T of the video, class 0 before one half.
        steps = STEPS[video.id]
        expected = [[i / steps < 0.5 for i in range(steps)], [False] * steps]
        assert dense_targets(data, video, features).tolist() == expected
    optim = OptimRecipe(steps=150, batch=3, lr=lr, optimizer="adamw", weight_decay=0.0)
    recipe = HeadRecipe(ModelRecipe(name), optim)
    context = Context(tmp_path / "run", device=torch.device("cpu"))
    fit_head(recipe, FeatureBatches(data, features, recipe), context)
    net = build_head(recipe, CHANNELS, 2).eval()
    net.load_state_dict(checkpoint.load_weights(tmp_path / "run/checkpoints/last.pt"))
    scores: dict[str, np.ndarray] = {}
    sink = SimpleNamespace(add=lambda video, rows, fps: scores.update({video: rows.numpy()}))
    assert predict_head(net, recipe, data, features, sink, torch.device("cpu")) == {}
    for video, steps in STEPS.items():
        half = scores[video][:, 0] > 0.5
        assert scores[video].shape == (steps, 2)
        assert np.mean(half == (np.arange(steps) < steps / 2)) > 0.85
