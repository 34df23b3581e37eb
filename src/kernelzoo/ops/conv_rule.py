"""What "auto" leaves to torch's own convolution, and the figures for it."""

import math

import torch

from .activation import COSTLY
from .core import below, leaves_to_torch
from .core.choice import PLAIN, automatic

# "auto" on a CPU without the C++ module is torch's: Numba's depthwise kernels run at 0.5 to 0.9 of eager's speed
# (8x768x2048, 8x128x56x56), its products by columns at 0.5.
#
# With it: below these, a call's fixed cost, 50 to 100 us more than torch's, is not won back. C++ over eager,
# forward and backward together on 2 cores, fp32.
#
# A filter a channel, one dimension, outputs (with no gradient to come: LINE_FORWARD). 8x768x2048, 4 taps: 5.6 times as
# fast; 2x64x256: 1.2, forward alone 0.8; 2x256x512 forward: 0.8.
LINE, LINE_FORWARD = 1 << 15, 1 << 19
# More dimensions, outputs times taps: 3x3, 8x128x56x56: 1.2 to 1.5 channels-last, 1.4 to 2.8 NCHW; at stride 2, below
# the limit, 0.93 to 1.01 where torch's own call by this rule has 0.98; of 8x384x14x14 0.8; 5x5 of 8x240x28x28 6.6.
# Forward alone: 1.15 to 1.7 NCHW; channels-last 0.6 to 1.0, and oneDNN's.
PLANES = 8 << 20
# With a residual, outputs: 8x64x56x56 1.2, a quarter of it 0.9 to 1.05.
SUM = 1 << 20
# An activation alone, bytes of outputs, as fresh memory is what it saves: 25 MB 1.3, 6 MB 0.96 to 1.0.
ACT = 16 << 20
# NCHW with one tap, outputs: matrix products of the samples as they lie. torch's gradient to x takes 26 ms where this
# takes 6 (8x256x56x56 to 64); 8x32x72x72 to 32: 1.6; 8x512x28x28 to 128: 1.03; 8x256x28x28 to 128: 0.93, AVX2 1.09.
POINTWISE = 1 << 20
# 3x3 at stride 1 with 16 products where the sum has 36 (csrc/cpu/winograd.h): products of the sum, channels of x and y.
# With AVX2, forward and backward, channels-last and NCHW: 8x64x56x56 1.68, 1.37; 8x512x4x4 1.16, 1.19; 8x48x56x56 1.46,
# 1.17; 2x64x56x56 1.53, 1.11; 1x64x56x56, 116 M products, 1.32, 1.01 (forward alone 0.89, 0.99); 8x32x56x56 1.21, 0.90.
PRODUCTS, CHANNELS = 3 << 26, 48


def channels_last(t):
    """Whether t's memory has the channels innermost, told from the strides where a size of 1 leaves it open. Unlike
    torch, which has no such format for them, also of three dimensions: (N, L, C) transposed."""
    channels, last = t.stride(1), t.stride(-1)
    return last >= t.size(1) * channels and t.movedim(1, -1).is_contiguous()


def _fewer_products(x, weight):
    """Whether C++ has fewer products for this filter, at stride 1, than torch."""
    return (
        x.dtype == torch.float32
        and x.is_cpu
        and weight.dim() == 4
        and weight.shape[2:] == (3, 3)
        and weight.size(0) % 16 == weight.size(1) % 16 == 0
        and min(weight.shape[:2]) >= CHANNELS
        and not below(9 * x.numel() * weight.size(0), PRODUCTS)
        and automatic("conv", "cpu", x.dtype) == "cpp"
    )


def _depthwise(x, weight, groups):
    return groups > 1 and weight.size(0) == groups and x.size(1) == groups


def _pointwise(x, weight, g):
    """Whether torch's own product is a slow one: NCHW, one tap, nothing padded."""
    return (
        x.dtype == torch.float32
        and g.groups == 1
        and not (any(k != 1 for k in weight.shape[2:]) or any(g.padding))
        and not (channels_last(x) or channels_last(weight))
    )


def left_to_torch(x, weight, residual, g, act):
    """Why "auto" leaves a call to torch, or None: ConvFunction's rule."""
    if x.device.type != "cpu":
        return "no GPU has been measured yet"
    if automatic("conv", "cpu", x.dtype) == "numba":
        return "oneDNN is faster than Numba's kernels"
    channels = weight.size(1) * g.groups if g.transposed else weight.size(0)
    outputs = x.size(0) * channels * math.prod(g.size)
    few = "few outputs on a CPU"
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if _depthwise(x, weight, g.groups):
        if len(g.stride) == 1:
            return few if below(outputs, LINE if learns else LINE_FORWARD) else None
        if learns or not channels_last(x):
            return few if below(outputs * weight[0].numel(), PLANES) else None
    if max(*g.stride, *g.dilation, g.groups) == 1 and _fewer_products(x, weight):
        return None
    if residual is not None:
        return few if below(outputs, SUM) else None
    if _pointwise(x, weight, g) and not below(outputs, POINTWISE):
        return None
    if act.name == "none":
        return "a product with nothing behind it is torch's own"
    if x.dtype.itemsize == 2:
        return "an activation behind a 16-bit product is torch's on a CPU"
    least = ACT // x.dtype.itemsize
    return few if below(outputs, min(COSTLY.get(act.name, least), least)) else None


def _taps(weight):
    return weight.shape[2:].numel() if type(weight) in PLAIN else 0


def bare_is_torchs(x, weight):
    """Whether "auto" surely leaves a product of one group, with nothing behind it, to torch: before any check."""
    return _taps(weight) > 1 and leaves_to_torch(x, math.inf) and not _fewer_products(x, weight)
