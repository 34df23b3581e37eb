"""Losses element by element on CPU. x, target and dy contiguous, of one shape and dtype."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.elementwise_loss import factor, reduced


def _address(t):
    return 0 if t is None else t.data_ptr()


def loss_fwd(x, target, kind, p, reduction):
    """l(x, target), or its mean or sum."""
    out = memory.empty_like(x) if reduction == "none" else None
    options = x.numel(), DTYPES[x.dtype], _cpu.LOSSES[kind], p, torch.get_num_threads()
    total, outside = _cpu.loss_fwd(x.data_ptr(), target.data_ptr(), _address(out), *options)
    scalar = reduced(total, outside, x, target, reduction)
    return scalar if out is None else out


def loss_bwd(dy, x, target, kind, p, reduction, need_dx, need_dt):
    """(dx, dt), None where not needed; dy of x's shape without reduction, else a scalar."""
    dx, dt = (memory.empty_like(x) if need else None for need in (need_dx, need_dt))
    each = reduction == "none"
    g = 0.0 if each else factor(dy, x, reduction)
    addresses = x.data_ptr(), target.data_ptr(), _address(dy if each else None), g, _address(dx), _address(dt)
    options = x.numel(), DTYPES[x.dtype], _cpu.LOSSES[kind], p, torch.get_num_threads()
    _cpu.loss_bwd(*addresses, *options)
    return dx, dt
