"""Attention's gradients, with no atomics: every value has one owner, which sums in a fixed order.

p comes again from lse, p = exp(s - lse); with dp = do v^T (dropped and scaled as p was) and delta = rowsum(do o):
ds = p (dp - delta), dv = p^T do, dq = scale ds k, dk = scale ds^T q, dbias = ds. Where a tile holds all keys there are
(SHORT), p is divided by its sum, which lse's rounding has moved off 1 by |lse| eps / 2; and as dp - delta is rounding
and nothing else where one key has nearly all the weight, its mean, sum p (dp - delta), is taken off: ds of a key alone
is then 0, as in torch's softmax.

A pass over queries for dk and dv takes four products of 2 Lq Lk D FLOPs, a pass over keys for dq three, seven in
all. Five would do in one pass, but then dq is summed through atomics or through scratch of Lq D values a key block;
so at best 5/7 of what a kernel with atomics reaches. Bytes: q, k, v, do, lse and delta once a pass from memory, the
floor is the tensor cores' rate as in the forward. delta costs one read of o and do.
"""

import torch
import triton
import triton.language as tl

from .attention_scores import (
    EXACT,
    LOG2E,
    SIZES,
    arguments,
    block_d,
    block_of,
    dot,
    heads_together,
    is_visible,
    kept,
    key_range,
    like_output,
    load_rows,
    query_range,
    scores,
    sequence_of,
    store_rows,
    strides,
)
from .attention_tiles import dbias_tile, dkv_tile, dq_tile
from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _attention_delta_kernel(
    do_ptr, o_ptr, delta_ptr, H, Lq, Dv, stride_dob, stride_doh, stride_dom, stride_ob, stride_oh, stride_om,
    ACC: tl.constexpr, EVEN_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(do * o), a program BLOCK_M rows of one head."""
    num_m = tl.cdiv(Lq, BLOCK_M)
    pid = tl.program_id(0)
    bh = (pid // num_m).to(tl.int64)
    b, head = bh // H, bh % H
    rows = pid % num_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_DV)
    do_start = do_ptr + b * stride_dob + head * stride_doh
    o_start = o_ptr + b * stride_ob + head * stride_oh
    do = load_rows(do_start, rows, stride_dom, offs_d, Lq, Dv, True, EVEN_DV)
    o = load_rows(o_start, rows, stride_om, offs_d, Lq, Dv, True, EVEN_DV)
    tl.store(delta_ptr + bh * Lq + rows, tl.sum(widen(do, ACC) * widen(o, ACC), axis=1), mask=rows < Lq)


@triton.jit
def _load_lse(lse_ptr, rows, Lq):
    """lse, such that p = e^(s - lse) is 0 in rows that see nothing and beyond the last."""
    lse = tl.load(lse_ptr + rows, mask=rows < Lq, other=float("inf"))
    return tl.where(lse == float("-inf"), 0.0, lse)


@triton.jit
def _p_and_ds(
    qk, dp, pos, key, lse, delta, keep, visible, bias_ptrs, bias_mask, slope, scale, softcap, keep_scale,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr,
    MASKED: tl.constexpr, FAST: tl.constexpr, SHORT: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """p as dropped, the gradient of s + bias, and that of scale q k^T: tiles of either orientation, keys along the
    axis KEYS."""
    s, t = scores(
        qk, pos, key, visible, bias_ptrs, bias_mask, slope, scale, softcap, BIAS, HAS_SLOPES, HAS_SOFTCAP,
        MASKED, False, FAST,
    )  # fmt: skip
    p = tl.exp2((s - lse) * LOG2E)
    if SHORT:
        weights = tl.expand_dims(tl.sum(p, axis=KEYS), KEYS)
        p = p / tl.where(weights > 0, weights, 1.0)
    dropped = p
    if DROPOUT:
        dropped = tl.where(keep, p * keep_scale, 0.0)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    dp -= delta
    if SHORT:
        dp -= tl.expand_dims(tl.sum(p * dp, axis=KEYS), KEYS)
    ds = p * dp
    dqk = ds
    if HAS_SOFTCAP:
        dqk = ds * (1.0 - t * t)
    return dropped, ds, dqk


@triton.jit
def _walk_queries(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, stride_qm, stride_dom, lo, hi, key, shift, Lq, Lk, valid,
    bias_ptr, stride_bm, stride_bn, slope, first_block, padded_k, seed, threshold, keep_scale, scale, softcap,
    left, right, start_n, D, Dv,
    MASKED: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr, SHORT: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dk / scale and dv with the shares of queries lo..hi - 1. Tiles stand upright, keys by queries: p^T and ds^T are
    then the left operands of their products as they lie in registers."""
    offs_d = tl.arange(0, BLOCK_D)
    offs_dv = tl.arange(0, BLOCK_DV)
    zero = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for start_m in range(lo, hi, BLOCK_M):
        offs_m = tl.arange(0, BLOCK_M)
        rows = start_m + offs_m
        query = rows[None, :]
        pos = query + shift
        q_start = q_ptr + tl.cast(start_m, tl.int64) * stride_qm
        q = load_rows(q_start, offs_m, stride_qm, offs_d, Lq - start_m, D, True, EVEN_D)
        do_start = do_ptr + tl.cast(start_m, tl.int64) * stride_dom
        do = load_rows(do_start, offs_m, stride_dom, offs_dv, Lq - start_m, Dv, True, EVEN_DV)
        lse = _load_lse(lse_ptr, rows, Lq)[None, :]
        qk = dot(k, tl.trans(q), zero, ACC, PRECISION)
        dp = zero
        delta = lse
        if NEED_DK:
            dp = dot(v, tl.trans(do), zero, ACC, PRECISION)
            delta = tl.load(delta_ptr + rows, mask=rows < Lq, other=0.0)[None, :]
        keep = 0
        if DROPOUT:
            row_block = first_block + rows.to(tl.int64) * padded_k
            keep = tl.trans(kept(seed, row_block, start_n, threshold, BLOCK_M, BLOCK_N))
        p, _, dqk = _p_and_ds(
            qk, dp, pos, key, lse, delta, keep,
            is_visible(pos, key, valid, left, right, HAS_LEFT, HAS_RIGHT),
            bias_ptr + query.to(tl.int64) * stride_bm + key.to(tl.int64) * stride_bn if BIAS != "none" else 0,
            (query < Lq) & (key < Lk), slope, scale, softcap, keep_scale,
            BIAS, HAS_SLOPES, HAS_SOFTCAP, DROPOUT, MASKED, FAST, SHORT, 0,
        )  # fmt: skip
        if NEED_DV:
            dv = dot(narrow(p, do.dtype), do, dv, ACC, PRECISION)
        if NEED_DK:
            dk = dot(narrow(dqk, q.dtype), q, dk, ACC, PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=[*SIZES, "together"])
def _attention_bwd_dkv_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, bias_ptr, slopes_ptr, key_lengths_ptr, cu_q_ptr, cu_k_ptr,
    seed_ptr, dk_ptr, dv_ptr,
    B, H, group, Lq, Lk, D, Dv, max_q, max_k, padded_k, together,
    stride_dob, stride_doh, stride_dom, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_bb, stride_bh, stride_bm, stride_bn, stride_sb, stride_sh,
    stride_dkb, stride_dkh, stride_dkn, stride_dvb, stride_dvh, stride_dvn,
    scale: tl.float64, softcap: tl.float64, left, right, threshold: tl.int64, keep_scale: tl.float64,
    NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LENGTHS: tl.constexpr, PACKED: tl.constexpr,
    ALIGN_END: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    EDGES_APART: tl.constexpr, SHORT: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_N rows of dk and dv of one key head, over its group's queries."""
    kv_heads = H // group
    num_n = tl.cdiv(max_k, BLOCK_N)
    pid_n, bh = block_of(tl.program_id(0), num_n, B * kv_heads, together, False)
    b, kv_head = bh // kv_heads, (bh % kv_heads).to(tl.int64)
    total_q = Lq
    at, start_q, start_k, Lq, Lk, valid, shift = sequence_of(
        b, cu_q_ptr, cu_k_ptr, key_lengths_ptr, Lq, Lk, PACKED, HAS_LENGTHS, ALIGN_END
    )
    scale = tl.full([], scale, ACC)
    softcap = tl.full([], softcap, ACC)
    keep_scale = tl.full([], keep_scale, ACC)
    start_n = pid_n * BLOCK_N
    if start_n < Lk:
        keys = start_n + tl.arange(0, BLOCK_N)
        key = keys[:, None]
        offs_d = tl.arange(0, BLOCK_D)
        offs_dv = tl.arange(0, BLOCK_DV)
        k_start = k_ptr + at * stride_kb + kv_head * stride_kh + start_k * stride_kn
        v_start = v_ptr + at * stride_vb + kv_head * stride_vh + start_k * stride_vn
        k = load_rows(k_start, keys, stride_kn, offs_d, valid, D, True, EVEN_D)
        v = load_rows(v_start, keys, stride_vn, offs_dv, valid, Dv, True, EVEN_DV)
        lo, full_lo, full_hi, hi = query_range(
            start_n, Lq, valid, shift, left, right, HAS_LEFT, HAS_RIGHT, BLOCK_M, BLOCK_N
        )
        seed = start_n
        if DROPOUT:
            seed = tl.load(seed_ptr)
        dk = tl.zeros((BLOCK_N, BLOCK_D), ACC)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), ACC)
        for member in range(group):
            head = kv_head * group + member
            slope = scale
            if HAS_SLOPES:
                slope = tl.load(slopes_ptr + b.to(tl.int64) * stride_sb + head * stride_sh).to(ACC)
            bias_start = start_n
            if BIAS != "none":
                bias_start = bias_ptr + b.to(tl.int64) * stride_bb + head * stride_bh
            first_block = (b.to(tl.int64) * H + head) * max_q * padded_k
            first_row = (at * H + head) * total_q + start_q
            for part in tl.static_range(3):
                if not EDGES_APART:
                    start, end = lo, hi
                elif part == 0:  # the diagonal; everything if the last valid key is in this block
                    start, end = lo, full_lo
                elif part == 1:
                    start, end = full_lo, full_hi
                else:  # where a window leaves these keys behind
                    start, end = full_hi, hi
                if part == 0 or (EDGES_APART and (part == 1 or HAS_LEFT)):
                    dk, dv = _walk_queries(
                        dk, dv, k, v, q_ptr + at * stride_qb + head * stride_qh + start_q * stride_qm,
                        do_ptr + at * stride_dob + head * stride_doh + start_q * stride_dom,
                        lse_ptr + first_row, delta_ptr + first_row if NEED_DK else 0, stride_qm, stride_dom,
                        start, end, key, shift, Lq, Lk, valid, bias_start, stride_bm, stride_bn, slope,
                        first_block, padded_k, seed, threshold, keep_scale, scale, softcap, left, right,
                        start_n, D, Dv, part != 1, NEED_DK, NEED_DV, BIAS, HAS_SLOPES, HAS_LEFT, HAS_RIGHT,
                        HAS_SOFTCAP, DROPOUT, ACC, PRECISION, FAST, SHORT, EVEN_D, EVEN_DV,
                        BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                    )  # fmt: skip
        if NEED_DK:
            dk_start = dk_ptr + at * stride_dkb + kv_head * stride_dkh + start_k * stride_dkn
            dk = narrow(dk * scale, dk_ptr.dtype.element_ty)
            store_rows(dk_start, dk, keys, stride_dkn, offs_d, Lk, D)
        if NEED_DV:
            dv_start = dv_ptr + at * stride_dvb + kv_head * stride_dvh + start_k * stride_dvn
            store_rows(dv_start, narrow(dv, dv_ptr.dtype.element_ty), keys, stride_dvn, offs_dv, Lk, Dv)


