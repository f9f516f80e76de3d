"""Action-conditional scores against loops over frames and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from ssdet.evaluation import conditional_map


def toy(seed=0, classes=4, lengths=(60, 45)):
    rng = np.random.default_rng(seed)
    targets = {}
    for n, frames in enumerate(lengths):
        walk = rng.normal(size=(frames, classes)).cumsum(axis=0)
        targets[f"v{n}"] = walk > np.quantile(walk, 0.6, axis=0)
    scores = {
        v: 1 / (1 + np.exp(-(2.0 * t - 1 + rng.normal(size=t.shape)))) for v, t in targets.items()
    }
    return scores, targets


def chosen(hits_TK, f, j, t):
    if t == 0:
        return hits_TK[f, j]
    window = range(max(f - t + 1, 0), f) if t > 0 else range(f + 1, min(f - t, len(hits_TK)))
    return not hits_TK[f, j] and any(hits_TK[g, j] for g in window)


def by_pairs(scores, targets, t):
    classes = next(iter(targets.values())).shape[1]
    found = []
    for j in range(classes):
        rows = [
            (v, f) for v in targets for f in range(len(targets[v])) if chosen(targets[v], f, j, t)
        ]
        if not rows:
            continue
        hits = np.array([targets[v][f] for v, f in rows])
        probs = np.array([scores[v][f] for v, f in rows], float)
        for i in range(classes):
            if i != j and hits[:, i].any():
                p, r, _, _ = precision_recall_fscore_support(
                    hits[:, i], probs[:, i] >= 0.5, average="binary", zero_division=0
                )
                found.append((p, r, average_precision_score(hits[:, i], probs[:, i])))
    return np.mean(found, axis=0), len(found)


@pytest.mark.parametrize("t", [0, 1, 5, -5, 20, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_pairs_by_hand(t, dtype) -> None:
    scores, targets = toy()
    scores = {video: rows.astype(dtype) for video, rows in scores.items()}
    if t == 1:  # the window is the frame itself
        with pytest.raises(ValueError, match="no class has a positive"):
            conditional_map(scores, targets, t)
        return
    (precision, recall, mean_ap), pairs = by_pairs(scores, targets, t)
    found = conditional_map(scores, targets, t)
    assert found.precision == pytest.approx(precision, abs=1e-12)
    assert found.recall == pytest.approx(recall, abs=1e-12)
    assert found.map == pytest.approx(mean_ap, abs=1e-12)
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-8)
    assert (found.pairs, found.protocol) == (pairs, f"conditional_t{t}/v1")
    assert (found.videos_scored, found.videos_expected, found.frames) == (2, 2, 105)


def test_the_published_window_after_looks_only_near_the_ends() -> None:
    """Class 1 follows class 0 in the middle of the video alone: the published code misses it."""
    hits = np.zeros((40, 2), bool)
    hits[10:20, 0] = hits[20:30, 1] = True
    scores = {"v": np.where(hits, 0.9, 0.1)}
    assert conditional_map(scores, {"v": hits}, -5).pairs == 1
    with pytest.raises(ValueError, match="no class has a positive"):
        conditional_map(scores, {"v": hits}, -5, compat="released")


def test_released_window_against_its_formula() -> None:
    scores, targets = toy(3)
    t, rows = -5, []
    for j in range(4):
        part = []
        for v, hits in targets.items():
            back = hits[::-1, j].astype(int).cumsum()
            moved = np.concatenate([back[5:], back[:5]])
            moved[:5] = 0
            mask = (np.clip(back - moved, 0, 1)[::-1] - hits[:, j]) > 0
            part += [(v, f) for f in np.flatnonzero(mask)]
        for i in range(4):
            hits = np.array([targets[v][f, i] for v, f in part], bool)
            if i != j and hits.any():
                rows.append(average_precision_score(hits, [scores[v][f, i] for v, f in part]))
    found = conditional_map(scores, targets, t, compat="released")
    assert (found.map, found.pairs) == (pytest.approx(np.mean(rows)), len(rows))
    assert found.protocol == "conditional_t-5_released/v1"


def test_wrong_options() -> None:
    scores, targets = toy()
    for options in ({"threshold": 0.0}, {"compat": "other"}):
        with pytest.raises(ValueError, match="expected '' or 'released'"):
            conditional_map(scores, targets, 0, **options)
