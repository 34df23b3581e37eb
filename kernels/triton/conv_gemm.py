"""Convolution as an implicit matrix product: the matrix of patches is never written, its tiles are read from x."""

import triton
import triton.language as tl

from .conv_index import advance, finish, inside, positions, row_of, tile_rows
from .linear import tile_of
from .math import INTERPRET, narrow, widen

# Sizes that change from layer to layer, but no code with them.
SIZES = ["N", "D", "H", "W", "oD", "oH", "oW", "pad_d", "pad_h", "pad_w", "tiles_m"]


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, ACC: tl.constexpr):
    if INTERPRET:  # its dot of bf16 operands multiplies their bit patterns
        a = widen(a, ACC)
        b = widen(b, ACC)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit(do_not_specialize=SIZES)
def _conv_kernel(
    x_ptr, w_ptr, b_ptr, residual_ptr, y_ptr, z_ptr, N, D, H, W, C, oD, oH, oW, O, groups, group_c, group_o, tiles_m,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    step_d, step_h, step_w, inverse_d, inverse_h, inverse_w, p0: tl.float64, p1: tl.float64,
    TRANSPOSED: tl.constexpr, STRIDED: tl.constexpr, MERGED: tl.constexpr, RANK: tl.constexpr, INDEX: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y = act(conv(x, w) + b + residual), x (N, D, H, W, C), y (N, oD, oH, oW, O), a (BLOCK_M rows, BLOCK_N channels of
    one group) tile of y a program; TRANSPOSED: the input gradient, from x = dz to y = dx, w being (C, ..., O / groups).

    The sum over taps and channels is one loop, so that it is pipelined as one. MERGED: KW taps of C channels, one group
    and dilation 1, are KW C adjacent elements of a row of x as of w, and count as one tap of so many channels: few
    channels would be padded to BLOCK_K in each. STRIDED: the positions of dx of each residue modulo the stride are a
    convolution of stride 1 of their own, over the taps that meet them (`phase`).
    """
    tiles = tiles_m * tl.cdiv(group_o, BLOCK_N)
    pid = tl.program_id(0)
    pid_m, pid_n = tile_of(pid % tiles, tiles_m, group_o, 1, BLOCK_N, GROUP_M)
    group = pid // tiles % groups
    (
        mask_m, y_row, n, d, h, w, move_d, move_h, move_w, first_d, first_h, first_w, taps_d, taps_h, taps_w
    ) = tile_rows(
        pid_m.to(INDEX) * BLOCK_M, pid // tiles // groups, N, oD, oH, oW, stride_d, stride_h, stride_w,
        pad_d, pad_h, pad_w, dil_d, dil_h, dil_w, step_d, step_h, step_w, inverse_d, inverse_h, inverse_w,
        TRANSPOSED, STRIDED, RANK, KD, KH, KW, BLOCK_M,
    )  # fmt: skip
    x_rows = x_ptr + row_of(n, d, h, w, D, H, W, RANK) * C + group.to(tl.int64) * group_c

    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < group_o
    offs_k = tl.arange(0, BLOCK_K)
    group_w = group.to(tl.int64) * (KD * KH * KW) * group_o * group_c
    if TRANSPOSED:  # w (C, taps, group_o)
        w_columns = w_ptr + group_w + offs_n
    else:  # w (O, taps, group_c)
        w_columns = w_ptr + group_w + offs_n.to(tl.int64) * (KD * KH * KW) * group_c
    run = group_c
    if MERGED:
        run = KW * group_c
        taps_w = 1

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    blocks = tl.cdiv(run, BLOCK_K)
    steps = taps_d * taps_h * taps_w * blocks
    if STRIDED:  # never divide by 0, not even in an iteration that is prepared and then not run
        taps_h, taps_w = tl.maximum(taps_h, 1), tl.maximum(taps_w, 1)
    for i in range(steps):
        tap = i // blocks
        k = (i % blocks) * BLOCK_K + offs_k
        mask_k = k < run
        u_w = tap % taps_w
        u_h = tap // taps_w % taps_h
        u_d = tap // taps_w // taps_h
        at_d, at_h, at_w = u_d * move_d, u_h * move_h, u_w * move_w
        shift = row_of(u_d * 0, at_d, at_h, at_w, D, H, W, RANK) * C
        t_w, t_h, t_d = first_w + u_w * step_w, first_h + u_h * step_h, first_d + u_d * step_d
        if MERGED:
            in_row = w[:, None] * C + k[None, :]
            mask_x = (mask_m & inside(d + at_d, h + at_h, w * 0, D, H, W, RANK))[:, None] & mask_k[None, :]
            mask_x &= (in_row >= 0) & (in_row < W * C)
            t = (t_d * KH + t_h).to(tl.int64)
        else:
            mask_x = (mask_m & inside(d + at_d, h + at_h, w + at_w, D, H, W, RANK))[:, None] & mask_k[None, :]
            t = ((t_d * KH + t_h) * KW + t_w).to(tl.int64)
        x = tl.load(x_rows[:, None] + (shift + k)[None, :], mask=mask_x, other=0.0)
        if TRANSPOSED:
            w_offs = k.to(tl.int64) * (KD * KH * KW) * group_o + t * group_o
        else:
            w_offs = t * run + k
        mask_w = mask_k[:, None] & mask_n[None, :]
        weight = tl.load(w_columns[None, :] + w_offs[:, None], mask=mask_w, other=0.0)
        acc = _dot(x, weight, acc, PRECISION, ACC)

    channel = (group * group_o + offs_n)[None, :].to(tl.int64)
    offs = y_row[:, None] * O + channel
    mask_n = mask_n[None, :]
    finish(
        acc, b_ptr, residual_ptr, y_ptr, z_ptr, channel, offs, mask_n, mask_m[:, None] & mask_n, p0, p1,
        ACT, ACC, FAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES[:-1], "rows_per_split"])
def _conv_bwd_weight_kernel(
    dz_ptr, x_ptr, dw_ptr, N, D, H, W, C, oD, oH, oW, O, groups, group_c, group_o, rows_per_split,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    MERGED: tl.constexpr, RANK: tl.constexpr, INDEX: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[o, t, c] = sum over rows i of dz[i, o] x[row that i meets in tap t, c], a (BLOCK_M o, BLOCK_N c) tile of one
    tap a program, over rows_per_split of the rows, BLOCK_K at once; dw (splits, O, taps, group_c).

    MERGED as in _conv_kernel: KW group_c columns of one tap.
    """
    run = group_c
    TAPS: tl.constexpr = KD * KH if MERGED else KD * KH * KW
    if MERGED:
        run = KW * group_c
    tiles_n = tl.cdiv(run, BLOCK_N)
    tiles_m = tl.cdiv(group_o, BLOCK_M)
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n % tiles_m
    tap = pid // tiles_n // tiles_m % TAPS
    group = pid // tiles_n // tiles_m // TAPS % groups
    split = pid // tiles_n // tiles_m // TAPS // groups
    t_w = 0
    t_h = tap
    if not MERGED:
        t_w = tap % KW
        t_h = tap // KW
    t_d = t_h // KH
    t_h = t_h % KH

    offs_o = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_o = offs_o < group_o
    mask_c = offs_c < run
    columns_o = (group * group_o + offs_o).to(tl.int64)
    columns_c = group.to(tl.int64) * group_c + offs_c
    rows = N.to(INDEX) * oD * oH * oW
    offs_k = split.to(INDEX) * rows_per_split + tl.arange(0, BLOCK_K)
    n, d, h, w = positions(offs_k, oD, oH, oW, RANK)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for _ in range(0, rows_per_split, BLOCK_K):
        mask_k = offs_k < rows
        # read as its transpose: a tile that is turned after the load is not fetched ahead on sm_80 and sm_120
        dz = tl.load(
            dz_ptr + offs_k.to(tl.int64)[None, :] * O + columns_o[:, None],
            mask=mask_k[None, :] & mask_o[:, None],
            other=0.0,
        )
        x_d = d * stride_d - pad_d + t_d * dil_d
        x_h = h * stride_h - pad_h + t_h * dil_h
        x_w = w * stride_w - pad_w + t_w * dil_w
        if MERGED:
            in_row = x_w[:, None] * C + offs_c[None, :]
            mask_x = (mask_k & inside(x_d, x_h, x_w * 0, D, H, W, RANK))[:, None] & mask_c[None, :]
            mask_x &= (in_row >= 0) & (in_row < W * C)
        else:
            mask_x = (mask_k & inside(x_d, x_h, x_w, D, H, W, RANK))[:, None] & mask_c[None, :]
        x_rows = row_of(n, x_d, x_h, x_w, D, H, W, RANK) * C
        x = tl.load(x_ptr + x_rows[:, None] + columns_c[None, :], mask=mask_x, other=0.0)
        acc = _dot(dz, x, acc, PRECISION, ACC)
        offs_k += BLOCK_K
        n, d, h, w = advance(n, d, h, w, oD, oH, oW, BLOCK_K, RANK)

    first = ((split.to(tl.int64) * O + columns_o) * TAPS + tap) * run
    tl.store(
        dw_ptr + first[:, None] + offs_c[None, :],
        narrow(acc, dw_ptr.dtype.element_ty),
        mask=mask_o[:, None] & mask_c[None, :],
    )