@triton.jit
def _walk_keys(
    dq, q, do, lse, delta, k_ptr, v_ptr, stride_kn, stride_vn, lo, hi, rows, pos, Lq, Lk, valid,
    bias_ptrs, stride_bn, slope, row_block, seed, threshold, keep_scale, scale, softcap, left, right, D, Dv,
    MASKED: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr, SHORT: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dq / scale with the shares of keys lo..hi - 1."""
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    offs_dv = tl.arange(0, BLOCK_DV)
    zero = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start_n in range(lo, hi, BLOCK_N):
        key = (start_n + offs_n)[None, :]
        k_start = k_ptr + tl.cast(start_n, tl.int64) * stride_kn
        v_start = v_ptr + tl.cast(start_n, tl.int64) * stride_vn
        k = load_rows(k_start, offs_n, stride_kn, offs_d, valid - start_n, D, MASKED, EVEN_D)
        v = load_rows(v_start, offs_n, stride_vn, offs_dv, valid - start_n, Dv, MASKED, EVEN_DV)
        qk = dot(q, tl.trans(k), zero, ACC, PRECISION)
        dp = dot(do, tl.trans(v), zero, ACC, PRECISION)
        keep = 0
        if DROPOUT:
            keep = kept(seed, row_block, start_n, threshold, BLOCK_M, BLOCK_N)
        _, _, dqk = _p_and_ds(
            qk, dp, pos, key, lse, delta, keep,
            is_visible(pos, key, valid, left, right, HAS_LEFT, HAS_RIGHT),
            bias_ptrs + key.to(tl.int64) * stride_bn if BIAS != "none" else 0, (rows < Lq)[:, None] & (key < Lk),
            slope, scale, softcap, keep_scale, BIAS, HAS_SLOPES, HAS_SOFTCAP, DROPOUT, MASKED, FAST, SHORT, 1,
        )  # fmt: skip
        dq = dot(narrow(dqk, k.dtype), k, dq, ACC, PRECISION)
    return dq


@triton.jit(do_not_specialize=[*SIZES, "together"])
def _attention_bwd_dq_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, bias_ptr, slopes_ptr, key_lengths_ptr, cu_q_ptr, cu_k_ptr,
    seed_ptr, dq_ptr,
    B, H, group, Lq, Lk, D, Dv, max_q, padded_k, together,
    stride_dob, stride_doh, stride_dom, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_bb, stride_bh, stride_bm, stride_bn, stride_sb, stride_sh,
    stride_dqb, stride_dqh, stride_dqm,
    scale: tl.float64, softcap: tl.float64, left, right, threshold: tl.int64, keep_scale: tl.float64,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LENGTHS: tl.constexpr, PACKED: tl.constexpr,
    ALIGN_END: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    EDGES_APART: tl.constexpr, SHORT: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_M rows of dq of one head."""
    num_m = tl.cdiv(max_q, BLOCK_M)
    pid_m, bh = block_of(tl.program_id(0), num_m, B * H, together, True)
    b, head = bh // H, (bh % H).to(tl.int64)
    total_q = Lq
    at, start_q, start_k, Lq, Lk, valid, shift = sequence_of(
        b, cu_q_ptr, cu_k_ptr, key_lengths_ptr, Lq, Lk, PACKED, HAS_LENGTHS, ALIGN_END
    )
    scale = tl.full([], scale, ACC)
    softcap = tl.full([], softcap, ACC)
    keep_scale = tl.full([], keep_scale, ACC)
    start_m = pid_m * BLOCK_M
    if start_m < Lq:
        rows = start_m + tl.arange(0, BLOCK_M)
        pos = (rows + shift)[:, None]
        offs_d = tl.arange(0, BLOCK_D)
        offs_dv = tl.arange(0, BLOCK_DV)
        kv_head = head // group
        q_start = q_ptr + at * stride_qb + head * stride_qh + start_q * stride_qm
        do_start = do_ptr + at * stride_dob + head * stride_doh + start_q * stride_dom
        q = load_rows(q_start, rows, stride_qm, offs_d, Lq, D, True, EVEN_D)
        do = load_rows(do_start, rows, stride_dom, offs_dv, Lq, Dv, True, EVEN_DV)
        first_row = (at * H + head) * total_q + start_q
        lse = _load_lse(lse_ptr + first_row, rows, Lq)[:, None]
        delta = tl.load(delta_ptr + first_row + rows, mask=rows < Lq, other=0.0)[:, None]
        slope = scale
        if HAS_SLOPES:
            slope = tl.load(slopes_ptr + b.to(tl.int64) * stride_sb + head * stride_sh).to(ACC)
        bias_ptrs = rows
        if BIAS != "none":
            bias_ptrs = bias_ptr + b.to(tl.int64) * stride_bb + head * stride_bh
            bias_ptrs += rows[:, None].to(tl.int64) * stride_bm
        seed = rows
        row_block = rows
        if DROPOUT:
            seed = tl.load(seed_ptr)
            row_block = ((b.to(tl.int64) * H + head) * max_q + rows) * padded_k
        first, last = start_m + shift, min(start_m + BLOCK_M, Lq) - 1 + shift
        lo, full_lo, full_hi, hi = key_range(first, last, valid, left, right, HAS_LEFT, HAS_RIGHT, BLOCK_N)
        dq = tl.zeros((BLOCK_M, BLOCK_D), ACC)
        for part in tl.static_range(3):  # as in the forward
            if not EDGES_APART:
                start, end = lo, hi
            elif part == 0:
                start, end = lo, full_lo
            elif part == 1:
                start, end = full_lo, full_hi
            else:
                start, end = full_hi, hi
            if part == 2 or (EDGES_APART and (part == 1 or HAS_LEFT)):
                dq = _walk_keys(
                    dq, q, do, lse, delta, k_ptr + at * stride_kb + kv_head * stride_kh + start_k * stride_kn,
                    v_ptr + at * stride_vb + kv_head * stride_vh + start_k * stride_vn, stride_kn, stride_vn,
                    start, end, rows, pos, Lq, Lk, valid, bias_ptrs, stride_bn, slope, row_block, seed,
                    threshold, keep_scale, scale, softcap, left, right, D, Dv, part != 1, BIAS, HAS_SLOPES,
                    HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, DROPOUT, ACC, PRECISION, FAST, SHORT, EVEN_D, EVEN_DV,
                    BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                )  # fmt: skip
        dq_start = dq_ptr + at * stride_dqb + head * stride_dqh + start_q * stride_dqm
        store_rows(dq_start, narrow(dq * scale, dq_ptr.dtype.element_ty), rows, stride_dqm, offs_d, Lq, D)


@triton.jit(do_not_specialize=[*SIZES[1:], "heads", "batches", "rows_each", "columns_each"])
def _attention_bwd_dbias_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, bias_ptr, slopes_ptr, key_lengths_ptr, seed_ptr, partial_ptr,
    H, group, Lq, Lk, D, Dv, max_q, padded_k, heads, batches, rows_each, columns_each, programs_m, programs_n,
    stride_dob, stride_doh, stride_dom, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_bb, stride_bh, stride_bm, stride_bn, stride_sb, stride_sh,
    stride_po, stride_pm,
    scale: tl.float64, softcap: tl.float64, left, right, threshold: tl.int64, keep_scale: tl.float64,
    SUM_M: tl.constexpr, SUM_N: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGN_END: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    EDGES_APART: tl.constexpr, SHORT: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program owns a (BLOCK_M, BLOCK_N) tile of the unexpanded bias's gradient and sums over the `batches` and
    `heads` that share it; where it is broadcast over rows (SUM_M) or columns, over rows_each or columns_each
    tiles of those too: partial is (.., programs_m, ..), which the launcher adds up."""
    pid = tl.program_id(0)
    pid_n = pid % programs_n
    pid_m = pid // programs_n % programs_m
    own = (pid // (programs_n * programs_m)).to(tl.int64)
    own_heads = H // heads
    first_b, first_h = own // own_heads, own % own_heads
    scale = tl.full([], scale, ACC)
    softcap = tl.full([], softcap, ACC)
    keep_scale = tl.full([], keep_scale, ACC)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    offs_dv = tl.arange(0, BLOCK_DV)
    seed = pid
    if DROPOUT:
        seed = tl.load(seed_ptr)
    zero = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for shared in range(batches * heads):
        b = first_b + shared // heads
        head = first_h + shared % heads
        kv_head = head // group
        _at, _q, _k, _Lq, _Lk, valid, shift = sequence_of(
            b, key_lengths_ptr, key_lengths_ptr, key_lengths_ptr, Lq, Lk, False, HAS_LENGTHS, ALIGN_END
        )
        slope = scale
        if HAS_SLOPES:
            slope = tl.load(slopes_ptr + b * stride_sb + head * stride_sh).to(ACC)
        first_row = (b * H + head) * Lq
        for step in range(rows_each * columns_each):
            start_m = (pid_m * rows_each + step // columns_each) * BLOCK_M
            start_n = (pid_n * columns_each + step % columns_each) * BLOCK_N
            rows = start_m + offs_m
            pos = (rows + shift)[:, None]
            key = (start_n + offs_n)[None, :]
            first, last = start_m + shift, min(start_m + BLOCK_M, Lq) - 1 + shift
            lo, _, _, hi = key_range(first, last, valid, left, right, HAS_LEFT, HAS_RIGHT, BLOCK_N)
            if (start_n >= lo) & (start_n < hi) & (start_m < Lq):
                q_start = q_ptr + b * stride_qb + head * stride_qh
                do_start = do_ptr + b * stride_dob + head * stride_doh
                k_start = k_ptr + b * stride_kb + kv_head * stride_kh
                v_start = v_ptr + b * stride_vb + kv_head * stride_vh
                q = load_rows(q_start, rows, stride_qm, offs_d, Lq, D, True, EVEN_D)
                k = load_rows(k_start, start_n + offs_n, stride_kn, offs_d, valid, D, True, EVEN_D)
                qk = dot(q, tl.trans(k), zero, ACC, PRECISION)
                do = load_rows(do_start, rows, stride_dom, offs_dv, Lq, Dv, True, EVEN_DV)
                v = load_rows(v_start, start_n + offs_n, stride_vn, offs_dv, valid, Dv, True, EVEN_DV)
                dp = dot(do, tl.trans(v), zero, ACC, PRECISION)
                lse = _load_lse(lse_ptr + first_row, rows, Lq)[:, None]
                delta = tl.load(delta_ptr + first_row + rows, mask=rows < Lq, other=0.0)[:, None]
                bias_ptrs = bias_ptr + b * stride_bb + head * stride_bh
                bias_ptrs += rows[:, None].to(tl.int64) * stride_bm + key.to(tl.int64) * stride_bn
                keep = 0
                if DROPOUT:
                    row_block = ((b * H + head) * max_q + rows) * padded_k
                    keep = kept(seed, row_block, start_n, threshold, BLOCK_M, BLOCK_N)
                _p, ds, _dqk = _p_and_ds(
                    qk, dp, pos, key, lse, delta, keep,
                    is_visible(pos, key, valid, left, right, HAS_LEFT, HAS_RIGHT),
                    bias_ptrs, (rows < Lq)[:, None] & (key < Lk), slope, scale, softcap, keep_scale,
                    BIAS, HAS_SLOPES, HAS_SOFTCAP, DROPOUT, True, FAST, SHORT, 1,
                )  # fmt: skip
                acc += ds
    partial_start = partial_ptr + own * stride_po
    row, column = pid_m * BLOCK_M + offs_m, pid_n * BLOCK_N + offs_n
    if SUM_M and SUM_N:
        tl.store(partial_start + pid_m * stride_pm + pid_n, tl.sum(tl.sum(acc, axis=1), axis=0))
    elif SUM_M:
        tl.store(partial_start + pid_m * stride_pm + column, tl.sum(acc, axis=0), mask=column < Lk)
    elif SUM_N:
        tl.store(partial_start + row * stride_pm + pid_n, tl.sum(acc, axis=1), mask=row < Lq)
    else:
        mask = (row < Lq)[:, None] & (column < Lk)[None, :]
        tl.store(partial_start + row[:, None].to(tl.int64) * stride_pm + column[None, :], acc, mask=mask)


def _delta(do, o):
    B, H, Lq, Dv = o.shape
    delta = torch.empty((B, H, Lq), dtype=acc_dtype(o.dtype), device=o.device)
    width = block_d(Dv)
    # 8,192 values, 32 a thread of each operand: several rows of 16-byte loads in flight; 64 spill 16 bytes on sm_100
    rows = 8 if target_of(o).backend == "interpreter" else max(8, 8192 // width)
    with launch_on(o):
        _attention_delta_kernel[(triton.cdiv(Lq, rows) * B * H,)](
            do_ptr=do, o_ptr=o, delta_ptr=delta, H=H, Lq=Lq, Dv=Dv, **strides(do=do, o=o),
            ACC=STORAGE[delta.dtype], EVEN_DV=Dv == width, BLOCK_M=rows, BLOCK_DV=width, num_warps=8,
        )  # fmt: skip
    return delta


def _dbias(bias, target, width, B, H, Lq, Lk, tensors, common):
    """dbias in bias's unexpanded shape. A row or column that is broadcast is summed by at most 16 programs."""
    tile = dbias_tile(target, bias.dtype, width)
    shared = [n > 1 and s == 0 for n, s in zip(bias.shape, bias.stride(), strict=True)]
    blocks = triton.cdiv(Lq, tile["BLOCK_M"]), triton.cdiv(Lk, tile["BLOCK_N"])
    each = [triton.cdiv(n, 16) if s else 1 for n, s in zip(blocks, shared[2:], strict=True)]
    programs = [triton.cdiv(n, e) for n, e in zip(blocks, each, strict=True)]
    own = [1 if s else n for n, s in zip((B, H), shared[:2], strict=True)]
    sizes = [p if s else n for p, s, n in zip(programs, shared[2:], (Lq, Lk), strict=True)]
    partial = torch.empty((*own, *sizes), dtype=acc_dtype(bias.dtype), device=bias.device)
    common = {name: value for name, value in common.items() if name not in ("cu_q_ptr", "cu_k_ptr", "PACKED")}
    with launch_on(bias):  # not EXACT: that spills 24 bytes on sm_90 at 128 features
        _attention_bwd_dbias_kernel[(own[0] * own[1] * programs[0] * programs[1],)](
            **tensors, partial_ptr=partial, heads=H // own[1] if own[1] else 1,
            batches=B // own[0] if own[0] else 1, rows_each=each[0], columns_each=each[1],
            programs_m=programs[0], programs_n=programs[1],
            stride_po=partial.stride(1), stride_pm=partial.stride(2),
            SUM_M=shared[2], SUM_N=shared[3], SHORT=tile["BLOCK_N"] >= Lk, **common, **tile,
        )  # fmt: skip
    for dim in (2, 3):
        if shared[dim]:
            partial = partial.sum(dim, keepdim=True)
    return partial.to(bias.dtype)


def attention_bwd(
    do, q, k, v, o, lse, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end,
    softcap, dropout_p, need_dq, need_dk, need_dv, need_dbias, packed,
):  # fmt: skip
    """dq, dk, dv, laid out as o, and dbias in the unexpanded shape of bias (1 where it is broadcast); None where not
    needed. packed: dq, dk and dv are one tensor, head after head, in dq's place. do and o (B, H, Lq, Dv), lse as the
    forward returned it; the rest as there."""
    B = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    H, kv_heads = q.shape[1], k.shape[1]
    target = target_of(q)
    common = arguments(
        q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end, softcap,
        dropout_p,
    )  # fmt: skip
    full = not common["EDGES_APART"]
    width = max(common["BLOCK_D"], common["BLOCK_DV"])
    delta = _delta(do, o) if need_dq or need_dk or need_dbias else None
    tensors = dict(
        do_ptr=do, q_ptr=q, k_ptr=k, v_ptr=v, lse_ptr=lse, delta_ptr=delta, **strides(do=do, q=q, k=k, v=v)
    )
    dbias = None
    if packed:
        joined = like_output(q.shape[0], q.shape[2], H + 2 * kv_heads, q.shape[3], q)
        dq, dk, dv = joined.split((H, kv_heads, kv_heads), 1)
    else:
        dq, dk, dv = (
            like_output(t.shape[0], t.shape[2], t.shape[1], t.shape[3], t) if need else None
            for t, need in ((q, need_dq), (k, need_dk), (v, need_dv))
        )
    with launch_on(q):
        if need_dk or need_dv:
            tile = dkv_tile(target, q.dtype, width, full, common["EVEN_D"])
            apart = tile.pop("APART") and need_dk and need_dv
            passes = [(True, False), (False, True)] if apart else [(need_dk, need_dv)]
            for with_dk, with_dv in passes:
                _attention_bwd_dkv_kernel[(B * kv_heads * triton.cdiv(max_k, tile["BLOCK_N"]),)](
                    **tensors, dk_ptr=dk, dv_ptr=dv, B=B, together=heads_together(k, v, max_k, 1),
                    max_k=max_k, **strides(dk=dk if need_dk else k, dv=dv if need_dv else v),
                    NEED_DK=with_dk, NEED_DV=with_dv, SHORT=tile["BLOCK_N"] >= max_k, **common, **tile, **EXACT,
                )  # fmt: skip
        if need_dq:
            tile = dq_tile(target, q.dtype, width, full)
            _attention_bwd_dq_kernel[(B * H * triton.cdiv(max_q, tile["BLOCK_M"]),)](
                **tensors,
                dq_ptr=dq,
                B=B,
                together=heads_together(k, v, max_k, common["group"]),
                **strides(dq=dq),
                SHORT=tile["BLOCK_N"] >= max_k,
                **common,
                **tile,
                **EXACT,
            )
    if need_dbias:
        dbias = _dbias(bias, target, width, B, H, q.shape[2], k.shape[2], tensors, common)
    return (joined, None, None, dbias) if packed else (dq, dk, dv, dbias)
