"""Depthwise convolution, a group a channel: no product of matrices, so that a tile of channels is summed tap by tap."""

import triton
import triton.language as tl

from .conv_gemm import SIZES
from .conv_index import advance, finish, inside, positions, row_of, tile_rows
from .math import widen


@triton.jit
def _load(ptr, offs, mask, ACC: tl.constexpr):
    return widen(tl.load(ptr + offs, mask=mask, other=0.0), ACC)


@triton.jit(do_not_specialize=SIZES)
def _depthwise_kernel(
    x_ptr, w_ptr, b_ptr, residual_ptr, y_ptr, z_ptr, N, D, H, W, C, oD, oH, oW, O, tiles_m,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    step_d, step_h, step_w, inverse_d, inverse_h, inverse_w, p0: tl.float64, p1: tl.float64,
    TRANSPOSED: tl.constexpr, STRIDED: tl.constexpr, MULTIPLIER: tl.constexpr, RANK: tl.constexpr, INDEX: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y = act(conv(x, w) + b + residual) as conv_gemm.py's _conv_kernel, but w (taps, channels); a (BLOCK_M rows,
    BLOCK_N channels) tile of y a program.

    y's channel c reads x's c // MULTIPLIER; TRANSPOSED: dx's channel c sums the MULTIPLIER channels of dz that read it.
    """
    tiles_n = tl.cdiv(O, BLOCK_N)
    pid = tl.program_id(0)
    pid_m = pid // tiles_n % tiles_m
    (
        mask_m, y_row, n, d, h, w, move_d, move_h, move_w, first_d, first_h, first_w, taps_d, taps_h, taps_w
    ) = tile_rows(
        pid_m.to(INDEX) * BLOCK_M, pid // tiles_n // tiles_m, N, oD, oH, oW, stride_d, stride_h, stride_w,
        pad_d, pad_h, pad_w, dil_d, dil_h, dil_w, step_d, step_h, step_w, inverse_d, inverse_h, inverse_w,
        TRANSPOSED, STRIDED, RANK, KD, KH, KW, BLOCK_M,
    )  # fmt: skip
    x_rows = row_of(n, d, h, w, D, H, W, RANK) * C
    offs_n = (pid % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask_n = offs_n < O
    channel = offs_n.to(tl.int64)
    readers: tl.constexpr = MULTIPLIER if TRANSPOSED else 1

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    steps = taps_d * taps_h * taps_w * readers
    if STRIDED:  # never divide by 0, not even in an iteration that is prepared and then not run
        taps_h, taps_w = tl.maximum(taps_h, 1), tl.maximum(taps_w, 1)
    for i in tl.range(0, steps, loop_unroll_factor=UNROLL):
        tap = i // readers
        u_w = tap % taps_w
        u_h = tap // taps_w % taps_h
        u_d = tap // taps_w // taps_h
        at_d, at_h, at_w = u_d * move_d, u_h * move_h, u_w * move_w
        mask_x = (mask_m & inside(d + at_d, h + at_h, w + at_w, D, H, W, RANK))[:, None] & mask_n
        t = ((first_d + u_d * step_d) * KH + first_h + u_h * step_h) * KW + first_w + u_w * step_w
        if TRANSPOSED:  # w (taps, C)
            source = channel * MULTIPLIER + i % readers
            weight = tl.cast(t, tl.int64) * C + source
        else:  # w (taps, O)
            source = channel // MULTIPLIER
            weight = tl.cast(t, tl.int64) * O + channel
        shift = row_of(u_d * 0, at_d, at_h, at_w, D, H, W, RANK) * C
        x = _load(x_ptr, (x_rows + shift)[:, None] + source, mask_x, ACC)
        acc += x * _load(w_ptr, weight, mask_n, ACC)

    offs = y_row[:, None] * O + channel
    mask = mask_m[:, None] & mask_n
    finish(acc, b_ptr, residual_ptr, y_ptr, z_ptr, channel, offs, mask_n, mask, p0, p1, ACT, ACC, FAST)


@triton.jit(do_not_specialize=[*SIZES[:-1], "rows_per_split"])
def _depthwise_bwd_weight_kernel(
    dz_ptr, x_ptr, dw_ptr, db_ptr, N, D, H, W, C, oD, oH, oW, O, rows_per_split,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    MULTIPLIER: tl.constexpr, RANK: tl.constexpr, INDEX: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, ACC: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dw[o, t] = sum over rows i of dz[i, o] x[row that i meets in tap t, o // MULTIPLIER], db[o] of dz[i, o]; BLOCK_T
    taps of BLOCK_N channels a program, over rows_per_split of the rows, BLOCK_M at once.

    dw (splits, O, taps), db (splits, O), by the programs of the first taps.
    """
    TAPS: tl.constexpr = KD * KH * KW
    tiles_t: tl.constexpr = (TAPS + BLOCK_T - 1) // BLOCK_T
    tiles_n = tl.cdiv(O, BLOCK_N)
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_t = pid // tiles_n % tiles_t
    split = pid // tiles_n // tiles_t
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < O
    channel = offs_n.to(tl.int64)
    offs_t = pid_t * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < TAPS
    t_w = (offs_t % KW * dil_w - pad_w)[:, None]
    t_h = (offs_t // KW % KH * dil_h - pad_h)[:, None]
    t_d = (offs_t // (KW * KH) * dil_d - pad_d)[:, None]

    rows = N.to(INDEX) * oD * oH * oW
    offs_m = split.to(INDEX) * rows_per_split + tl.arange(0, BLOCK_M)
    n, d, h, w = positions(offs_m, oD, oH, oW, RANK)
    dw = tl.zeros((BLOCK_T, BLOCK_M, BLOCK_N), dtype=ACC)
    db = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for _ in range(0, rows_per_split, BLOCK_M):
        mask_m = offs_m < rows
        offs_dz = offs_m.to(tl.int64)[:, None] * O + channel[None, :]
        dz = _load(dz_ptr, offs_dz, mask_m[:, None] & mask_n[None, :], ACC)
        x_d = (d * stride_d)[None, :] + t_d
        x_h = (h * stride_h)[None, :] + t_h
        x_w = (w * stride_w)[None, :] + t_w
        mask_x = mask_t[:, None] & mask_m[None, :] & inside(x_d, x_h, x_w, D, H, W, RANK)
        x_rows = row_of(n[None, :], x_d, x_h, x_w, D, H, W, RANK) * C
        offs_x = x_rows[:, :, None] + (channel // MULTIPLIER)[None, None, :]
        x = _load(x_ptr, offs_x, mask_x[:, :, None] & mask_n[None, None, :], ACC)
        dw += x * dz[None, :, :]
        if db_ptr is not None:
            db += dz
        offs_m += BLOCK_M
        n, d, h, w = advance(n, d, h, w, oD, oH, oW, BLOCK_M, RANK)

    column = split.to(tl.int64) * O + channel
    tl.store(
        dw_ptr + column[None, :] * TAPS + offs_t[:, None],
        tl.sum(dw, axis=1),
        mask=mask_t[:, None] & mask_n[None, :],
    )
    if db_ptr is not None:
        tl.store(db_ptr + column, tl.sum(db, axis=0), mask=mask_n & (pid_t == 0))
