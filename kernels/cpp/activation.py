"""Activations on CPU: one pass over the elements in storage order."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import ACTS, DTYPES


def act_fwd(x, act, p0, p1):
    """y = act(x). x dense in any dim order; y has its strides."""
    y = memory.empty_like(x)
    _cpu.act_fwd(
        x.data_ptr(), y.data_ptr(), x.numel(), DTYPES[x.dtype], ACTS[act], p0, p1, torch.get_num_threads()
    )
    return y


def act_bwd(dy, saved, act, p0, p1):
    """dx = dy * act'(saved). dy and saved dense, with equal strides."""
    dx = memory.empty_like(dy)
    _cpu.act_bwd(
        dy.data_ptr(),
        saved.data_ptr(),
        dx.data_ptr(),
        dy.numel(),
        DTYPES[dy.dtype],
        ACTS[act],
        p0,
        p1,
        torch.get_num_threads(),
    )
    return dx
