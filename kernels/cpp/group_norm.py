"""group_norm of (N, C, L) on CPU."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def _address(t):
    return 0 if t is None else t.data_ptr()


def group_norm_fwd(x, w, b, groups, eps):
    """y = (x - mean) * rstd * w + b with the statistics of runs of C / groups channels; mean, rstd (N * groups,).

    x (N, C, L) contiguous; w, b (C,) or None, of x's dtype, or float32 where x is 16 bits.
    """
    N, C, L = x.shape
    y = memory.empty_like(x)
    statistic = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (torch.empty(N * groups, dtype=statistic) for _ in range(2))
    affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
    _cpu.group_norm_fwd(
        x.data_ptr(), _address(w), _address(b), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), N, C, L, groups, eps,
        DTYPES[x.dtype], DTYPES[affine], torch.get_num_threads(),
    )  # fmt: skip
    return y, mean, rstd


def group_norm_bwd(dy, x, w, mean, rstd, groups, need_dx, need_dw, need_db):
    """With g = w * dy and x_hat = (x - mean) * rstd: dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)),
    dw = sum(dy * x_hat), db = sum(dy), or None where not needed."""
    N, C, L = x.shape
    dx = memory.empty_like(x) if need_dx else None
    affine = x.dtype if w is None else w.dtype
    dw = torch.empty(C, dtype=affine) if need_dw else None
    db = torch.empty(C, dtype=affine) if need_db else None
    partial = memory.workspace((2, N, C), torch.float64) if need_dw or need_db else None
    _cpu.group_norm_bwd(
        dy.data_ptr(), x.data_ptr(), _address(w), mean.data_ptr(), rstd.data_ptr(), _address(dx), _address(dw),
        _address(db), _address(partial), N, C, L, groups, DTYPES[x.dtype], DTYPES[affine], torch.get_num_threads(),
    )  # fmt: skip
    return dx, dw, db
