"""y = act(x @ w.T + b): the products by cuBLAS, what surrounds them in one pass each."""

import torch

from kernelzoo import _cuda
from kernelzoo.kernels.cuda.native import ACTS, DTYPES, target
from kernelzoo.kernels.product import weight_gradient


def linear_act_fwd(x, w, b, act, p0, p1, save_z):
    if b is not None and act != "none" and not save_z:
        y = torch.mm(x, w.t())
        _cuda.bias_act_fwd(
            y.data_ptr(), b.data_ptr(), b.stride(0), *y.shape, DTYPES[y.dtype], ACTS[act], p0, p1, *target(y)
        )
        return y, None
    # cuBLAS adds the bias as it writes z. Where z is kept, a pass that added it would have to write z too:
    # three times the size of y to move instead of two.
    z = torch.mm(x, w.t()) if b is None else torch.addmm(b, x, w.t())
    if act == "none":
        return z, (z if save_z else None)
    y = torch.empty_like(z) if save_z else z
    _cuda.act_fwd(z.data_ptr(), y.data_ptr(), z.numel(), DTYPES[z.dtype], ACTS[act], p0, p1, *target(z))
    return y, (z if save_z else None)


def linear_act_bwd(dy, x, w, saved, act, p0, p1, need_dx, need_dw, need_db):
    M, N = dy.shape
    dz, db, partial = dy, None, None
    writes_dz = act != "none" and (need_dx or need_dw)
    if writes_dz or need_db:
        if N > 1 and dy.stride(1) != 1:
            dz = dy = dy.contiguous()
        dtype = DTYPES[dy.dtype]
        if writes_dz:
            dz = torch.empty((M, N), dtype=dy.dtype, device=dy.device)
        if need_db:
            db = torch.empty((N,), dtype=dy.dtype, device=dy.device)
            acc = torch.float64 if dy.dtype == torch.float64 else torch.float32
            partial = torch.empty((_cuda.bias_act_bwd_parts(M, N, dtype), N), dtype=acc, device=dy.device)
        _cuda.bias_act_bwd(
            dy.data_ptr(),
            dy.stride(0),
            0 if act == "none" else saved.data_ptr(),
            dz.data_ptr() if writes_dz else 0,
            db.data_ptr() if need_db else 0,
            partial.data_ptr() if need_db else 0,
            M,
            N,
            dtype,
            ACTS[act],
            p0,
            p1,
            *target(dy),
        )
    dx = torch.mm(dz, w) if need_dx else None
    dw = weight_gradient(dz, x, w) if need_dw else None
    return dx, dw, db
