"""batch_norm and instance_norm, with the residual and the activation behind them, of planes and of rows (sizes).

A program takes tiles of BLOCK_A samples by BLOCK_B elements that lie side by side: positions of one channel's planes,
or channels of rows (ROWS). A group is what its sums are of: a channel of an instance, or BLOCK_B channels of rows. What
there is one of a channel has the shape (1, BLOCK_B) of rows, (1, 1) of planes.
"""

import torch
import triton
import triton.language as tl

from ..batch_norm import sizes
from .math import act_grad, act_value, narrow, widen
from .norm import sum_rows
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, target_of, warps_of_128

# Programs that share the sums of all groups: four an SM of the largest chips, and never dependent on the chip, so that
# the sums are the same everywhere.
PROGRAMS = 1056


@triton.jit
def _load(ptr, offs, mask, ACC: tl.constexpr):
    return widen(tl.load(ptr + offs, mask=mask, other=0.0), ACC)


@triton.jit
def _channels(group, C, ROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Of a group: its channels in I * C, in C, which of them there are, and the instance. Numbers of programs, groups
    and steps are divided in 32 bits: a division in 64 is a call."""
    if ROWS:
        groups = tl.cdiv(C, BLOCK_B)
        channel = group % groups * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
        instance = group // groups
    else:
        channel = group % C + tl.arange(0, 1)[None, :]
        instance = group // C
    channel, instance = channel.to(tl.int64), instance.to(tl.int64)
    return instance * C + channel, channel, channel < C, instance


@triton.jit
def _tile(step, channel, instance, N, C, L, ROWS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """Offsets and mask of a group's tile number `step`."""
    if ROWS:
        n = (step * BLOCK_A + tl.arange(0, BLOCK_A)[:, None]).to(tl.int64)
        return (instance * N + n) * C + channel, (n < N) & (channel < C)
    else:
        across = tl.cdiv(L, BLOCK_B)
        n = (step // across * BLOCK_A + tl.arange(0, BLOCK_A)[:, None]).to(tl.int64)
        l = (step % across * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]).to(tl.int64)
        return ((instance * N + n) * C + channel) * L + l, (n < N) & (l < L)


@triton.jit
def _batch_norm_moments_kernel(
    x_ptr, count_ptr, mean_ptr, squares_ptr, I, N, C, L, steps, per, splits,
    ROWS: tl.constexpr, ACC: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of the squares about it of a share of a group, `per` tiles of `steps`, to (splits, I * C):
    each lane by Welford's recurrence, the lanes by Chan, Golub and LeVeque's."""
    pid = tl.program_id(0)
    group, split = pid // splits, pid % splits
    unit, channel, mask_c, instance = _channels(group, C, ROWS, BLOCK_B)
    count = tl.zeros((BLOCK_A, BLOCK_B), ACC)
    mean = tl.zeros((BLOCK_A, BLOCK_B), ACC)
    squares = tl.zeros((BLOCK_A, BLOCK_B), ACC)
    for step in range(split * per, tl.minimum(split * per + per, steps)):
        offs, mask = _tile(step, channel, instance, N, C, L, ROWS, BLOCK_A, BLOCK_B)
        x = _load(x_ptr, offs, mask, ACC)
        count += tl.where(mask, 1.0, 0.0).to(ACC)
        delta = tl.where(mask, x - mean, 0.0)
        mean += delta / tl.maximum(count, 1.0)
        squares += delta * tl.where(mask, x - mean, 0.0)
    # about a mean that is near: a sum of means in ACC would lose a large mean's last digits
    first = tl.sum(tl.where(tl.arange(0, BLOCK_A)[:, None] == 0, mean, 0.0), axis=0)[None, :]
    if not ROWS:
        first = tl.sum(tl.where(tl.arange(0, BLOCK_B)[None, :] == 0, first, 0.0), axis=1)[None, :]
    total = tl.sum(count, axis=0)[None, :]
    off = tl.sum(tl.where(count > 0, (mean - first) * count, 0.0), axis=0)[None, :]
    if not ROWS:
        total = tl.sum(total, axis=1)[None, :]
        off = tl.sum(off, axis=1)[None, :]
    centre = first + off / tl.maximum(total, 1.0)
    apart = tl.where(count > 0, mean - centre, 0.0)
    about = tl.sum(squares + count * apart * apart, axis=0)[None, :]
    if not ROWS:
        about = tl.sum(about, axis=1)[None, :]
    to = split.to(tl.int64) * I * C + unit
    tl.store(count_ptr + to, total, mask=mask_c)
    tl.store(mean_ptr + to, centre, mask=mask_c)
    tl.store(squares_ptr + to, about, mask=mask_c)


@triton.jit
def _batch_norm_join_kernel(
    count_ptr, mean_ptr, squares_ptr, out_mean_ptr, out_var_ptr, units, splits, BLOCK: tl.constexpr
):
    """Mean and variance of BLOCK units from their `splits` shares, in order, in fp64."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < units
    count = tl.zeros((BLOCK,), tl.float64)
    mean = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for s in range(splits):
        at = s * units + offs
        n = _load(count_ptr, at, mask, tl.float64)
        delta = _load(mean_ptr, at, mask, tl.float64) - mean
        share = n / tl.maximum(count + n, 1.0)
        mean += delta * share
        squares += _load(squares_ptr, at, mask, tl.float64) + delta * delta * share * count
        count += n
    tl.store(out_mean_ptr + offs, mean.to(out_mean_ptr.dtype.element_ty), mask=mask)
    var = squares / tl.maximum(count, 1.0)
    tl.store(out_var_ptr + offs, var.to(out_var_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _affine(
    w_ptr, b_ptr, mean_ptr, var_ptr, unit, channel, mask, eps, HAS_W: tl.constexpr, HAS_B: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """mean, rstd, scale = w * rstd, and shift = b of a group's channels."""
    mean = _load(mean_ptr, unit, mask, ACC)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + unit, mask=mask, other=1.0).to(ACC) + tl.full([], eps, ACC))
    scale = rstd
    if HAS_W:
        scale = rstd * _load(w_ptr, channel, mask, ACC)
    shift = tl.zeros_like(mean)
    if HAS_B:
        shift = _load(b_ptr, channel, mask, ACC)
    return mean, rstd, scale, shift


@triton.jit
def _batch_norm_fwd_kernel(
    x_ptr, r_ptr, w_ptr, b_ptr, mean_ptr, var_ptr, y_ptr, N, C, L, steps,
    eps: tl.float64, p0: tl.float64, p1: tl.float64,
    ROWS: tl.constexpr, HAS_R: tl.constexpr, HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACT: tl.constexpr,
    ACC: tl.constexpr, FAST: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """y = act((x - mean) * rstd * w + b + r); a program takes one tile."""
    pid = tl.program_id(0)
    unit, channel, mask_c, instance = _channels(pid // steps, C, ROWS, BLOCK_B)
    offs, mask = _tile(pid % steps, channel, instance, N, C, L, ROWS, BLOCK_A, BLOCK_B)
    mean, _, scale, shift = _affine(
        w_ptr, b_ptr, mean_ptr, var_ptr, unit, channel, mask_c, eps, HAS_W, HAS_B, ACC
    )
    z = (_load(x_ptr, offs, mask, ACC) - mean) * scale + shift
    if HAS_R:
        z += _load(r_ptr, offs, mask, ACC)
    y = act_value(z, ACT, p0, p1, FAST)
    tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _incoming(
    dy_ptr, saved_ptr, x, mean, scale, shift, offs, mask, p0, p1,
    SAVED: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """g = dy * act'(z), from y where that is what is SAVED, else from z, computed anew."""
    g = _load(dy_ptr, offs, mask, ACC)
    if ACT != "none":
        if SAVED == "output":
            v = _load(saved_ptr, offs, mask, ACC)
        else:
            v = (x - mean) * scale + shift
            if SAVED == "residual":
                v += _load(saved_ptr, offs, mask, ACC)
            if ACT == "sigmoid" or ACT == "tanh":
                v = act_value(v, ACT, p0, p1, FAST)
        g = tl.where(mask, act_grad(g, v, ACT, p0, p1, FAST), 0.0)
    return g


@triton.jit
def _batch_norm_sums_kernel(
    dy_ptr, x_ptr, saved_ptr, w_ptr, b_ptr, mean_ptr, var_ptr, g_ptr, gx_ptr, I, N, C, L, steps, per, splits,
    eps: tl.float64, p0: tl.float64, p1: tl.float64,
    ROWS: tl.constexpr, SAVED: tl.constexpr, HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACT: tl.constexpr,
    ACC: tl.constexpr, FAST: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Sums of g and g * x_hat of a share of a group, `per` tiles of `steps`, to (splits, I * C)."""
    pid = tl.program_id(0)
    group, split = pid // splits, pid % splits
    unit, channel, mask_c, instance = _channels(group, C, ROWS, BLOCK_B)
    mean, rstd, scale, shift = _affine(
        w_ptr, b_ptr, mean_ptr, var_ptr, unit, channel, mask_c, eps, HAS_W, HAS_B, ACC
    )
    g_acc = tl.zeros((BLOCK_A, BLOCK_B), ACC)
    gx_acc = tl.zeros((BLOCK_A, BLOCK_B), ACC)
    for step in range(split * per, tl.minimum(split * per + per, steps)):
        offs, mask = _tile(step, channel, instance, N, C, L, ROWS, BLOCK_A, BLOCK_B)
        x = _load(x_ptr, offs, mask, ACC)
        g = _incoming(dy_ptr, saved_ptr, x, mean, scale, shift, offs, mask, p0, p1, SAVED, ACT, ACC, FAST)
        g_acc += g
        gx_acc += tl.where(mask, g * (x - mean), 0.0)
    g_sum = tl.sum(g_acc, axis=0)[None, :]
    gx_sum = tl.sum(gx_acc, axis=0)[None, :]
    if not ROWS:
        g_sum = tl.sum(g_sum, axis=1)[None, :]
        gx_sum = tl.sum(gx_sum, axis=1)[None, :]
    to = split.to(tl.int64) * I * C + unit
    tl.store(g_ptr + to, g_sum, mask=mask_c)
    tl.store(gx_ptr + to, gx_sum * rstd, mask=mask_c)


@triton.jit
def _batch_norm_bwd_kernel(
    dy_ptr, x_ptr, saved_ptr, w_ptr, b_ptr, mean_ptr, var_ptr, g_ptr, gx_ptr, dx_ptr, dr_ptr, N, C, L, steps,
    count: tl.float64, eps: tl.float64, p0: tl.float64, p1: tl.float64,
    ROWS: tl.constexpr, SAVED: tl.constexpr, HAS_W: tl.constexpr, HAS_B: tl.constexpr, TRAINING: tl.constexpr,
    NEED_DX: tl.constexpr, NEED_DR: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """dx = w * rstd * (g - mean(g) - x_hat * mean(g * x_hat)), without the means unless TRAINING, and dr = g; a program
    takes one tile."""
    pid = tl.program_id(0)
    unit, channel, mask_c, instance = _channels(pid // steps, C, ROWS, BLOCK_B)
    offs, mask = _tile(pid % steps, channel, instance, N, C, L, ROWS, BLOCK_A, BLOCK_B)
    mean, rstd, scale, shift = _affine(
        w_ptr, b_ptr, mean_ptr, var_ptr, unit, channel, mask_c, eps, HAS_W, HAS_B, ACC
    )
    x = _load(x_ptr, offs, mask, ACC)
    g = _incoming(dy_ptr, saved_ptr, x, mean, scale, shift, offs, mask, p0, p1, SAVED, ACT, ACC, FAST)
    if NEED_DR:
        tl.store(dr_ptr + offs, narrow(g, dr_ptr.dtype.element_ty), mask=mask)
    if NEED_DX:
        if TRAINING:
            n = tl.full([], count, ACC)
            g -= _load(g_ptr, unit, mask_c, ACC) / n
            g -= (x - mean) * (_load(gx_ptr, unit, mask_c, ACC) / n * rstd)
        tl.store(dx_ptr + offs, narrow(g * scale, dx_ptr.dtype.element_ty), mask=mask)


def tile(target, dtype, N, C, L):
    """Tile of x's elements, and warps, of 128 threads. Not yet measured on a device: 16 elements a thread in 16 bits,
    else 8, as the two sums of 16 in fp32 spill."""
    elements = 64 if target.backend == "interpreter" else 2048 if dtype.itemsize == 2 else 1024
    side = min(triton.next_power_of_2(L if L > 1 else C), elements if L > 1 else min(128, elements))
    return {
        "BLOCK_A": min(triton.next_power_of_2(N), elements // side),
        "BLOCK_B": side,
        "num_warps": warps_of_128(target),
    }


class _Plan:
    """How x is cut: its sizes, its tile, the groups and their tiles, and the shares of these."""

    def __init__(self, x, instances):
        target = target_of(x)
        I, N, C, L = sizes(x, instances)
        self.units, self.channels = I * C, C
        self.options = tile(target, x.dtype, N, C, L)
        a, b = self.options["BLOCK_A"], self.options["BLOCK_B"]
        self.groups = I * triton.cdiv(C, b) if L == 1 else I * C
        steps = triton.cdiv(N, a) * (1 if L == 1 else triton.cdiv(L, b))
        programs = 4 if target.backend == "interpreter" else PROGRAMS
        self.per = triton.cdiv(steps, max(1, programs // self.groups))
        self.splits = triton.cdiv(steps, self.per)
        self.sizes = {"N": N, "C": C, "L": L, "steps": steps}
        self.shares = {"I": I, **self.sizes, "per": self.per, "splits": self.splits}
        acc = STORAGE[acc_dtype(x.dtype)]
        self.flags = {"ROWS": L == 1, "ACC": acc, **self.options}

    @property
    def share_grid(self):
        return (self.groups * self.splits,)

    @property
    def tile_grid(self):
        return (self.groups * self.sizes["steps"],)


def batch_norm_stats(x, instances):
    """The mean and the (biased) variance of each channel, or of each channel of each instance: (C,) or (N * C,)."""
    return _stats(x, _Plan(x, instances))


def _stats(x, plan):
    acc = acc_dtype(x.dtype)
    count, means, squares = torch.empty((3, plan.splits, plan.units), dtype=acc, device=x.device)
    mean, var = (torch.empty(plan.units, dtype=acc, device=x.device) for _ in range(2))
    block = 8 if target_of(x).backend == "interpreter" else 128
    with launch_on(x):
        _batch_norm_moments_kernel[plan.share_grid](
            x_ptr=x, count_ptr=count, mean_ptr=means, squares_ptr=squares, **plan.shares, **plan.flags
        )
        _batch_norm_join_kernel[(triton.cdiv(plan.units, block),)](
            count_ptr=count, mean_ptr=means, squares_ptr=squares, out_mean_ptr=mean, out_var_ptr=var,
            units=plan.units, splits=plan.splits, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return mean, var


def batch_norm_fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1):
    """y = act((x - mean) / sqrt(var + eps) * w + b + residual): y and, where they are not given, mean and var.

    x (N, C, *), contiguous or channels-last, and residual alike; w, b (C,) of one dtype, x's or float32 where x is 16
    bits; mean, var float32 (float64 for float64).
    """
    plan = _Plan(x, instances)
    found = _stats(x, plan) if mean is None else (None, None)
    if mean is None:
        mean, var = found
    y = torch.empty_like(x)
    with launch_on(x):
        _batch_norm_fwd_kernel[plan.tile_grid](
            x_ptr=x, r_ptr=residual, w_ptr=w, b_ptr=b, mean_ptr=mean, var_ptr=var, y_ptr=y, **plan.sizes, eps=eps,
            p0=p0, p1=p1, HAS_R=residual is not None, HAS_W=w is not None, HAS_B=b is not None, ACT=act,
            FAST=is_fast(x.dtype), **plan.flags,
        )  # fmt: skip
    return y, *found


def _saved_as(saved, from_output):
    return "nothing" if saved is None else "output" if from_output else "residual"


def batch_norm_sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1):
    """Sums of g = dy * act'(z) and of g * x_hat of each channel, of mean's shape and dtype. saved: batch_norm_bwd's."""
    plan = _Plan(x, instances)
    g, gx = torch.empty((2, plan.splits, plan.units), dtype=mean.dtype, device=x.device)
    with launch_on(x):
        _batch_norm_sums_kernel[plan.share_grid](
            dy_ptr=dy, x_ptr=x, saved_ptr=saved, w_ptr=w, b_ptr=b, mean_ptr=mean, var_ptr=var, g_ptr=g, gx_ptr=gx,
            **plan.shares, eps=eps, p0=p0, p1=p1, SAVED=_saved_as(saved, from_output), HAS_W=w is not None,
            HAS_B=b is not None, ACT=act, FAST=is_fast(x.dtype), **plan.flags,
        )  # fmt: skip
    return sum_rows(g, mean.dtype), sum_rows(gx, mean.dtype)


def batch_norm_bwd(
    dy, x, saved, w, b, mean, var, sum_g, sum_gx, count, training, instances, from_output, eps, act, p0, p1,
    need_dx, need_dr, need_dw, need_db,
):  # fmt: skip
    """With g = dy * act'(z) and x_hat = (x - mean) * rstd: dx = w * rstd * (g - mean(g) - x_hat * mean(g * x_hat)),
    without the means where the moments are not x's own (training False), dr = g, dw = sum(g * x_hat), db = sum(g), or
    None where not needed.

    saved: y (from_output), the residual, or None where there is none; dy and it laid out as x. sum_g, sum_gx: None, or
    the sums over `count` elements, of which x's are some; dw and db are then not to be had.
    """
    plan = _Plan(x, instances)
    dx = torch.empty_like(x) if need_dx else None
    dr = torch.empty_like(x) if need_dr else None
    dw = db = None
    if sum_g is None and (need_dw or need_db or (need_dx and training)):
        sum_g, sum_gx = batch_norm_sums(
            dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1
        )
        count = x.numel() / plan.units
        affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
        dw = sum_rows(sum_gx.view(-1, plan.channels), affine) if need_dw else None
        db = sum_rows(sum_g.view(-1, plan.channels), affine) if need_db else None
    if need_dx or need_dr:
        with launch_on(x):
            _batch_norm_bwd_kernel[plan.tile_grid](
                dy_ptr=dy, x_ptr=x, saved_ptr=saved, w_ptr=w, b_ptr=b, mean_ptr=mean, var_ptr=var, g_ptr=sum_g,
                gx_ptr=sum_gx, dx_ptr=dx, dr_ptr=dr, **plan.sizes, count=count, eps=eps, p0=p0, p1=p1,
                SAVED=_saved_as(saved, from_output), HAS_W=w is not None, HAS_B=b is not None,
                TRAINING=training and need_dx, NEED_DX=need_dx, NEED_DR=need_dr, ACT=act, FAST=is_fast(x.dtype),
                **plan.flags,
            )  # fmt: skip
    return dx, dr, dw, db
