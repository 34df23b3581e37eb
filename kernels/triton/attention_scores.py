"""What the attention kernels share: which keys a query sees, its scores, the dropout mask, the order of programs; and,
for the launchers, the arguments that say all this.

A device has exp2 and no exp: e^(s - m) = 2^((s - m) log2 e). The difference comes first, as s log2 e overflows for
masks of the least float; and no product is fused into it, because s scale - m with one rounding and m = s scale with
its own may differ by more than exp2 can take: the kernels are compiled with EXACT.
"""

import torch
import triton
import triton.language as tl

from .math import INTERPRET, tanh, widen
from .random import words4
from .runtime import STORAGE, acc_dtype, is_fast, matmul_precision

LOG2E = tl.constexpr(1.4426950408889634)
# of a launch
EXACT = {"enable_fp_fusion": False}
LN2 = tl.constexpr(0.6931471805599453)
# Sizes that no load's width depends on: a kernel is compiled once for all of them.
SIZES = ["B", "H", "group", "Lq", "Lk", "max_q", "padded_k", "left", "right"]  # of every kernel


@triton.jit
def dot(a, b, acc, ACC: tl.constexpr, PRECISION: tl.constexpr):
    if INTERPRET:  # its dot of bf16 operands multiplies their bit patterns
        a = widen(a, ACC)
        b = widen(b, ACC)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def load_rows(ptr, offs, stride, offs_d, rows, D, MASK_ROWS: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows `offs` of a matrix, columns offs_d; 0 from row `rows` and from column D on."""
    ptrs = ptr + offs[:, None].to(tl.int64) * stride + offs_d[None, :]
    if MASK_ROWS and EVEN_D:
        return tl.load(ptrs, mask=(offs < rows)[:, None], other=0.0)
    elif MASK_ROWS:
        return tl.load(ptrs, mask=(offs < rows)[:, None] & (offs_d < D)[None, :], other=0.0)
    elif EVEN_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(ptr, x, offs, stride, offs_d, rows, D):
    ptrs = ptr + offs[:, None].to(tl.int64) * stride + offs_d[None, :]
    tl.store(ptrs, x, mask=(offs < rows)[:, None] & (offs_d < D)[None, :])


@triton.jit
def block_of(pid, num_blocks, heads, together, LAST_FIRST: tl.constexpr):
    """Block and head of program `pid`: `together` heads, whose keys fit L2 at once, are walked block by block,
    so that under a causal mask the longest blocks of all of them start first and the short ones fill the end."""
    first = pid // (together * num_blocks) * together
    in_group = pid - first * num_blocks
    count = min(heads - first, together)
    block = in_group // count
    if LAST_FIRST:
        block = num_blocks - 1 - block
    return block, first + in_group % count


@triton.jit
def sequence_of(
    b, cu_q_ptr, cu_k_ptr, key_lengths_ptr, Lq, Lk,
    PACKED: tl.constexpr, HAS_LENGTHS: tl.constexpr, ALIGN_END: tl.constexpr,
):  # fmt: skip
    """Of sequence b: its place in the batch, first query and first key there, Lq, Lk, how many of its keys are
    valid, and the position of its first query."""
    at = b
    start_q = b * 0
    start_k = b * 0
    if PACKED:
        at = b * 0
        start_q = tl.load(cu_q_ptr + b)
        start_k = tl.load(cu_k_ptr + b)
        Lq = tl.load(cu_q_ptr + b + 1) - start_q
        Lk = tl.load(cu_k_ptr + b + 1) - start_k
    valid = Lk
    if HAS_LENGTHS:
        valid = min(tl.load(key_lengths_ptr + b), Lk)
    shift = b * 0
    if ALIGN_END:
        shift = Lk - Lq
    return at.to(tl.int64), start_q.to(tl.int64), start_k.to(tl.int64), Lq, Lk, valid, shift


@triton.jit
def key_range(
    first, last, valid, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(lo, full_lo, full_hi, hi), multiples of BLOCK but for hi: queries at positions first..last see no key
    outside lo..hi - 1, and each sees all of full_lo..full_hi - 1."""
    lo = valid * 0
    full_lo = lo
    if HAS_LEFT:
        lo = max(first - left, 0) // BLOCK * BLOCK
        full_lo = tl.cdiv(max(last - left, 0), BLOCK) * BLOCK
    hi = valid
    full_hi = valid
    if HAS_RIGHT:
        hi = min(hi, last + right + 1)
        full_hi = min(full_hi, first + right + 1)
    hi = max(hi, lo)
    full_hi = max(full_hi, 0) // BLOCK * BLOCK
    some = full_lo < full_hi
    return lo, tl.where(some, full_lo, lo), tl.where(some, full_hi, lo), hi


@triton.jit
def query_range(
    start_n, Lq, valid, shift, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(lo, full_lo, full_hi, hi): no query outside lo..hi - 1 sees a key of the block at start_n, and each of
    full_lo..full_hi - 1 sees the whole block. lo is a multiple of BLOCK_M, a part ends at one or at hi."""
    last = min(start_n + BLOCK_N, valid) - 1
    lo = valid * 0
    full_lo = lo
    if HAS_RIGHT:
        lo = max(start_n - right - shift, 0) // BLOCK_M * BLOCK_M
        full_lo = tl.cdiv(max(last - right - shift, 0), BLOCK_M) * BLOCK_M
    hi = Lq
    full_hi = hi
    if HAS_LEFT:
        hi = min(hi, last + left - shift + 1)
        full_hi = max(min(Lq, start_n + left - shift + 1), 0) // BLOCK_M * BLOCK_M
    hi = tl.where(start_n < valid, max(hi, lo), lo)
    some = (full_lo < full_hi) & (start_n + BLOCK_N <= valid)
    return lo, tl.where(some, full_lo, hi), tl.where(some, full_hi, hi), hi


@triton.jit
def is_visible(pos, key, valid, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    visible = key < valid
    if HAS_LEFT:
        visible = visible & (key >= pos - left)
    if HAS_RIGHT:
        visible = visible & (key <= pos + right)
    return visible


@triton.jit
def scores(
    qk, pos, key, visible, bias_ptrs, bias_mask, slope, scale, softcap,
    BIAS: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    FOLD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """s of a tile, -inf where a query may not see a key, and tanh(s / softcap). pos, key, bias_ptrs: tiles, or what
    broadcasts to one. With FOLD the caller multiplies by scale, together with log2 e."""
    t = qk
    if HAS_SOFTCAP:
        t = tanh(qk * (scale / softcap), FAST)
        s = t * softcap
    elif FOLD:
        s = qk
    else:
        s = qk * scale
    if HAS_SLOPES:
        s -= slope * tl.abs(pos - key).to(s.dtype)
    if BIAS == "float":
        s += widen(tl.load(bias_ptrs, mask=bias_mask, other=0.0), s.dtype)
    elif BIAS == "bool":
        s = tl.where(tl.load(bias_ptrs, mask=bias_mask, other=0) != 0, s, float("-inf"))
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    return s, t


@triton.jit
def kept(seed, row_block, start_n, threshold, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which elements of a (BLOCK_M, BLOCK_N) tile of p dropout keeps; row_block: the number of each row's first
    block of four in random.py's terms. One Philox block serves four neighbours."""
    column = tl.arange(0, BLOCK_N // 4) + start_n // 4
    w0, w1, w2, w3 = words4(seed, row_block[:, None] + column[None, :])
    t = tl.full([], threshold, tl.uint32)
    pairs = tl.join(
        tl.join((w0 >= t).to(tl.int8), (w2 >= t).to(tl.int8)),
        tl.join((w1 >= t).to(tl.int8), (w3 >= t).to(tl.int8)),
    )
    return tl.reshape(pairs, (BLOCK_M, BLOCK_N)) != 0


def block_d(D):
    """Width of a tile that holds D columns: a power of two, and no narrower than a tensor core's tile."""
    return max(16, triton.next_power_of_2(D))


def padded_keys(max_k):
    """Blocks of four elements in a row of p, as dropout numbers them."""
    return triton.cdiv(max_k, 4)


def heads_together(k, v, max_k, group):
    """How many heads, `group` to a key head, have their keys and values in L2 at once: 32 MB of it, as
    FlashAttention-3 counts."""
    size = max_k * (k.shape[3] + v.shape[3]) * k.element_size()
    return group * max(1, min(k.shape[0] * k.shape[1], (32 << 20) // max(size, 1)))


def limits(left, right, max_q, max_k):
    """left and right, -1 where they exclude nothing: no query is farther from a key than this."""
    reach = max_q + max_k
    return (left if 0 <= left < reach else -1), (right if 0 <= right < reach else -1)


def arguments(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right,
              align_end, softcap, dropout_p):  # fmt: skip
    """What every kernel of forward and backward takes beside its tensors: sizes, limits, flags."""
    packed = cu_q is not None
    left, right = limits(left, right, max_q, max_k)
    D, Dv = q.shape[3], v.shape[3]
    kind = "none" if bias is None else "bool" if bias.dtype == torch.bool else "float"
    if kind == "bool":
        bias = bias.view(torch.uint8)
    heavy = kind != "none" or slopes is not None or softcap > 0 or dropout_p > 0
    stride_bias = bias.stride() if bias is not None else (0, 0, 0, 0)
    return dict(
        bias_ptr=bias, slopes_ptr=slopes, key_lengths_ptr=key_lengths, cu_q_ptr=cu_q, cu_k_ptr=cu_k,
        seed_ptr=seed if dropout_p > 0 else None,
        H=q.shape[1], group=q.shape[1] // k.shape[1], Lq=q.shape[2], Lk=k.shape[2], D=D, Dv=Dv,
        max_q=max_q, padded_k=padded_keys(max_k),
        **{f"stride_b{dim}": stride for dim, stride in zip("bhmn", stride_bias, strict=True)},
        stride_sb=slopes.stride(0) if slopes is not None else 0,
        stride_sh=slopes.stride(1) if slopes is not None else 0,
        scale=scale, softcap=softcap, left=left, right=right, threshold=threshold(dropout_p),
        keep_scale=1.0 / (1.0 - dropout_p),
        BIAS=kind, HAS_SLOPES=slopes is not None, HAS_LENGTHS=key_lengths is not None, PACKED=packed,
        ALIGN_END=bool(align_end), HAS_LEFT=left >= 0, HAS_RIGHT=right >= 0, HAS_SOFTCAP=softcap > 0,
        DROPOUT=dropout_p > 0, ACC=STORAGE[acc_dtype(q.dtype)], PRECISION=matmul_precision(q.dtype),
        EDGES_APART=not heavy, FAST=is_fast(q.dtype), BLOCK_D=block_d(D), BLOCK_DV=block_d(Dv),
        EVEN_D=block_d(D) == D, EVEN_DV=block_d(Dv) == Dv,
    )  # fmt: skip


def threshold(p):
    """Of 2^32 words, how many dropout drops (random.py)."""
    return min(round(p * 2**32), 2**32 - 1)


def like_output(B, L, H, D, like):
    """A new (B, H, L, D) tensor laid out as (B, L, H, D)."""
    return torch.empty((B, L, H, D), dtype=like.dtype, device=like.device).transpose(1, 2)


def strides(**tensors):
    """stride_qb, stride_qh, stride_qm and so on: rows of keys and values are n, those of queries m."""
    found = {}
    for name, t in tensors.items():
        row = "n" if name in ("k", "v", "dk", "dv") else "m"
        for dim, stride in zip(("b", "h", row), t.stride(), strict=False):
            found[f"stride_{name}{dim}"] = stride
    return found
