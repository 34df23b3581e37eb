"""Softmax and log_softmax on CPU over the middle dimension of (outer, n, inner)."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def softmax_fwd(x, log):
    """y = exp(x - max) / sum(exp(x - max)), or its logarithm, over dim 1. x contiguous (outer, n, inner)."""
    y = memory.empty_like(x)
    _cpu.softmax_fwd(x.data_ptr(), y.data_ptr(), *x.shape, log, DTYPES[x.dtype], torch.get_num_threads())
    return y


def softmax_bwd(dy, y, log):
    """dx = y * (dy - sum(dy * y)), or for log_softmax dy - exp(y) * sum(dy). dy, y contiguous (outer, n, inner)."""
    dx = memory.empty_like(y)
    _cpu.softmax_bwd(
        dy.data_ptr(), y.data_ptr(), dx.data_ptr(), *y.shape, log, DTYPES[y.dtype], torch.get_num_threads()
    )
    return dx
