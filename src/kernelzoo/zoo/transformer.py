"""The encoder-decoder of "Attention Is All You Need"."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import (
    IGNORED,
    ArgumentError,
    Pretrained,
    activation,
    check_divides,
    check_tokens,
    key_mask,
)
from .blocks import MLP, Attention, CrossAttention, PostNormBlock, add_norm
from .cache import Cache
from .generate import Generates
from .registry import register


@register("transformer")
class Transformer(Generates, Pretrained):
    """Encoder and decoder with norms after each sublayer, sinusoidal positions, and one matrix for the source's
    embedding, the target's and the output layer (section 3.4).

    label_smoothing: of the loss, 0.1 in the source. max_positions: longest source and target. The decoder reads
    bos_token_id first.
    Source: A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762.
    """

    name = "transformer"

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation_function: str = "relu",
        layer_norm_eps: float = 1e-5,
        max_positions: int = 1024,
        label_smoothing: float = 0.0,
        bos_token_id: int = 1,
        eos_token_id: int | None = 2,
        pad_token_id: int = 0,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        check_divides("transformer", d_model=d_model, nhead=nhead)
        if d_model % 2:
            raise ArgumentError(
                f"transformer: d_model is {d_model}; expected an even number, sine and cosine"
            )
        act = activation("transformer", activation_function)
        norm = functools.partial(nn.LayerNorm, d_model, eps=layer_norm_eps)
        self.tokens = nn.Embedding(vocab_size, d_model, padding_idx=pad_token_id)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            PostNormBlock(
                norm,
                Attention(d_model, nhead, dropout=dropout, nn=nn),
                MLP(d_model, dim_feedforward, act, nn=nn),
                dropout,
                nn=nn,
            )
            for _ in range(num_encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(norm, d_model, nhead, dim_feedforward, act, dropout, nn=nn)
            for _ in range(num_decoder_layers)
        )
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy
        for key, parameter in self.named_parameters():
            if parameter.dim() > 1 and "tokens" not in key:
                # q, k and v are drawn one by one, as where each has its own matrix
                for part in parameter.split(d_model) if "kv." in key else (parameter,):
                    torch.nn.init.xavier_uniform_(part)
            elif key.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        torch.nn.init.normal_(self.tokens.weight, std=d_model**-0.5)
        with torch.no_grad():
            self.tokens.weight[pad_token_id].zero_()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the target's tokens, or the mean loss where labels are given.

        input_ids (B, S): the source; attention_mask (B, S): 0 for its padding. labels (B, T): the target's tokens
        with the ending one, -100 where there is none. decoder_input_ids (B, T): what the decoder reads; labels
        shifted by one behind bos_token_id unless given.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ArgumentError(
                    "transformer: neither decoder_input_ids nor labels given; expected one of them"
                )
            decoder_input_ids = self._shifted(labels)
        self._check(input_ids, attention_mask)
        self._check(decoder_input_ids, None, labels=labels)
        mask = None if attention_mask is None else key_mask(attention_mask)
        memory = self.encode(input_ids, attention_mask)
        x = self._embed(decoder_input_ids, torch.arange(decoder_input_ids.shape[1], device=memory.device))
        for block in self.decoder:
            x = block(x, block.cross.project(memory), mask)
        if labels is None:
            return self._linear(x, self.tokens.weight)
        return self._loss(
            x.flatten(0, 1),
            self.tokens.weight,
            labels.long().flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.options["label_smoothing"],
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The encoder's output (B, S, d_model)."""
        mask = None if attention_mask is None else key_mask(attention_mask)
        x = self._embed(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.encoder:
            x = block(x, mask)
        return x

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, new: int) -> tuple[Cache, Tensor]:
        """Encode the sources; `generate` then writes targets of up to `new` tokens behind bos_token_id."""
        self._check(input_ids, attention_mask)
        if new > self.options["max_positions"]:
            raise ArgumentError(
                f"transformer: max_new_tokens={new} is more than max_positions={self.options['max_positions']}"
            )
        memory = self.encode(input_ids, attention_mask)
        cache = Cache(len(self.decoder), new)
        cache.memory = [block.cross.project(memory) for block in self.decoder]
        cache.memory_mask = None if attention_mask is None else attention_mask
        return cache, self.step(self.prefix_of(input_ids)[:, 0], cache)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Append a token (B,) to each target; the logits (B, V) of the next."""
        tokens = tokens[:, None]
        cache.check("transformer", tokens)
        x = self._embed(tokens, cache.positions(tokens))
        mask = None if cache.memory_mask is None else key_mask(cache.memory_mask)
        for block, memory, past in zip(self.decoder, cache.memory, cache.layers, strict=True):
            x = block(x, memory, mask, past)
        cache.advance(1, None, tokens)
        return self._linear(x[:, 0], self.tokens.weight)

    def prefix_of(self, input_ids: Tensor) -> Tensor:
        return input_ids.new_full((len(input_ids), 1), self.options["bos_token_id"], dtype=torch.int64)

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """√d·E[token] + (sin, cos)(position·10000^(-2i/d)), through dropout."""
        x = self.tokens(input_ids) * math.sqrt(self.options["d_model"])
        return self.dropout(x + sinusoids(positions, self.options["d_model"]).to(x.dtype))

    def _shifted(self, labels: Tensor) -> Tensor:
        shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=self.options["bos_token_id"])
        return shifted.masked_fill(shifted == IGNORED, self.options["pad_token_id"])

    def _check(self, input_ids: Tensor, mask: Tensor | None, **others: Tensor | None) -> None:
        limit = self.options["max_positions"]
        check_tokens("transformer", input_ids, mask, limit=limit, option="max_positions", **others)


class DecoderBlock(kz_nn.Module):
    """s = norm1(x + attn(x));  t = norm2(s + cross(s, memory));  y = norm3(t + mlp(t))."""

    def __init__(
        self, norm: Any, dim: int, heads: int, hidden: int, act: str, dropout: float, *, nn: Any = kz_nn
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, dropout=dropout, nn=nn)
        self.norm1 = norm()
        self.cross = CrossAttention(dim, heads, dropout=dropout, nn=nn)
        self.norm2 = norm()
        self.mlp = MLP(dim, hidden, act, nn=nn)
        self.norm3 = norm()
        self.p = dropout
        self._dropout = nn.functional.dropout

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        delta = self._dropout(self.attn(x, causal=True, cache=cache), self.p, self.training)
        x, _ = add_norm(self.norm1, delta, x)
        x, _ = add_norm(self.norm2, self._dropout(self.cross(x, memory, mask), self.p, self.training), x)
        x, _ = add_norm(self.norm3, self._dropout(self.mlp(x), self.p, self.training), x)
        return x


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """(..., dim): sin at even features, cos at odd ones, of position·10000^(-2i/dim); fp32."""
    rates = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) * (-math.log(10000.0) / dim)
    angles = positions[..., None].float() * rates.exp()
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
