"""group_norm of (N, C, L)."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .norm import sum_rows
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _load(ptr, offs, mask, ACC: tl.constexpr):
    return widen(tl.load(ptr + offs, mask=mask, other=0.0), ACC)


@triton.jit
def _group_norm_fwd_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr, groups, width, length, eps: tl.float64,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) * rstd * w + b of one group of one sample, `width` channels of `length`, in walks of BLOCK."""
    unit = tl.program_id(0).to(tl.int64)
    size = width.to(tl.int64) * length
    offs = tl.arange(0, BLOCK).to(tl.int64)
    x_ptr += unit * size
    y_ptr += unit * size
    first = unit % groups * width
    n = size.to(ACC)
    acc = tl.zeros((BLOCK,), ACC)
    for k in range(0, size, BLOCK):
        acc += _load(x_ptr, offs + k, offs + k < size, ACC)
    mean = tl.sum(acc, axis=0) / n
    acc = tl.zeros((BLOCK,), ACC)
    for k in range(0, size, BLOCK):
        mask = offs + k < size
        centred = tl.where(mask, _load(x_ptr, offs + k, mask, ACC) - mean, 0.0)
        acc += centred * centred
    rstd = 1.0 / tl.sqrt(tl.sum(acc, axis=0) / n + tl.full([], eps, ACC))
    for k in range(0, size, BLOCK):
        mask = offs + k < size
        channel = first + (offs + k) // length
        y = (_load(x_ptr, offs + k, mask, ACC) - mean) * rstd
        if HAS_W:
            y *= _load(w_ptr, channel, mask, ACC)
        if HAS_B:
            y += _load(b_ptr, channel, mask, ACC)
        tl.store(y_ptr + offs + k, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + unit, mean)
    tl.store(rstd_ptr + unit, rstd)


@triton.jit
def _group_norm_bwd_kernel(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_ptr, db_ptr, groups, width, length,
    HAS_W: tl.constexpr, NEED_DX: tl.constexpr, NEED_DWB: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)), g = w * dy, of one group of one sample; each channel's
    sums of dy * x_hat and of dy go to dw and db (N, C)."""
    unit = tl.program_id(0).to(tl.int64)
    size = width.to(tl.int64) * length
    offs = tl.arange(0, BLOCK).to(tl.int64)
    x_ptr += unit * size
    dy_ptr += unit * size
    dx_ptr += unit * size
    first = unit % groups * width
    mean = tl.load(mean_ptr + unit)
    rstd = tl.load(rstd_ptr + unit)
    g_sum = rstd * 0.0
    gx_sum = rstd * 0.0
    begin = size * 0
    for c in range(width):
        dy_acc = tl.zeros((BLOCK,), ACC)
        dyx_acc = tl.zeros((BLOCK,), ACC)
        for k in range(0, length, BLOCK):
            mask = offs + k < length
            at = begin + offs + k
            dy = _load(dy_ptr, at, mask, ACC)
            dy_acc += dy
            dyx_acc += tl.where(mask, dy * ((_load(x_ptr, at, mask, ACC) - mean) * rstd), 0.0)
        dy_sum = tl.sum(dy_acc, axis=0)
        dyx_sum = tl.sum(dyx_acc, axis=0)
        if NEED_DWB:
            tl.store(dw_ptr + unit * width + c, dyx_sum)
            tl.store(db_ptr + unit * width + c, dy_sum)
        if HAS_W:
            w = widen(tl.load(w_ptr + first + c), ACC)
            g_sum += w * dy_sum
            gx_sum += w * dyx_sum
        else:
            g_sum += dy_sum
            gx_sum += dyx_sum
        begin += length
    if NEED_DX:
        n = size.to(ACC)
        g_mean = g_sum / n
        gx_mean = gx_sum / n
        for k in range(0, size, BLOCK):
            mask = offs + k < size
            g = _load(dy_ptr, offs + k, mask, ACC)
            if HAS_W:
                g *= _load(w_ptr, first + (offs + k) // length, mask, ACC)
            normal = (_load(x_ptr, offs + k, mask, ACC) - mean) * rstd
            dx = rstd * (g - g_mean - normal * gx_mean)
            tl.store(dx_ptr + offs + k, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)


def tile(target, length):
    """Elements a walk takes, and warps. Not yet measured on a device: 8 elements a thread."""
    most = 32 if target.backend == "interpreter" else 2048
    block = min(most, max(triton.next_power_of_2(length), 16))
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 8)}


def group_norm_fwd(x, w, b, groups, eps):
    """y, mean, rstd (N * groups,) of x (N, C, L) contiguous; w, b (C,) or None."""
    N, C, L = x.shape
    y = torch.empty_like(x)
    acc = acc_dtype(x.dtype)
    mean, rstd = (torch.empty(N * groups, dtype=acc, device=x.device) for _ in range(2))
    with launch_on(x):
        _group_norm_fwd_kernel[(N * groups,)](
            x_ptr=x, w_ptr=w, b_ptr=b, y_ptr=y, mean_ptr=mean, rstd_ptr=rstd, groups=groups, width=C // groups,
            length=L, eps=eps, HAS_W=w is not None, HAS_B=b is not None, ACC=STORAGE[acc],
            **tile(target_of(x), C // groups * L),
        )  # fmt: skip
    return y, mean, rstd


def group_norm_bwd(dy, x, w, mean, rstd, groups, need_dx, need_dw, need_db):
    """dx, dw = sum(dy * x_hat), db = sum(dy), or None where not needed."""
    N, C, L = x.shape
    dx = torch.empty_like(x) if need_dx else None
    dw, db = (
        torch.empty((N, C), dtype=rstd.dtype, device=x.device) if need_dw or need_db else None
        for _ in range(2)
    )
    with launch_on(x):
        _group_norm_bwd_kernel[(N * groups,)](
            dy_ptr=dy, x_ptr=x, w_ptr=w, mean_ptr=mean, rstd_ptr=rstd, dx_ptr=x if dx is None else dx, dw_ptr=dw,
            db_ptr=db, groups=groups, width=C // groups, length=L, HAS_W=w is not None, NEED_DX=need_dx,
            NEED_DWB=dw is not None, ACC=STORAGE[rstd.dtype], **tile(target_of(x), L),
        )  # fmt: skip
    affine = x.dtype if w is None else w.dtype
    return dx, sum_rows(dw, affine) if need_dw else None, sum_rows(db, affine) if need_db else None
