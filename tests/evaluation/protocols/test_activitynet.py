"""ActivityNet's mAP: its rules by hand, and against its definition in plain loops."""

import numpy as np
import pytest

from ssdet.evaluation.protocols.activitynet import (
    ACTIVITYNET_TIOUS,
    activitynet_average_precision,
)


def rows(*values):
    return np.array(values, float).reshape(len(values), -1)


def ap(detections, truth, tiou=0.5, classes=1):
    return activitynet_average_precision(detections, truth, classes, [tiou])[0]


def test_a_detection_takes_the_best_free_instance() -> None:
    truth = {"v": rows((0, 0, 10), (0, 4, 14))}
    # The first detection overlaps the second instance better (9/11 against 7/13) and takes it; the
    # second, which fits the second instance better too, is left with the first.
    both = {"v": rows((0, 3, 13, 0.9), (0, 2, 12, 0.8))}
    assert ap(both, truth) == pytest.approx([1.0])
    # Of two that fit one instance the second is wrong: precision 1, then 1/2, then 2/3.
    again = {"v": rows((0, 0, 10, 0.9), (0, 0, 9.5, 0.8), (0, 30, 40, 0.7), (0, 4, 14, 0.6))}
    assert ap(again, {"v": rows((0, 0, 10), (0, 30, 41))}) == pytest.approx([(1 + 2 / 3) / 2])


def test_precision_is_the_highest_at_this_recall_or_beyond() -> None:
    truth = {"v": rows((0, 0, 10), (0, 20, 30), (0, 40, 50))}
    found = {"v": rows((0, 90, 95, 0.9), (0, 0, 10, 0.8), (0, 20, 30, 0.7), (0, 60, 65, 0.1))}
    # Hits at ranks 2 and 3: precision 1/2 and 2/3, interpolated 2/3 and 2/3; one is missed.
    assert ap(found, truth) == pytest.approx([(2 / 3 + 2 / 3) / 3])


def test_the_threshold_counts_as_reached() -> None:
    truth, found = {"v": rows((0, 0, 10))}, {"v": rows((0, 5, 10, 1.0))}
    assert ap(found, truth, 0.5) == [1] and ap(found, truth, 0.55) == [0]


def test_classes_and_videos_without_detections() -> None:
    truth = {"v": rows((0, 0, 10), (2, 0, 5)), "w": rows((0, 0, 10)), "x": np.zeros((0, 3))}
    found = {"v": rows((0, 0, 10, 0.5), (1, 0, 5, 0.9)), "x": np.zeros((0, 4))}
    values = ap(found, truth, classes=3)
    assert values[0] == 0.5 and np.isnan(values[1]) and values[2] == 0
    assert ap({}, truth, classes=3)[0] == 0


def by_definition(detections, truth, tiou):
    """One class: the evaluation as the challenge's page describes it, detection by detection."""
    ranked = [(row[3], video, row) for video in sorted(detections) for row in detections[video]]
    ranked.sort(key=lambda entry: -entry[0])
    free = {(video, g) for video in truth for g in range(len(truth[video]))}
    hits = []
    for _, video, (_, first, last, _) in ranked:
        best, best_iou = None, 0.0
        for g, (_, start, end) in enumerate(truth.get(video, [])):
            both = max(0.0, min(end, last) - max(start, first))
            iou = both / ((end - start) + (last - first) - both)
            if (video, g) in free and iou > best_iou:
                best, best_iou = g, iou
        hits.append(best is not None and best_iou >= tiou)
        if hits[-1]:
            free.remove((video, best))
    count = sum(map(len, truth.values()))
    curve = [(sum(hits[:n]) / count, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    recalls = sorted({recall for recall, _ in curve if recall > 0})
    steps = np.diff([0.0, *recalls])
    return sum(
        step * max(precision for reached, precision in curve if reached >= recall)
        for step, recall in zip(steps, recalls, strict=True)
    )


def test_random_segments_against_the_definition() -> None:
    rng = np.random.default_rng(0)

    def segments(count, columns):
        starts = rng.uniform(0, 30, count)
        ends = starts + rng.uniform(1, 15, count)
        parts = [np.zeros(count), starts, ends, rng.random(count)]
        return np.stack(parts[:columns], axis=1)

    truth = {f"v{n}": segments(rng.integers(0, 6), 3) for n in range(20)}
    detections = {f"v{n}": segments(rng.integers(0, 30), 4) for n in range(2, 20)}
    found = activitynet_average_precision(detections, truth, 1)[:, 0]
    expected = [by_definition(detections, truth, tiou) for tiou in ACTIVITYNET_TIOUS]
    assert found == pytest.approx(expected, abs=1e-12) and 0 < found[-2] < found[0] < 1
    assert len(ACTIVITYNET_TIOUS) == 10 and ACTIVITYNET_TIOUS[0] == 0.5
