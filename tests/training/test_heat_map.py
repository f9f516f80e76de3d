"""Heat maps of actions and the focal loss, by hand."""

import math

import pytest
import torch

from ssdet.training.heat_map import action_centres, focal_loss, gaussian_1d, heat_map


def test_a_centre_is_the_step_after_the_middle() -> None:
    # At 2 steps a second the middles lie at steps 3.5, 0.2 and 7.9 of 8.
    actions = [(1, 1.0, 2.5), (0, 0.0, 0.2), (2, 3.9, 4.0)]
    assert action_centres(actions, 2.0, 8) == [(1, 4, 3, 6), (0, 1, 0, 0), (2, 8, 0, 0)]
    # Twice the duration in whole steps: 1.3 s at 2.5 a second are 3.25 steps.
    assert action_centres([(4, 0.1, 1.4)], 2.5, 100) == [(4, 2, 3, 6)]


def test_a_middle_on_a_step_or_beyond_the_end_is_missed() -> None:
    assert action_centres([(0, 1.0, 3.0), (0, -1.0, 1.0)], 2.0, 8) == []
    assert action_centres([(0, 3.0, 5.5), (0, -2.0, 1.0)], 2.0, 8) == []
    # 1/3 is no float: whether a middle is on a step is decided by the division of the two.
    assert action_centres([(0, 0.0, 2 * (5 / 3))], 3.0, 9) == []


def test_the_gaussian_falls_to_exp_of_minus_its_square() -> None:
    assert gaussian_1d(0).tolist() == [1.0]
    # 5 points: σ = 1.25, so x²/σ² is 0.64 at 1 and 2.56 at 2.
    expected = [math.exp(-2.56), math.exp(-0.64), 1, math.exp(-0.64), math.exp(-2.56)]
    assert gaussian_1d(2).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_map_has_its_peaks_at_the_centres() -> None:
    # One step a second: centre 3, duration 1, radius 2.
    found = heat_map([(1, 1.6, 3.2)], 1.0, 7, 3)
    far, near = math.exp(-2.56), math.exp(-0.64)
    assert found.shape == (3, 7) and not found[0].any() and not found[2].any()
    assert found[1].tolist() == pytest.approx([0, far, near, 1, near, far, 0], rel=1e-6)


def test_maps_are_cut_at_the_ends_and_the_highest_stays() -> None:
    far, near = math.exp(-2.56), math.exp(-0.64)
    # Centres 1 and 3 of the same class, radius 2.
    found = heat_map([(0, 0.1, 1.3), (0, 1.6, 3.2)], 1.0, 4, 1)
    assert found[0].tolist() == pytest.approx([near, 1, near, 1], rel=1e-6)
    # A middle in the last step: only the slope before its centre is in the map.
    late = heat_map([(0, 2.6, 4.2)], 1.0, 4, 1)
    assert late[0].tolist() == pytest.approx([0, 0, far, near], rel=1e-6)


def test_the_focal_loss_is_its_formula() -> None:
    probs, targets = torch.tensor([[0.8, 0.3], [0.1, 0.5]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    terms = (
        0.2**2 * math.log(0.8),
        0.3**2 * 0.5**4 * math.log(0.7),
        0.1**2 * math.log(0.9),
        0.5**2 * math.log(0.5),
    )
    assert focal_loss(probs, targets).item() == pytest.approx(-sum(terms) / 2, rel=1e-5)
    only = torch.tensor([[True, True], [True, False]])
    assert focal_loss(probs, targets, only).item() == pytest.approx(-sum(terms[:3]), rel=1e-5)


def test_without_a_peak_nothing_is_divided() -> None:
    probs = torch.full((4, 5), 0.5, requires_grad=True)
    loss = focal_loss(probs, torch.zeros(4, 5))
    assert loss.item() == pytest.approx(20 * 0.25 * math.log(2), rel=1e-5)
    loss.backward()
    assert (probs.grad > 0).all()


def test_certain_probabilities_cost_what_nearly_certain_ones_do() -> None:
    probs, targets = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    each = 0.9999**2 * math.log(1e-4)
    assert focal_loss(probs, targets).item() == pytest.approx(-2 * each, rel=1e-3)
    assert focal_loss(probs.half(), targets).dtype == torch.float32
