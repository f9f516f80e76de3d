"""Statistics of protocols: equal to evaluating the drawn videos."""

import numpy as np
import pytest
import torch

from ssdet.data.datasets.manifest import Manifest, Segment, Video
from ssdet.evaluation.lazy_rows import frame_labels
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter
from ssdet.evaluation.protocols.registry import PROTOCOLS, Material, Protocol, protocol_of, refusals
from ssdet.evaluation.statistics.bootstrap import paired_bootstrap, paired_difference

FPS, CLASSES = 12.0, 3
DURATIONS = (15.0, 14.0, 20.0, 16.5, 18.0)
CLOSED_FORM = [
    "dense", "dense_apmeter", "dense_pdan", "dense_min162", "sampled25_mstct", "sampled25_cf",
    "charades_official", "multithumos", "multithumos_steps", "segments", "activitynet",
    "activitynet_thumos",
]  # fmt: skip


def manifest() -> Manifest:
    rng, videos = np.random.default_rng(0), []
    for number, duration in enumerate(DURATIONS):
        starts = rng.uniform(0, duration - 4, 2 * CLASSES)
        segments = [
            Segment(k % CLASSES, s, s + rng.uniform(1, 4)) for k, s in enumerate(starts.tolist())
        ]
        videos.append(Video(f"v{number}", "", "test", None, tuple(segments), duration))
    return Manifest("toy", ("a", "b", "c"), tuple(videos))


def scored(folder, seed: int, without: str = "") -> Material:
    """Noisy scores near the labels; tied ones among them."""
    truth, rng = manifest(), np.random.default_rng(seed)
    with PredictionWriter(folder, CLASSES) as writer:
        for video in truth.videos:
            frames = round(video.duration * FPS)
            hits_TK = truth.frame_targets(video, frames, FPS).T
            probs_TK = 0.4 * hits_TK + rng.uniform(0, 0.6, hits_TK.shape)
            if video.id != without:
                writer.add(video.id, np.round(probs_TK, 2), FPS)
    predictions = PredictionSet.open(folder)
    return Material(frame_labels(truth, predictions), predictions, truth)


@pytest.fixture
def material(tmp_path) -> Material:
    return scored(tmp_path / "p", 1, without="v4")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_video_once_gives_the_reading(material, name) -> None:
    protocol = PROTOCOLS[name]
    statistic, reading = protocol.statistic(material), protocol.reading(material)
    (value,) = statistic.under(torch.ones(1, len(statistic.videos)))
    assert value == pytest.approx(reading.value, abs=1e-6)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_subset_is_scored_as_if_the_others_did_not_exist(material, name) -> None:
    protocol = PROTOCOLS[name]
    statistic = protocol.statistic(material)
    sources = {video: video for video in statistic.videos if video not in ("v1", "v3")}
    weights_1V = torch.tensor([[float(video in sources) for video in statistic.videos]])
    (value,) = statistic.under(weights_1V)
    expected = protocol.reading(material.drawn(sources)).value
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["dense", "dense_apmeter", "sampled25_mstct", "multithumos"])
def test_copies_count_as_often_as_they_are_drawn(material, name) -> None:
    """Equal scores share a precision in these, so that copies are exact."""
    closed = PROTOCOLS[name]
    slow = Protocol("slow", "", closed.score, primary=closed.primary).statistic(material)
    fast = closed.statistic(material)
    weights_RV = torch.tensor([[2.0, 0, 1, 1, 1], [0, 3, 1, 0, 1], [1, 1, 0, 3, 0]])
    drawn = fast.under(weights_RV[:, : len(fast.videos)])
    np.testing.assert_allclose(drawn, slow.under(weights_RV), atol=1e-6)


def test_videos_without_predictions_cost_where_the_protocol_counts_them(material) -> None:
    assert PROTOCOLS["dense"].statistic(material).videos == ("v0", "v1", "v2", "v3")
    for name in ("charades_official", "segments", "activitynet"):
        assert PROTOCOLS[name].statistic(material).videos == tuple(f"v{n}" for n in range(5))


def test_dense_differences_are_those_of_the_paired_bootstrap(tmp_path) -> None:
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2)
    targets = {video: a.labels[video] for video in a.labels}
    expected = paired_bootstrap(a.predictions, b.predictions, targets, 50)
    statistics = [[PROTOCOLS["dense"].statistic(one)] for one in (a, b)]
    assert paired_difference(*statistics, resamples=50) == expected


def test_what_is_evaluated_anew_is_resampled_less_often(tmp_path) -> None:
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2)
    statistics = [[PROTOCOLS["conditional"].statistic(one)] for one in (a, b)]
    assert paired_difference(*statistics, resamples=10).resamples == 10
    assert {one.resamples for (one,) in statistics} == {200}


def test_pairs_of_other_videos_are_refused(tmp_path) -> None:
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2, without="v0")
    dense = PROTOCOLS["dense"].statistic
    with pytest.raises(ValueError, match="other videos"):
        paired_difference([dense(a)], [dense(b)])
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_difference([dense(a)], [])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_known_by_its_name_and_by_its_id(material, name) -> None:
    protocol = PROTOCOLS[name]
    assert protocol_of(name) is protocol and protocol_of(protocol.id) is protocol
    assert protocol.primary in (protocol.reading(material).protocol, "")


def test_what_cannot_be_scored_is_refused_before_anything_is_predicted() -> None:
    whole = manifest()
    assert refusals(Material(manifest=whole), PROTOCOLS) == {}
    poor = Manifest("poor", ("a", "b", "c", "d"), whole.videos)
    assert [*refusals(Material(manifest=poor), PROTOCOLS)] == ["charades_official"]
    charades = Material(manifest=whole, format="charades")
    assert [*refusals(charades, PROTOCOLS)] == ["multithumos", "multithumos_steps"]
