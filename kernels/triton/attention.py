"""Attention: o = dropout(softmax(scale q k^T + bias)) v, a row of scores never stored.

Forward. Two products, 4 Lq Lk D FLOPs a head (half of that under a causal mask), against (Lq + Lk) (D + Dv) values
read and written once: at D = 128 in bf16 and 8k keys 4,096 FLOPs a byte, where an H100 needs 300, so the floor is
the tensor cores' rate, and the exponentials' after it: a score costs 4 D = 512 FLOPs there and one exp2, of which a
multiprocessor makes 16 a cycle beside 4,096 FLOPs: 8 cycles' worth in 128 scores' 16, half of the dots' time unless
it runs beside them. Blocks that a query sees whole are walked without masks, edges with them, the rest is skipped.
Backward (attention_bwd.py): seven such products where five would do, the price of having no atomics. Decode
(attention_decode.py): 2 group FLOPs a value of the cache read, so the floor is memory's.

T. Dao, FlashAttention-2, arXiv:2307.08691; J. Shah et al., FlashAttention-3, arXiv:2407.08608; the online softmax:
M. Milakov, N. Gimelshein, arXiv:1805.02867.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_bwd import attention_bwd
from .attention_decode import attention_decode
from .attention_scores import (
    EXACT,
    LN2,
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
    scores,
    sequence_of,
    store_rows,
    strides,
)
from .attention_tiles import fwd_tile
from .math import narrow
from .runtime import STORAGE, acc_dtype, launch_on, target_of

__all__ = ["attention_bwd", "attention_decode", "attention_fwd"]


@triton.jit
def _walk_keys(
    acc, l, m, q, k_src, v_src, stride_kn, stride_vn, at, kv_head, lo, hi, rows, pos, Lq, Lk, valid,
    bias_ptrs, stride_bn, slope, row_block, seed, threshold, scale, softcap, left, right, D, Dv,
    MASKED: tl.constexpr, DESC: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, FOLD: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """acc, l, m after keys lo..hi - 1: sums of p v and of p, relative to the exponential of m, the largest
    score so far (with FOLD: before scale)."""
    offs_d = tl.arange(0, BLOCK_D)
    offs_dv = tl.arange(0, BLOCK_DV)
    for start_n in range(lo, hi, BLOCK_N):
        start_n = tl.multiple_of(start_n, BLOCK_N)
        offs_n = tl.arange(0, BLOCK_N)
        key = (start_n + offs_n)[None, :]
        if DESC:
            k = k_src.load([at, kv_head, start_n, 0]).reshape(BLOCK_N, BLOCK_D)
        else:
            k_start = k_src + tl.cast(start_n, tl.int64) * stride_kn
            k = load_rows(k_start, offs_n, stride_kn, offs_d, valid - start_n, D, MASKED, EVEN_D)
        qk = dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), ACC), ACC, PRECISION)
        s, _ = scores(
            qk, pos, key, is_visible(pos, key, valid, left, right, HAS_LEFT, HAS_RIGHT),
            bias_ptrs + key.to(tl.int64) * stride_bn if BIAS != "none" else 0, (rows < Lq)[:, None] & (key < Lk),
            slope, scale, softcap, BIAS, HAS_SLOPES, HAS_SOFTCAP, MASKED, FOLD, FAST,
        )  # fmt: skip
        unit = tl.full([], LOG2E, ACC)
        if FOLD:
            unit *= scale
        peak = tl.maximum(m, tl.max(s, axis=1))
        zero = tl.where(peak == float("-inf"), 0.0, peak)  # nothing seen yet: e^(-inf - -inf) would be NaN
        p = tl.exp2((s - zero[:, None]) * unit)
        alpha = tl.exp2((m - zero) * unit)
        m = peak
        l = l * alpha + tl.sum(p, axis=1)
        if DROPOUT:
            p = tl.where(kept(seed, row_block, start_n, threshold, BLOCK_M, BLOCK_N), p, 0.0)
        acc = acc * alpha[:, None]
        if DESC:
            v = v_src.load([at, kv_head, start_n, 0]).reshape(BLOCK_N, BLOCK_DV)
        else:
            v_start = v_src + tl.cast(start_n, tl.int64) * stride_vn
            v = load_rows(v_start, offs_n, stride_vn, offs_dv, valid - start_n, Dv, MASKED, EVEN_DV)
        acc = dot(narrow(p, v.dtype), v, acc, ACC, PRECISION)
    return acc, l, m


@triton.jit
def _attend(
    q, k_src, v_src, stride_kn, stride_vn, at, b, head, kv_head, start_m, Lq, Lk, valid, shift,
    bias_ptr, slopes_ptr, seed_ptr, H, max_q, padded_k, stride_bb, stride_bh, stride_bm, stride_bn,
    stride_sb, stride_sh, scale, softcap, left, right, threshold, keep_scale, D, Dv,
    DESC: tl.constexpr,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, FOLD: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, EDGES_APART: tl.constexpr, EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """o (BLOCK_M, BLOCK_DV) and lse (BLOCK_M,) of the queries from start_m on."""
    rows = start_m + tl.arange(0, BLOCK_M)
    pos = (rows + shift)[:, None]
    scale = tl.full([], scale, ACC)
    softcap = tl.full([], softcap, ACC)
    slope = scale
    if HAS_SLOPES:
        slope = tl.load(slopes_ptr + b.to(tl.int64) * stride_sb + head * stride_sh).to(ACC)
    bias_ptrs = rows
    if BIAS != "none":
        bias_ptrs = bias_ptr + b.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh
        bias_ptrs += rows[:, None].to(tl.int64) * stride_bm
    seed = rows
    row_block = rows
    if DROPOUT:
        seed = tl.load(seed_ptr)
        row_block = ((b.to(tl.int64) * H + head) * max_q + rows) * padded_k
    first, last = start_m + shift, min(start_m + BLOCK_M, Lq) - 1 + shift
    lo, full_lo, full_hi, hi = key_range(first, last, valid, left, right, HAS_LEFT, HAS_RIGHT, BLOCK_N)

    acc = tl.zeros((BLOCK_M, BLOCK_DV), ACC)
    l = tl.zeros((BLOCK_M,), ACC)
    m = tl.full((BLOCK_M,), float("-inf"), ACC)
    for part in tl.static_range(3):
        if not EDGES_APART:
            start, end = lo, hi
        elif part == 0:  # the left edge of a window
            start, end = lo, full_lo
        elif part == 1:
            start, end = full_lo, full_hi
        else:  # the diagonal, and the last keys
            start, end = full_hi, hi
        if part == 2 or (EDGES_APART and (part == 1 or HAS_LEFT)):
            acc, l, m = _walk_keys(
                acc, l, m, q, k_src, v_src, stride_kn, stride_vn, at, kv_head, start, end, rows, pos, Lq, Lk,
                valid, bias_ptrs, stride_bn, slope, row_block, seed, threshold, scale, softcap, left, right,
                D, Dv, part != 1, DESC, BIAS, HAS_SLOPES, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, DROPOUT, FOLD,
                ACC, PRECISION, FAST, EVEN_D, EVEN_DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
    factor = tl.where(l == 0.0, 0.0, 1.0 / l)
    if DROPOUT:
        factor *= tl.full([], keep_scale, ACC)
    if FOLD:
        m *= scale
    return acc * factor[:, None], m + tl.log2(l) * LN2


@triton.jit(do_not_specialize=[*SIZES, "together"])
def _attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, slopes_ptr, key_lengths_ptr, cu_q_ptr, cu_k_ptr, seed_ptr, o_ptr, lse_ptr,
    B, H, group, Lq, Lk, D, Dv, max_q, padded_k, together,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_bb, stride_bh, stride_bm, stride_bn, stride_sb, stride_sh, stride_ob, stride_oh, stride_om,
    scale: tl.float64, softcap: tl.float64, left, right, threshold: tl.int64, keep_scale: tl.float64,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_LENGTHS: tl.constexpr, PACKED: tl.constexpr,
    ALIGN_END: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr, FOLD: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr, EDGES_APART: tl.constexpr, EVEN_D: tl.constexpr, EVEN_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program computes (BLOCK_M, Dv) of o from any strides."""
    num_m = tl.cdiv(max_q, BLOCK_M)
    pid_m, bh = block_of(tl.program_id(0), num_m, B * H, together, True)
    b, head = bh // H, bh % H
    total_q = Lq
    at, start_q, start_k, Lq, Lk, valid, shift = sequence_of(
        b, cu_q_ptr, cu_k_ptr, key_lengths_ptr, Lq, Lk, PACKED, HAS_LENGTHS, ALIGN_END
    )
    start_m = pid_m * BLOCK_M
    if start_m < Lq:
        rows = start_m + tl.arange(0, BLOCK_M)
        kv_head = (head // group).to(tl.int64)
        head_long = head.to(tl.int64)
        q = load_rows(
            q_ptr + at * stride_qb + head_long * stride_qh + start_q * stride_qm,
            rows, stride_qm, tl.arange(0, BLOCK_D), Lq, D, True, EVEN_D,
        )  # fmt: skip
        k_start = k_ptr + at * stride_kb + kv_head * stride_kh + start_k * stride_kn
        v_start = v_ptr + at * stride_vb + kv_head * stride_vh + start_k * stride_vn
        o, lse = _attend(
            q, k_start, v_start, stride_kn, stride_vn, 0, b, head, 0, start_m, Lq, Lk, valid, shift,
            bias_ptr, slopes_ptr, seed_ptr, H, max_q, padded_k, stride_bb, stride_bh, stride_bm, stride_bn,
            stride_sb, stride_sh, scale, softcap, left, right, threshold, keep_scale, D, Dv,
            False, BIAS, HAS_SLOPES, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, DROPOUT, FOLD, ACC, PRECISION, FAST,
            EDGES_APART, EVEN_D, EVEN_DV, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
        )  # fmt: skip
        o_start = o_ptr + at * stride_ob + head_long * stride_oh + start_q * stride_om
        o = narrow(o, o_ptr.dtype.element_ty)
        store_rows(o_start, o, rows, stride_om, tl.arange(0, BLOCK_DV), Lq, Dv)
        tl.store(lse_ptr + (at * H + head) * total_q + start_q + rows, lse, mask=rows < Lq)


@triton.jit(do_not_specialize=[*SIZES, "together"])
def _attention_fwd_desc_kernel(
    q_desc, k_desc, v_desc, slopes_ptr, key_lengths_ptr, seed_ptr, o_desc, lse_ptr,
    B, H, group, Lq, Lk, D, Dv, max_q, padded_k, together, stride_sb, stride_sh,
    scale: tl.float64, softcap: tl.float64, left, right, threshold: tl.int64, keep_scale: tl.float64,
    HAS_SLOPES: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGN_END: tl.constexpr, HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, FOLD: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr, EDGES_APART: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    SLICES: tl.constexpr,
):  # fmt: skip
    """As above through tensor descriptors, which mask every edge themselves. The resident programs walk the tiles,
    longest first, there and back: a program that had the longest of one round has the shortest of the next.
    o leaves in SLICES column slices (1 or 2): half the staging memory."""
    programs = tl.num_programs(0)
    num_m = tl.cdiv(Lq, BLOCK_M)
    num_tiles = num_m * B * H
    for start in range(0, num_tiles, programs):
        turn = tl.program_id(0)
        if (start // programs) % 2 == 1:
            turn = programs - 1 - turn
        if start + turn < num_tiles:
            pid_m, bh = block_of(start + turn, num_m, B * H, together, True)
            b, head = bh // H, bh % H
            _, _, _, _, _, valid, shift = sequence_of(
                b, key_lengths_ptr, key_lengths_ptr, key_lengths_ptr, Lq, Lk, False, HAS_LENGTHS, ALIGN_END
            )
            start_m = pid_m * BLOCK_M
            q = q_desc.load([b, head, start_m, 0]).reshape(BLOCK_M, BLOCK_D)
            o, lse = _attend(
                q, k_desc, v_desc, 0, 0, b, b, head, head // group, start_m, Lq, Lk, valid, shift,
                lse_ptr, slopes_ptr, seed_ptr, H, max_q, padded_k, 0, 0, 0, 0,
                stride_sb, stride_sh, scale, softcap, left, right, threshold, keep_scale, D, Dv,
                True, "none", HAS_SLOPES, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, DROPOUT, FOLD, ACC, PRECISION,
                FAST, EDGES_APART, True, True, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
            if SLICES == 1:
                parts = (o,)
            else:
                tl.static_assert(SLICES == 2)
                parts = tl.split(tl.permute(tl.reshape(o, (BLOCK_M, 2, BLOCK_DV // 2)), (0, 2, 1)))
            for i in tl.static_range(SLICES):
                part = narrow(parts[i], DTYPE).reshape(1, 1, BLOCK_M, BLOCK_DV // SLICES)
                o_desc.store([b, head, start_m, i * (BLOCK_DV // SLICES)], part)
            rows = start_m + tl.arange(0, BLOCK_M)
            tl.store(lse_ptr + bh.to(tl.int64) * Lq + rows, lse, mask=rows < Lq)


def has_descriptor_kernel(target, dtype, D, Dv):
    """Whether the descriptor kernel pays: TMA exists from sm_90 on, and only 16-bit dots outrun loads."""
    if target.backend == "interpreter":
        return D == Dv == block_d(D)
    if target.backend != "cuda" or target.arch < 90 or dtype.itemsize != 2 or Dv != D:
        return False
    return D in (64, 128) or (D == 256 and target.shared_memory > 200 << 10)


def _map_strides(t):
    """Strides for a tensor map; those of a dimension of one element say nothing, and may be no valid pitch."""
    return [s if n > 1 else t.shape[3] for s, n in zip(t.stride()[:3], t.shape[:3], strict=True)] + [1]


def _describable(t):
    """Whether a tensor map can describe t: 16-byte base and pitches, none of them 0."""
    pitches = [s * t.element_size() for s in _map_strides(t)[:3]]
    return t.numel() > 0 and all(p > 0 and p % 16 == 0 for p in pitches) and t.data_ptr() % 16 == 0


def _descriptor(t, rows, slices=1):
    return TensorDescriptor(t, list(t.shape), _map_strides(t), [1, 1, rows, t.shape[3] // slices])


def attention_fwd(
    q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end, softcap,
    dropout_p,
):  # fmt: skip
    """o (B, H, Lq, Dv), laid out as (B, Lq, H, Dv), and lse (B, H, Lq), natural logarithm, fp32 or fp64.

    q (B, H, Lq, D), k (B, Hkv, Lk, D), v (B, Hkv, Lk, Dv), adjacent in the last dimension; packed with cu_q, cu_k.
    """
    B = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    o = like_output(q.shape[0], q.shape[2], q.shape[1], v.shape[3], q)
    lse = torch.empty(q.shape[:3], dtype=acc_dtype(q.dtype), device=q.device)
    target = target_of(q)
    common = arguments(
        q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end, softcap,
        dropout_p,
    )  # fmt: skip
    common["FOLD"] = common["BIAS"] != "float" and slopes is None and not softcap > 0 and 1e-30 < scale < 1e30
    descriptors = (
        has_descriptor_kernel(target, q.dtype, q.shape[3], v.shape[3])
        and bias is None
        and cu_q is None
        and all(map(_describable, (q, k, v, o)))
    )
    width = max(common["BLOCK_D"], common["BLOCK_DV"])
    tile = fwd_tile(target, q.dtype, width, not common["EDGES_APART"], descriptors)
    blocks = B * q.shape[1] * triton.cdiv(max_q, tile["BLOCK_M"])
    common.update(B=B, together=heads_together(k, v, max_k, common["group"]), lse_ptr=lse, **tile)
    with launch_on(q):
        if descriptors:
            for name in ("bias_ptr", "cu_q_ptr", "cu_k_ptr", "stride_bb", "stride_bh", "stride_bm", "stride_bn",
                         "BIAS", "PACKED", "EVEN_D", "EVEN_DV"):  # fmt: skip
                del common[name]
            _attention_fwd_desc_kernel[(min(blocks, target.num_sms),)](
                q_desc=_descriptor(q, tile["BLOCK_M"]), k_desc=_descriptor(k, tile["BLOCK_N"]),
                v_desc=_descriptor(v, tile["BLOCK_N"]), o_desc=_descriptor(o, tile["BLOCK_M"], tile["SLICES"]),
                DTYPE=STORAGE[q.dtype], **common, **EXACT,
            )  # fmt: skip
        else:
            _attention_fwd_kernel[(blocks,)](
                q_ptr=q, k_ptr=k, v_ptr=v, o_ptr=o, **common, **EXACT, **strides(q=q, k=k, v=v, o=o)
            )
    return o, lse
