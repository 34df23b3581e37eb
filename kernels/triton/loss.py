"""Losses element by element, each with its derivatives to the input and the target, and their sum."""

import torch
import triton
import triton.language as tl

from .math import INTERPRET, exp, log1p, narrow, widen
from .runtime import STORAGE, acc_dtype, is_fast, launch_on


@triton.jit
def _log_rest(x):
    """ln(1 - x) for x <= 1: what rounding 1 - x lost comes back divided by it."""
    t = 1.0 - x
    return tl.where(t == 0.0, float("-inf"), tl.log(t) + ((1.0 - t) - x) / tl.where(t == 0.0, 1.0, t))


@triton.jit
def _bounded(x):
    return tl.where(x < -100.0, -100.0, x)


@triton.jit
def loss_value(x, t, KIND: tl.constexpr, p, FAST: tl.constexpr):
    d = x - t
    if KIND == "mse":
        return d * d
    elif KIND == "l1":
        return tl.abs(d)
    elif KIND == "huber":
        z = tl.abs(d)
        return tl.where(z < p, 0.5 * z * z, p * (z - 0.5 * p))
    elif KIND == "smooth_l1":
        z = tl.abs(d)
        return tl.where(z < p, 0.5 * z * z / p, z - 0.5 * p)
    elif KIND == "bce":
        return (t - 1.0) * _bounded(_log_rest(x)) - t * _bounded(tl.log(x))
    elif KIND == "bce_logits":
        return (1.0 - t) * x - (tl.where(x < 0.0, x, 0.0) - log1p(exp(-tl.abs(x), FAST)))
    elif KIND == "kl":
        return tl.where(t == 0.0, 0.0, t * tl.log(t)) - t * x
    else:
        tl.static_assert(KIND == "kl_log", "unknown loss")
        return exp(t, FAST) * (t - x)


@triton.jit
def loss_dx(x, t, KIND: tl.constexpr, p, FAST: tl.constexpr):
    d = x - t
    if KIND == "mse":
        return 2.0 * d
    elif KIND == "l1":  # 0 for NaN, as torch's sign
        return tl.where(x > t, 1.0, tl.where(x < t, -1.0, 0.0)).to(x.dtype)
    elif KIND == "huber":
        return tl.where(d < -p, -p, tl.where(d > p, p, d))
    elif KIND == "smooth_l1":
        return tl.where(d <= -p, -1.0, tl.where(d >= p, 1.0, d / p))
    elif KIND == "bce":
        width = (1.0 - x) * x
        return d / tl.where(width < 1e-12, 1e-12, width)
    elif KIND == "bce_logits":
        return 1.0 / (1.0 + exp(-x, FAST)) - t
    elif KIND == "kl":
        return -t
    else:
        return -exp(t, FAST)


@triton.jit
def loss_dt(x, t, KIND: tl.constexpr, p, FAST: tl.constexpr):
    if KIND == "bce":
        return _log_rest(x) - tl.log(x)
    elif KIND == "bce_logits":
        return -x
    elif KIND == "kl":
        return tl.log(t) + t / t - x  # NaN at 0, as the derivative of torch's xlogy(t, t)
    elif KIND == "kl_log":
        e = exp(t, FAST)
        return e * (t - x) + e
    else:
        return -loss_dx(x, t, KIND, p, FAST)


@triton.jit
def _loss_fwd_kernel(
    x_ptr, t_ptr, out_ptr, sums_ptr, numel, p: tl.float64,
    KIND: tl.constexpr, EACH: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """l(x, t) of BLOCK * STEPS elements a program: each one's where EACH, else their sum, a program's own."""
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    p_acc = tl.full([], p, ACC)
    acc = tl.zeros((BLOCK,), ACC)
    for step in tl.static_range(STEPS):
        offs = start + step * BLOCK + tl.arange(0, BLOCK)
        mask = offs < numel
        x = widen(tl.load(x_ptr + offs, mask=mask, other=0.5), ACC)
        t = widen(tl.load(t_ptr + offs, mask=mask, other=0.5), ACC)
        if KIND == "bce":
            inside = (x >= 0.0) & (x <= 1.0) & (t >= 0.0) & (t <= 1.0)
            tl.device_assert(inside, "binary_cross_entropy: an input or target is not between 0 and 1")
        value = loss_value(x, t, KIND, p_acc, FAST)
        if EACH:
            tl.store(out_ptr + offs, narrow(value, out_ptr.dtype.element_ty), mask=mask)
        else:
            acc += tl.where(mask, value, 0.0)
    if not EACH:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(acc, axis=0))


