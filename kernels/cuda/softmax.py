"""softmax and log_softmax over the middle of (outer, n, inner)."""

import torch

from kernelzoo import _cuda
from kernelzoo.kernels.cuda.native import DTYPES, target


def softmax_fwd(x, log):
    y = torch.empty_like(x)
    _cuda.softmax_fwd(x.data_ptr(), y.data_ptr(), *x.shape, log, DTYPES[x.dtype], *target(x))
    return y


def softmax_bwd(dy, y, log):
    dx = torch.empty_like(y)
    _cuda.softmax_bwd(dy.data_ptr(), y.data_ptr(), dx.data_ptr(), *y.shape, log, DTYPES[y.dtype], *target(y))
    return dx
