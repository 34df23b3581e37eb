"""layer_norm and rms_norm of rows, with the sum that precedes them."""

import functools
import math

import numpy as np
import torch
from numba import njit

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer

BLOCK = 256  # terms of a sum added up before they join it in float64: a long row's error stays a short one's
BLOCKS = 64  # blocks of rows that have weight gradients of their own, in float64


@njit(fastmath={"reassoc", "contract"}, forceinline=True)
def add(total, term):
    """A sum's step, in an order that the compiler may choose: only so is a sum vector code."""
    return total + term


@functools.cache
def sums_of(dtype):
    """mean(ptr, start, n) and the mean of the squares about it, of n elements in memory."""
    _, f, load, _ = STORAGE[dtype]

    @njit(forceinline=True, error_model="numpy")
    def mean_of(x_ptr, start, n):
        total = 0.0
        for first in range(start, start + n, BLOCK):
            part = f(0)
            for i in range(first, min(first + BLOCK, start + n)):
                part = add(part, load(x_ptr[i]))
            total += part
        return total / n

    @njit(forceinline=True, error_model="numpy")
    def squares_of(x_ptr, start, n, mean):
        total = 0.0
        for first in range(start, start + n, BLOCK):
            part = f(0)
            for i in range(first, min(first + BLOCK, start + n)):
                part = add(part, (load(x_ptr[i]) - mean) * (load(x_ptr[i]) - mean))
            total += part
        return total / n

    return mean_of, squares_of


@functools.cache
def _fwd_kernel(dtype, other, affine, rms, has_w, has_b):
    store_t, f, load, store = STORAGE[dtype]
    other_t, _, load_other, _ = STORAGE[other or dtype]
    affine_t, _, load_affine, _ = STORAGE[affine]
    mean_of, squares_of = sums_of(dtype)
    has_other = other is not None

    @kernel
    def _norm_fwd_kernel(first, last, args, p0, p1):
        """s = x + other, y = (s - mean) * rstd * w + b. A unit is a row of n elements; p0 is eps."""
        address = pointer(args[0], np.int64)
        x_ptr, other_ptr = pointer(address[0], store_t), pointer(address[1], other_t)
        w_ptr, b_ptr = pointer(address[2], affine_t), pointer(address[3], affine_t)
        y_ptr, s_ptr = pointer(address[4], store_t), pointer(address[5], store_t)
        mean_ptr, rstd_ptr = pointer(address[6], f), pointer(address[7], f)
        n = args[1]
        for row in range(first, last):
            start = row * n
            if has_other:
                for i in range(start, start + n):
                    s_ptr[i] = store(load(x_ptr[i]) + load_other(other_ptr[i]))
                x_ptr = s_ptr
            mean = f(0)
            if not rms:
                mean = f(mean_of(x_ptr, start, n))
                mean_ptr[row] = mean
            rstd = f(1.0 / math.sqrt(squares_of(x_ptr, start, n, mean) + p0))
            rstd_ptr[row] = rstd
            for j in range(n):
                y = (load(x_ptr[start + j]) - mean) * rstd
                if has_w:
                    y *= load_affine(w_ptr[j])
                if has_b:
                    y += load_affine(b_ptr[j])
                y_ptr[start + j] = store(y)
            if has_other:
                x_ptr = pointer(address[0], store_t)

    return _norm_fwd_kernel


