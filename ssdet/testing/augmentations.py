"""Contract checks of augmentations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssdet.augment import Augmentation, create
from ssdet.testing.expect import close, expect, no_global_draws, seeded

CLASSES = 6
SHAPES = ((5, 3, 8, 4, 16), (1, 2, 9, 3, 15))
"""Shapes [B, C, T, H, W] of the tested clips: even and odd sizes, a batch of one."""
ROUNDING = 1e-5


def check_augmentation(name: str, **options: Any) -> None:
    """Raise AssertionError unless an augmentation, with these options, fulfils the contract.

    Shapes, dtypes and devices are preserved; inputs are not modified unless `inplace`; draws depend
    on the generator only and are separate from `apply`; labels are fractions of at most 1 in all.
    """
    aug = create(name, **options)
    case = Case(name, aug)
    message = f"{type(aug).__name__}, expected an ssdet.augment.Augmentation"
    case.expect(isinstance(aug, Augmentation), message)
    for shape in SHAPES:
        clips, targets = batch(shape)
        draws_come_from_the_generator(case, clips, targets)
        inputs_are_not_modified(case, clips, targets)
        labels_are_fractions(case, clips, targets)
        dtype_and_device_are_preserved(case, clips, targets)
        gradients_reach_the_clips(case, clips, targets)
        validation_draws_are_fixed(case, clips, targets)


@dataclass(frozen=True)
class Case:
    """An augmentation under test."""

    name: str
    aug: Augmentation

    def expect(self, condition: object, message: str) -> None:
        expect(condition, f"augmentation {self.name!r}: {message}")


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random clips, each of one class in all frames, none of class 0, the background."""
    clips = torch.rand(shape, generator=seeded(0))
    classes_B = torch.randint(1, CLASSES, shape[:1], generator=seeded(1))
    return clips, F.one_hot(classes_B, CLASSES).float()[..., None].repeat(1, 1, shape[2])


def _equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def draws_come_from_the_generator(case: Case, clips: Tensor, targets: Tensor) -> None:
    """A call equals `draw` and `apply`; equal generators give equal results."""
    frames, width = clips.shape[2], clips.shape[-1]
    with no_global_draws(f"augmentation {case.name!r}"):
        called = case.aug(clips.clone(), targets, seeded(2))
        draws = case.aug.draw(len(clips), frames, width, seeded(2))
        case.expect(isinstance(draws, case.aug.draws_type), f"draws are {type(draws).__name__}, "
                    f"draws_type says {case.aug.draws_type.__name__}")  # fmt: skip
        applied = [case.aug.apply(clips.clone(), targets, draws) for _ in range(2)]
    case.expect(_equal(called, applied[0]), "draw and apply give another result than the call")
    case.expect(_equal(*applied), "apply gives another result the second time: it draws or keeps")
    others = [case.aug(clips.clone(), targets, seeded(seed)) for seed in range(3, 8)]
    vary = draws is None or len(clips) == 1 or any(not _equal(called, other) for other in others)
    case.expect(vary, "every generator gives the same result")


def inputs_are_not_modified(case: Case, clips: Tensor, targets: Tensor) -> None:
    """Results are in new memory, in `out`, or with `inplace` in the clips."""
    before, labels = clips.clone(), targets.clone()
    fresh = case.aug(clips, targets, seeded(3))
    case.expect(_equal((clips, targets), (before, labels)), "clips or targets are written to")
    for found, given in zip(fresh, (clips, targets), strict=True):
        message = f"{tuple(found.shape)} {found.dtype} from {tuple(given.shape)} {given.dtype}"
        case.expect(found.shape == given.shape and found.dtype == given.dtype, message)
    buffer = torch.full_like(clips, torch.nan)
    out = case.aug(clips, targets, seeded(3), out=buffer)
    case.expect(out[0] is buffer and _equal(out, fresh), "out= does not hold the result")
    moved = case.aug(before, targets, seeded(3), inplace=True)
    case.expect(moved[0] is before and _equal(moved, fresh), "inplace=True gives another result")
    case.expect(torch.equal(targets, labels), "inplace=True writes to the targets")


def labels_are_fractions(case: Case, clips: Tensor, targets: Tensor) -> None:
    """Soft targets are the weighted labels of the components, at least 0, in all at most 1."""
    _, soft, parts = case.aug(clips, targets, seeded(4), return_components=True)
    case.expect(soft.min() >= 0, f"a label of {float(soft.min()):.3g}")
    mass = float(soft.sum(1).max())
    case.expect(mass <= 1 + ROUNDING, f"the labels of a frame sum to {mass:.3g}, expected <= 1")
    shapes = {tuple(parts.weights.shape), tuple(parts.visible.shape)}
    right = shapes == {(len(parts.labels), len(clips), clips.shape[2])}
    case.expect(right, f"weights and visible are {sorted(shapes)}, expected [M, B, T]")
    mixed = (parts.labels * parts.weights[:, :, None]).sum(0)
    case.expect(close(mixed, soft, ROUNDING), "labels times weights are not the soft targets")
    case.expect(not parts.weights[parts.visible == 0].any(), "a component weighs where unseen")


def dtype_and_device_are_preserved(case: Case, clips: Tensor, targets: Tensor) -> None:
    """bfloat16 and float64 are preserved, and no value of another device is needed."""
    expected = case.aug(clips, targets, seeded(5))
    for dtype, slack in ((torch.bfloat16, 0.02), (torch.float64, ROUNDING)):
        found = case.aug(clips.to(dtype), targets.to(dtype), seeded(5))
        case.expect({tensor.dtype for tensor in found} == {dtype}, f"{dtype} is not kept")
        near = all(close(a, b, slack) for a, b in zip(found, expected, strict=True))
        case.expect(near, f"{dtype} gives another result")
    # The meta device refuses to mix devices and to wait for a value.
    meta = case.aug(clips.to("meta"), targets.to("meta"), seeded(5))
    case.expect({tensor.device.type for tensor in meta} == {"meta"}, "results change device")


def gradients_reach_the_clips(case: Case, clips: Tensor, targets: Tensor) -> None:
    """Clips that need a gradient (features inside a network) get one; values do not change."""
    expected, _ = case.aug(clips, targets, seeded(6))
    inner = clips.clone().requires_grad_()
    mixed, _ = case.aug(inner, targets, seeded(6))
    case.expect(close(mixed.detach(), expected, ROUNDING), "with gradients the result is another")
    if mixed.requires_grad:
        mixed.sum().backward()
    case.expect(inner.grad is not None and inner.grad.any(), "no gradient reaches the clips")


def validation_draws_are_fixed(case: Case, clips: Tensor, targets: Tensor) -> None:
    """`evaluation_draws` returns equal draws on every call."""
    sizes = len(clips), clips.shape[2], clips.shape[-1]
    results = [
        case.aug.apply(clips.clone(), targets, case.aug.evaluation_draws(*sizes)) for _ in range(2)
    ]
    case.expect(_equal(*results), "evaluation_draws differ from one call to the next")
