"""The same X3D, several times faster to train on CPU: equal parameters, names and results.

Activations keep their logical shape [N, C, T, H, W] but lie in memory as [T, H, W, N, C]. One such
block is, without a copy, a batch of T channels-last planes with C, n * C or N * C channels: what
1x1x1 convolutions, sub-batch statistics and depthwise convolutions need, in that order. oneDNN has
fast kernels for all of them but for the gradients of a 3-D depthwise convolution, which are made
of fast ones here. Big intermediate results are computed again in the backward pass.
"""

import ctypes
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssdet.models.norm import SubBatchNorm3d
from ssdet.models.x3d import X3D

_aten = torch.ops.aten
_CHUNK = 2**20  # elements that stay in cache between the three frames of a kernel


def accelerate(model: nn.Module) -> nn.Module:
    """Swap the X3D parts of ``model`` for faster ones, in place; a second call changes nothing.

    Parameters, buffers and state dict keep their names. On other devices than the CPU, in other
    precisions than float32 and under tracing the parts run as before.
    """
    from pytorchvideo.models.resnet import ResBlock
    from pytorchvideo.models.stem import ResNetBasicStem

    swaps: dict[type, type] = {ResBlock: FastBlock, ResNetBasicStem: FastStem, X3D: FastX3D}
    for module in model.modules():
        fast = swaps.get(type(module))
        if fast is not None:
            module.plain = type(module)  # type: ignore[assignment]
            module.__class__ = fast
    _reuse_freed_memory()
    return model


def _reuse_freed_memory() -> None:
    # By default glibc hands large blocks back to the system, and every step pays for their pages
    # again: a third of its time at small planes.
    if platform.libc_ver()[0] == "glibc":
        mmap_max, trim_threshold = -4, -1
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def _supports(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )


class FastStem(nn.Module):
    """pytorchvideo's X3D stem."""

    plain: type[nn.Module]

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return self.plain.forward(self, x_NCTHW)
        n, _, t = x_NCTHW.shape[:3]
        spatial, temporal = self.conv.conv_t, self.conv.conv_xy
        frames = x_NCTHW.permute(2, 0, 1, 3, 4).flatten(0, 1)
        y = F.conv2d(
            frames, spatial.weight.squeeze(2), None, spatial.stride[1:], spatial.padding[1:]
        )
        y_THWNC = y.unflatten(0, (t, n)).permute(0, 3, 4, 1, 2).contiguous()
        return _logical(_norm_add(self.norm, _temporal(temporal, y_THWNC), relu=True))


class FastBlock(nn.Module):
    """pytorchvideo's residual block of X3D."""

    plain: type[nn.Module]

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return self.plain.forward(self, x_NCTHW)
        x, branch, shortcut = _inner(x_NCTHW), self.branch2, self.branch1_conv
        if shortcut is None:
            a = _pointwise(branch.conv_a, x)
        else:
            weights = branch.conv_a.weight, shortcut.weight
            a, x = _Fork.apply(x, *weights, shortcut.stride[1])
            if self.branch1_norm is not None:
                x = _norm_add(self.branch1_norm, x, relu=False)
        norm_a, norm_b, norm_c = branch.norm_a, branch.norm_b[0], branch.norm_c
        b = _NormReluDepthwise.apply(
            a, norm_a.weight, norm_a.bias, branch.conv_b.weight, norm_a, branch.conv_b.stride[1]
        )
        gate = list(branch.norm_b[1].parameters())
        c = _NormSwishPointwise.apply(
            b, norm_b.weight, norm_b.bias, branch.conv_c.weight, norm_b, *gate
        )
        return _logical(_norm_add(norm_c, c, x, relu=True))


class FastX3D(X3D):
    """X3D whose last convolution runs on the inner layout too."""

    plain: type[X3D]

    def embed(self, x_NCTHW: Tensor) -> Tensor:
        if not _supports(x_NCTHW):
            return super().embed(x_NCTHW)
        pool = self.head.pool
        y_THWNC = _norm_add(pool.pre_norm, _pointwise(pool.pre_conv, _inner(x_NCTHW)), relu=True)
        return y_THWNC.mean((1, 2)).permute(1, 2, 0)


def _inner(x_NCTHW: Tensor) -> Tensor:
    return x_NCTHW.permute(2, 3, 4, 0, 1).contiguous()


def _logical(x_THWNC: Tensor) -> Tensor:
    return x_THWNC.permute(3, 4, 0, 1, 2)


def _planes(x_THWNC: Tensor, channels: int) -> Tensor:
    """View [T, channels, H, W * N * C / channels], channels last."""
    return x_THWNC.view(*x_THWNC.shape[:2], -1, channels).permute(0, 3, 1, 2)


