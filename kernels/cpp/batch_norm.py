"""batch_norm and instance_norm on CPU, with the residual and the activation behind them."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.batch_norm import sizes, stripes_of
from kernelzoo.kernels.cpp.native import ACTS, DTYPES


def _address(t):
    return 0 if t is None else t.data_ptr()


def _statistics(x, I, C):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (torch.empty(I * C, dtype=dtype) for _ in range(2))


def _affine(x, w, b):
    return next((t.dtype for t in (w, b) if t is not None), x.dtype)


def batch_norm_stats(x, instances):
    """The mean and the (biased) variance of each channel, or of each channel of each instance: (C,) or (N * C,)."""
    return _fwd(x, None, None, None, None, None, instances, 0.0, "none", 0.0, 0.0, False)[1:]


def batch_norm_fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1):
    """y = act((x - mean) / sqrt(var + eps) * w + b + residual): y and, where they are not given, mean and var.

    x (N, C, *), contiguous or channels-last, and residual alike; w, b (C,) of one dtype, x's or float32 where x is 16
    bits; mean, var float32 (float64 for float64).
    """
    y, *found = _fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1, True)
    return y, *(found if mean is None else (None, None))


def _fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1, need_y):
    I, N, C, L = sizes(x, instances)
    given = mean is not None
    if not given:
        mean, var = _statistics(x, I, C)
    y = memory.empty_like(x) if need_y else None
    stripes = stripes_of(N, L)
    partial = None if given or L > 1 else memory.workspace((2, I, stripes, C), torch.float64)
    _cpu.batch_norm_fwd(
        x.data_ptr(), _address(residual), _address(w), _address(b), mean.data_ptr(), var.data_ptr(), given, _address(y),
        _address(partial), stripes, I, N, C, L, eps, DTYPES[x.dtype], DTYPES[_affine(x, w, b)], ACTS[act], p0, p1,
        torch.get_num_threads(),
    )  # fmt: skip
    return y, mean, var


def batch_norm_sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1):
    """Sums of g = dy * act'(z) and of g * x_hat of each channel, of mean's shape and dtype. saved: batch_norm_bwd's."""
    sums = [torch.empty_like(mean) for _ in range(2)]
    _bwd(dy, x, saved, w, b, mean, var, *sums, 0.0, True, instances, from_output, eps, act, p0, p1)
    return tuple(sums)


def batch_norm_bwd(
    dy, x, saved, w, b, mean, var, sum_g, sum_gx, count, training, instances, from_output, eps, act, p0, p1,
    need_dx, need_dr, need_dw, need_db,
):  # fmt: skip
    """With g = dy * act'(z) and x_hat = (x - mean) * rstd: dx = w * rstd * (g - mean(g) - x_hat * mean(g * x_hat)),
    without the means where the moments are not x's own (training False), dr = g, dw = sum(g * x_hat), db = sum(g), or
    None where not needed.

    saved: y (from_output), the residual, or None where there is none; dy and it laid out as x. sum_g, sum_gx: None, or
    the sums over `count` elements, of which x's are some; dw and db are then not to be had.
    """
    dx = memory.empty_like(x) if need_dx else None
    dr = memory.empty_like(x) if need_dr else None
    affine = _affine(x, w, b)
    dw, db = (torch.empty(x.shape[1], dtype=affine) if need else None for need in (need_dw, need_db))
    if sum_g is None and (need_dw or need_db or (need_dx and training)):
        sum_g, sum_gx = (torch.empty_like(mean) for _ in range(2))
    _bwd(
        dy, x, saved, w, b, mean, var, sum_g, sum_gx, count, training, instances, from_output, eps, act, p0, p1,
        dx, dr, dw, db,
    )  # fmt: skip
    return dx, dr, dw, db


def _bwd(
    dy, x, saved, w, b, mean, var, sum_g, sum_gx, count, training, instances, from_output, eps, act, p0, p1,
    dx=None, dr=None, dw=None, db=None,
):  # fmt: skip
    I, N, C, L = sizes(x, instances)
    stripes = stripes_of(N, L)
    partial = memory.workspace((2, I, stripes, C), torch.float64) if L == 1 and sum_g is not None else None
    _cpu.batch_norm_bwd(
        dy.data_ptr(), x.data_ptr(), _address(saved), from_output, _address(w), _address(b), mean.data_ptr(),
        var.data_ptr(), _address(sum_g), _address(sum_gx), count, training, _address(dx), _address(dr), _address(dw),
        _address(db), _address(partial), stripes, I, N, C, L, eps, DTYPES[x.dtype], DTYPES[_affine(x, w, b)], ACTS[act],
        p0, p1, torch.get_num_threads(),
    )  # fmt: skip
