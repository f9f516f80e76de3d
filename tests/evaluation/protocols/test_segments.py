"""Segment mAP: the kit's rules one by one by hand, and against a loop over single detections."""

import numpy as np
import pytest

from ssdet.evaluation import frame_segments, read_detections, segment_average_precision
from ssdet.evaluation.protocols.segments import overlaps, read_kit


def rows(*values):
    return np.array(values, float)


def ap(detections, truth, tiou=0.5, classes=1, **options):
    return segment_average_precision(detections, truth, classes, [tiou], **options)[0]


def test_overlap_by_hand() -> None:
    found = overlaps(rows((0, 10), (20, 30)), rows((5, 15), (10, 20), (20, 30), (0, 40)))
    assert found == pytest.approx(rows((5 / 15, 0, 0, 10 / 40), (0, 0, 1, 10 / 40)))


def test_each_instance_takes_the_best_free_detection() -> None:
    truth = {"v": rows((0, 0, 10), (0, 1, 11))}
    detections = {"v": rows((0, 0, 10, 0.2), (0, 1, 12, 0.9), (0, 50, 60, 0.5))}
    # the first takes 0-10 (IoU 1), the second 1-12; the third is wrong and ranks second
    assert ap(detections, truth) == pytest.approx([(1 + 2 / 3) / 2])
    # alone, the second instance still takes the better of two that fit
    both = {"v": rows((0, 1, 12, 0.9), (0, 1, 11, 0.1))}
    assert ap(both, {"v": rows((0, 1, 11))}) == pytest.approx([1 / 2])


def test_instances_choose_in_their_order_not_by_score() -> None:
    truth = {"v": rows((0, 0, 10), (0, 4, 14))}
    detections = {"v": rows((0, 3, 13, 0.9), (0, 30, 40, 0.8))}
    # the first instance takes the only one that fits at 0.5 (IoU 7/13), though the second fits it
    # better: one hit of two instances, not two
    assert ap(detections, truth) == pytest.approx([1 / 2])


def test_the_threshold_is_strict() -> None:
    truth, detections = {"v": rows((0, 0, 10))}, {"v": rows((0, 5, 10, 1.0))}
    assert ap(detections, truth, 0.5) == [0] and ap(detections, truth, 0.49) == [1]
    none = {"v": rows((0, 50, 60, 1.0))}
    assert ap(none, truth, 0.0) == [0]


def test_what_overlaps_an_ambiguous_stretch_is_dropped_unless_it_hits() -> None:
    truth = {"v": rows((0, 0, 10)), "w": rows((0, 0, 10))}
    detections = {"v": rows((0, 19.9, 30, 0.9), (0, 0, 10, 0.5)), "w": rows((0, 20, 30, 0.8))}
    assert ap(detections, truth) == pytest.approx([(1 / 3) / 2])
    stretch = {"v": rows((0, 20))}  # touches the hit, too
    assert ap(detections, truth, ambiguous=stretch) == pytest.approx([(1 / 2) / 2])
    touching = {"w": rows((10, 20))}  # no overlap
    assert ap(detections, truth, ambiguous=touching) == pytest.approx([(1 / 3) / 2])


def test_equal_scores_rank_by_video_and_then_in_their_order() -> None:
    truth = {"b": rows((0, 0, 10))}
    detections = {"b": rows((0, 0, 10, 0.5)), "a": rows((0, 0, 10, 0.5))}
    assert ap(detections, truth) == pytest.approx([1 / 2])
    within = {"b": rows((0, 50, 60, 0.5), (0, 0, 10, 0.5))}
    assert ap(within, truth) == pytest.approx([1 / 2])


def test_classes_and_videos_without_detections() -> None:
    truth = {"v": rows((0, 0, 10), (2, 0, 5)), "w": rows((0, 0, 10))}
    found = ap({"v": rows((0, 0, 10, 0.5), (1, 0, 5, 0.9))}, truth, classes=3)
    assert found[0] == 0.5 and np.isnan(found[1]) and found[2] == 0
    with pytest.raises(ValueError, match="tious"):
        segment_average_precision({}, truth, 3, [1.0])


def one_at_a_time(detections, truth, tiou):
    """The kit's rules for one class in plain loops."""
    flags = []
    for video in sorted(detections):
        ranked = sorted(detections[video].tolist(), key=lambda row: -row[3])
        taken = set()
        for _, start, end in truth.get(video, rows()).reshape(-1, 3).tolist():
            best, best_iou = None, -1.0
            for place, (_, first, last, _) in enumerate(ranked):
                both = min(end, last) - max(start, first)
                iou = both / (max(end, last) - min(start, first)) if both > 0 else 0.0
                if place not in taken and iou > best_iou:
                    best, best_iou = place, iou
            if best is not None and best_iou > tiou:
                taken.add(best)
        flags += [(row[3], place in taken) for place, row in enumerate(ranked)]
    flags.sort(key=lambda flag: -flag[0])
    hits, total = 0, 0.0
    for rank, (_, hit) in enumerate(flags, 1):
        hits += hit
        total += hit * hits / rank
    return total / sum(map(len, truth.values()))