@triton.jit
def _loss_bwd_kernel(
    dy_ptr, x_ptr, t_ptr, dx_ptr, dt_ptr, numel, p: tl.float64,
    KIND: tl.constexpr, EACH: tl.constexpr, NEED_DX: tl.constexpr, NEED_DT: tl.constexpr,
    ACC: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = dy dl/dx, dt = dy dl/dt of BLOCK elements, dy one for all unless EACH."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < numel
    p_acc = tl.full([], p, ACC)
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.5), ACC)
    t = widen(tl.load(t_ptr + offs, mask=mask, other=0.5), ACC)
    if EACH:
        dy = widen(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
    else:
        dy = tl.load(dy_ptr)
    if NEED_DX:
        dx = dy * loss_dx(x, t, KIND, p_acc, FAST)
        tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
    if NEED_DT:
        dt = dy * loss_dt(x, t, KIND, p_acc, FAST)
        tl.store(dt_ptr + offs, narrow(dt, dt_ptr.dtype.element_ty), mask=mask)


def tile(dtype, kind):
    """Two 16-byte loads a thread and tensor of 4 warps, as an activation; one for bce, whose logarithms and assertion
    spill 2 KB of a thread's otherwise. Not yet measured on a device."""
    return {"BLOCK": (2048 if kind == "bce" else 4096) // dtype.itemsize, "num_warps": 4}


STEPS = 4  # of a forward program, which writes one number where the losses are added up


def loss_fwd(x, target, kind, p, reduction):
    """l(x, target), or its mean or sum: the programs' sums in their order, added up in float64."""
    each = reduction == "none"
    options = tile(x.dtype, kind)
    programs = triton.cdiv(x.numel(), options["BLOCK"] * STEPS)
    out = torch.empty_like(x) if each else None
    sums = None if each else x.new_empty(programs, dtype=acc_dtype(x.dtype))
    checks = {"debug": True, "sanitize_overflow": False} if kind == "bce" and not INTERPRET.value else {}
    with launch_on(x):
        _loss_fwd_kernel[(programs,)](
            x_ptr=x, t_ptr=target, out_ptr=out, sums_ptr=sums, numel=x.numel(), p=p,
            KIND=kind, EACH=each, ACC=STORAGE[acc_dtype(x.dtype)], FAST=is_fast(x.dtype), STEPS=STEPS,
            **options, **checks,
        )  # fmt: skip
    if each:
        return out
    total = sums.sum(dtype=torch.float64)
    return (total / x.numel() if reduction == "mean" else total).to(x.dtype)


def loss_bwd(dy, x, target, kind, p, reduction, need_dx, need_dt):
    """(dx, dt), None where not needed; dy of x's shape without reduction, else a scalar."""
    each = reduction == "none"
    if not each:
        dy = dy.to(acc_dtype(x.dtype))
        dy = dy / x.numel() if reduction == "mean" else dy
    dx, dt = (torch.empty_like(x) if need else None for need in (need_dx, need_dt))
    options = tile(x.dtype, kind)
    with launch_on(x):
        _loss_bwd_kernel[(triton.cdiv(x.numel(), options["BLOCK"]),)](
            dy_ptr=dy, x_ptr=x, t_ptr=target, dx_ptr=dx, dt_ptr=dt, numel=x.numel(), p=p,
            KIND=kind, EACH=each, NEED_DX=need_dx, NEED_DT=need_dt,
            ACC=STORAGE[acc_dtype(x.dtype)], FAST=is_fast(x.dtype), **options,
        )  # fmt: skip
    return dx, dt
