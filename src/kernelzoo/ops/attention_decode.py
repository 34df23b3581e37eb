"""Attention of new tokens to a cache of keys and values, contiguous or in pages: the step of a generation."""

import torch

from . import attention_checks as check
from .attention import dense, too_wide
from .attention_formula import reference_decode
from .core import ArgumentError, KernelFunction, autocast_dtype, define


def _prepare_decode(q, k, v, lengths, block_table, *rest):
    if q.is_cpu:
        check.cached("attention_decode", k, lengths, block_table)
    return dense(q), dense(k), dense(v), lengths, block_table, *rest


decode_op = define(
    "attention_decode(Tensor q, Tensor k, Tensor v, Tensor lengths, Tensor? block_table, Tensor? slopes, "
    "float scale, SymInt left, float softcap) -> Tensor",
    "attention",
    fake=lambda q, k, v, *_: q.new_empty(q.shape[0], q.shape[1], q.shape[2], v.shape[3]),
    prepare=_prepare_decode,
)


class DecodeFunction(KernelFunction):
    """Has no backward kernel: where a gradient is asked for, the formula runs."""

    module = "attention"
    mixed = True

    @staticmethod
    def label(*args):
        return "attention_decode"

    @staticmethod
    def formula(*args):
        return reference_decode(*args)

    @classmethod
    def unserved(cls, q, k, v, lengths, block_table, slopes, *_):
        return too_wide(q, v) or cls.rule(q, k, v, lengths, block_table, slopes)

    @staticmethod
    def rule(q, k, v, lengths, block_table, slopes, *_):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, slopes)):
            return "a gradient is asked for, which is the formula's"
        return None

    @staticmethod
    def forward(ctx, *args):
        return decode_op(*args)

    @staticmethod
    def backward(ctx, do):
        raise NotImplementedError("attention_decode: its kernels have no backward")


def attention_decode(
    q,
    k_cache,
    v_cache,
    lengths,
    block_table=None,
    *,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
):
    """Attention of new tokens to a cache of keys and values, their own among them.

    Args:
        q: (B, H, Lq, D), the new tokens, Lq small.
        k_cache, v_cache: (B, Hkv, S, D) and (B, Hkv, S, Dv); or, with block_table, pages (blocks, Hkv, size, D) and
            (blocks, Hkv, size, Dv) (W. Kwon et al., PagedAttention, arXiv:2309.06180). Hkv divides H.
        lengths: (B,), whole numbers: how many keys of each sequence count, the new tokens' own included.
        block_table: (B, max_blocks), whole numbers: position j of sequence b lies in page block_table[b, j // size]
            at j % size. Entries that no position reaches may be anything.
        window: (left, right), as scaled_dot_product_attention's; the right side is never more than 0.
        scale, softcap, alibi_slopes: as scaled_dot_product_attention's.

    Returns:
        (B, H, Lq, Dv): query i stands at lengths[b] - Lq + i and sees nothing later. What lies in the cache beyond
        the lengths is not looked at. Gradients, where asked for, come from the formula.

    Raises:
        ArgumentError, ArgumentTypeError, as scaled_dot_product_attention; lengths beyond the cache and a block_table
        that points outside it are an ArgumentError (on a GPU values are read once for each tensor, and not while a
        graph is captured).
    """
    name = "attention_decode"
    if not check.tensors(name, q=q, k_cache=k_cache, v_cache=v_cache):
        raise ArgumentError(f"{name}: a proxy of torch.fx came, which this function does not take")
    to = autocast_dtype(q)
    check.dtypes(name, to, q=q, k_cache=k_cache, v_cache=v_cache)
    check.caches(name, q, k_cache, v_cache, lengths, block_table)
    left, _ = check.window_of(name, window, True)
    softcap = check.softcap_of(name, softcap)
    slopes = check.slopes_of(name, alibi_slopes, q.size(0), q.size(1), q)
    scale = check.scale_of(name, scale, q.size(3))
    if to is not None:
        q, k_cache, v_cache = (
            t if t.dtype in (to, torch.float64) else t.to(to) for t in (q, k_cache, v_cache)
        )
    lengths = check.int32(lengths)
    block_table = None if block_table is None else check.int32(block_table)
    return DecodeFunction.call(q, k_cache, v_cache, lengths, block_table, slopes, scale, left, softcap)
