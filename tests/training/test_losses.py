"""Losses against reference outputs and by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssdet.augment import Components
from ssdet.training import losses


def components_of(reference, case: str) -> tuple[torch.Tensor, Components]:
    logits, labels, gammas, mask = (
        torch.from_numpy(reference[f"{case}/{name}"])
        for name in ("logits", "labels", "gammas", "mask")
    )
    targets_MBKT = F.one_hot(labels, logits.shape[1]).movedim(-1, 2).float()
    return logits, Components(targets_MBKT, gammas, mask)


@pytest.mark.parametrize("case", ["vf", "vm", "vm_vc", "vf_vm_vc"])
def test_pretraining_losses_equal_the_reference(golden, case: str) -> None:
    reference = golden("losses")
    logits, components = components_of(reference, case)
    soft = components.soft_targets()
    torch.testing.assert_close(
        soft, torch.from_numpy(reference[f"{case}/soft_targets"]).mT, rtol=1e-5, atol=1e-6
    )
    assert losses.soft_cross_entropy(logits, soft).item() == pytest.approx(
        float(reference[f"{case}/soft_ce"]), rel=1e-5
    )
    assert losses.released_loss(logits, components).item() == pytest.approx(
        float(reference[f"{case}/ref_loss"]), rel=1e-5
    )


def test_localisation_loss_equals_the_reference(golden) -> None:
    reference = golden("losses")
    logits, labels = (torch.from_numpy(reference[f"ch/{name}"]) for name in ("logits", "labels"))
    everything = torch.ones(2, 160, dtype=torch.bool)
    loss = losses.localisation_loss(logits, labels, everything)
    assert loss.item() == pytest.approx(float(reference["ch/ssdet"][2]), rel=1e-5)
    torch.testing.assert_close(
        losses.interpolate(logits, 160), torch.from_numpy(reference["ch/up"]), rtol=1e-5, atol=1e-6
    )


def test_the_form_of_coarse_fine_networks_equals_the_reference(golden) -> None:
    reference = golden("losses")
    logits, labels, mask = (
        torch.from_numpy(reference[f"ch/{name}"]) for name in ("logits", "labels", "mask")
    )
    loss = losses.masked_localisation_loss(logits, labels, mask.bool())
    assert loss.item() == pytest.approx(float(reference["ch/coarsefine"][2]), rel=1e-5)
    # Nothing that stands where no frame is counts.
    noise = labels.masked_fill(mask[:, None] == 0, 1)
    again = losses.masked_localisation_loss(logits, noise, mask.bool())
    torch.testing.assert_close(again, loss)
    aligned = losses.interpolate(logits, 160, align_corners=True)
    torch.testing.assert_close(aligned, torch.from_numpy(reference["ch/up_align"]))
    for form in (losses.localisation_loss, losses.masked_localisation_loss):
        stretched = form(aligned, labels, mask.bool())
        torch.testing.assert_close(form(logits, labels, mask.bool(), True), stretched)
        assert abs(stretched - form(logits, labels, mask.bool())) > 1e-3


@pytest.mark.parametrize("padding", ["masked", "counted"])
def test_loss_of_heads_by_hand(padding) -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[1.0, -3.0]]])
    targets = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    terms = [math.log(2), math.log1p(math.exp(2)), math.log1p(math.exp(-1))]
    filling = math.log1p(math.exp(-3)) if padding == "counted" else 0.0
    loss = losses.head_loss(logits, targets, mask, padding)
    assert loss.item() == pytest.approx((sum(terms) + filling) / 3, rel=1e-6)


def test_frames_that_do_not_exist_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, generator=generator)
    targets = (torch.rand(2, 3, 8, generator=generator) > 0.5).float()
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 6:] = False
    whole = losses.localisation_loss(logits[:, :, :6], targets[:, :, :6], mask[:, :6])
    changed, noise = logits.clone(), targets.clone()
    changed[:, :, 6:], noise[:, :, 6:] = 50.0, 1.0
    torch.testing.assert_close(losses.localisation_loss(changed, noise, mask), whole)


def test_pretrain_targets_by_background() -> None:
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    moved = losses.pretrain_targets(labels, 2, "class")
    assert moved.shape == (1, 4, 2) and moved[0].argmax(0).tolist() == [2, 2]
    for background in ("zero", "class0"):
        kept = losses.pretrain_targets(labels, 2, background)
        assert kept.shape == (1, 3, 2) and kept[0].argmax(0).tolist() == [1, 1]


def test_a_frame_without_label_gives_no_gradient() -> None:
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.zeros(1, 4, 3)
    targets[0, 1, 0] = 1
    losses.soft_cross_entropy(logits, targets).backward()
    assert logits.grad is not None
    assert logits.grad[:, :, 0].abs().sum() > 0 and logits.grad[:, :, 1:].abs().sum() == 0
