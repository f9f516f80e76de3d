"""ssdet's own parts keep the contracts that additions are tested with, and faults do not pass."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet import plugins
from ssdet.augment import VolumeMixUp
from ssdet.augment import registry as augmentations
from ssdet.data import CorruptVideo, load_manifest
from ssdet.data.datasets import registry as formats
from ssdet.data.datasets.manifest import Manifest, Segment
from ssdet.evaluation import PROTOCOLS
from ssdet.evaluation.protocols import registry as protocols
from ssdet.evaluation.protocols.registry import Reading
from ssdet.models import registry as models
from ssdet.testing import check_augmentation, check_data_set, check_model, check_protocol

SMALL = {"widths": ((12, 8), (24, 12)), "depths": (1, 2), "stem": 8, "head_dim": 32}
THRESHOLDS = ("segments", "activitynet", "activitynet_thumos")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with plugins.restored():
        yield


def test_networks_of_ssdet_pass() -> None:
    check_model("x3d", **SMALL)
    check_model("x3d", steps=(4, 3), **SMALL, in_channels=2, se_ratio=0)


@pytest.mark.parametrize("name", ["none", "freeze", "mixup", "cutmix", "joint_single", "joint"])
@pytest.mark.parametrize("compat", ["paper", "released"])
def test_augmentations_of_ssdet_pass(name: str, compat: str) -> None:
    check_augmentation(name, **({} if name == "none" else {"compat": compat}))


@pytest.mark.parametrize("name", [*PROTOCOLS])
def test_protocols_of_ssdet_pass(name: str) -> None:
    check_protocol(name, ranks=name not in THRESHOLDS)


def test_data_sets_of_ssdet_pass(shapes: Path) -> None:
    for role in ("upstream", "downstream"):
        check_data_set("moving_shapes", shapes, split=role)
    downstream = shapes / "downstream"
    check_data_set("segments", downstream / "annotations.json", downstream / "videos", files=1)
    check_data_set("segments", downstream / "annotations.json")


class Net(nn.Module):
    """A network of features with one fault, or none."""

    takes: ClassVar[str] = "features"
    classifier: ClassVar[str] = "score."

    def __init__(self, num_classes: int, fault: str) -> None:
        super().__init__()
        self.fault, self.scale = fault, 1.0
        self.hidden, self.score = nn.Conv1d(6, 8, 1), nn.Conv1d(8, num_classes, 1)
        if fault == "unused":
            self.spare = nn.Linear(2, 2)
        if fault == "fixed":
            nn.init.ones_(self.hidden.weight), nn.init.zeros_(self.hidden.bias)
            nn.init.ones_(self.score.weight), nn.init.zeros_(self.score.bias)
        if fault == "apart":
            self.scale = float(torch.rand(()))
        if fault == "prefix":
            self.classifier = "hidden."  # type: ignore[misc]
        if fault == "takes":
            self.takes = "pictures"  # type: ignore[misc]

    def forward(self, features_BDT: Tensor, lengths_B: Tensor) -> Tensor:
        x = features_BDT.relu_() if self.fault == "inplace" else features_BDT
        if self.fault == "random":
            x = F.dropout(x, 0.5, training=True)
        if self.fault == "neighbours":
            x = x - x.mean(0)
        if self.fault == "padding":
            x = x - x.mean(2, keepdim=True)
        if self.fault == "nan":
            x = x / (x - x.mean(2, keepdim=True))
        x = self.score(self.hidden(x) * self.scale)
        return {"transposed": x.mT, "double": x.double()}.get(self.fault, x)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return self.score.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        parts = {"groups": (), "unused": ("hidden", "spare")}.get(self.fault, ("hidden",))
        return (p for part in parts for p in getattr(self, part).parameters())

    def reset_classifier(self, num_classes: int, generator: torch.Generator) -> None:
        with models.seeded(generator):
            self.score = nn.Conv1d(8, num_classes, 1)
            if self.fault == "reset":
                self.hidden = nn.Conv1d(6, 8, 1)


def faulty(num_classes: int, *, in_features: int = 6, fault: str = "") -> Net:
    return Net(num_classes, fault)


def test_a_network_without_fault_passes() -> None:
    models.register(faulty)
    check_model("faulty", in_features=6)
    check_model("faulty", in_features=6, fault="unused", unreached=("spare",))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("takes", "takes is 'pictures', expected one of"),
        ("fixed", "other generators give the same weights"),
        ("transposed", r"logits \(2, 8, 5\).*expected \(2, 5, 8\)"),
        ("double", "torch.float64"),
        ("nan", "not finite"),
        ("random", "evaluation draws from torch's global generator"),
        ("inplace", "writes into its inputs"),
        ("neighbours", "depend on the others"),
        ("apart", "not in the state dict"),
        ("prefix", "classifier is 'hidden.', expected the prefix of"),
        ("groups", "not all parameters"),
        ("reset", "reset_classifier changes hidden"),
        ("padding", "padding changes the steps of a sequence of"),
        ("unused", "no gradient of spare"),
    ],
)
def test_faults_of_networks_are_told(fault: str, told: str) -> None:
    models.register(faulty)
    with pytest.raises(AssertionError, match=told):
        check_model("faulty", in_features=6, fault=fault)


def test_what_is_said_to_be_unreached_must_be() -> None:
    models.register(faulty)
    with pytest.raises(AssertionError, match="hidden.weight has a gradient: it is not `unreached`"):
        check_model("faulty", in_features=6, unreached=("hidden",))


class Mix(VolumeMixUp):
    """MixUp with one fault."""

    fault = ""

    def draw(self, batch: int, frames: int, width: int, generator: torch.Generator) -> Any:
        if self.fault == "global":
            torch.rand(())
        return super().draw(batch, frames, width, generator)

    def evaluation_draws(self, batch: int, frames: int, width: int) -> Any:
        if self.fault == "validation":
            return self.draw(batch, frames, width, torch.default_generator)
        return super().evaluation_draws(batch, frames, width)

    def apply(self, clips: Tensor, targets: Tensor, draws: Any, out: Any = None,
              inplace: bool = False, return_components: bool = False) -> Any:  # fmt: skip
        if self.fault == "writes":
            inplace = out is None
        if self.fault == "keeps":
            draws = self.__dict__.setdefault("kept", draws)
        if self.fault == "out":
            out = None
        clips = clips.detach() if self.fault == "gradient" and clips.requires_grad else clips
        mixed, soft, parts = super().apply(clips, targets, draws, out, inplace, True)
        if self.fault == "labels":
            soft = 2 * soft
        if self.fault == "types":
            mixed = mixed.double()
        return (mixed, soft, parts) if return_components else (mixed, soft)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("global", "draws from torch's global generator"),
        ("keeps", "every generator gives the same result"),
        ("writes", "clips or targets are written to"),
        ("out", "out= does not hold the result"),
        ("types", "torch.float64 from"),
        ("labels", "sum to 2, expected <= 1"),
        ("gradient", "no gradient reaches the clips"),
        ("validation", "differ from one call to the next"),
    ],
)
def test_faults_of_augmentations_are_told(fault: str, told: str) -> None:
    def faulty_mix(*, fault: str) -> Mix:
        aug = Mix()
        object.__setattr__(aug, "fault", fault)
        return aug

    augmentations.register(faulty_mix)
    with pytest.raises(AssertionError, match=told):
        check_augmentation("faulty_mix", fault=fault)


def numbers(material: protocols.Material, fault: str) -> list[Reading]:
    """The dense mAP of videos in their order, with one fault."""
    if fault == "silent" and material.predictions is None:
        return []
    predictions, labels = material.dense
    (reading,) = PROTOCOLS["dense"].score(material)
    if fault == "worse is more":
        reading = replace(reading, value=1 - (reading.value or 0))
    if fault == "id":
        reading = replace(reading, protocol="dense_map")
    if fault == "percent":
        reading = replace(reading, value=100 * (reading.value or 0))
    if fault == "coverage":
        reading = replace(reading, videos_expected=reading.videos_scored)
    if fault == "order":
        part = {name: labels[name] for name in [*predictions][:1]}
        first = {name: predictions[name] for name in part}
        (reading,) = PROTOCOLS["dense"].score(replace(material, predictions=first, labels=part))
        reading = replace(reading, videos_scored=len(predictions), videos_expected=len(labels))
    if fault == "values":
        hits = [np.asarray(predictions[v])[np.asarray(labels[v])] for v in predictions]
        reading = replace(reading, value=float(np.concatenate(hits).astype(float).mean()))
    return [reading]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("id", "id 'dense_map', expected name/vN"),
        ("percent", "is no fraction"),
        ("worse is more", "perfect scores 0.0, noisy ones"),
        ("order", "in another order of videos"),
        ("coverage", r"\(3, 3\) of 3 predicted and 4 expected"),
        ("values", "steeper scores of equal ranks"),
        ("silent", "no ValueError without predictions"),
    ],
)
def test_faults_of_protocols_are_told(fault: str, told: str) -> None:
    def faulty_score(material: protocols.Material) -> list[Reading]:
        return numbers(material, fault)

    protocols.register(faulty_score)
    with pytest.raises(AssertionError, match=told):
        check_protocol("faulty_score")


def spoilt(manifest: Manifest, fault: str, reads: list[int]) -> Manifest:
    """A manifest with one fault."""
    first, *rest = manifest.videos
    reads.append(0)
    length = first.duration or 0.0
    changes: dict[str, dict[str, Any]] = {
        "drifts": {"duration": length + 1e-3 * len(reads)},
        "length": {"duration": length + 2},
        "split": {"split": "training"},
        "outside": {"segments": (Segment(0, length + 1, length + 2),)},
        "two kinds": {"label": 0, "segments": (Segment(0, 0.0, 1.0),)},
        "broken": {"path": __file__},
    }
    spoilt = replace(manifest, videos=(replace(first, **changes.get(fault, {})), *rest))
    if fault == "missing twice":
        spoilt = replace(spoilt, missing=(first.id,), missing_splits=(first.split,))
    if fault == "empty":
        spoilt = replace(spoilt, videos=())
    return spoilt


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("drifts", "read again, or sent to a worker, it is another"),
        ("length", "annotated"),
        ("split", "split 'training', expected one of"),
        ("outside", "is outside of"),
        ("two kinds", "both a label and segments"),
        ("missing twice", "both found and missing"),
        ("empty", "no video"),
        ("broken", "test_contracts.py"),
    ],
)
def test_faults_of_data_sets_are_told(shapes: Path, fault: str, told: str) -> None:
    reads: list[int] = []

    def faulty_set(paths: list[Path], videos: Path | None) -> Manifest:
        return spoilt(load_manifest("segments", paths[0], videos), fault, reads)

    formats.register(faulty_set)
    folder = shapes / "downstream"
    with pytest.raises(CorruptVideo if fault == "broken" else AssertionError, match=told):
        check_data_set("faulty_set", folder / "annotations.json", folder / "videos")
