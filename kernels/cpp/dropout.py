"""Dropout on CPU: the mask is drawn where it is used."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def dropout_fwd(x, residual, seed, p):
    """y = x * m / (1 - p) (+ residual), m from Philox at the seed. x, residual contiguous; seed int64 (1,)."""
    y = memory.empty_like(x)
    _cpu.dropout_fwd(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        x.numel(),
        seed.item() & 0xFFFFFFFFFFFFFFFF,
        min(round(p * 2**32), 2**32 - 1),
        1 / (1 - p),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y
