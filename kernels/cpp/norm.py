"""layer_norm and rms_norm of rows on CPU, with the sum that precedes them."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES

# Blocks of rows that have weight gradients of their own, in float64: enough for threads, and at M = 4096 their
# memory is 1/32 of the rows'.
BLOCKS = 64
ROWS = 32  # the fewest of a block: 4 rows a block make 256x768 half as fast


def _address(t):
    return 0 if t is None else t.data_ptr()


def _dtype_code(t, otherwise):
    return DTYPES[otherwise.dtype if t is None else t.dtype]


def norm_fwd(x, residual, w, b, eps, rms):
    """y = (s - mean) * rstd * w + b, s = x + residual or x: y, s (with a residual), mean (not of rms), rstd.

    x, residual (M, N) contiguous; either may be 16 bits where the other is float32, and w, b (N,) float32 where y is
    16 bits.
    """
    if residual is not None and residual.dtype.itemsize > x.dtype.itemsize:
        x, residual = residual, x
    M, N = x.shape
    y = memory.empty_like(x)
    s = None if residual is None else memory.empty_like(x)
    statistic = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = None if rms else torch.empty(M, dtype=statistic)
    rstd = torch.empty(M, dtype=statistic)
    _cpu.norm_fwd(
        x.data_ptr(), _address(residual), _address(w), _address(b), y.data_ptr(), _address(s), _address(mean),
        rstd.data_ptr(), M, N, eps, DTYPES[x.dtype], _dtype_code(residual, x), _dtype_code(b if w is None else w, x),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, s, mean, rstd


def norm_bwd(dy, ds, x, w, mean, rstd, need_dx, need_dw, need_db):
    """With g = w * dy and x_hat = (x - mean) * rstd: dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)) + ds,
    dw = sum(dy * x_hat), db = sum(dy), or None where not needed. Without a mean, mean(g) is not taken off."""
    M, N = x.shape
    dx = memory.empty_like(x) if need_dx else None
    affine = x.dtype if w is None else w.dtype
    dw = torch.empty(N, dtype=affine) if need_dw else None
    db = torch.empty(N, dtype=affine) if need_db else None
    rows = max(ROWS, -(-M // BLOCKS))
    blocks = -(-M // rows)
    partial = memory.workspace((2, blocks, N), torch.float64) if need_dw or need_db else None
    _cpu.norm_bwd(
        dy.data_ptr(), _address(ds), x.data_ptr(), _address(w), _address(mean), rstd.data_ptr(), _address(dx),
        _address(dw), _address(db), _address(partial), blocks, M, N, DTYPES[x.dtype], DTYPES[affine],
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, dw, db
