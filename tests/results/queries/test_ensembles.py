"""Ensembles by query over a store that is written by hand."""

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from ssdet.evaluation import Material, PredictionSet, PredictionWriter, dense_map
from ssdet.results.queries.ensembles import Query, build
from ssdet.store.base import Store

FRAMES = {"val": {"v1": 400, "v2": 300}, "test": {"t1": 500, "t2": 300, "t3": 200}}
NOISE = {"cls": 1.6, "mixup": 1.0, "cutmix": 1.1, "bad": 8.0}
COLUMNS = ("id", "kind", "studies", "arms", "seed", "augment", "protocol", "data")


@dataclass
class Run:
    folder: object
    scores: dict

    def predictions(self, split="test"):
        return PredictionSet.open(self.folder / "predictions" / split)


@dataclass
class StandIn:
    """What an ensemble asks of an opened store."""

    store: Store
    labels: dict
    rows: list = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def where(self, **where):
        fits = lambda row, k, v: v in row[k] if isinstance(row[k], tuple) else row[k] == v  # noqa: E731
        kept = [row for row in self.rows if all(fits(row, k, v) for k, v in where.items())]
        return pd.DataFrame(kept, columns=list(COLUMNS))

    def run(self, run):
        return Run(self.store.folder(run), self.scores[run])

    def truth(self, run, split="test"):
        self.asked.append(split)
        return Material(labels=self.labels[split])

    def protocol(self, where):
        return "dense_map/v1"

    def add(self, arm, seed, noise=None, fps=24.0, frames=FRAMES, **row):
        """A finished run whose errors are its own."""
        run = f"predict-{len(self.rows):016x}"
        rng = np.random.default_rng([seed, *arm.encode()])
        self.scores[run] = {}
        for split, videos in frames.items():
            folder = self.store.folder(run) / "predictions" / split
            with PredictionWriter(folder, 3) as writer:
                for video in videos:
                    truth = self.labels[split][video]
                    noisy = truth - 1 + (noise or NOISE[arm]) * rng.normal(size=truth.shape)
                    scores = 1 / (1 + np.exp(-noisy))
                    writer.add(video, scores[:: round(24 / fps)], fps)
            if fps == 24:
                score = dense_map(PredictionSet.open(folder), self.labels[split])
                self.scores[run][split] = {"value": score.value}
        told = {"kind": "single", "studies": ("s",), "arms": (arm,), "augment": arm,
                "protocol": "dense_map/v1", "data": "d"}  # fmt: skip
        self.rows.append({"id": run, "seed": seed, **told, **row})
        return run


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    truth = {
        split: {video: rng.random((n, 3)) < 0.2 for video, n in videos.items()}
        for split, videos in FRAMES.items()
    }
    return StandIn(Store.open(tmp_path / "store"), truth)


@pytest.fixture
def grid(store):
    """Three arms and a useless one, three seeds."""
    for seed in range(3):
        for arm in NOISE:
            store.add(arm, seed)
    return store


def macro_ap(store, runs, weights=None):
    """scikit-learn's of the mean of runs."""
    truth = np.concatenate(list(store.labels["test"].values()))
    scores = [
        np.concatenate([*store.run(run).predictions().values()]).astype(float) for run in runs
    ]
    mean = np.average(scores, axis=0, weights=weights).astype(np.float16)
    return average_precision_score(truth, mean, average="macro")


def ids(store, seed, *arms):
    return {r["id"] for r in store.rows if r["seed"] == seed and r["arms"][0] in (arms or NOISE)}


