"""Elementwise activations in storage order: y = act(x) and dx = dy * act'(saved)."""

import torch
import triton
import triton.language as tl

from .math import act_grad, act_value, narrow, widen
from .runtime import STORAGE, acc_dtype, is_fast, launch_on


@triton.jit
def _act_fwd_kernel(
    x_ptr, y_ptr, numel, p0: tl.float64, p1: tl.float64,
    ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = act(x); a program takes BLOCK elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    # A mask against an odd size would make every load scalar: only the last block has one.
    if start + BLOCK <= numel:
        y = act_value(widen(tl.load(x_ptr + offs), ACC), ACT, p0, p1, FAST)
        tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty))
    else:
        mask = offs < numel
        y = act_value(widen(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC), ACT, p0, p1, FAST)
        tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _act_bwd_kernel(
    dy_ptr, saved_ptr, dx_ptr, numel, p0: tl.float64, p1: tl.float64,
    ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = dy * act'(saved); a program takes BLOCK elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:
        dy = widen(tl.load(dy_ptr + offs), ACC)
        saved = widen(tl.load(saved_ptr + offs), ACC)
        dx = act_grad(dy, saved, ACT, p0, p1, FAST)
        tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty))
    else:
        mask = offs < numel
        dy = widen(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
        saved = widen(tl.load(saved_ptr + offs, mask=mask, other=0.0), ACC)
        dx = act_grad(dy, saved, ACT, p0, p1, FAST)
        tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)


def tile(dtype):
    """BLOCK and num_warps: two 16-byte loads a thread in flight a tensor. Not yet measured on a device."""
    return {"BLOCK": 4096 // dtype.itemsize, "num_warps": 4}


def act_fwd(x, act, p0, p1):
    """y = act(x) for a dense x in any order of dimensions; y has x's strides."""
    y = torch.empty_like(x)
    options = tile(x.dtype)
    with launch_on(x):
        _act_fwd_kernel[(triton.cdiv(x.numel(), options["BLOCK"]),)](
            x_ptr=x, y_ptr=y, numel=x.numel(), p0=p0, p1=p1,
            ACT=act, ACC=STORAGE[acc_dtype(x.dtype)], FAST=is_fast(x.dtype), **options,
        )  # fmt: skip
    return y


def act_bwd(dy, saved, act, p0, p1):
    """dx = dy * act'(saved) for dense dy and saved of equal strides; what `saved` is: math.act_grad."""
    dx = torch.empty_like(dy)
    options = tile(dy.dtype)
    with launch_on(dy):
        _act_bwd_kernel[(triton.cdiv(dy.numel(), options["BLOCK"]),)](
            dy_ptr=dy, saved_ptr=saved, dx_ptr=dx, numel=dy.numel(), p0=p0, p1=p1,
            ACT=act, ACC=STORAGE[acc_dtype(dy.dtype)], FAST=is_fast(dy.dtype), **options,
        )  # fmt: skip
    return dx
