"""Linear layer with an activation on CPU: a matrix product, and one pass of ours over its result."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import ACTS, DTYPES
from kernelzoo.kernels.cpp.product import products


def linear_act_fwd(x, w, b, act, p0, p1, save_z):
    """z = x @ w.T + b, y = act(z). x (M, K), w (N, K), b (N,) or None, of any strides; y, z (M, N) contiguous."""
    z, b = products.biased(x, w, b)
    y = z
    if b is not None or act != "none":
        if save_z and act != "none":
            y = memory.empty_like(z)
        M, N = z.shape
        dtype, threads = DTYPES[z.dtype], torch.get_num_threads()
        if b is None:
            _cpu.act_fwd(z.data_ptr(), y.data_ptr(), M * N, dtype, ACTS[act], p0, p1, threads)
        else:
            b = b.contiguous()
            _cpu.bias_act(
                z.data_ptr(), b.data_ptr(), y.data_ptr(), M, N, y is not z, dtype, ACTS[act], p0, p1, threads
            )
    return y, z if save_z else None


def linear_act_bwd(dy, x, w, saved, act, p0, p1, need_dx, need_dw, need_db):
    """dz = dy * act'(saved); dx = dz @ w, dw = dz.T @ x, db = dz.sum(0), or None where not needed."""
    M, N = dy.shape
    need_dz = act != "none" and (need_dx or need_dw)
    dz, db = dy, None
    if need_dz or need_db:
        if dy.stride(1) != 1 and N > 1:
            dy = dz = dy.contiguous()
        if need_dz:
            dz = memory.workspace((M, N), dy.dtype)
        if need_db:
            db = torch.empty(N, dtype=dy.dtype)
        _cpu.linear_bwd(
            dy.data_ptr(),
            dy.stride(0),
            0 if saved is None else saved.data_ptr(),
            dz.data_ptr() if need_dz else 0,
            db.data_ptr() if need_db else 0,
            M,
            N,
            DTYPES[dy.dtype],
            ACTS[act],
            p0,
            p1,
            torch.get_num_threads(),
        )
    dx = products.matmul(dz, w) if need_dx else None
    dw = products.weight_gradient(dz, x, w) if need_dw else None
    return dx, dw, db
