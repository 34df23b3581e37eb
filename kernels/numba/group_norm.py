"""group_norm of (N, C, L)."""

import functools
import math

import numpy as np
import torch

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer
from .norm import BLOCK, add, addresses, sum_rows, sums_of


@functools.cache
def _fwd_kernel(dtype, affine, has_w, has_b):
    store_t, f, load, store = STORAGE[dtype]
    affine_t, _, load_affine, _ = STORAGE[affine]
    mean_of, squares_of = sums_of(dtype)

    @kernel
    def _group_norm_fwd_kernel(first, last, args, p0, p1):
        """y = (x - mean) * rstd * w + b. A unit is a group of `width` channels of a sample; p0 is eps."""
        address = pointer(args[0], np.int64)
        x_ptr, y_ptr = pointer(address[0], store_t), pointer(address[3], store_t)
        w_ptr, b_ptr = pointer(address[1], affine_t), pointer(address[2], affine_t)
        mean_ptr, rstd_ptr = pointer(address[4], f), pointer(address[5], f)
        groups, width, length = args[1], args[2], args[3]
        for unit in range(first, last):
            start = unit * width * length
            mean = f(mean_of(x_ptr, start, width * length))
            rstd = f(1.0 / math.sqrt(squares_of(x_ptr, start, width * length, mean) + p0))
            mean_ptr[unit] = mean
            rstd_ptr[unit] = rstd
            for c in range(width):
                channel = unit % groups * width + c
                scale = load_affine(w_ptr[channel]) if has_w else f(1)
                shift = load_affine(b_ptr[channel]) if has_b else f(0)
                for i in range(start + c * length, start + c * length + length):
                    y_ptr[i] = store((load(x_ptr[i]) - mean) * rstd * scale + shift)

    return _group_norm_fwd_kernel


@functools.cache
def _bwd_kernel(dtype, affine, has_w, need_dx, need_affine):
    store_t, f, load, store = STORAGE[dtype]
    affine_t, _, load_affine, _ = STORAGE[affine]

    @kernel
    def _group_norm_bwd_kernel(first, last, args, p0, p1):
        """dx of a group, and its sample's share of its channels' dw and db. A unit is a group of a sample."""
        address = pointer(args[0], np.int64)
        dy_ptr, x_ptr = pointer(address[0], store_t), pointer(address[1], store_t)
        w_ptr, mean_ptr, rstd_ptr = (
            pointer(address[2], affine_t),
            pointer(address[3], f),
            pointer(address[4], f),
        )
        dx_ptr, dw_ptr, db_ptr = (
            pointer(address[5], store_t),
            pointer(address[6], np.float64),
            pointer(address[7], np.float64),
        )
        groups, width, length = args[1], args[2], args[3]
        for unit in range(first, last):
            start = unit * width * length
            mean, rstd = mean_ptr[unit], rstd_ptr[unit]
            g_total, gx_total = 0.0, 0.0
            for c in range(width):
                dy_total, dyx_total = 0.0, 0.0
                end = start + c * length + length
                for begin in range(start + c * length, end, BLOCK):
                    dy_part, dyx_part = f(0), f(0)
                    for i in range(begin, min(begin + BLOCK, end)):
                        dy_part = add(dy_part, load(dy_ptr[i]))
                        dyx_part = add(dyx_part, load(dy_ptr[i]) * ((load(x_ptr[i]) - mean) * rstd))
                    dy_total += dy_part
                    dyx_total += dyx_part
                if need_affine:
                    dw_ptr[unit * width + c] = dyx_total
                    db_ptr[unit * width + c] = dy_total
                scale = load_affine(w_ptr[unit % groups * width + c]) if has_w else f(1)
                g_total += scale * dy_total
                gx_total += scale * dyx_total
            if need_dx:
                n = width * length
                g_mean, gx_mean = f(g_total / n), f(gx_total / n)
                for c in range(width):
                    scale = load_affine(w_ptr[unit % groups * width + c]) if has_w else f(1)
                    for i in range(start + c * length, start + c * length + length):
                        normal = (load(x_ptr[i]) - mean) * rstd
                        dx_ptr[i] = store(rstd * (load(dy_ptr[i]) * scale - g_mean - normal * gx_mean))

    return _group_norm_bwd_kernel


def group_norm_fwd(x, w, b, groups, eps):
    N, C, L = x.shape
    y = memory.empty_like(x)
    statistic = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (torch.empty(N * groups, dtype=statistic) for _ in range(2))
    table = addresses(x, w, b, y, mean, rstd)
    affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
    build = _fwd_kernel(x.dtype, affine, w is not None, b is not None)
    launch(build, N * groups, x.numel(), (table.data_ptr(), groups, C // groups, L), eps)
    return y, mean, rstd


def group_norm_bwd(dy, x, w, mean, rstd, groups, need_dx, need_dw, need_db):
    N, C, L = x.shape
    dx = memory.empty_like(x) if need_dx else None
    affine = x.dtype if w is None else w.dtype
    need_affine = need_dw or need_db
    partial = memory.workspace((2, N, C), torch.float64) if need_affine else (None, None)
    table = addresses(dy, x, w, mean, rstd, dx, *partial)
    build = _bwd_kernel(x.dtype, affine, w is not None, need_dx, need_affine)
    launch(build, N * groups, x.numel(), (table.data_ptr(), groups, C // groups, L))
    dw = sum_rows(partial[0], affine) if need_dw else None
    db = sum_rows(partial[1], affine) if need_db else None
    return dx, dw, db
