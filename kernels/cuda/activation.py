"""Activations on dense tensors, elementwise in storage order: y = act(x), dx = dy * act'(saved)."""

import torch

from kernelzoo import _cuda
from kernelzoo.kernels.cuda.native import ACTS, DTYPES, target


def act_fwd(x, act, p0, p1):
    y = torch.empty_like(x)
    _cuda.act_fwd(x.data_ptr(), y.data_ptr(), x.numel(), DTYPES[x.dtype], ACTS[act], p0, p1, *target(x))
    return y


def act_bwd(dy, saved, act, p0, p1):
    dx = torch.empty_like(saved)
    _cuda.act_bwd(
        dy.data_ptr(),
        saved.data_ptr(),
        dx.data_ptr(),
        dy.numel(),
        DTYPES[dy.dtype],
        ACTS[act],
        p0,
        p1,
        *target(dy),
    )
    return dx
