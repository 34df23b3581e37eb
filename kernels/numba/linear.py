"""y = act(x w^T + b): a matrix product, then one pass over its result in place; and the gradients."""

import functools

import torch

from .. import memory
from ..product import products
from .arrays import STORAGE, kernel, launch, pointer
from .math import ROUNDED_LAMBD, activations

ROWS = 32  # of one partial sum of the bias gradient: fixed, so that the sum never depends on the threads


@functools.cache
def _fwd_kernel(act, save_z, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value = activations(f)[act]
    rounded = act in ROUNDED_LAMBD

    @kernel
    def _linear_act_fwd_kernel(first, last, args, p0, p1):
        """z += b, y = act(z); without save_z y takes the place of z. A unit is a row of N elements."""
        z_ptr, y_ptr, b_ptr = pointer(args[0], store_t), pointer(args[1], store_t), pointer(args[2], store_t)
        N = args[3]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for m in range(first, last):
            for n in range(N):
                z = load(z_ptr[m * N + n]) + load(b_ptr[n])
                if save_z:
                    z_ptr[m * N + n] = store(z)
                    y_ptr[m * N + n] = store(value(z, p0, p1))
                else:
                    z_ptr[m * N + n] = store(value(z, p0, p1))

    return _linear_act_fwd_kernel


@functools.cache
def _bwd_kernel(act, dtype):
    store_t, f, load, store = STORAGE[dtype]
    gradient = activations(f)[act + "_grad"]
    rounded = act + "_grad" in ROUNDED_LAMBD

    @kernel
    def _linear_act_bwd_kernel(first, last, args, p0, p1):
        """dz = dy act'(saved), db_block = sum of a block's dz. A unit is a block: ROWS rows of N elements."""
        dz_ptr, dy_ptr, saved_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
        )
        db_ptr = pointer(args[3], f)
        M, N, stride_dym = args[4], args[5], args[6]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for block in range(first, last):
            for n in range(N):
                db_ptr[block * N + n] = f(0)
            for m in range(block * ROWS, min(block * ROWS + ROWS, M)):
                for n in range(N):
                    dy = load(dy_ptr[m * stride_dym + n])
                    dz = gradient(dy, load(saved_ptr[m * N + n]), p0, p1)
                    dz_ptr[m * N + n] = store(dz)
                    db_ptr[block * N + n] += dz

    return _linear_act_bwd_kernel


def linear_act_fwd(x, w, b, act, p0, p1, save_z):
    z, b = products.biased(x, w, b)
    if act == "none" and b is None:
        return z, None
    M, N = z.shape
    # -0.0 is the zero that leaves -0.0 as it is
    b = b.contiguous() if b is not None else torch.full((N,), -0.0, dtype=x.dtype)
    save_z = save_z and act != "none"
    y = memory.empty_like(z) if save_z else z
    args = (z.data_ptr(), y.data_ptr(), b.data_ptr(), N)
    launch(_fwd_kernel(act, save_z, x.dtype), M, z.numel(), args, p0, p1)
    return y, z if save_z else None


def linear_act_bwd(dy, x, w, saved, act, p0, p1, need_dx, need_dw, need_db):
    if act == "none":
        dz, db = dy, dy.sum(0) if need_db else None
    else:
        dz, db = _dz_db(dy, saved, act, p0, p1)
    dx = products.matmul(dz, w) if need_dx else None
    dw = products.weight_gradient(dz, x, w) if need_dw else None
    return dx, dw, db if need_db else None


def _dz_db(dy, saved, act, p0, p1):
    """dz in the workspace, and the sum of its rows."""
    M, N = dy.shape
    if dy.stride(1) != 1:  # a strided read is no vector code: 37 ms for 2048x3072, the copy 1 to 8
        dy = dy[:1].contiguous().expand(M, N) if dy.stride(0) == 0 else dy.contiguous()
    dz = memory.workspace((M, N), dy.dtype)
    blocks = -(-M // ROWS)
    db_blocks = torch.empty((blocks, N), dtype=torch.float64 if dy.dtype == torch.float64 else torch.float32)
    args = (dz.data_ptr(), dy.data_ptr(), saved.data_ptr(), db_blocks.data_ptr(), M, N, dy.stride(0))
    launch(_bwd_kernel(act, dy.dtype), blocks, dy.numel(), args, p0, p1)
    return dz, db_blocks.sum(0, dtype=torch.float64).to(dy.dtype)
