"""Averages, interpolation and their transposes: sums over a few weighted inputs."""

import torch
import triton
import triton.language as tl

from ..pool import lanes, unlaned, weights
from .math import narrow, widen
from .pool import _place
from .runtime import STORAGE, acc_dtype, launch_on, target_of, warps_of_128


@triton.jit
def _resample_kernel(
    x_ptr, table_ptr, weights_ptr, divisors_ptr, y_ptr, P, L, D, H, W, OD, OH, OW,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DIVIDE: tl.constexpr, TAPS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """y = the weighted sum of x over KD KH KW taps at most, over the divisors; a program takes BLOCK_P of the P outputs
    of BLOCK_L of the L lanes or, where TAPS (and L = 1), BLOCK_L taps of a row at once."""
    offs_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_p, mask_l = offs_p < P, (offs_l < L)[None, :]
    b, od, oh, ow = _place(offs_p, OD, OH, OW)
    table_d, table_h, table_w = table_ptr + 3 * od, table_ptr + 3 * (OD + oh), table_ptr + 3 * (OD + OH + ow)
    first_d = tl.load(table_d, mask=mask_p, other=0).to(tl.int64)
    first_h = tl.load(table_h, mask=mask_p, other=0).to(tl.int64)
    first_w = tl.load(table_w, mask=mask_p, other=0).to(tl.int64)
    count_d, at_d = tl.load(table_d + 1, mask=mask_p, other=0), tl.load(table_d + 2, mask=mask_p, other=0)
    count_h, at_h = tl.load(table_h + 1, mask=mask_p, other=0), tl.load(table_h + 2, mask=mask_p, other=0)
    count_w, at_w = tl.load(table_w + 1, mask=mask_p, other=0), tl.load(table_w + 2, mask=mask_p, other=0)
    acc = tl.zeros((BLOCK_P, BLOCK_L), ACC)
    for p in range(KD):
        for q in range(KH):
            inside = mask_p & (p < count_d) & (q < count_h)
            outer = tl.load(weights_ptr + at_d + p, mask=inside, other=0.0)
            outer *= tl.load(weights_ptr + at_h + q, mask=inside, other=0.0)
            row = ((b * D + tl.minimum(first_d + p, D - 1)) * H + tl.minimum(first_h + q, H - 1)) * W
            part = tl.zeros((BLOCK_P, BLOCK_L), ACC)  # of a row: a large window's error stays a small one's
            if TAPS:
                for c in range(0, KW, BLOCK_L):
                    tap = c + tl.arange(0, BLOCK_L)[None, :]
                    mask = inside[:, None] & (tap < count_w[:, None])
                    at = row[:, None] + tl.minimum(first_w[:, None] + tap, W - 1)
                    x = widen(tl.load(x_ptr + at, mask=mask, other=0.0), ACC)
                    part += x * tl.load(weights_ptr + at_w[:, None] + tap, mask=mask, other=0.0)
            else:
                for c in range(KW):
                    hit = inside & (c < count_w)
                    at = ((row + tl.minimum(first_w + c, W - 1)) * L)[:, None] + offs_l[None, :]
                    x = widen(tl.load(x_ptr + at, mask=hit[:, None] & mask_l, other=0.0), ACC)
                    part += x * tl.load(weights_ptr + at_w + c, mask=hit, other=0.0)[:, None]
            acc += outer[:, None] * part
    divisor = tl.full((BLOCK_P,), 1.0, ACC)
    if DIVIDE:
        divisor = tl.load(divisors_ptr + od, mask=mask_p, other=1.0)
        divisor *= tl.load(divisors_ptr + OD + oh, mask=mask_p, other=1.0)
        divisor *= tl.load(divisors_ptr + OD + OH + ow, mask=mask_p, other=1.0)
    if TAPS:
        y = tl.sum(acc, axis=1) / divisor
        tl.store(y_ptr + offs_p, narrow(y, y_ptr.dtype.element_ty), mask=mask_p)
    else:
        to = (offs_p * L)[:, None] + offs_l[None, :]
        y = narrow(acc / divisor[:, None], y_ptr.dtype.element_ty)
        tl.store(y_ptr + to, y, mask=mask_p[:, None] & mask_l)


def tile(target, dtype, L, taps):
    """BLOCK_P, BLOCK_L, num_warps, and whether BLOCK_L counts taps: from 16 of them on where L = 1. 1024 elements a
    program (512 in fp64, and of a few lanes, whose many positions spill on sm_80), up to 128 lanes or taps; 128
    threads. Not yet measured on a device."""
    widest, elements = (
        (128, 8192 // max(dtype.itemsize * 2, 8)) if target.backend != "interpreter" else (8, 64)
    )
    by_taps = L == 1 and taps >= 16
    block_l = min(triton.next_power_of_2(taps if by_taps else L), widest)
    if 1 < L < 16 and target.backend != "interpreter":
        elements = min(elements, 512)
    return {
        "TAPS": by_taps,
        "BLOCK_P": elements // block_l,
        "BLOCK_L": block_l,
        "num_warps": warps_of_128(target),
    }


def resample(x, out, mode, shape, divisor, scales, transposed, last):
    """y (N, C, *out) of x (N, C, D, H, W) by kernels/pool.py's `weights`; transposed: the map that they are the
    transpose of goes from out to x's sizes. last: channels are adjacent, in x and in y."""
    channels, size = x.shape[1], tuple(x.shape[2:])
    acc = acc_dtype(x.dtype)
    ends = (tuple(out), size) if transposed else (size, tuple(out))
    w = weights(mode, *ends, tuple(shape), divisor, tuple(scales), transposed, acc, x.device)
    x = lanes(x, last)
    L = x.shape[4]
    y = torch.empty((x.shape[0], *out, L), dtype=x.dtype, device=x.device)
    P = y.numel() // L
    options = tile(target_of(x), x.dtype, L, w.most[2])
    grid = (triton.cdiv(P, options["BLOCK_P"]), 1 if options["TAPS"] else triton.cdiv(L, options["BLOCK_L"]))
    with launch_on(x):
        _resample_kernel[grid](
            x_ptr=x, table_ptr=w.table, weights_ptr=w.weights, divisors_ptr=w.divisors, y_ptr=y, P=P, L=L,
            D=size[0], H=size[1], W=size[2], OD=out[0], OH=out[1], OW=out[2],
            KD=w.most[0], KH=w.most[1], KW=w.most[2], DIVIDE=w.divisors is not None, ACC=STORAGE[acc], **options,
        )  # fmt: skip
    return unlaned(y, channels, last)
