"""Short depthwise convolution of one dimension, stride and dilation 1, as sequence models have it before their mixers.

A program walks along its sequences and keeps the K - 1 rows of x that it has passed in registers: x is read once,
where a tile of one row a tap would read it K times.
"""

import triton
import triton.language as tl

from .conv_index import finish
from .math import widen


@triton.jit
def _row(ptr, n, at, L, C, channel, mask, ACC: tl.constexpr):
    """Row `at` of each strip's sequence, 0 outside it; n, at (BLOCK_S, 1)."""
    offs = (n * L + at) * C + channel
    return widen(tl.load(ptr + offs, mask=mask & (at >= 0) & (at < L), other=0.0), ACC)


@triton.jit
def _strips(pid_s, N, oL, strip, BLOCK_S: tl.constexpr):
    """Sequence, first row, and whether it exists, of BLOCK_S strips of `strip` rows of y; all (BLOCK_S, 1)."""
    strips = tl.cdiv(oL, strip)
    offs = pid_s * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    n = (offs // strips).to(tl.int64)
    return n, (offs % strips) * strip, n < N


@triton.jit(do_not_specialize=["N", "L", "oL", "padding", "strip"])
def _conv1d_short_kernel(
    x_ptr, w_ptr, b_ptr, residual_ptr, y_ptr, z_ptr, N, L, C, oL, padding, strip, p0: tl.float64, p1: tl.float64,
    TRANSPOSED: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y[l] = act(sum over t of w[t] x[l - padding + t] + b + residual[l]), x (N, L, C), y (N, oL, C), w (K, C); BLOCK_S
    strips of `strip` rows, a multiple of UNROLL, BLOCK_N channels a program. TRANSPOSED: w[K - 1 - t] for w[t]."""
    tiles_n = tl.cdiv(C, BLOCK_N)
    channel = ((tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
    mask_n = channel < C
    n, first, exists = _strips(tl.program_id(0) // tiles_n, N, oL, strip, BLOCK_S)
    mask = exists & mask_n
    w = ()
    for t in tl.static_range(K):
        tap = K - 1 - t if TRANSPOSED else t
        w += (widen(tl.load(w_ptr + channel + tap * C, mask=mask_n, other=0.0), ACC),)
    window = ()
    for t in tl.static_range(K - 1):
        window += (_row(x_ptr, n, first - padding + t, L, C, channel, mask, ACC),)
    for step in range(0, strip, UNROLL):
        rows = window
        for u in tl.static_range(UNROLL):
            rows += (_row(x_ptr, n, first + step + u - padding + K - 1, L, C, channel, mask, ACC),)
        for u in tl.static_range(UNROLL):
            acc = w[0] * rows[u]
            for t in tl.static_range(1, K):
                acc += w[t] * rows[u + t]
            at = first + step + u
            mask_y = mask & (at < oL)
            offs = (n * oL + at) * C + channel
            finish(
                acc, b_ptr, residual_ptr, y_ptr, z_ptr, channel, offs, mask_n, mask_y, p0, p1, ACT, ACC, FAST
            )
        window = rows[UNROLL:]


@triton.jit(do_not_specialize=["N", "L", "oL", "padding", "strip"])
def _conv1d_short_bwd_weight_kernel(
    dz_ptr, x_ptr, dw_ptr, db_ptr, N, L, C, oL, padding, strip,
    K: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """dw[t] = sum over l of dz[l] x[l - padding + t], db of dz[l], over BLOCK_S strips, BLOCK_N channels a program.

    dw (splits, C, K), db (splits, C), a split being BLOCK_S strips.
    """
    tiles_n = tl.cdiv(C, BLOCK_N)
    channel = ((tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
    mask_n = channel < C
    split = tl.program_id(0) // tiles_n
    n, first, exists = _strips(split, N, oL, strip, BLOCK_S)
    mask = exists & mask_n
    dw = ()
    window = ()
    for _ in tl.static_range(K):
        dw += (tl.zeros((BLOCK_S, BLOCK_N), ACC),)
    for t in tl.static_range(K - 1):
        window += (_row(x_ptr, n, first - padding + t, L, C, channel, mask, ACC),)
    db = tl.zeros((BLOCK_S, BLOCK_N), ACC)
    for step in range(0, strip, UNROLL):
        rows = window
        for u in tl.static_range(UNROLL):
            rows += (_row(x_ptr, n, first + step + u - padding + K - 1, L, C, channel, mask, ACC),)
        for u in tl.static_range(UNROLL):
            dz = _row(dz_ptr, n, first + step + u, oL, C, channel, mask, ACC)
            sums = ()
            for t in tl.static_range(K):
                sums += (dw[t] + dz * rows[u + t],)
            dw = sums
            db += dz
        window = rows[UNROLL:]
    column = split.to(tl.int64) * C + channel
    for t in tl.static_range(K):
        tl.store(dw_ptr + column * K + t, tl.sum(dw[t], axis=0)[None, :], mask=mask_n)
    if db_ptr is not None:
        tl.store(db_ptr + column, tl.sum(db, axis=0)[None, :], mask=mask_n)
