"""Attention of a few new queries on a cache of keys and values, contiguous or in pages.

Each value of the cache is read once and takes part in 2 group Lq FLOPs, the rows of a product that all query heads
of its key head share: with a group of 8 and one new token 8 FLOPs a byte in bf16, where an H100 needs 300. The
floor is memory: B Hkv length (D + Dv) values, 1 GB of which an H200 reads in 0.21 ms at 4.8 TB/s. To keep all of
memory busy, keys are split over programs, and a second kernel joins the parts: splits H Lq Dv fp32 values written
and read, 1/16 of the cache's where a split has 64 keys for each of a group of 1, less with more.
(Flash-Decoding: T. Dao et al., 2023, https://pytorch.org/blog/flash-decoding/.)
"""

import torch
import triton
import triton.language as tl

from .attention_scores import EXACT, LN2, LOG2E, block_d, dot, is_visible, scores
from .attention_tiles import decode_tile
from .math import narrow
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, matmul_precision, target_of


@triton.jit(
    do_not_specialize=["group", "Lq", "S", "block_size", "splits", "row_blocks", "total_rows", "left"]
)
def _attention_decode_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, table_ptr, slopes_ptr, o_ptr, lse_ptr,
    kv_heads, group, Lq, S, D, Dv, block_size, splits, row_blocks, total_rows,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_tb, stride_tn, stride_sb, stride_sh, scale: tl.float64, softcap: tl.float64, left,
    PAGED: tl.constexpr, SPLIT: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program attends with BLOCK_M of a key head's group * Lq query rows to one of `splits` runs of its keys.

    o is the result, (rows, Dv), or with SPLIT that of the run alone, (splits, rows, Dv), beside lse, the log of
    its sum of exponentials: rows are numbered as in a contiguous (B, H, Lq), where a group's are neighbours."""
    pid = tl.program_id(0)
    split = pid % splits
    pid_m = pid // splits % row_blocks
    bh = (pid // splits // row_blocks).to(tl.int64)
    b, kv_head = bh // kv_heads, bh % kv_heads
    scale = tl.full([], scale, ACC)
    softcap = tl.full([], softcap, ACC)
    offs_n = tl.arange(0, BLOCK_N)
    mask_d = (tl.arange(0, BLOCK_D) < D)[None, :]
    mask_dv = (tl.arange(0, BLOCK_DV) < Dv)[None, :]
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    offs_dv = tl.arange(0, BLOCK_DV)[None, :]

    length = min(tl.load(lengths_ptr + b), S)
    row = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = row < group * Lq
    head = kv_head * group + row // Lq
    i = row % Lq
    pos = (length - Lq + i)[:, None]
    q_start = q_ptr + b * stride_qb + head * stride_qh + i.to(tl.int64) * stride_qm
    q = tl.load(q_start[:, None] + offs_d, mask=mask_m[:, None] & mask_d, other=0.0)
    slope = scale
    if HAS_SLOPES:
        slope = tl.load(slopes_ptr + b * stride_sb + head * stride_sh, mask=mask_m, other=0.0).to(ACC)[
            :, None
        ]

    lo = length * 0
    if HAS_LEFT:
        lo = max(length - Lq - left, 0) // BLOCK_N * BLOCK_N
    run = tl.cdiv(tl.cdiv(length - lo, splits), BLOCK_N) * BLOCK_N
    lo += split * run
    hi = min(lo + run, length)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), ACC)
    l = tl.zeros((BLOCK_M,), ACC)
    m = tl.full((BLOCK_M,), float("-inf"), ACC)
    for start_n in range(lo, hi, BLOCK_N):
        keys = start_n + offs_n
        mask_n = keys < length
        if PAGED:
            pages = tl.load(
                table_ptr + b * stride_tb + (keys // block_size).to(tl.int64) * stride_tn,
                mask=mask_n,
                other=0,
            ).to(tl.int64)
            in_page = (keys % block_size).to(tl.int64)
            k_rows = pages * stride_kb + in_page * stride_kn
            v_rows = pages * stride_vb + in_page * stride_vn
        else:
            k_rows = b * stride_kb + keys.to(tl.int64) * stride_kn
            v_rows = b * stride_vb + keys.to(tl.int64) * stride_vn
        k_ptrs = k_ptr + kv_head * stride_kh + k_rows[:, None] + offs_d
        v_ptrs = v_ptr + kv_head * stride_vh + v_rows[:, None] + offs_dv
        k = tl.load(k_ptrs, mask=mask_n[:, None] & mask_d, other=0.0)
        v = tl.load(v_ptrs, mask=mask_n[:, None] & mask_dv, other=0.0)
        qk = dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), ACC), ACC, PRECISION)
        key = keys[None, :]
        s, _ = scores(
            qk, pos, key, is_visible(pos, key, length, left, 0, HAS_LEFT, True), 0, 0, slope, scale, softcap,
            "none", HAS_SLOPES, HAS_SOFTCAP, True, False, FAST,
        )  # fmt: skip
        peak = tl.maximum(m, tl.max(s, axis=1))
        zero = tl.where(peak == float("-inf"), 0.0, peak)
        p = tl.exp2((s - zero[:, None]) * LOG2E)
        alpha = tl.exp2((m - zero) * LOG2E)
        m = peak
        l = l * alpha + tl.sum(p, axis=1)
        acc = dot(narrow(p, v.dtype), v, acc * alpha[:, None], ACC, PRECISION)

    o = acc * tl.where(l == 0.0, 0.0, 1.0 / l)[:, None]
    out = bh * group * Lq + row
    if SPLIT:
        out += split * tl.full([], total_rows, tl.int64)
        tl.store(lse_ptr + out, m + tl.log2(l) * LN2, mask=mask_m)
    o_ptrs = o_ptr + out[:, None] * Dv + offs_dv
    tl.store(o_ptrs, narrow(o, o_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_dv)


@triton.jit(do_not_specialize=["splits", "total_rows"])
def _attention_combine_kernel(
    partial_ptr, lse_ptr, o_ptr, Dv, splits, total_rows,
    ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """o = sum of partial weighted by e^lse, over the splits; a program joins BLOCK_DV columns of one row."""
    pid = tl.program_id(0)
    num_d = tl.cdiv(Dv, BLOCK_DV)
    row = (pid // num_d).to(tl.int64)
    offs_d = pid % num_d * BLOCK_DV + tl.arange(0, BLOCK_DV)
    acc = tl.zeros((BLOCK_DV,), ACC)
    total = tl.zeros((), ACC)
    m = tl.full((), float("-inf"), ACC)
    for start in range(0, splits, BLOCK_S):
        split = (start + tl.arange(0, BLOCK_S)).to(tl.int64)
        mask_s = split < splits
        lse = tl.load(lse_ptr + split * total_rows + row, mask=mask_s, other=float("-inf"))
        part_ptrs = partial_ptr + (split * total_rows + row)[:, None] * Dv + offs_d[None, :]
        part = tl.load(part_ptrs, mask=mask_s[:, None] & (offs_d < Dv)[None, :], other=0.0)
        peak = tl.maximum(m, tl.max(lse, axis=0))
        zero = tl.where(peak == float("-inf"), 0.0, peak)
        weight = tl.exp2((lse - zero) * LOG2E)
        alpha = tl.exp2((m - zero) * LOG2E)
        m = peak
        total = total * alpha + tl.sum(weight, axis=0)
        acc = acc * alpha + tl.sum(part * weight[:, None], axis=0)
    o = acc * tl.where(total == 0.0, 0.0, 1.0 / total)
    tl.store(o_ptr + row * Dv + offs_d, narrow(o, o_ptr.dtype.element_ty), mask=offs_d < Dv)


def num_splits(target, programs, S, BLOCK_N):
    """So many runs of keys that two programs stand on each multiprocessor, none shorter than two tiles. Not yet
    measured on a device."""
    wanted = triton.cdiv(2 * target.num_sms, max(programs, 1))
    return max(1, min(wanted, 128, S // (2 * BLOCK_N)))


def attention_decode(q, k, v, lengths, block_table, slopes, scale, left, softcap):
    """o, contiguous (B, H, Lq, Dv), of q (B, H, Lq, D) on caches (B, Hkv, S, D) and (B, Hkv, S, Dv), or paged
    (blocks, Hkv, block_size, ..) with block_table int32 (B, max_blocks); lengths int32 (B,) counts the new too."""
    B, H, Lq, D = q.shape
    kv_heads, Dv = k.shape[1], v.shape[3]
    group = H // kv_heads
    paged = block_table is not None
    S = k.shape[2] * block_table.shape[1] if paged else k.shape[2]
    target = target_of(q)
    precision = matmul_precision(q.dtype)
    widths = block_d(D), block_d(Dv)
    tile = decode_tile(target, q.dtype, max(widths), group * Lq)
    row_blocks = triton.cdiv(group * Lq, tile["BLOCK_M"])
    programs = B * kv_heads * row_blocks
    splits = num_splits(target, programs, S, tile["BLOCK_N"])
    total_rows = B * H * Lq
    o = torch.empty((B, H, Lq, Dv), dtype=q.dtype, device=q.device)
    partial, lse = o, None
    if splits > 1:
        acc = acc_dtype(q.dtype)
        partial = torch.empty((splits, total_rows, Dv), dtype=acc, device=q.device)
        lse = torch.empty((splits, total_rows), dtype=acc, device=q.device)
    if left >= S + Lq:  # reaches everything
        left = -1
    with launch_on(q):
        _attention_decode_kernel[(programs * splits,)](
            q_ptr=q, k_ptr=k, v_ptr=v, lengths_ptr=lengths, table_ptr=block_table, slopes_ptr=slopes,
            o_ptr=partial, lse_ptr=lse, kv_heads=kv_heads, group=group, Lq=Lq, S=S, D=D, Dv=Dv,
            block_size=k.shape[2], splits=splits, row_blocks=row_blocks, total_rows=total_rows,
            stride_qb=q.stride(0), stride_qh=q.stride(1), stride_qm=q.stride(2),
            stride_kb=k.stride(0), stride_kh=k.stride(1), stride_kn=k.stride(2),
            stride_vb=v.stride(0), stride_vh=v.stride(1), stride_vn=v.stride(2),
            stride_tb=block_table.stride(0) if paged else 0, stride_tn=block_table.stride(1) if paged else 0,
            stride_sb=slopes.stride(0) if slopes is not None else 0,
            stride_sh=slopes.stride(1) if slopes is not None else 0,
            scale=scale, softcap=softcap, left=left, PAGED=paged, SPLIT=splits > 1,
            HAS_SLOPES=slopes is not None, HAS_LEFT=left >= 0, HAS_SOFTCAP=softcap > 0,
            ACC=STORAGE[acc_dtype(q.dtype)], PRECISION=precision, FAST=is_fast(q.dtype),
            BLOCK_D=widths[0], BLOCK_DV=widths[1], **tile, **EXACT,
        )  # fmt: skip
        if splits > 1:
            columns = min(64, widths[1])
            _attention_combine_kernel[(total_rows * triton.cdiv(Dv, columns),)](
                partial_ptr=partial, lse_ptr=lse, o_ptr=o, Dv=Dv, splits=splits, total_rows=total_rows,
                ACC=STORAGE[acc_dtype(q.dtype)], BLOCK_S=16, BLOCK_DV=columns, num_warps=1,
            )  # fmt: skip
    return o
