"""Rotary embedding on CPU, over any strides but the last."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def rotary(x, cos, sin, position_ids, interleaved, inverse):
    """x (B, H, L, D), its features adjacent; cos, sin (P, R/2), contiguous, fp32 (fp64 for fp64); position_ids int64
    (L,) or (B, L) or None. y is laid out like x."""
    y = memory.empty_like(x)
    B, H, L, D = x.shape
    stride_b, stride_l = 0, 0
    if position_ids is not None:
        stride_l = position_ids.stride(-1)
        stride_b = position_ids.stride(0) if position_ids.dim() == 2 else 0
    _cpu.rotary(
        x.data_ptr(),
        *x.stride()[:3],
        y.data_ptr(),
        *y.stride()[:3],
        cos.data_ptr(),
        sin.data_ptr(),
        0 if position_ids is None else position_ids.data_ptr(),
        stride_b,
        stride_l,
        B,
        H,
        L,
        D,
        *cos.shape,
        interleaved,
        inverse,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y
