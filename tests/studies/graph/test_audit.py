"""What arms differ in, and whether they said so."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ssdet.studies import Arm, Study, augmented, classification, plan, pretraining, scratch
from ssdet.studies.graph.audit import audit
from ssdet.studies.presets import preset


def shorter(experiment):
    """A change that says nothing of what it does."""
    optim = replace(experiment.finetune.optim, steps=3)
    return replace(experiment, finetune=replace(experiment.finetune, optim=optim))


def study_of(*arms: Arm) -> Study:
    return Study("audit_test", arms, seeds=(0, 1), base=preset("smoke").experiment)


@pytest.fixture
def data(shapes):
    from ssdet.studies.data import moving_shapes

    return moving_shapes(preset("smoke").shapes)


def test_declared_differences_are_fair(data) -> None:
    arms = (
        Arm("cls", classification),
        Arm("scratch", scratch),
        Arm("det"),
        Arm("mixup", augmented("mixup", mask="step")),
        Arm("both", members=("det", "mixup")),
    )
    found = audit(plan(replace(study_of(*arms), data=data)))
    assert found.fair and found.notes == ()
    assert all(difference.declared for difference in found.differences)
    named = {(d.arm, d.field): (d.baseline, d.value) for d in found.differences}
    assert named == {
        ("scratch", "pretrain"): ("present", "absent"),
        ("det", "pretrain.readout"): ("clip", "frame"),
        ("mixup", "pretrain.readout"): ("clip", "frame"),
        ("mixup", "pretrain.augment"): ("none", "mixup"),
        ("mixup", "pretrain.augment_options"): ({}, None),
        ("mixup", "pretrain.augment_options.mask"): (None, "step"),
    }
    facts = {one.arm: one for one in found.facts}
    assert facts["mixup"].iterations == {"pretrain": 4, "finetune": 4}
    assert facts["scratch"].iterations == {"finetune": 4}
    assert facts["both"].parameters is None and facts["both"].seeds == (0, 1)
    assert facts["det"].parameters == facts["cls"].parameters > 1000
    assert facts["det"].macs == facts["cls"].macs > 1000


def test_what_is_not_declared_is_said(data) -> None:
    arms = (Arm("cls", classification), Arm("quick", shorter))
    found = audit(plan(replace(study_of(*arms), data=data)))
    assert not found.fair
    (note,) = found.notes
    assert "quick" in note and "finetune.optim.steps" in note and "3 instead of 4" in note
    owned = replace(arms[1], declares=("finetune.optim.steps",))
    assert audit(plan(replace(study_of(arms[0], owned), data=data))).fair


def test_how_arms_ran_and_what_they_covered_counts_too(data) -> None:
    planned = plan(replace(study_of(Arm("cls", classification), Arm("other", other_lr)), data=data))
    ids = {run.arm: run.predict.id for run in planned.runs if run.seed == 0}

    def result(stage: str):
        scored = 7 if stage == ids["other"] else 8
        score = {"videos_scored": scored, "videos_expected": 8}
        lost = {"v3": "truncated"} if scored == 7 else {}
        return {"scores": {"test": score}, "unreadable": lost}

    def provenance(stage: str):
        return {"revision": "b" if stage == ids["other"] else "a", "packages": {}, "workers": 1,
                "processor": "x", "gpu": None, "threads": 1}  # fmt: skip

    found = audit(planned, SimpleNamespace(result=result, provenance=provenance))
    assert [note.split(",")[0] for note in found.notes] == [
        "other could not read 1 videos",
        "other ran with revision a and b",
        "other was scored on 7 of 8 videos",
    ]


other_lr = pretraining(validations=1)
