"""Max-pooling: each output takes the largest value of its window, each input collects from the outputs that took it."""

import torch
import triton
import triton.language as tl

from ..pool import INDEX, lanes, unlaned, windows
from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of, warps_of_128


@triton.jit
def _place(offs, A, B, C):
    """The last three coordinates of row-major numbers, and what is left."""
    return offs // (A * B * C), offs // (B * C) % A, offs // C % B, offs % C


@triton.jit
def _max_pool_fwd_kernel(
    x_ptr, reach_ptr, y_ptr, index_ptr, P, L, D, H, W, OD, OH, OW,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    INDEX: tl.constexpr, FLAT: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """y = the largest x of the window, index = its tap, or its place where FLAT; a program takes BLOCK_P of the P
    outputs of BLOCK_L of the L lanes."""
    offs_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_p, mask_l = offs_p < P, (offs_l < L)[None, :]
    b, od, oh, ow = _place(offs_p, OD, OH, OW)
    reach_d, reach_h, reach_w = reach_ptr + 3 * od, reach_ptr + 3 * (OD + oh), reach_ptr + 3 * (OD + OH + ow)
    start_d = tl.load(reach_d, mask=mask_p, other=0).to(tl.int64)
    start_h = tl.load(reach_h, mask=mask_p, other=0).to(tl.int64)
    start_w = tl.load(reach_w, mask=mask_p, other=0).to(tl.int64)
    from_d, to_d = tl.load(reach_d + 1, mask=mask_p, other=0), tl.load(reach_d + 2, mask=mask_p, other=0)
    from_h, to_h = tl.load(reach_h + 1, mask=mask_p, other=0), tl.load(reach_h + 2, mask=mask_p, other=0)
    from_w, to_w = tl.load(reach_w + 1, mask=mask_p, other=0), tl.load(reach_w + 2, mask=mask_p, other=0)
    best = tl.full((BLOCK_P, BLOCK_L), float("-inf"), ACC)
    choice = tl.zeros((BLOCK_P, BLOCK_L), tl.int32) + ((from_d * KH + from_h) * KW + from_w)[:, None]
    for p in range(KD):
        for q in range(KH):
            row = ((b * D + start_d + p * DD) * H + start_h + q * DH) * W + start_w
            inside = mask_p & (p >= from_d) & (p < to_d) & (q >= from_h) & (q < to_h)
            for c in range(KW):
                mask = (inside & (c >= from_w) & (c < to_w))[:, None] & mask_l
                at = ((row + c * DW) * L)[:, None] + offs_l[None, :]
                x = widen(tl.load(x_ptr + at, mask=mask, other=float("-inf")), ACC)
                up = (x > best) | (x != x)  # the last nan stays, as in torch
                best = tl.where(up, x, best)
                choice = tl.where(up, (p * KH + q) * KW + c, choice)
    to = (offs_p * L)[:, None] + offs_l[None, :]
    mask = mask_p[:, None] & mask_l
    tl.store(y_ptr + to, narrow(best, y_ptr.dtype.element_ty), mask=mask)
    if INDEX:
        if FLAT:
            at_d = start_d[:, None] + choice // (KW * KH) * DD
            at_h = start_h[:, None] + choice // KW % KH * DH
            at_w = start_w[:, None] + choice % KW * DW
            tl.store(index_ptr + to, (at_d * H + at_h) * W + at_w, mask=mask)
        else:
            tl.store(index_ptr + to, choice.to(tl.uint8), mask=mask)


@triton.jit
def _tap(i, start, DILATION: tl.constexpr):
    """The tap by which a window that begins at `start` holds position i, or -1."""
    if DILATION == 1:
        return i - start
    return tl.where((i - start) % DILATION == 0, (i - start) // DILATION, -1)


@triton.jit
def _max_pool_bwd_kernel(
    dy_ptr, index_ptr, reach_ptr, covers_ptr, dx_ptr, P, L, D, H, W, OD, OH, OW,
    ND: tl.constexpr, NH: tl.constexpr, NW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    FLAT: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """dx = the sum of dy over the outputs that took it, of at most ND NH NW whose windows hold it; a program takes
    BLOCK_P of the P inputs of BLOCK_L of the L lanes."""
    offs_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_p, mask_l = offs_p < P, (offs_l < L)[None, :]
    b, d, h, w = _place(offs_p, D, H, W)
    covers_d, covers_h, covers_w = covers_ptr + 2 * d, covers_ptr + 2 * (D + h), covers_ptr + 2 * (D + H + w)
    from_d, to_d = tl.load(covers_d, mask=mask_p, other=0), tl.load(covers_d + 1, mask=mask_p, other=0)
    from_h, to_h = tl.load(covers_h, mask=mask_p, other=0), tl.load(covers_h + 1, mask=mask_p, other=0)
    from_w, to_w = tl.load(covers_w, mask=mask_p, other=0), tl.load(covers_w + 1, mask=mask_p, other=0)
    acc = tl.zeros((BLOCK_P, BLOCK_L), ACC)
    for i in range(ND):
        od = from_d + i
        hit_d = mask_p & (od < to_d)
        p = _tap(d, tl.load(reach_ptr + 3 * od, mask=hit_d, other=0), DD)
        for j in range(NH):
            oh = from_h + j
            hit_h = hit_d & (oh < to_h)
            q = _tap(h, tl.load(reach_ptr + 3 * (OD + oh), mask=hit_h, other=0), DH)
            for k in range(NW):
                ow = from_w + k
                hit = hit_h & (ow < to_w)
                r = _tap(w, tl.load(reach_ptr + 3 * (OD + OH + ow), mask=hit, other=0), DW)
                hit = hit & (p >= 0) & (q >= 0) & (r >= 0)
                if FLAT:
                    own = (d * H + h) * W + w
                else:
                    own = (p * KH + q) * KW + r
                at = ((((b * OD + od) * OH + oh) * OW + ow) * L)[:, None] + offs_l[None, :]
                mask = hit[:, None] & mask_l
                taken = tl.load(index_ptr + at, mask=mask, other=0).to(tl.int64) == own[:, None]
                dy = widen(tl.load(dy_ptr + at, mask=mask, other=0.0), ACC)
                acc += tl.where(taken & mask, dy, 0.0)
    to = (offs_p * L)[:, None] + offs_l[None, :]
    tl.store(dx_ptr + to, narrow(acc, dx_ptr.dtype.element_ty), mask=mask_p[:, None] & mask_l)


def tile(target, dtype, L):
    """BLOCK_P, BLOCK_L and num_warps: 1024 elements a program (512 in fp64), up to 128 lanes; 128 threads, so that a
    thread's 8 of 16 bits are one load. Not yet measured on a device."""
    widest, elements = (
        (128, 8192 // max(dtype.itemsize * 2, 8)) if target.backend != "interpreter" else (8, 64)
    )
    block_l = min(triton.next_power_of_2(L), widest)
    return {"BLOCK_P": elements // block_l, "BLOCK_L": block_l, "num_warps": warps_of_128(target)}


def _grid(P, L, options):
    return triton.cdiv(P, options["BLOCK_P"]), triton.cdiv(L, options["BLOCK_L"])


def max_pool_fwd(x, out, kernel, stride, padding, dilation, index, last):
    """x (N, C, D, H, W); y (N, C, *out) and, as `index` says, of each output the "tap" it took (uint8), its "flat"
    place in the plane (int64), or "none". last: channels are adjacent, in x and in the results; else widths are."""
    channels, size = x.shape[1], tuple(x.shape[2:])
    w = windows(size, tuple(out), *map(tuple, (kernel, stride, padding, dilation)), x.device)
    x = lanes(x, last)
    shape = (x.shape[0], *out, x.shape[4])
    y = x.new_empty(shape)
    chosen = None if index == "none" else x.new_empty(shape, dtype=INDEX[index])
    L = x.shape[4]
    P = y.numel() // L
    options = tile(target_of(x), x.dtype, L)
    with launch_on(x):
        _max_pool_fwd_kernel[_grid(P, L, options)](
            x_ptr=x, reach_ptr=w.reach, y_ptr=y, index_ptr=y if chosen is None else chosen, P=P, L=L,
            D=size[0], H=size[1], W=size[2], OD=out[0], OH=out[1], OW=out[2],
            KD=w.kernel[0], KH=w.kernel[1], KW=w.kernel[2], DD=w.dilation[0], DH=w.dilation[1], DW=w.dilation[2],
            INDEX=chosen is not None, FLAT=index == "flat", ACC=STORAGE[acc_dtype(x.dtype)], **options,
        )  # fmt: skip
    return unlaned(y, channels, last), None if chosen is None else unlaned(chosen, channels, last)


def max_pool_bwd(dy, index, size, kernel, stride, padding, dilation, last):
    """dx (N, C, *size): of each input the sum of dy where the index names it."""
    channels, out = dy.shape[1], tuple(dy.shape[2:])
    w = windows(tuple(size), out, *map(tuple, (kernel, stride, padding, dilation)), dy.device)
    dy, index = lanes(dy, last), lanes(index, last)
    L = dy.shape[4]
    dx = dy.new_empty((dy.shape[0], *size, L))
    P = dx.numel() // L
    options = tile(target_of(dy), dy.dtype, L)
    with launch_on(dy):
        _max_pool_bwd_kernel[_grid(P, L, options)](
            dy_ptr=dy, index_ptr=index, reach_ptr=w.reach, covers_ptr=w.covers, dx_ptr=dx, P=P, L=L,
            D=size[0], H=size[1], W=size[2], OD=out[0], OH=out[1], OW=out[2],
            ND=w.most[0], NH=w.most[1], NW=w.most[2], KH=w.kernel[1], KW=w.kernel[2],
            DD=w.dilation[0], DH=w.dilation[1], DW=w.dilation[2],
            FLAT=index.dtype == torch.int64, ACC=STORAGE[acc_dtype(dy.dtype)], **options,
        )  # fmt: skip
    return unlaned(dx, channels, last)