@functools.cache
def _bwd_kernel(dtype, affine, rms, has_w, has_ds, need_dx, need_dw, need_db):
    store_t, f, load, store = STORAGE[dtype]
    affine_t, _, load_affine, _ = STORAGE[affine]

    @kernel
    def _norm_bwd_kernel(first, last, args, p0, p1):
        """dx of a block of rows, and their share of dw and db. A unit is a block of rows."""
        address = pointer(args[0], np.int64)
        dy_ptr, ds_ptr, x_ptr = (
            pointer(address[0], store_t),
            pointer(address[1], store_t),
            pointer(address[2], store_t),
        )
        w_ptr, mean_ptr, rstd_ptr = (
            pointer(address[3], affine_t),
            pointer(address[4], f),
            pointer(address[5], f),
        )
        dx_ptr, dw_ptr, db_ptr = (
            pointer(address[6], store_t),
            pointer(address[7], np.float64),
            pointer(address[8], np.float64),
        )
        n, M, rows = args[1], args[2], args[3]
        for block in range(first, last):
            for j in range(block * n, block * n + n):
                if need_dw:
                    dw_ptr[j] = 0.0
                if need_db:
                    db_ptr[j] = 0.0
            for row in range(block * rows, min(M, block * rows + rows)):
                start = row * n
                mean = f(0) if rms else mean_ptr[row]
                rstd = rstd_ptr[row]
                if need_dw or need_db:
                    for j in range(n):
                        dy = load(dy_ptr[start + j])
                        if need_dw:
                            dw_ptr[block * n + j] += dy * ((load(x_ptr[start + j]) - mean) * rstd)
                        if need_db:
                            db_ptr[block * n + j] += dy
                if need_dx:
                    g_total, gx_total = 0.0, 0.0
                    for begin in range(0, n, BLOCK):
                        g_part, gx_part = f(0), f(0)
                        for j in range(begin, min(begin + BLOCK, n)):
                            g = load(dy_ptr[start + j])
                            if has_w:
                                g *= load_affine(w_ptr[j])
                            g_part = add(g_part, g)
                            gx_part = add(gx_part, g * ((load(x_ptr[start + j]) - mean) * rstd))
                        g_total += g_part
                        gx_total += gx_part
                    g_mean, gx_mean = f(0) if rms else f(g_total / n), f(gx_total / n)
                    for j in range(n):
                        g = load(dy_ptr[start + j])
                        if has_w:
                            g *= load_affine(w_ptr[j])
                        d = rstd * (g - g_mean - (load(x_ptr[start + j]) - mean) * rstd * gx_mean)
                        if has_ds:
                            d += load(ds_ptr[start + j])
                        dx_ptr[start + j] = store(d)

    return _norm_bwd_kernel


@functools.cache
def _sum_kernel(dtype):
    store_t, f, _, store = STORAGE[dtype]

    @kernel
    def _norm_sum_kernel(first, last, args, p0, p1):
        """The sum, in order, of `rows` rows of float64. A unit is a column."""
        partial_ptr, out_ptr = pointer(args[0], np.float64), pointer(args[1], store_t)
        rows, n = args[2], args[3]
        for j in range(first, last):
            total = 0.0
            for r in range(rows):
                total += partial_ptr[r * n + j]
            out_ptr[j] = store(f(total))

    return _norm_sum_kernel


def sum_rows(partial, dtype):
    """partial (rows, N) float64, summed over the rows in order, in `dtype`."""
    rows, N = partial.shape
    out = torch.empty(N, dtype=dtype)
    launch(_sum_kernel(dtype), N, rows * N, (partial.data_ptr(), out.data_ptr(), rows, N))
    return out


def addresses(*tensors):
    """Their addresses in memory that a kernel can read; 0 for None."""
    return torch.tensor([0 if t is None else t.data_ptr() for t in tensors], dtype=torch.int64)


def norm_fwd(x, residual, w, b, eps, rms):
    if residual is not None and residual.dtype.itemsize > x.dtype.itemsize:
        x, residual = residual, x
    M, N = x.shape
    y = memory.empty_like(x)
    s = None if residual is None else memory.empty_like(x)
    statistic = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = None if rms else torch.empty(M, dtype=statistic)
    rstd = torch.empty(M, dtype=statistic)
    table = addresses(x, residual, w, b, y, s, mean, rstd)
    affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
    build = _fwd_kernel(
        x.dtype, None if residual is None else residual.dtype, affine, rms, w is not None, b is not None
    )
    launch(build, M, M * N, (table.data_ptr(), N), eps)
    return y, s, mean, rstd


def norm_bwd(dy, ds, x, w, mean, rstd, need_dx, need_dw, need_db):
    M, N = x.shape
    dx = memory.empty_like(x) if need_dx else None
    affine = x.dtype if w is None else w.dtype
    rows = -(-M // BLOCKS)
    blocks = -(-M // rows)
    partial = memory.workspace((2, blocks, N), torch.float64) if need_dw or need_db else (None, None)
    table = addresses(dy, ds, x, w, mean, rstd, dx, *partial)
    build = _bwd_kernel(
        x.dtype, affine, mean is None, w is not None, ds is not None, need_dx, need_dw, need_db
    )
    launch(build, blocks, M * N, (table.data_ptr(), N, M, rows))
    dw = sum_rows(partial[0], affine) if need_dw else None
    db = sum_rows(partial[1], affine) if need_db else None
    return dx, dw, db
