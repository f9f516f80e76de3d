"""The plan graph: what is shared, what is not, and what names a stage."""

import json
import shutil
from dataclasses import replace

import pytest

from ssdet.cli.experiment import Options, resolve
from ssdet.studies import (
    Arm,
    Study,
    Table,
    augmented,
    classification,
    every_nth_frame,
    finetuned_as,
    from_checkpoint,
    plan,
    pretraining,
    scaled_pretraining,
    scratch,
)
from ssdet.studies.graph.record import record_of

ARMS = (
    Arm("scratch", scratch),
    Arm("cls", classification),
    Arm("view", augmented("cutmix", window="view")),
    Arm("mixup", augmented("mixup")),
    Arm("freeze", augmented("freeze")),
    Arm("both", members=("view", "mixup")),
    Arm("control", seeds_of="mixup", size=2),
)
STUDY = Study("test", ARMS, table=Table(baseline="cls"))


@pytest.fixture
def study(shapes) -> Study:
    return resolve(STUDY, Options(preset="smoke", seeds=3))


def test_stages_are_shared_and_in_order(study) -> None:
    planned = plan(study)
    kinds = [stage.kind for stage in planned.stages.values()]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    # 4 pretrained arms and scratch, 3 seeds; 3 ensembles of two arms, 3 of two of three seeds.
    assert counts == {"pretrain": 12, "finetune": 15, "predict": 15, "probe": 15, "ensemble": 6}
    seen: set[str] = set()
    for name, stage in planned.stages.items():
        assert {parent.id for parent in stage.parents} <= seen
        seen.add(name)
    # A run has 4 stages, from scratch 3; an ensemble of two would train 2 × 3 of its own.
    assert len(planned.unshared) == 12 * 4 + 3 * 3 + 6 * (2 * 3 + 1)


def test_an_arm_of_another_study_is_the_same_stage(study) -> None:
    arms = (Arm("base", classification), Arm("again", augmented("mixup")))
    other = replace(study, name="other", arms=arms, table=Table(baseline="base"))
    shared = plan(study).stages.keys() & plan(other).stages.keys()
    assert shared == plan(other).stages.keys()


def test_everything_that_decides_a_result_is_in_the_id(study) -> None:
    base = plan(study)
    ids = set(base.stages)

    def changed(arms=None, **fields) -> set[str]:
        arms = arms or tuple(
            Arm(arm.name, lambda e, f=arm.change: pretraining(**fields)(f(e)))
            for arm in study.arms
            if arm.name == "mixup"
        )
        other = replace(study, arms=arms, table=Table(baseline=arms[0].name))
        return set(plan(other).stages)

    assert changed() <= ids
    for fields in (
        {"loss": "bce"},
        {"background": "zero"},
        {"augment_options": {"mask": "half"}},
        {"augment_options": {"compat": "released"}},
        {"optim": replace(study.base.pretrain.optim, lr=0.051)},
    ):
        assert not changed(**fields) & ids, fields


def test_a_checkpoint_is_the_stage_of_the_arm_that_trains_it(study) -> None:
    chained = from_checkpoint(classification, scaled_pretraining(1 / 2, augmented("mixup")))
    arms = (*ARMS, Arm("chain", chained))
    planned = plan(replace(study, arms=arms))
    before = plan(study)
    for seed, run in enumerate(planned.of("chain")):
        tuned = run.predict.parents[0]
        last = tuned.parents[0]
        assert run.probe.parents == (last,)
        assert last.recipe.augment == "mixup" and last.recipe.optim.steps == 2
        assert last.recipe.seed == last.parents[0].recipe.seed == seed
        assert last.parents == planned.of("cls")[seed].predict.parents[0].parents
    # Its own pretraining, fine-tuning, prediction and probe; the start is there already.
    assert len(planned.stages) == len(before.stages) + 4 * 3
    alone = scaled_pretraining(1 / 2, augmented("mixup"))(study.base)
    assert chained(study.base) == replace(alone, start=classification(study.base).pretrain)
    assert scratch(chained(study.base)).pretrainings == ()
    recorded = record_of(planned, 0.0).plan().study
    assert recorded.arm("chain").change(recorded.base) == chained(study.base).with_seed(0)
    with pytest.raises(ValueError, match="start without pretrain"):
        replace(chained(study.base), pretrain=None)


def test_an_arm_that_needs_an_unbuilt_network_has_no_runs(study) -> None:
    slow = Arm("slow", finetuned_as("not_built"), needs="not_built")
    arms = (*ARMS, slow, Arm("mean", members=("cls", "slow")), Arm("fits", needs="x3d_tiny"))
    planned = plan(replace(study, arms=arms))
    missing = {arm.name: planned.missing(arm) for arm in arms}
    waiting = {"slow": "not_built", "mean": "not_built"}
    assert missing == dict.fromkeys(missing, "") | waiting
    assert not planned.of("slow") and not planned.of("mean") and planned.of("fits")
    assert set(plan(study).stages) <= set(planned.stages)
    with pytest.raises(ValueError, match="'slow' needs not_built: not built yet"):
        plan(replace(study, arms=arms, table=Table(baseline="slow")))


def test_coarser_clips_cover_the_same_stretch(study) -> None:
    change = every_nth_frame(4, augmented("mixup"))
    coarse = change(study.base)
    assert coarse.pretrain == augmented("mixup")(study.base).pretrain
    for recipe in (coarse.finetune, coarse.predict, coarse.probe.predict):
        assert (recipe.clip.frames, recipe.clip.stride) == (4, 4)
    with pytest.raises(ValueError, match="1 frames"):
        every_nth_frame(16)(study.base)


def test_where_data_lie_does_not_matter_what_they_hold_does(study, shapes, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shapes, moved)

    def at(folder) -> set[str]:
        sources = {}
        for role in ("upstream", "downstream"):
            source = getattr(study.data, role)
            paths = {
                field: getattr(source, field).replace(str(shapes), str(folder))
                for field in ("path", "videos")
            }
            sources[role] = replace(source, **paths)
        return set(plan(replace(study, data=replace(study.data, **sources))).stages)

    assert at(moved) == set(plan(study).stages)
    annotations = moved / "downstream" / "annotations.json"
    entries = json.loads(annotations.read_text())
    entry = next(e for e in entries.values() if e["subset"] == "training" and e["actions"])
    entry["actions"][0][2] += 0.25
    annotations.write_text(json.dumps(entries))
    after = at(moved)
    same = {name for name in plan(study).stages if name.startswith("pretrain")}
    assert same <= after and not {n for n in after if n.startswith("finetune")} & set(
        plan(study).stages
    )


def test_seeds_of_an_ensemble_are_distinct_sets(study) -> None:
    runs = plan(study).of("control")
    members = [frozenset(parent.id for parent in run.predict.parents) for run in runs]
    assert len(runs) == 3 and len(set(members)) == 3 and all(len(m) == 2 for m in members)
    three = replace(study, arms=(*ARMS[:6], Arm("control", seeds_of="mixup", size=3)))
    assert len(plan(three).of("control")) == 1
    with pytest.raises(ValueError, match="needs 4 seeds"):
        plan(replace(study, arms=(*ARMS[:6], Arm("control", seeds_of="mixup", size=4))))


def test_studies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Study("s", (Arm("a"), Arm("a")))
    with pytest.raises(ValueError, match="no arm named"):
        Study("s", (Arm("a"),), table=Table(baseline="b"))
    with pytest.raises(ValueError, match="distinct"):
        Study("s", (Arm("a"),), seeds=(0, 0))
