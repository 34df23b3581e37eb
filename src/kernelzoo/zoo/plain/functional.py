"""`torch.nn.functional` with `kernelzoo.functional`'s own names composed of torch's functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.rotary import rotary_tables  # composed of torch's functions itself

__all__ = [
    "attention_decode",
    "gelu_tanh",
    "linear_cross_entropy",
    "rotary_embedding",
    "rotary_tables",
    "split_heads",
]


def gelu_tanh(input: Tensor) -> Tensor:
    return F.gelu(input, approximate="tanh")


def rotary_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None, *, interleaved: bool = False
) -> Tensor:
    """x (B, ..., L, D) with its leading 2·cos.shape[1] features turned; position_ids (L,) or (B, L)."""
    if position_ids is None:
        cos, sin = cos[: x.shape[-2]], sin[: x.shape[-2]]
    else:
        cos, sin = cos[position_ids], sin[position_ids]
        if position_ids.dim() == 2:
            shape = (position_ids.shape[0], *(1,) * (x.dim() - 3), *cos.shape[1:])
            cos, sin = cos.reshape(shape), sin.reshape(shape)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([turned, rest], -1)


def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    """Attention of the newest tokens over a cache of keys and values.

    q (B, H, Lq, D), caches (B, Hkv, S, D), lengths (B,): query i stands at lengths - Lq + i and sees the keys up
    to there.
    """
    at = lengths[:, None] - q.shape[2] + torch.arange(q.shape[2], device=q.device)  # (B, Lq)
    mask = torch.arange(k_cache.shape[2], device=q.device) <= at[:, None, :, None]  # (B, 1, Lq, S)
    gqa = q.shape[1] != k_cache.shape[1]
    return F.scaled_dot_product_attention(q, k_cache, v_cache, mask, scale=scale, enable_gqa=gqa)


def split_heads(t: Tensor, heads: Sequence[int]) -> tuple[Tensor, ...]:
    """t (B, H, L, D) as its first heads[0] heads, the next heads[1], ..."""
    return t.split(heads, 1)


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    """cross_entropy(input linear_weightᵀ + linear_bias, target): torch 2.11 has no such function yet."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def __getattr__(name: str) -> Any:
    return getattr(F, name)