def _from_planes(planes: Tensor, samples: int, channels: int) -> Tensor:
    y = planes.permute(0, 2, 3, 1)
    return y.view(*y.shape[:2], -1, samples, channels)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of a 2-D convolution of planes, padded to keep the size, by (input, weight)."""
    padding = [size // 2 for size in weight.shape[2:]]
    return _aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], groups, [*wanted, False]
    )[:2]


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    y = F.conv2d(_planes(x, x.shape[-1]), conv.weight.squeeze(2))
    return _from_planes(y, x.shape[3], y.shape[1])


def _temporal(conv: nn.Module, x: Tensor) -> Tensor:
    """Depthwise convolution over time alone: a 2-D one on a plane of T by H * W."""
    t, h, w, n, c = x.shape
    plane = x.view(1, t, h * w, n * c).permute(0, 3, 1, 2)
    weight = conv.weight.squeeze(4).repeat(n, 1, 1, 1)
    y = F.conv2d(plane, weight, padding=(conv.padding[0], 0), groups=n * c)
    return y.permute(0, 2, 3, 1).view(x.shape)


class _Fork(torch.autograd.Function):
    """First convolution of a block and its strided shortcut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, main: Tensor, side: Tensor, stride: int) -> tuple[Tensor, ...]:
        strided = x[:, ::stride, ::stride].contiguous()
        ctx.save_for_backward(x, strided, main, side)
        ctx.stride = stride
        n, c = x.shape[3:]
        outs = [F.conv2d(_planes(v, c), w[:, :, 0]) for v, w in ((x, main), (strided, side))]
        return tuple(_from_planes(y, n, y.shape[1]) for y in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_main: Tensor, grad_side: Tensor) -> tuple[Tensor | None, ...]:
        x, strided, main, side = ctx.saved_tensors
        grad_x, grad_w = _pointwise_backward(grad_main, x, main)
        grad_strided, grad_v = _pointwise_backward(grad_side, strided, side)
        grad_x[:, :: ctx.stride, :: ctx.stride] += grad_strided
        return grad_x, grad_w, grad_v, None


def _pointwise_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    planes = _planes(grad, grad.shape[-1]), _planes(x, x.shape[-1])
    grad_x, grad_w = _gradients(*planes, weight[:, :, 0], 1, 1, (True, True))
    return _from_planes(grad_x, *x.shape[3:]), grad_w.unsqueeze(2)


class _Normalised:
    """What a normalisation must keep to be repeated and differentiated."""


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, norm: SubBatchNorm3d) -> tuple[Tensor, ...]:
    """Normalised x, and the mean and reciprocal deviation ([n * C]) that were used."""
    if not norm.training:
        rstd = (norm.running_var + norm.eps).rsqrt()
        return _affine(x, weight, bias, norm.running_mean, rstd), norm.running_mean, rstd
    norm.num_batches_tracked.add_(1)
    n = norm.check(x.shape[3])
    y, mean, rstd = torch.native_batch_norm(
        _planes(x, n * x.shape[4]),
        weight.repeat(n), bias.repeat(n), norm.split_mean, norm.split_var, True, norm.momentum,
        norm.eps,
    )
    return _from_planes(y, *x.shape[3:]), mean, rstd


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    n = mean.numel() // x.shape[4]
    y = F.batch_norm(
        _planes(x, mean.numel()), mean, rstd.pow(-2), weight.repeat(n), bias.repeat(n), eps=0.0
    )
    return _from_planes(y, *x.shape[3:])


def _normalise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels, n = mean.numel(), mean.numel() // x.shape[4]
    grad_x, grad_w, grad_b = _aten.native_batch_norm_backward(
        _planes(grad, channels), _planes(x, channels), weight.repeat(n), mean, rstd.pow(-2),
        mean, rstd, training, 0.0, [True] * 3,
    )
    return _from_planes(grad_x, *x.shape[3:]), grad_w.view(n, -1).sum(0), grad_b.view(n, -1).sum(0)