def test_one_ensemble_a_seed_of_all_arms_that_fit(grid):
    found = build(grid, Query(), resamples=50)
    assert [one.seed for one in found.ensembles] == [0, 1, 2]
    for one in found.ensembles:
        assert {m.run for m in one.members} == ids(grid, one.seed)
        assert [m.weight for m in one.members] == [0.25] * 4
        assert one.score.value == pytest.approx(
            macro_ap(grid, [m.run for m in one.members]), abs=2e-4
        )
        assert one.score.protocol == "dense_map/v1"
        assert (one.score.videos_scored, one.score.videos_expected) == (3, 3)
        for member in one.members:
            assert member.gain.single == pytest.approx(macro_ap(grid, [member.run]), abs=1e-6)
            assert member.gain.single == grid.scores[member.run]["test"]["value"]
        assert one.correlation.shape == (4, 4) and one.held_out is None
    assert found.mean == pytest.approx(np.mean([one.score.value for one in found.ensembles]))
    assert "val" not in grid.asked


def test_compared_with_the_best_single_arm_and_with_seeds_of_it(grid):
    found = build(grid, Query({"augment": "mixup"}, per_seed=False), resamples=50)
    assert found.control is None and "seeds alone" in found.no_control
    found = build(grid, Query(fit="greedy"), resamples=200)
    assert found.best_single == "mixup"  # the least noise
    for one, single in zip(found.ensembles, found.singles, strict=True):
        assert single == max(member.gain.single for member in one.members)
    assert found.gain.difference == pytest.approx(found.mean - np.mean(found.singles), abs=1e-6)
    used = [sum(m.weight > 0 for m in one.members) for one in found.ensembles]
    assert max(used) == 3 and found.control is not None  # the useless arm is not selected
    for runs, size in zip(found.control.runs, used, strict=True):
        assert len(set(runs)) == size
        assert set(runs) <= {r["id"] for r in grid.rows if r["arms"] == ("mixup",)}
    expected = found.mean - np.mean(found.control.scores)
    assert found.control.gain.difference == pytest.approx(expected, abs=1e-6)
    assert found.control.gain.low <= expected <= found.control.gain.high


def test_without_enough_seeds_there_is_no_control(store):
    for arm in ("cls", "mixup", "cutmix"):
        store.add(arm, 0)
    found = build(store, Query(), resamples=20)
    assert (
        found.control is None and found.no_control == "3 seeds of mixup are needed, 1 are finished"
    )


def test_controls_start_at_the_seed_of_their_ensemble(grid):
    for seed in (3, 4):
        for arm in NOISE:
            grid.add(arm, seed)
    found = build(grid, Query(fit="weights"), resamples=20)
    mixup = [r["id"] for r in grid.rows if r["arms"] == ("mixup",)]
    for seed, (one, runs) in enumerate(zip(found.ensembles, found.control.runs, strict=True)):
        size = sum(m.weight > 0 for m in one.members)
        assert set(runs) == {(mixup + mixup)[seed + i] for i in range(size)}


@pytest.mark.parametrize("fit", ["weights", "greedy"])
@pytest.mark.parametrize("method", ["mean_probability", "rank_mean"])
def test_fits_are_of_the_held_out_split(grid, fit, method):
    found = build(grid, Query({"seed": 0}, method=method, fit=fit), resamples=20)
    (one,) = found.ensembles
    weights = {m.arms[0]: m.weight for m in one.members}
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["bad"] < 0.1 and one.held_out > max(found.singles) - 0.05
    if method == "mean_probability":
        runs, shares = zip(*((m.run, m.weight) for m in one.members), strict=True)
        assert one.score.value == pytest.approx(macro_ap(grid, runs, shares), abs=2e-4)
    plain = build(grid, Query({"seed": 0}, method=method), resamples=20)
    assert one.score.value > plain.mean


