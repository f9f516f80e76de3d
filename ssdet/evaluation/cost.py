"""Multiply-adds, parameters and training cost of networks, as counted in the paper."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def conv_macs(model: nn.Module, input_shape: Sequence[int], method: str = "forward") -> int:
    """Multiply-adds of all convolutions in one evaluation of ``model.method`` on one input.

    The paper's "FLOPs" are these, without linear layers, normalisation and the rest. Computed on
    the meta device from a copy of the model.
    """
    meta_model = copy.deepcopy(model).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(meta_model, method)(torch.empty(*input_shape, device="meta"))
    return _convolutions(counter)


def head_macs(model: nn.Module, channels: int, steps: int) -> int:
    """Multiply-adds of all convolutions of a model of features for one sequence of `steps`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, steps), torch.tensor([steps]))
    return _convolutions(counter)


def _convolutions(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operator, n in counts.items() if "convolution" in str(operator)) // 2


def parameters(model: nn.Module) -> int:
    """Number of learnable weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def pretraining_pflops(macs_per_clip: int, batch: int, iterations: int) -> float:
    """The paper's "pretraining FLOPs (P)": forward passes only, a multiply-add counted once."""
    return macs_per_clip * batch * iterations / 1e15