class _NormAdd(torch.autograd.Function):
    """norm(x) + residual, then ReLU; the last two may be absent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, norm: SubBatchNorm3d, relu: bool) -> Tensor:
        y, mean, rstd = _normalise(x, weight, bias, norm)
        if residual is not None:
            y.add_(residual)
        if relu:
            y.relu_()
        ctx.save_for_backward(x, weight, mean, rstd, y if relu else None)
        ctx.training, ctx.residual = norm.training, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, y = ctx.saved_tensors
        if y is not None:
            grad = _aten.threshold_backward(grad, y, 0)
        grads = _normalise_backward(grad.contiguous(), x, weight, mean, rstd, ctx.training)
        return grads[0], grad if ctx.residual else None, *grads[1:], None, None


def _norm_add(norm: SubBatchNorm3d, x: Tensor, residual: Tensor | None = None, *, relu: bool) -> Tensor:
    return _NormAdd.apply(x, residual, norm.weight, norm.bias, norm, relu)


class _NormReluDepthwise(torch.autograd.Function):
    """Depthwise convolution of relu(norm(x)); only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, norm: SubBatchNorm3d, stride: int) -> Tensor:
        y, mean, rstd = _normalise(x, weight, bias, norm)
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd)
        ctx.training, ctx.stride = norm.training, stride
        return _depthwise(y.relu_(), kernel, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel, mean, rstd = ctx.saved_tensors
        y = _affine(x, weight, bias, mean, rstd).relu_()
        grad_kernel = _depthwise_kernel_grad(grad, y, kernel, ctx.stride)
        if ctx.stride == 1:
            grad_y = _depthwise(grad, kernel.flip(2, 3, 4), 1)
        else:
            grad_y = _depthwise_input_grad(grad, y, kernel, ctx.stride)
        _aten.threshold_backward.grad_input(grad_y, y, 0, grad_input=grad_y)
        grads = _normalise_backward(grad_y, x, weight, mean, rstd, ctx.training)
        return *grads, grad_kernel, None, None


def _depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    t, h, w, n, c = x.shape
    volume = x.view(1, t, h, w, n * c).permute(0, 4, 1, 2, 3)
    y = F.conv3d(volume, kernel.repeat(n, 1, 1, 1, 1), None, (1, stride, stride), [s//2 for s in kernel.shape[2:]], groups=n * c)
    y = y.permute(0, 2, 3, 4, 1)
    return y.view(*y.shape[1:4], n, c)


def _depthwise_kernel_grad(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Frame by frame, for every frame of the kernel, as a 2-D convolution's."""
    t, n, c = x.shape[0], x.shape[3], x.shape[4]
    result = torch.zeros_like(kernel)
    planes = _planes(grad, n * c), _planes(x, n * c)
    for i, at, to in _taps(kernel, 0, t, t):
        plane = kernel[:, :, i].repeat(n, 1, 1, 1)
        whole = _gradients(planes[0][at], planes[1][to], plane, stride, n * c, (False, True))[1]
        result[:, :, i] = whole.view(n, *plane.shape[1:]).sum(0) if 0 else whole.view(n, c, *whole.shape[1:]).sum(0)
    return result


def _depthwise_input_grad(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    t, n, c = x.shape[0], x.shape[3], x.shape[4]
    grads, xs = _planes(grad, n * c), _planes(x, n * c)
    result = torch.zeros_like(x)
    out = _planes(result, n * c)
    planes = kernel.repeat(n, 1, 1, 1, 1).unbind(2)
    step = max(1, _CHUNK // x[0].numel())
    for start in range(0, t, step):
        for i, at, to in _taps(kernel, start, min(start + step, t), t):
            out[to] += _gradients(grads[at], xs[to], planes[i], stride, n * c, (True, False))[0]
    return result


def _taps(kernel: Tensor, start: int, stop: int, frames: int) -> list[tuple[int, slice, slice]]:
    """Per frame i of the kernel: output frames of [start, stop) and the input frames they see."""
    taps = []
    for i in range(kernel.shape[2]):
        shift = i - kernel.shape[2] // 2
        low, high = max(start + shift, 0), min(stop + shift, frames)
        if low < high:
            taps.append((i, slice(low - shift, high - shift), slice(low, high)))
    return taps


class _NormSwishPointwise(torch.autograd.Function):
    """1x1x1 convolution of swish(gate * norm(x)); only x is kept. The gate is squeeze-excitation's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, norm: SubBatchNorm3d, *gate: Tensor) -> Tensor:
        y, mean, rstd = _normalise(x, weight, bias, norm)
        pooled = _pool(y) if gate else None
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd, pooled, *gate)
        ctx.training = norm.training
        if gate:
            y.mul_(_excite(pooled, *gate))
        y = F.conv2d(_planes(F.silu(y, inplace=True), y.shape[4]), kernel[:, :, 0])
        return _from_planes(y, x.shape[3], y.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel, mean, rstd, pooled, *gate = ctx.saved_tensors
        y = _affine(x, weight, bias, mean, rstd)
        grad_gate = []
        if gate:
            with torch.enable_grad():
                leaves = [v.detach().requires_grad_() for v in (pooled, *gate)]
                scale = _excite(*leaves)
            v = y * scale.detach()
        else:
            v = y
        grad_v, grad_kernel = _pointwise_backward(grad, F.silu(v), kernel)
        _aten.silu_backward.grad_input(grad_v, v, grad_input=grad_v)
        if gate:
            grad_scale = _pool(y.mul_(grad_v)) * (y.numel() // scale.numel())
            grad_pooled, *grad_gate = torch.autograd.grad(scale, leaves, grad_scale)
            grad_v = torch.addcmul(grad_pooled / (y.numel() // scale.numel()), grad_v, scale.detach())
        grads = _normalise_backward(grad_v, x, weight, mean, rstd, ctx.training)
        return *grads, grad_kernel, None, *grad_gate


def _pool(x: Tensor) -> Tensor:
    return x.flatten(0, 2).flatten(1).mean(0).view(x.shape[3:])


def _excite(pooled_NC: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = F.linear(pooled_NC, w1.flatten(1), b1).relu()
    return F.linear(hidden, w2.flatten(1), b2).sigmoid()
