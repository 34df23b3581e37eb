"""Rotary embedding over any strides but the last."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, ids_ptr, y_ptr, H, L, D, positions, half,
    stride_xb, stride_xh, stride_xl, stride_yb, stride_yh, stride_yl, stride_ib, stride_il,
    HAS_IDS: tl.constexpr, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of features, sin negated where INVERSE; features from
    2 half on are copied. A program takes BLOCK_L positions of a head, BLOCK_R pairs at a time."""
    num_l = tl.cdiv(L, BLOCK_L)
    pid = tl.program_id(0)
    bh = pid // num_l
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    offs_l = (pid % num_l).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    if HAS_IDS:
        position = tl.load(ids_ptr + b * stride_ib + offs_l * stride_il, mask=mask_l, other=0)
        position = tl.minimum(tl.maximum(position, 0), positions - 1)
    else:
        position = offs_l
    table = (position * half)[:, None]
    x_row = x_ptr + b * stride_xb + h * stride_xh + (offs_l * stride_xl)[:, None]
    y_row = y_ptr + b * stride_yb + h * stride_yh + (offs_l * stride_yl)[:, None]
    for start in range(0, half, BLOCK_R):
        offs_r = start + tl.arange(0, BLOCK_R)[None, :]
        mask = mask_l[:, None] & (offs_r < half)
        cos = tl.load(cos_ptr + table + offs_r, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + table + offs_r, mask=mask, other=0.0)
        if INVERSE:
            sin = -sin
        if INTERLEAVED:
            offs_d = 2 * start + tl.arange(0, 2 * BLOCK_R)[None, :]
            mask_d = mask_l[:, None] & (offs_d < 2 * half)
            x = widen(tl.load(x_row + offs_d, mask=mask_d, other=0.0), ACC)
            p, q = tl.split(tl.reshape(x, (BLOCK_L, BLOCK_R, 2)))
            y = tl.reshape(tl.join(p * cos - q * sin, q * cos + p * sin), (BLOCK_L, 2 * BLOCK_R))
            tl.store(y_row + offs_d, narrow(y, y_ptr.dtype.element_ty), mask=mask_d)
        else:
            p = widen(tl.load(x_row + offs_r, mask=mask, other=0.0), ACC)
            q = widen(tl.load(x_row + half + offs_r, mask=mask, other=0.0), ACC)
            tl.store(y_row + offs_r, narrow(p * cos - q * sin, y_ptr.dtype.element_ty), mask=mask)
            tl.store(y_row + half + offs_r, narrow(q * cos + p * sin, y_ptr.dtype.element_ty), mask=mask)
    for start in range(2 * half, D, BLOCK_R):
        offs_d = start + tl.arange(0, BLOCK_R)[None, :]
        mask = mask_l[:, None] & (offs_d < D)
        tl.store(y_row + offs_d, tl.load(x_row + offs_d, mask=mask, other=0.0), mask=mask)


def tile(target, half):
    """BLOCK_L, BLOCK_R and num_warps: a head's pairs at once up to 128 of them, 2048 pairs a program. Not yet measured
    on a device."""
    widest, pairs = (128, 2048) if target.backend != "interpreter" else (4, 32)
    block_r = min(triton.next_power_of_2(half), widest)
    return {"BLOCK_L": max(pairs // block_r, 1), "BLOCK_R": block_r, "num_warps": 4}


def rotary(x, cos, sin, position_ids, interleaved, inverse):
    """x (B, H, L, D), its features adjacent; cos, sin (P, R/2), contiguous, fp32 (fp64 for fp64); position_ids int64
    (L,) or (B, L) or None. y is laid out like x."""
    y = torch.empty_like(x)
    B, H, L, D = x.shape
    positions, half = cos.shape
    ids, stride_ib, stride_il = cos, 0, 0
    if position_ids is not None:
        ids, stride_il = position_ids, position_ids.stride(-1)
        stride_ib = position_ids.stride(0) if position_ids.dim() == 2 else 0
    options = tile(target_of(x), half)
    with launch_on(x):
        _rotary_kernel[(B * H * triton.cdiv(L, options["BLOCK_L"]),)](
            x_ptr=x, cos_ptr=cos, sin_ptr=sin, ids_ptr=ids, y_ptr=y, H=H, L=L, D=D, positions=positions, half=half,
            stride_xb=x.stride(0), stride_xh=x.stride(1), stride_xl=x.stride(2),
            stride_yb=y.stride(0), stride_yh=y.stride(1), stride_yl=y.stride(2),
            stride_ib=stride_ib, stride_il=stride_il,
            HAS_IDS=position_ids is not None, INTERLEAVED=interleaved, INVERSE=inverse,
            ACC=STORAGE[acc_dtype(x.dtype)], **options,
        )  # fmt: skip
    return y
