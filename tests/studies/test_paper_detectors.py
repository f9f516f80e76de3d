"""Detectors of several networks: planned as shared stages, trained, scored, and loaded as one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdet import results
from ssdet.data.features.shards import FeatureSet, FeatureWriter
from ssdet.inference.fine_features import FineFeatureReader
from ssdet.inference.scoring import score_video
from ssdet.models import create
from ssdet.stages.checkpoint_loader import load_networks
from ssdet.stages.job import FEATURES, LAST, Job
from ssdet.stages.kinds import run_stage
from ssdet.studies import (
    Arm,
    Plan,
    Store,
    Study,
    augmented,
    classification,
    finetuned_as,
    on_features,
    plan,
    preset,
    two_stream,
)
from ssdet.studies.data import moving_shapes
from ssdet.studies.graph.audit import audit
from ssdet.studies.graph.lineage import experiment_of, named_stages
from ssdet.studies.graph.record import record_of, write_record
from ssdet.studies.network_costs import macs, parameter_count
from ssdet.training import checkpoint
from ssdet.training.heads.feature_heads import build_head
from ssdet.training.recipe import OptimRecipe

CUTMIX = augmented("cutmix")
ARMS = (
    Arm("x3d", classification),
    Arm("se", on_features("super_events", classification)),
    Arm("tgm", on_features("tgm", classification, hidden=16)),
    Arm("cf", two_stream("coarse_fine", CUTMIX, classification)),
    Arm("slowfast", two_stream("slowfast_det", classification, classification)),
    Arm("coarse", finetuned_as("coarse", CUTMIX)),
    Arm("at_once", finetuned_as("coarse_fine", CUTMIX, grid=3)),
)


@pytest.fixture(scope="module")
def planned(shapes) -> Plan:
    chosen = preset("smoke")
    few = OptimRecipe(steps=8, batch=4, lr=0.01, optimizer="adamw", weight_decay=0.0)
    kit = replace(chosen.experiment.second_network, head_optim=few)
    data = moving_shapes(chosen.shapes, chosen.decode_size, chosen.cache)
    base = replace(chosen.experiment, second_network=kit, probe=None)
    return plan(Study("systems", ARMS, seeds=(0,), base=base, data=data))


@pytest.fixture(scope="module")
def store(planned, tmp_path_factory) -> Store:
    """A store in which all stages of the plan are done."""
    store = Store.open(tmp_path_factory.mktemp("store"))
    write_record(store, planned)
    for stage in planned.stages.values():
        run_stage(Job(stage, str(store.root), planned.study.data))
    return store


def stages(planned: Plan, arm: str) -> dict:
    return named_stages(planned.of(arm)[0].predict)


def test_what_arms_share_is_there_once(planned) -> None:
    x3d, se, tgm, cf, slowfast, coarse, at_once = (stages(planned, arm.name) for arm in ARMS)
    assert list(se) == ["pretrain", "finetune", "features", "head", "predict"]
    assert se["finetune"].id == x3d["finetune"].id
    assert se["features"].id == tgm["features"].id and se["head"].id != tgm["head"].id
    assert (
        cf["fine_stream.finetune"].id == slowfast["fine_stream.finetune"].id == x3d["finetune"].id
    )
    assert cf["fine_stream.features"].id == slowfast["fine_stream.features"].id != se["features"].id
    assert cf["pretrain"].recipe.augment == "cutmix" != cf["fine_stream.pretrain"].recipe.augment
    assert coarse["pretrain"].id == cf["pretrain"].id
    assert list(at_once) == ["pretrain", "finetune", "predict"]
    kinds = [stage.kind for stage in planned.stages.values()]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "pretrain": 2, "finetune": 5, "predict": 7, "extract": 2, "fit_head": 2,
    }  # fmt: skip


def test_every_detector_is_scored_on_every_frame(planned, store) -> None:
    test = planned.study.data.split("downstream", "test")
    for run in planned.runs:
        score = store.result(run.predict.id)["scores"]["test"]
        assert score["videos_scored"] == len(test.videos) and 0 < score["value"] < 1


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_a_run_is_loaded_as_one_network(planned, store, arm) -> None:
    run = results.open(store.root).run(planned.of(arm)[0].predict.id)
    (member,) = load_networks(run.id, store.root)
    data, predictions = planned.study.data, run.predictions()
    video, reader = data.split("downstream", "test").videos[0], data.reader("downstream")
    stored = torch.tensor(np.array(predictions[video.id]), dtype=torch.float32)
    for model in (run.load_model(), member.model):
        logits = score_video(model, video, reader, member.recipe, torch.device("cpu"))
        torch.testing.assert_close(logits.sigmoid(), stored, atol=3e-3, rtol=0)
    assert member.classes == tuple(data.manifests["downstream"].classes)


def test_the_second_stage_starts_from_what_came_before(planned, store) -> None:
    found = stages(planned, "slowfast")
    before, own, fine = (
        checkpoint.load_weights(store.folder(found[name].id) / LAST)
        for name in ("pretrain", "finetune", "fine_stream.finetune")
    )
    name = "blocks.1.res_blocks.0.branch1_conv.weight"
    moved = (own[name] - before[name]).norm() / before[name].norm()
    assert 0 < moved < 0.5
    scored = "blocks.4.proj.weight"
    moved = (own[f"fine.{scored}"] - fine[scored]).norm() / fine[scored].norm()
    assert 0 < moved < 0.5
    assert not any(name.startswith("fine.blocks.1") for name in own)


def test_the_same_numbers_another_time(planned, store, tmp_path) -> None:
    again = Store.open(tmp_path)
    chosen = [stages(planned, "cf")[name] for name in stages(planned, "cf")]
    for stage in chosen:
        run_stage(Job(stage, str(again.root), planned.study.data))
    one, other = (
        checkpoint.load_weights(place.folder(chosen[-2].id) / LAST) for place in (store, again)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert store.result(chosen[-1].id)["scores"] == again.result(chosen[-1].id)["scores"]


def test_the_comparison_is_fair_and_the_record_whole(planned, store) -> None:
    assert audit(planned, store).notes == ()
    study = record_of(planned, 0.0).plan(planned.study.data).study
    for arm in ARMS:
        wanted = arm.change(planned.study.base).with_seed(0)
        carried_out = experiment_of(planned.of(arm.name)[0].predict)
        assert study.arm(arm.name).change(None) == wanted == carried_out


def test_rows_name_the_model_of_features(planned, store) -> None:
    frame = results.open(store.root).runs.set_index("id")
    models = {run.arm: frame.loc[run.predict.id, "model"] for run in planned.runs}
    assert models["tgm"] == "x3d_tiny + tgm" and models["cf"] == "coarse_fine"
    assert frame.loc[planned.of("cf")[0].predict.id, "augment"] == "cutmix"


def test_costs_are_those_of_all_networks(planned) -> None:
    base = planned.study.base
    x3d, se, cf = (next(a for a in ARMS if a.name == name).change(base)
                   for name in ("x3d", "se", "cf"))  # fmt: skip
    head = create("super_events", 10, in_features=144)
    weights = sum(p.numel() for p in head.parameters())
    assert parameter_count(se, 10) == parameter_count(x3d, 10) + weights
    assert macs(se, 10) == macs(x3d, 10) + 144 * 10 * 16
    both = create("coarse_fine", 10, backbone="x3d_tiny", grid=3)
    assert parameter_count(cf, 10) == sum(p.numel() for p in both.parameters())
    assert macs(cf, 10) > 1.5 * macs(x3d, 10)


@pytest.mark.parametrize(
    "name", ["linear", "super_events", "tgm", "tgm_super_events", "pdan", "ms_tct"]
)
def test_every_head_can_be_built_at_every_size(name) -> None:
    for size in ("tiny", "paper"):
        recipe = on_features(name)(preset(size).experiment).head
        with torch.device("meta"):
            assert build_head(recipe, 144, 10) is not None


def test_what_does_not_go_together_is_refused(planned) -> None:
    base = planned.study.base
    with pytest.raises(ValueError, match="fine_steps"):
        replace(base, fine_stream=base)
    both = on_features("tgm", two_stream("coarse_fine"))
    with pytest.raises(ValueError, match="a head reads the features of one network"):
        plan(replace(planned.study, arms=(Arm("both", both),)))


def test_fine_features_start_at_each_clips_first_frame(planned, store, tmp_path) -> None:
    with FeatureWriter(tmp_path / "maps", "float32") as writer:
        for name, steps in (("short", 3), ("long", 7)):
            writer.begin(name, steps * 4, 24.0, 4)
            numbers = torch.arange(steps, dtype=torch.float32)
            writer.add({"layer1": numbers[:, None, None, None].expand(-1, 2, 3, 3)})
            writer.commit()
    read = FineFeatureReader(FeatureSet.open(tmp_path / "maps"), 5)
    fine = read(["long", "short"], torch.tensor([6, 8]))
    assert fine.start_B.tolist() == [1.5, 2.0]
    assert fine.mask_BT.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert fine.levels["layer1"].shape == (2, 2, 5, 3, 3)
    assert fine.levels["layer1"][:, 0, :, 0, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    flat = store.folder(stages(planned, "se")["features"].id) / FEATURES
    with pytest.raises(ValueError, match="pyramid"):
        FineFeatureReader(FeatureSet.open(flat), 5)