def test_random_segments_against_plain_loops() -> None:
    rng = np.random.default_rng(0)

    def segments(count, columns):
        starts = rng.uniform(0, 50, count)
        parts = [
            np.zeros(count),
            starts,
            starts + rng.uniform(1, 15, count),
            rng.integers(0, 8, count),
        ]
        return np.stack(parts[:columns], axis=1)

    truth = {f"v{n}": segments(rng.integers(0, 6), 3) for n in range(20)}
    detections = {f"v{n}": segments(rng.integers(0, 15), 4) for n in range(2, 23)}
    tious = (0.1, 0.3, 0.5, 0.7)
    found = segment_average_precision(detections, truth, 1, tious)[:, 0]
    assert found == pytest.approx([one_at_a_time(detections, truth, t) for t in tious], abs=1e-12)
    assert 0 < found[2] < found[0] < 1


def test_frame_scores_become_segments() -> None:
    probs = np.full((100, 2), 0.01)
    probs[10:30, 0] = 0.9
    probs[34:40, 0] = 0.9  # 4 frames = 0.4 s later: joined
    probs[60:70, 0] = 0.35
    found = frame_segments(probs, fps=10.0)
    assert not (found[:, 0] == 1).any()
    best = found[found[:, 3].argmax()]
    assert best[1:3] == pytest.approx((1.0, 4.0))
    assert best[3] == pytest.approx((26 * 0.9 + 4 * 0.01) / 30)
    faint = found[found[:, 1] == 6.0]
    assert faint[:, 1:] == pytest.approx(rows((6.0, 7.0, 0.35)))
    assert len(found) == 2
    apart = frame_segments(probs, fps=10.0, merge=0.0)
    assert sorted(map(tuple, apart[:, 1:3].tolist())) == [(1.0, 3.0), (3.4, 4.0), (6.0, 7.0)]
    assert frame_segments(np.zeros((5, 3)), 10.0).shape == (0, 4)


def test_a_long_faint_segment_stands_beside_a_short_sure_one() -> None:
    probs = np.full((100, 1), 0.0)
    probs[10:90] = 0.4
    probs[50:60] = 0.95
    found = frame_segments(probs, fps=10.0)
    assert sorted(map(tuple, found[:, 1:3].tolist())) == [(1.0, 9.0), (5.0, 6.0)]


def test_detections_file(tmp_path) -> None:
    path = tmp_path / "res.txt"
    path.write_text("v1.mp4 1.5 3 7 0.25\n\nv1 2 4 9 0.5\nv2\t0 1 8 1e-3\n")
    found = read_detections(path, {"7": 0, "9": 1})
    assert (found.lines, found.ignored, [*found.detections]) == (3, 1, ["v1"])
    assert found.detections["v1"].tolist() == [[0, 1.5, 3, 0.25], [1, 2, 4, 0.5]]
    for line, told in (
        ("v 1 2 7", "line 1: 4 fields"),
        ("v 1 two 7 1", "line 1: could not convert"),
        ("v 3 2 7 1", "line 1: 3 2 1: expected finite numbers, start <= end"),
        ("v 1 2 7 nan", "line 1: 1 2 nan: expected finite"),
        ("v 1 2 7 " + "1" * 5000, "line 1: longer than 4096"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=told):
            read_detections(path, {"7": 0})
    path.write_bytes(b"\xff 1 2 7 1")
    with pytest.raises(ValueError, match="res.txt: not UTF-8 text"):
        read_detections(path, {"7": 0})


def test_the_kits_folder(tmp_path) -> None:
    (tmp_path / "detclasslist.txt").write_text("7 BaseballPitch\n9 BasketballDunk\n")
    (tmp_path / "BaseballPitch_test.txt").write_text("v1  1.0 2.0\nv2 3 4\n")
    (tmp_path / "BasketballDunk_test.txt").write_text("v1 5 6\n")
    (tmp_path / "Ambiguous_test.txt").write_text("v2 0 9\n")
    kit = read_kit(tmp_path)
    assert kit.names == ("BaseballPitch", "BasketballDunk") and kit.numbers == {"7": 0, "9": 1}
    assert kit.truth["v1"].tolist() == [[0, 1, 2], [1, 5, 6]]
    assert kit.ambiguous["v2"].tolist() == [[0, 9]]
    (tmp_path / "res.txt").write_text("v1.mp4 1 2 7 0.9\nv2.mp4 6 8 7 1.0\nv1.mp4 5 6 9 0.1\n")
    found = read_detections(tmp_path / "res.txt", kit.numbers).detections
    scores = segment_average_precision(found, kit.truth, 2, [0.5], kit.ambiguous)
    assert scores.tolist() == [[0.5, 1.0]]
    with pytest.raises(FileNotFoundError, match="BaseballPitch_val"):
        read_kit(tmp_path, "val")
