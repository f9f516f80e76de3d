"""Costs against the paper's table and against networks that are really built."""

from dataclasses import replace

import pytest

from ssdet.models import create
from ssdet.studies import (
    augmented,
    classification,
    every_nth_frame,
    from_checkpoint,
    preset,
    scaled_pretraining,
    scratch,
)
from ssdet.studies.network_costs import macs, parameter_count, pretraining_pflops


def test_the_paper_s_pretraining_flops() -> None:
    """Table A.1f: 91.10 P from scratch, 30.36 P from a published checkpoint, for both tasks."""
    base = preset("paper").experiment
    assert pretraining_pflops(classification(base), 400) == pytest.approx(91.10, abs=0.01)
    assert pretraining_pflops(augmented("joint_single")(base), 400) == pytest.approx(
        91.10, abs=0.01
    )
    chained = from_checkpoint(classification, scaled_pretraining(1 / 3))(base)
    assert pretraining_pflops(replace(chained, start=None), 400) == pytest.approx(30.36, abs=0.01)
    assert pretraining_pflops(chained, 400) == pytest.approx(91.10 + 30.36, abs=0.02)
    assert pretraining_pflops(scratch(base), 400) == 0


def test_size_and_macs_are_those_of_the_fine_tuned_network() -> None:
    base = preset("tiny").experiment
    network = create("x3d_tiny", 10)
    assert parameter_count(base, 10) == sum(p.numel() for p in network.parameters())
    assert parameter_count(base, 20) - parameter_count(base, 10) == 10 * (256 + 1)
    assert macs(every_nth_frame(4)(base), 10) == pytest.approx(macs(base, 10) / 4, rel=0.01)
    assert macs(preset("paper").experiment, 157) == pytest.approx(4.7449e9, rel=1e-4)