def test_nothing_is_fitted_or_chosen_on_what_is_reported(grid):
    for query in (Query(fit="weights"), Query(fit="greedy"), Query(size=2)):
        with pytest.raises(ValueError, match="split='val' is the one that members are fitted"):
            build(grid, query, split="val")
    with pytest.raises(ValueError, match="split='test'"):
        build(grid, Query(fit="weights", held_out="test"))
    grid.labels["val"] = grid.labels["test"]  # the same videos under another name
    for row in grid.rows:
        folder = grid.store.folder(row["id"]) / "predictions"
        shutil.rmtree(folder / "val")
        shutil.copytree(folder / "test", folder / "val")
    with pytest.raises(ValueError, match=r"3 of 3 videos were fitted \(t1, t2, t3\)"):
        build(grid, Query(fit="weights"))
    assert build(grid, Query(), split="val", resamples=20).split == "val"  # nothing is fitted


def test_the_size_keeps_the_best_on_the_held_out_split(grid):
    for row in grid.rows:  # the test split says the opposite
        grid.scores[row["id"]]["val"]["value"] = {"bad": 0.9, "cls": 0.8}.get(row["arms"][0], 0.1)
    found = build(grid, Query(size=2), resamples=20)
    assert {m.arms for one in found.ensembles for m in one.members} == {("bad",), ("cls",)}
    with pytest.raises(ValueError, match="size=5: only 4 candidates"):
        build(grid, Query(size=5))


def test_predictions_are_kept_once_with_what_they_are(grid, monkeypatch):
    first = build(grid, Query({"seed": 1}), resamples=20).ensembles[0]
    assert first.folder.parent == grid.store.root / "ensembles"
    told = json.loads((first.folder / "ensemble.json").read_text())
    assert {run for run, _ in told["members"]} == ids(grid, 1)
    assert (told["method"], told["split"]) == ("mean_probability", "test")
    kept = PredictionSet.open(first.folder / "predictions" / "test")
    assert dense_map(kept, grid.labels["test"]).value == first.score.value
    assert not [path for path in first.folder.parent.iterdir() if "partial" in path.name]
    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "add", lambda *_: pytest.fail("written again"))
        assert build(grid, Query({"seed": 1}), resamples=20).ensembles[0].score == first.score
    other = build(grid, Query({"seed": 1}, method="mean_logit"), resamples=20).ensembles[0]
    assert other.folder != first.folder


