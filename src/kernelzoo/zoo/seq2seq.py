"""From one sequence of tokens to another: a recurrent encoder and a recurrent decoder that attends to it."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError
from .base import IGNORED, check_tokens, key_mask
from .generate import Generates
from .recurrence import Recurrent, State, recur, width
from .registry import register


class Decoding(State):
    """A decoder's state, and what it attends to: keys and values (B, 1, S, features), mask (B, 1, 1, S) or None."""

    def __init__(self, parts: tuple[Tensor, ...], memory: tuple[Tensor, Tensor], mask: Tensor | None) -> None:
        super().__init__(parts)
        self.memory, self.mask = memory, mask

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.memory = tuple(part[rows] for part in self.memory)
        self.mask = None if self.mask is None else self.mask[rows]


@register("seq2seq")
class Seq2Seq(Generates, Recurrent):
    """m = biRNN(√d·E[source]);  s_t = RNN(√d·E[y_{t-1}], s_{t-1}), s_0 = tanh(W m_end + b);
    c_t = softmax(s_t K(m)ᵀ/√features) V(m);  logits_t = tanh(W_c [c_t; s_t] + b) Eᵀ.

    E (V, d) is one matrix for source, target and head, and starts as N(0, 1/d). The decoder's recurrence does not
    read c_t, so that all steps of a target run in one call. cell: "gru", "lstm" or "rnn". The decoder reads
    bos_token_id first.
    Sources: D. Bahdanau, K. Cho, Y. Bengio, arXiv:1409.0473 (the encoder and s_0); M.-T. Luong, H. Pham,
    C. D. Manning, arXiv:1508.04025, section 3.1 (the attention and the head).
    """

    name = "seq2seq"

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 256,
        hidden_size: int = 256,
        num_layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.1,
        label_smoothing: float = 0.0,
        bos_token_id: int = 1,
        eos_token_id: int | None = 2,
        pad_token_id: int = 0,
        *,
        nn: Any = kz_nn,
        **layer_options: Any,
    ) -> None:
        super().__init__(dict(locals()))
        self.tokens = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id)
        self.dropout = nn.Dropout(dropout)
        self.encoder = self.make_layer(embedding_size, nn, bidirectional=True)
        self.decoder = self.make_layer(embedding_size, nn)
        outputs = width(self.decoder)
        # of h, and of an LSTM's c
        sizes = (outputs, hidden_size) if cell == "lstm" else (outputs,)
        self.bridges = nn.ModuleList(nn.Linear(2 * size, size, act="tanh") for size in sizes)
        self.kv = nn.Linear(2 * outputs, 2 * outputs)
        self.out = nn.Linear(2 * outputs, embedding_size, act="tanh")
        self._attend = nn.functional.scaled_dot_product_attention
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy
        torch.nn.init.normal_(self.tokens.weight, std=embedding_size**-0.5)
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
                    "seq2seq: neither decoder_input_ids nor labels given; expected one of them"
                )
            decoder_input_ids = self._shifted(labels)
        check_tokens("seq2seq", decoder_input_ids, None, limit=sys.maxsize, option="", labels=labels)
        x = self._decode(decoder_input_ids, self.encode(input_ids, attention_mask))
        if labels is None:
            return self._linear(x, self.tokens.weight)
        return self._loss(
            x.flatten(0, 1),
            self.tokens.weight,
            labels.long().flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.options["label_smoothing"],
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Decoding:
        """What the decoder starts from and attends to."""
        check_tokens("seq2seq", input_ids, attention_mask, limit=sys.maxsize, option="")
        if not input_ids.shape[1]:
            raise ArgumentError("seq2seq: a source has no token; expected at least one in each row")
        tokens = None if attention_mask is None else attention_mask.bool()
        memory, end = recur(self.encoder, self._embed(input_ids), tokens=tokens)
        # (2·layers, B, features), both directions of a layer side by side -> (layers, B, 2·features)
        ends = [part.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for part in end.parts]
        parts = tuple(bridge(part) for bridge, part in zip(self.bridges, ends, strict=True))
        keys, values = self.kv(memory)[:, None].chunk(2, -1)
        return Decoding(parts, (keys, values), None if tokens is None else key_mask(tokens))

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, new: int) -> tuple[Decoding, Tensor]:
        """Encode the sources; `generate` then writes targets of up to `new` tokens behind bos_token_id."""
        cache = self.encode(input_ids, attention_mask)
        return cache, self.step(self.prefix_of(input_ids)[:, 0], cache)

    def step(self, tokens: Tensor, cache: Decoding) -> Tensor:
        """Append a token (B,) to each target; the logits (B, V) of the next."""
        return self._linear(self._decode(tokens[:, None], cache)[:, 0], self.tokens.weight)

    def prefix_of(self, input_ids: Tensor) -> Tensor:
        return input_ids.new_full((len(input_ids), 1), self.options["bos_token_id"], dtype=torch.int64)

    def _decode(self, input_ids: Tensor, cache: Decoding) -> Tensor:
        """(B, T, embedding_size), before the product with E; the cache is moved on."""
        y, state = recur(self.decoder, self._embed(input_ids), cache)
        cache.parts = state.parts
        context = self._attend(y[:, None], *cache.memory, cache.mask)[:, 0]
        return self.dropout(self.out(torch.cat([context, y], -1)))

    def _embed(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.tokens(input_ids) * math.sqrt(self.tokens.embedding_dim))

    def _shifted(self, labels: Tensor) -> Tensor:
        shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=self.options["bos_token_id"])
        return shifted.masked_fill(shifted == IGNORED, self.options["pad_token_id"])
