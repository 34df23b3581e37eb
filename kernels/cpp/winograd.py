"""3x3 convolutions of stride 1 with fewer products than they have: see csrc/cpu/winograd.h.

Tensors as in `conv`, of float32 or float64. None where a result is not finite: the transforms spread an infinity over
its whole tile, so that the caller's other product has to say which elements have it.
"""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.conv import channels_first, empty_as
from kernelzoo.kernels.cpp.native import DTYPES

TILES = 64  # of a block
CHANNELS = 16  # the channels' number is a multiple of it


def serves(x, kernel, size, stride, dilation, groups, channels):
    """Whether x's convolution to `size` and `channels`, or the gradient to it, is one of these."""
    flat = x.shape[1] == size[0] == 1
    return (
        flat
        and x.dtype in (torch.float32, torch.float64)
        and list(kernel) == [1, 3, 3]
        and max(stride) == max(dilation) == groups == 1
        and x.shape[4] % CHANNELS == channels % CHANNELS == 0
        and x.numel() > 0
        and min(size) > 0
    )


def _problem(x, channels, size, padding):
    N, _, H, W, C = x.shape
    return _cpu.Winograd(N, C, channels, [H, W], list(size[1:]), list(padding[1:]), channels_first(x), TILES)


def _scratch(problem, weight, x, threads):
    return memory.workspace((_cpu.winograd_scratch(problem, weight, DTYPES[x.dtype], threads),), torch.uint8)


def fwd(x, w, b, size, padding, backward):
    """conv(x, w) + b, or the gradient to the input of w's convolution whose dz is x: (N, *size, channels)."""
    outer, _, down, across, inner = w.stride()
    data, strides, channels = w.data_ptr(), [inner, outer, down, across], w.shape[0]
    if backward:  # the taps turned round
        data += 2 * (down + across) * w.element_size()
        strides, channels, padding = [outer, inner, -down, -across], w.shape[4], [2 - p for p in padding]
    y, threads = empty_as(x, x.shape[0], size, channels), torch.get_num_threads()
    problem = _problem(x, channels, size, padding)
    finite = _cpu.winograd_fwd(
        problem, x.data_ptr(), data, strides, 0 if b is None else b.data_ptr(), y.data_ptr(),
        _scratch(problem, False, x, threads).data_ptr(), DTYPES[x.dtype], threads,
    )  # fmt: skip
    return y if finite else None


def bwd_weight(dz, x, kernel, padding):
    """dw (O, *kernel, C)."""
    dw, threads = empty_as(x, dz.shape[4], kernel, x.shape[4]), torch.get_num_threads()
    problem = _problem(x, dz.shape[4], dz.shape[1:4], padding)
    finite = _cpu.winograd_bwd_weight(
        problem, dz.data_ptr(), x.data_ptr(), dw.data_ptr(), _scratch(problem, True, x, threads).data_ptr(),
        DTYPES[x.dtype], threads,
    )  # fmt: skip
    return dw if finite else None
