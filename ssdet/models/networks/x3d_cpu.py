"""X3D with faster training on CPU, and equal parameters, names and results."""

import ctypes
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdet.models.layers import cpu_ops as ops
from ssdet.models.networks.x3d import X3D
from ssdet.system.quiet import quiet_import


def accelerate(model: nn.Module) -> nn.Module:
    """Replace the X3D parts of ``model`` in place by faster ones; idempotent.

    Parameters, buffers and state dict names are unchanged. On a GPU, in other precisions than
    float32 and under tracing the parts run as before. Hooks on blocks work as before; hooks on
    modules inside a block are not called. The process keeps freed memory for later tensors.
    """
    with quiet_import():
        from pytorchvideo.models.resnet import ResBlock
        from pytorchvideo.models.stem import ResNetBasicStem

    swaps: dict[type, type] = {ResBlock: FastBlock, ResNetBasicStem: FastStem, X3D: FastX3D}
    for module in model.modules():
        plain = type(module)
        if plain in swaps:
            module.__class__ = swaps[plain]
            module.__dict__["plain_class"] = plain
    _keep_freed_memory()
    return model


def _keep_freed_memory() -> None:
    # By default glibc returns large blocks to the system, and every step waits for fresh pages: a
    # third of its time for small clips. Constants are from malloc.h.
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def _supports(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )


class FastStem(nn.Module):
    """pytorchvideo's X3D stem, in which the names of the two convolutions are exchanged."""

    plain_class: Any
    conv: Any
    norm: Any

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return self.plain_class.forward(self, x_NCTHW)
        samples, _, frames = x_NCTHW.shape[:3]
        spatial, temporal = self.conv.conv_t, self.conv.conv_xy
        x = x_NCTHW.permute(2, 0, 1, 3, 4).flatten(0, 1)
        x = F.conv2d(x, spatial.weight[:, :, 0], None, spatial.stride[1:], spatial.padding[1:])
        x_THWNC = x.unflatten(0, (frames, samples)).permute(0, 3, 4, 1, 2).contiguous()
        y = ops.norm_add(self.norm, ops.temporal(x_THWNC, temporal.weight), relu=True)
        return ops.logical(y)


class FastBlock(nn.Module):
    """pytorchvideo's residual block of X3D."""

    plain_class: Any
    branch1_conv: Any
    branch1_norm: Any
    branch2: Any

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return self.plain_class.forward(self, x_NCTHW)
        x, branch, shortcut = ops.inner(x_NCTHW), self.branch2, self.branch1_conv
        if shortcut is None:
            a = ops.pointwise(x, branch.conv_a.weight)
        else:
            a, x = ops.fork(x, branch.conv_a.weight, shortcut.weight, shortcut.stride[1])
            if self.branch1_norm is not None:
                x = ops.norm_add(self.branch1_norm, x, relu=False)
        b = ops.norm_relu_depthwise(branch.norm_a, a, branch.conv_b.weight, branch.conv_b.stride[1])
        norm_b, excitation = branch.norm_b
        c = ops.norm_swish_pointwise(norm_b, b, branch.conv_c.weight, *excitation.parameters())
        return ops.logical(ops.norm_add(branch.norm_c, c, x, relu=True))


class FastX3D(X3D):
    """X3D with a fast last convolution."""

    def pool(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return super().pool(x_NCTHW)
        pool = self.head.pool
        y_THWNC = ops.pointwise(ops.inner(x_NCTHW), pool.pre_conv.weight)
        return ops.norm_add(pool.pre_norm, y_THWNC, relu=True).mean((1, 2)).permute(1, 2, 0)
