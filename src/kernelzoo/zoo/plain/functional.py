"""`torch.nn.functional` with `kernelzoo.functional`'s own names composed of torch's functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(input: Tensor) -> Tensor:
    return F.gelu(input, approximate="tanh")


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


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    """cross_entropy(input linear_weightᵀ + linear_bias, target): torch 2.11 has no such function yet."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def __getattr__(name: str) -> Any:
    return getattr(F, name)
