"""The layers that the zoo's transformers are made of: attention, feed-forward, and the two orders of norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import nn as kz_nn
from .cache import LayerCache


class Attention(kz_nn.Module):
    """y = concat_h(softmax(q_h k_hᵀ · scale) v_h) W_outᵀ + b, with q, k, v from one product x W_qkvᵀ + b.

    x (B, L, dim) -> (B, L, dim). The rows of qkv.weight are the heads of q, then of k, then of v; `kv_heads`
    fewer heads of k and v are shared by groups of heads of q.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or dim // heads
        self.dropout, self.scale = dropout, scale
        self.qkv = nn.Linear(dim, (heads + 2 * self.kv_heads) * self.head_dim, bias)
        self.out = nn.Linear(heads * self.head_dim, dim, bias if out_bias is None else out_bias)
        self._attend = nn.functional.scaled_dot_product_attention
        self._decode = nn.functional.attention_decode
        self._split = nn.functional.split_heads

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        rotate: Callable[[Tensor], Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """mask: bool, broadcast to (B, heads, L, L), True where a key is seen; causal where there is none.

        rotate: turns q and k (B, heads, L, head_dim) by their positions.
        """
        batch, length, _ = x.shape
        heads = (self.heads, self.kv_heads, self.kv_heads)
        qkv = self.qkv(x).view(batch, length, sum(heads), self.head_dim).transpose(1, 2)
        if rotate is None:
            q, k, v = self._split(qkv, heads)
        else:
            turned, v = self._split(qkv, (sum(heads[:2]), self.kv_heads))
            q, k = rotate(turned).split(heads[:2], 1)
        first = cache is None or cache.empty
        if cache is not None:
            keys, values, lengths = cache.append(k, v)
        if first:
            y = self._attend(
                q,
                k,
                v,
                mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=causal and mask is None,
                scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )
        else:
            y = self._decode(q, keys, values, lengths, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class CrossAttention(kz_nn.Module):
    """Attention of x (B, L, dim) over a memory (B, S, dim), whose keys and values `project` gives."""

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0, nn: Any = kz_nn) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, dim // heads, dropout
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self._attend = nn.functional.scaled_dot_product_attention

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, heads, S, head_dim) each."""
        batch, length, _ = memory.shape
        kv = self.kv(memory).view(batch, length, 2 * self.heads, self.head_dim).transpose(1, 2)
        return kv.split(self.heads, 1)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """mask: bool, broadcast to (B, heads, L, S), True where a key is seen."""
        batch, length, dim = x.shape
        q = self.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        y = self._attend(q, *memory, mask, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))


class MLP(kz_nn.Module):
    """y = act(x W_upᵀ + b) W_downᵀ + b."""

    def __init__(self, dim: int, hidden: int, act: str, *, nn: Any = kz_nn) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, act=act)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


class PreNormBlock(kz_nn.Module):
    """s = x + attn(norm1(x));  y = s + mlp(norm2(s)), each summand through dropout.

    A sum is taken together with the norm that follows it, one pass over memory: a block receives
    x = stream + delta unsummed and returns its own result so. delta is None before the first block.
    """

    def __init__(
        self,
        norm: Callable[[], kz_nn.Module],
        attention: kz_nn.Module,
        mlp: kz_nn.Module,
        dropout: float = 0.0,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__()
        self.norm1 = norm()
        self.attn = attention
        self.norm2 = norm()
        self.mlp = mlp
        self.p = dropout
        self._dropout = nn.functional.dropout

    def forward(self, delta: Tensor | None, stream: Tensor, mask: Tensor | None = None, **attention: Any):
        h, stream = add_norm(self.norm1, delta, stream)
        delta = self._dropout(self.attn(h, mask, **attention), self.p, self.training)
        h, stream = add_norm(self.norm2, delta, stream)
        return self._dropout(self.mlp(h), self.p, self.training), stream


class PostNormBlock(kz_nn.Module):
    """s = norm1(x + attn(x));  y = norm2(s + mlp(s)), each summand through dropout."""

    def __init__(
        self,
        norm: Callable[[], kz_nn.Module],
        attention: kz_nn.Module,
        mlp: kz_nn.Module,
        dropout: float = 0.0,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = norm()
        self.mlp = mlp
        self.norm2 = norm()
        self.p = dropout
        self._dropout = nn.functional.dropout

    def forward(self, x: Tensor, mask: Tensor | None = None, **attention: Any) -> Tensor:
        delta = self._dropout(self.attn(x, mask, **attention), self.p, self.training)
        x, _ = add_norm(self.norm1, delta, x)
        x, _ = add_norm(self.norm2, self._dropout(self.mlp(x), self.p, self.training), x)
        return x


def add_norm(norm: kz_nn.Module, delta: Tensor | None, stream: Tensor) -> tuple[Tensor, Tensor]:
    """(norm(s), s) with s = stream + delta; delta None is 0."""
    if delta is None:
        return norm(stream), stream
    return norm(delta, residual=stream)