def test_damaged_ensembles_are_refused_and_unfinished_ones_vanish(grid, monkeypatch):
    first = build(grid, Query({"seed": 1}), resamples=20).ensembles[0]
    data = first.folder / "predictions" / "test" / "0.f16"
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.write_bytes(content)
    with pytest.raises(
        ValueError, match="is damaged .*checksum.*: remove it, and it is made again"
    ):
        build(grid, Query({"seed": 1}), resamples=20)
    shutil.rmtree(first.folder)
    with monkeypatch.context() as patch:
        patch.setattr("ssdet.results.queries.ensemble_cache.os.rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(grid, Query({"seed": 1}), resamples=20)
    assert list((grid.store.root / "ensembles").iterdir()) == []
    assert build(grid, Query({"seed": 1}), resamples=20).ensembles[0].score == first.score


def test_who_comes_second_takes_what_the_first_made(grid, monkeypatch):
    from ssdet.results.queries import ensemble_cache

    made = build(grid, Query({"seed": 1}), resamples=20).ensembles[0]
    kept = made.folder.with_name("kept")
    made.folder.rename(kept)

    write = ensemble_cache.Combiner.write

    def slow(*arguments):
        shutil.copytree(kept, made.folder)
        return write(*arguments)

    monkeypatch.setattr(ensemble_cache.Combiner, "write", slow)
    assert build(grid, Query({"seed": 1}), resamples=20).ensembles[0].score == made.score
    assert {path.name for path in made.folder.parent.iterdir()} == {"kept", made.folder.name}


def test_members_of_another_rate_are_aligned_to_the_labels(store):
    slow = store.add("mixup", 0, fps=12.0)
    store.add("cls", 0)
    found = build(store, Query(), resamples=20)
    (one,) = found.ensembles
    assert one.score.frames == 1000
    position = [m.run for m in one.members].index(slow)
    truth = np.concatenate(list(store.labels["test"].values()))
    tracks = []
    for video, scores in store.run(slow).predictions().items():
        frames = FRAMES["test"][video]
        tracks.append([np.interp(np.arange(frames) / 24, np.arange(len(scores)) / 12, track)
                       for track in scores.T.astype(float)])  # fmt: skip
    expected = average_precision_score(
        truth, np.hstack(tracks).T.astype(np.float16), average="macro"
    )
    assert one.members[position].gain.single == pytest.approx(expected, abs=2e-3)
    assert found.gain.difference == pytest.approx(one.score.value - max(found.singles), abs=1e-6)
    store.rows.pop()
    store.add("cls", 0, fps=12.0)
    with pytest.raises(ValueError, match="no member has the frames that are labelled"):
        build(store, Query())


def test_common_videos_count_the_others(store):
    fewer = {"val": FRAMES["val"], "test": {"t1": 500, "t3": 200}}
    store.add("mixup", 0, frames=fewer)
    store.add("cls", 0)
    with pytest.raises(ValueError, match=r"differ in 1 videos \(t2\)"):
        build(store, Query())
    (one,) = build(store, Query(videos="common"), resamples=20).ensembles
    assert (one.score.videos_scored, one.score.videos_expected) == (2, 3)
    assert one.left_out == ("t2",) and one.score.frames == 700


def test_arms_are_recognised_over_seeds_by_the_names_they_share(store):
    for seed in range(2):
        store.add("cls", seed, arms=("base", "cls") if seed else ("cls",))
        store.add("mixup", seed)
    found = build(store, Query(), resamples=20)
    assert [[m.run[-1] for m in one.members] for one in found.ensembles] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.rows.pop(), "seed 2 has 0 runs of bad"),
        (lambda s: s.add("new", 1, noise=1.0), "seed 1 has 5 runs, seed 0 has 4"),
        (lambda s: s.add("cls", 0), "seed 0 has 2 runs of cls"),
        (lambda s: s.rows[0].update(data="e"), r"other videos \(data d, e\)"),
        (lambda s: s.rows.clear(), "no finished run fits the query"),
    ],
)
def test_runs_that_do_not_belong_together(grid, change, message):
    change(grid)
    with pytest.raises(ValueError, match=message):
        build(grid, Query())


def test_a_seed_of_another_study_has_a_control_too(grid):
    for arm in NOISE:
        grid.add(arm, 7, studies=("other",))
    found = build(grid, Query(fit="greedy"), resamples=20)
    seeds = {r["id"]: r["seed"] for r in grid.rows}
    assert {seeds[run] for runs in found.control.runs for run in runs} == {0, 1, 2}


def test_two_runs_of_one_name_are_no_control(grid):
    grid.add("mixup", 0, augment="other")
    for row in grid.rows[:-1]:
        row["studies"] = ("s", "kept")
    found = build(grid, Query({"studies": "kept"}), resamples=20)
    assert found.control is None and "two runs of seed 0 are called mixup" in found.no_control


def test_one_arm_needs_all_seeds_together(grid):
    with pytest.raises(ValueError, match="per_seed=False"):
        build(grid, Query({"augment": "mixup"}))
    found = build(grid, Query({"augment": "mixup"}, per_seed=False), resamples=20)
    (one,) = found.ensembles
    assert one.seed is None and sorted(m.seed for m in one.members) == [0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "weighted"},
        {"fit": "luck"},
        {"size": 1},
        {"method": "median"},
        {"where": {"kind": "ensemble"}},
    ],
)
def test_queries_that_make_no_sense(wrong):
    with pytest.raises(ValueError):
        Query(**wrong)


def test_a_result_is_json(grid):
    text = json.dumps(build(grid, Query({"seed": 0}), resamples=20).to_json(), allow_nan=False)
    told = json.loads(text)
    assert told["query"]["where"] == {"seed": 0} and len(told["ensembles"][0]["members"]) == 4
