"""Operations of an X3D block for training on CPU, with explicit gradients.

Activations of logical shape [N, C, T, H, W] are stored as [T, H, W, N, C]. Without a copy, that is
a batch of T channels-last planes with C, n * C or N * C channels, as needed by 1x1x1 convolutions,
n sub-batches of a normalisation and depthwise convolutions.

oneDNN has fast kernels for these, but not for the gradients of a 3-D depthwise convolution. At
stride 1 the gradient by input is a convolution with the flipped kernel; the others are sums of 2-D
gradients over the frames of the kernel. Cheap intermediate values are recomputed in the backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ssdet.models.layers.sub_batch_norm import SubBatchNorm3d

_aten = torch.ops.aten
_CACHED = 2**20  # elements of gradient that are summed at a time, so that they stay in cache


def inner(x_NCTHW: Tensor) -> Tensor:
    """Copy a tensor into the memory layout [T, H, W, N, C]."""
    return x_NCTHW.permute(2, 3, 4, 0, 1).contiguous()


def logical(x_THWNC: Tensor) -> Tensor:
    """View a tensor [T, H, W, N, C] as [N, C, T, H, W]."""
    return x_THWNC.permute(3, 4, 0, 1, 2)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """1x1x1 convolution."""
    y = F.conv2d(_planes(x, x.shape[4]), weight[..., 0])
    return _from_planes(y, x.shape[3])


def temporal(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution over time, as a 2-D one on a plane of T by H * W."""
    t, h, w, n, c = x.shape
    plane = x.view(1, t, h * w, n * c).permute(0, 3, 1, 2)
    kernel = weight[..., 0].repeat(n, 1, 1, 1)
    y = F.conv2d(plane, kernel, padding=(weight.shape[2] // 2, 0), groups=n * c)
    return y.permute(0, 2, 3, 1).view(x.shape)


def fork(x: Tensor, main: Tensor, side: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """1x1x1 convolutions of x (``main``) and of x at every ``stride``-th position (``side``)."""
    return _Fork.apply(x, main, side, stride)


def norm_add(
    norm: SubBatchNorm3d, x: Tensor, residual: Tensor | None = None, *, relu: bool
) -> Tensor:
    """norm(x) + residual, then ReLU if `relu`."""
    return _NormAdd.apply(x, residual, norm.weight, norm.bias, norm, relu)


def norm_relu_depthwise(norm: SubBatchNorm3d, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """3x3x3 depthwise convolution of relu(norm(x)) with a spatial stride."""
    return _NormReluDepthwise.apply(x, norm.weight, norm.bias, kernel, norm, stride)


def norm_swish_pointwise(
    norm: SubBatchNorm3d, x: Tensor, kernel: Tensor, *excitation: Tensor
) -> Tensor:
    """1x1x1 convolution of swish(norm(x)), after squeeze-excitation if its weights are given."""
    return _NormSwishPointwise.apply(x, norm.weight, norm.bias, kernel, norm, *excitation)


def _planes(x: Tensor, channels: int) -> Tensor:
    return x.view(*x.shape[:2], -1, channels).permute(0, 3, 1, 2)


def _from_planes(planes: Tensor, samples: int, channels: int | None = None) -> Tensor:
    y = planes.permute(0, 2, 3, 1)
    return y.view(*y.shape[:2], -1, samples, channels or y.shape[3])


def _gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, *, by: str, stride: int = 1, groups: int = 1
) -> Tensor:
    """Gradient of a 2-D convolution with "same" padding by its input or kernel."""
    padding = [size // 2 for size in kernel.shape[2:]]
    mask = [by == "input", by == "kernel", False]
    grads = _aten.convolution_backward(
        grad, x, kernel, None, [stride] * 2, padding, [1, 1], False, [0, 0], groups, mask
    )
    return grads[mask.index(True)]


def _pointwise_backward(grad: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    args = _planes(grad, grad.shape[4]), _planes(x, x.shape[4]), kernel[..., 0]
    grad_x = _from_planes(_gradient(*args, by="input"), x.shape[3])
    return grad_x, _gradient(*args, by="kernel")[..., None]


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, main: Tensor, side: Tensor, stride: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, main, side)
        ctx.stride = stride
        return pointwise(x, main), pointwise(x[:, ::stride, ::stride].contiguous(), side)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_main: Tensor, grad_side: Tensor) -> tuple[Tensor | None, ...]:
        x, main, side = ctx.saved_tensors
        at = (slice(None), slice(None, None, ctx.stride), slice(None, None, ctx.stride))
        grad_x, grad_w = _pointwise_backward(grad_main, x, main)
        grad_strided, grad_v = _pointwise_backward(grad_side, x[at].contiguous(), side)
        grad_x[at] += grad_strided
        return grad_x, grad_w, grad_v, None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, norm: SubBatchNorm3d) -> list[Tensor]:
    """Normalised x, and the means and reciprocal deviations [n * C] of its sub-batches."""
    if not norm.training:
        mean, rstd = norm.running_mean.clone(), (norm.running_var + norm.eps).rsqrt()
        return [_scaled(x, weight, bias, mean, rstd), mean, rstd]
    n, c = norm.begin(x.shape[3]), x.shape[4]
    affine, running = (weight.repeat(n), bias.repeat(n)), (norm.split_mean, norm.split_var)
    y, mean, rstd = torch.native_batch_norm(
        _planes(x, n * c), *affine, *running, True, norm.momentum, norm.eps
    )
    return [_from_planes(y, x.shape[3], c), mean, rstd]


def _scaled(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    n = len(mean) // len(weight)
    affine = weight.repeat(n), bias.repeat(n)
    y = F.batch_norm(_planes(x, len(mean)), mean, rstd.pow(-2), *affine, eps=0.0)
    return _from_planes(y, x.shape[3], x.shape[4])


def _normalise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n = len(mean) // len(weight)
    planes, running = (_planes(grad, len(mean)), _planes(x, len(mean))), (mean, rstd.pow(-2))
    grad_x, grad_w, grad_b = _aten.native_batch_norm_backward(
        *planes, weight.repeat(n), *running, mean, rstd, training, 0.0, [True, True, True]
    )
    sums = grad_w.view(n, -1).sum(0), grad_b.view(n, -1).sum(0)
    return _from_planes(grad_x, x.shape[3], x.shape[4]), *sums


class _NormAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: SubBatchNorm3d,
        relu: bool,
    ) -> Tensor:
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
        grad = grad.contiguous()
        if y is not None:
            grad = _aten.threshold_backward(grad, y, 0)
        grad_x, *grads = _normalise_backward(grad, x, weight, mean, rstd, ctx.training)
        return grad_x, grad if ctx.residual else None, *grads, None, None


class _NormReluDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
        norm: SubBatchNorm3d,
        stride: int,
    ) -> Tensor:
        y, mean, rstd = _normalise(x, weight, bias, norm)
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd)
        ctx.training, ctx.stride = norm.training, stride
        return _depthwise(y.relu_(), kernel, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel, mean, rstd = ctx.saved_tensors
        y = _scaled(x, weight, bias, mean, rstd).relu_()
        grad_kernel = _depthwise_by_kernel(grad, y, kernel, ctx.stride)
        grad_y = _depthwise_by_input(grad, y, kernel, ctx.stride)
        _aten.threshold_backward.grad_input(grad_y, y, 0, grad_input=grad_y)
        grads = _normalise_backward(grad_y, x, weight, mean, rstd, ctx.training)
        return *grads, grad_kernel, None, None


def _depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    t, h, w, n, c = x.shape
    volume = x.view(1, t, h, w, n * c).permute(0, 4, 1, 2, 3)
    kernels, strides = kernel.repeat(n, 1, 1, 1, 1), (1, stride, stride)
    y = F.conv3d(volume, kernels, stride=strides, padding=1, groups=n * c)
    y = y.permute(0, 2, 3, 4, 1)
    return y.view(*y.shape[1:4], n, c)


def _depthwise_by_kernel(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    t, n, c = x.shape[0], x.shape[3], x.shape[4]
    result = torch.zeros_like(kernel)
    grads, planes = _planes(grad, n * c), _planes(x, n * c)
    kernels = kernel.repeat(n, 1, 1, 1, 1).unbind(2)
    for i, at, seen in _taps(kernel.shape[2], 0, t, t):
        args = grads[at], planes[seen], kernels[i]
        grad_i = _gradient(*args, by="kernel", stride=stride, groups=n * c)
        result[:, :, i] = grad_i.unflatten(0, (n, c)).sum(0)
    return result


def _depthwise_by_input(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    if stride == 1:
        return _depthwise(grad, kernel.flip(2, 3, 4), 1)
    t, n, c = x.shape[0], x.shape[3], x.shape[4]
    result = torch.zeros_like(x)
    grads, planes, sums = (_planes(v, n * c) for v in (grad, x, result))
    kernels = kernel.repeat(n, 1, 1, 1, 1).unbind(2)
    step = max(1, _CACHED // x[0].numel())
    for start in range(0, t, step):
        for i, at, seen in _taps(kernel.shape[2], start, min(start + step, t), t):
            args = grads[at], planes[seen], kernels[i]
            sums[seen] += _gradient(*args, by="input", stride=stride, groups=n * c)
    return result


def _taps(size: int, start: int, stop: int, frames: int) -> list[tuple[int, slice, slice]]:
    """For each frame of a kernel: output frames in [start, stop), and the input frames it reads."""
    taps = []
    for i in range(size):
        shift = i - size // 2
        low, high = max(start + shift, 0), min(stop + shift, frames)
        if low < high:
            taps.append((i, slice(low - shift, high - shift), slice(low, high)))
    return taps


class _NormSwishPointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
        norm: SubBatchNorm3d,
        *excitation: Tensor,
    ) -> Tensor:
        y, mean, rstd = _normalise(x, weight, bias, norm)
        squeezed = _sum(y) / y[..., 0, 0].numel() if excitation else None
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd, squeezed, *excitation)
        ctx.training = norm.training
        if squeezed is not None:
            y.mul_(_gate(squeezed, *excitation))
        return pointwise(F.silu(y, inplace=True), kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel, mean, rstd, squeezed, *excitation = ctx.saved_tensors
        y = _scaled(x, weight, bias, mean, rstd)
        if squeezed is None:
            grad_y, grad_kernel = _swish_pointwise_backward(grad, y, kernel)
            grads = []
        else:
            with torch.enable_grad():
                leaves = [v.detach().requires_grad_() for v in (squeezed, *excitation)]
                gate = _gate(*leaves)
            scale = gate.detach()
            grad_y, grad_kernel = _swish_pointwise_backward(grad, y * scale, kernel)
            grad_gate = _sum(y.mul_(grad_y))
            grad_squeezed, *grads = torch.autograd.grad(gate, leaves, grad_gate)
            grad_y = torch.addcmul(grad_squeezed / y[..., 0, 0].numel(), grad_y, scale)
        norm_grads = _normalise_backward(grad_y, x, weight, mean, rstd, ctx.training)
        return *norm_grads, grad_kernel, None, *grads


def _swish_pointwise_backward(grad: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_kernel = _pointwise_backward(grad, F.silu(x), kernel)
    _aten.silu_backward.grad_input(grad_x, x, grad_input=grad_x)
    return grad_x, grad_kernel


def _sum(x: Tensor) -> Tensor:
    """Sum [N, C] over positions."""
    return x.view(-1, x.shape[3] * x.shape[4]).sum(0).view(x.shape[3:])


def _gate(squeezed_NC: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = F.linear(squeezed_NC, w1.flatten(1), b1).relu()
    return F.linear(hidden, w2.flatten(1), b2).sigmoid()
