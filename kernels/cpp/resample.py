"""Averages, interpolation and their transposes on CPU."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.pool import lanes, unlaned, weights


def resample(x, out, mode, shape, divisor, scales, transposed, last):
    """y (N, C, *out) of x (N, C, D, H, W) by kernels/pool.py's `weights`; transposed: the map that they are the
    transpose of goes from out to x's sizes. last: channels are adjacent, in x and in y."""
    channels, size = x.shape[1], tuple(x.shape[2:])
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    ends = (tuple(out), size) if transposed else (size, tuple(out))
    w = weights(mode, *ends, tuple(shape), divisor, tuple(scales), transposed, acc, torch.device("cpu"))
    x = lanes(x, last)
    y = memory.empty((x.shape[0], *out, x.shape[4]), x.dtype)
    _cpu.resample(
        x.data_ptr(), y.data_ptr(), w.table.data_ptr(), w.weights.data_ptr(),
        0 if w.divisors is None else w.divisors.data_ptr(), x.shape[0], x.shape[4], size, tuple(out), w.most,
        DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return unlaned(y, channels, last)
