"""Max-pooling on CPU."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.pool import INDEX, lanes, unlaned, windows

KINDS = ("none", "tap", "flat")  # csrc/cpu/pool.h's PoolIndex


def _geometry(x, size, out, spec):
    """What both directions tell the compiled module; x is any tensor of (B, ..., L)."""
    w = windows(tuple(size), tuple(out), *map(tuple, spec), torch.device("cpu"))
    stride = w.stride if w.uniform else 0
    return (
        w.reach.data_ptr(), w.covers.data_ptr(), x.shape[0], x.shape[4], tuple(size), tuple(out), w.kernel, w.dilation,
        stride, w.padding, w.most, DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip


def max_pool_fwd(x, out, kernel, stride, padding, dilation, index, last):
    """x (N, C, D, H, W); y (N, C, *out) and, as `index` says, of each output the "tap" it took (uint8), its "flat"
    place in the plane (int64), or "none". last: channels are adjacent, in x and in the results; else widths are."""
    channels, size = x.shape[1], x.shape[2:]
    x = lanes(x, last)
    shape = (x.shape[0], *out, x.shape[4])
    y = memory.empty(shape, x.dtype)
    chosen = None if index == "none" else memory.empty(shape, INDEX[index])
    _cpu.max_pool_fwd(
        x.data_ptr(), y.data_ptr(), 0 if chosen is None else chosen.data_ptr(), KINDS.index(index),
        *_geometry(x, size, out, (kernel, stride, padding, dilation)),
    )  # fmt: skip
    return unlaned(y, channels, last), None if chosen is None else unlaned(chosen, channels, last)


def max_pool_bwd(dy, index, size, kernel, stride, padding, dilation, last):
    """dx (N, C, *size): of each input the sum of dy where the index names it."""
    channels, out = dy.shape[1], dy.shape[2:]
    dy, index = lanes(dy, last), lanes(index, last)
    dx = memory.empty((dy.shape[0], *size, dy.shape[4]), dy.dtype)
    _cpu.max_pool_bwd(
        dy.data_ptr(), index.data_ptr(), dx.data_ptr(), 1 if index.dtype == torch.uint8 else 2,
        *_geometry(dy, size, out, (kernel, stride, padding, dilation)),
    )  # fmt: skip
    return unlaned(dx, channels, last)
