"""Checks of the arguments and draws of augmentations."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ssdet.plugins import hint


def check_batch(clips_BCTHW: Tensor, targets_BKT: Tensor) -> None:
    """Raise unless clips [B, C, T, H, W] and targets [B, K, T] are floats that fit each other."""
    if clips_BCTHW.dim() != 5 or 0 in clips_BCTHW.shape or clips_BCTHW.shape[2] < 2:
        shape = tuple(clips_BCTHW.shape)
        raise ValueError(f"clips: shape {shape}, expected [B, C, T, H, W], not empty, T >= 2")
    batch, _, frames, _, _ = clips_BCTHW.shape
    shape = tuple(targets_BKT.shape)
    if len(shape) != 3 or shape[0] != batch or shape[1] < 1 or shape[2] != frames:
        raise ValueError(f"targets: shape {shape}, expected [{batch}, K, {frames}], K >= 1")
    for name, tensor in (("clips", clips_BCTHW), ("targets", targets_BKT)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name}: dtype {tensor.dtype}, expected a floating type: convert with "
                f"{name}.float() (and normalise clips) before augmenting"
            )
    if needs_gradient(targets_BKT):
        raise ValueError("targets require a gradient, which augmenting would drop: detach() them")


def needs_gradient(tensor: Tensor) -> bool:
    """Whether operations on the tensor must be differentiable now."""
    return tensor.requires_grad and torch.is_grad_enabled()


def destination(clips_BCTHW: Tensor, out: Tensor | None, inplace: bool) -> Tensor:
    """Tensor for the result. Raises ValueError if writing to it could damage the input."""
    if inplace and out is not None:
        raise ValueError("out and inplace=True exclude each other: omit one")
    if not inplace and out is None:
        return torch.empty_like(clips_BCTHW)
    result = clips_BCTHW if out is None else out
    name = "clips" if out is None else "out"
    if needs_gradient(clips_BCTHW):
        raise ValueError(f"clips require a gradient, {name} cannot be overwritten: omit it")
    expected = (clips_BCTHW.shape, clips_BCTHW.dtype, clips_BCTHW.device)
    if (result.shape, result.dtype, result.device) != expected:
        raise ValueError(
            f"out: {tuple(result.shape)} {result.dtype} on {result.device}, expected "
            f"{tuple(expected[0])} {expected[1]} on {expected[2]} like clips"
        )
    if _overlaps_itself(result):
        raise ValueError(f"{name}: elements share memory (expanded or unfolded): clone() it first")
    if out is not None and _share_memory(clips_BCTHW, out):
        raise ValueError("out shares memory with clips: pass inplace=True or a separate buffer")
    return result


def _overlaps_itself(tensor: Tensor) -> bool:
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _share_memory(first: Tensor, second: Tensor) -> bool:
    if first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return False
    # Clip by clip: interleaved clips of one buffer do not overlap.
    spans = sorted(_span(clip) for batch in (first, second) for clip in batch)
    return any(right[0] < left[1] for left, right in pairwise(spans))


def _span(tensor: Tensor) -> tuple[int, int]:
    reach = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()


def check_choice(field: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError with the closest allowed values, or all of them, for any other value."""
    if value not in allowed:
        raise ValueError(f"{field}={value!r}{hint(str(value), allowed)}")


def check_draw(
    field: str, values: Tensor, shape: tuple[int, ...], low: Tensor | int, high: Tensor | int
) -> None:
    """Raise ValueError unless values are int64 of this shape within low ... high."""
    if values.shape != shape or values.dtype != torch.long:
        actual = f"{values.dtype} {tuple(values.shape)}"
        raise ValueError(f"draws: {field} is {actual}, expected {torch.long} {shape}")
    if bool(((values < low) | (values > high)).any()):
        bounds = " to ".join(str(x.tolist() if isinstance(x, Tensor) else x) for x in (low, high))
        raise ValueError(f"draws: {field} {values.tolist()}, expected {bounds}")


def check_generator(generator: torch.Generator) -> None:
    """Raise TypeError or ValueError unless it is a CPU generator (None: torch's global state)."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: {generator!r}, expected a torch.Generator")
    if generator.device.type != "cpu":
        raise ValueError(f"generator on {generator.device}: draws are made on the CPU")
