"""Recurrent models: two language models, a classifier of sequences, a forecaster of series."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError, ArgumentTypeError
from .base import IGNORED, check_tokens, initialise, shifted
from .generate import Generates
from .recurrence import Recurrent, State, recur, width
from .registry import register


class RecurrentLM(Generates, Recurrent):
    """x_t = √d·E[token_t];  h_t = RNN(x_t, h_{t-1});  logits_t = h_t W_headᵀ, with dropout on x and h.

    d is the width of E, whose weights start as N(0, 1/d): a head of this scale starts with small logits, and √d
    gives the recurrence inputs of size 1 (with E[token_t] itself, 150 steps on the standard library took the loss
    from 8.3 to 5.8 nats a token; with √d to 4.6).
    A text ends with eos_token_id, which begins the next as well: the state becomes zero before it, so that a
    text knows nothing of the one before. Without eos_token_id the state is never reset.
    """

    def _build(self, nn: Any, options: dict[str, Any]) -> None:
        super().__init__(options)
        o = self.options
        embedding = o["embedding_size"] or o["proj_size"] or o["hidden_size"]
        self.tokens = nn.Embedding(o["vocab_size"], embedding)
        self.dropout = nn.Dropout(o["dropout"])
        self.rnn = self.make_layer(embedding, nn)
        outputs = width(self.rnn)
        if o["tie_word_embeddings"] and embedding != outputs:
            said = "proj_size" if o["proj_size"] else "hidden_size"
            raise ArgumentError(
                f"{self.name}: embedding_size={embedding} is not {said}={outputs}, as tie_word_embeddings needs; "
                f"leave embedding_size out or pass tie_word_embeddings=False"
            )
        if not o["tie_word_embeddings"]:
            self.head = nn.Linear(outputs, o["vocab_size"], bias=False)
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy
        torch.nn.init.normal_(self.tokens.weight, std=embedding**-0.5)

    @property
    def head_weight(self) -> Tensor:
        """(V, hidden)"""
        return self.tokens.weight if self.options["tie_word_embeddings"] else self.head.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: State | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, L, V) of the token after each, or the mean loss where labels are given.

        input_ids (B, L): int64. attention_mask (B, L): 0 for padding, which is skipped. labels: usually the
        input_ids; token i is scored on label i + 1, labels of -100 are left out; (B, L + 1) where there is a
        label for the last token too. cache: `new_cache()`; its tokens come before these, and it is moved on.
        """
        hidden = self.hidden(input_ids, attention_mask, cache)
        if labels is None:
            return self._linear(hidden, self.head_weight)
        return self._loss(
            hidden.flatten(0, 1), self.head_weight, self._targets(labels, input_ids), ignore_index=IGNORED
        )

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: State | None = None
    ) -> Tensor:
        """The last layer's output (B, L, hidden), through dropout."""
        check_tokens(self.name, input_ids, attention_mask, limit=sys.maxsize, option="")
        if cache and cache.parts and cache.parts[0].shape[1] != len(input_ids):
            raise ArgumentError(
                f"{self.name}: input_ids has {len(input_ids)} rows but the cache has "
                f"{cache.parts[0].shape[1]}; expected the same"
            )
        tokens = None if attention_mask is None else attention_mask.bool()
        eos = self.options["eos_token_id"]
        starts = None if eos is None else input_ids == eos
        # a compiled call does not look at the values
        if starts is not None and not torch.compiler.is_compiling() and not starts.any():
            starts = None
        x = self.dropout(self.tokens(input_ids) * math.sqrt(self.tokens.embedding_dim))
        y, state = recur(self.rnn, x, cache, tokens=tokens, starts=starts)
        if cache is not None:
            cache.parts = state.parts
        return self.dropout(y)

    def new_cache(self) -> State:
        """The state before any token."""
        return State()

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, new: int) -> tuple[State, Tensor]:
        """Read the prompts: the state after them, and the logits (B, V) of the first token that follows."""
        if not input_ids.numel():
            raise ArgumentError(f"{self.name}: a prompt has no token; expected at least one in each row")
        state = self.new_cache()
        hidden = self.hidden(input_ids, attention_mask, state)
        if attention_mask is None:
            last = hidden[:, -1]
        else:
            at = attention_mask.bool() * torch.arange(input_ids.shape[1], device=input_ids.device)
            last = hidden[torch.arange(len(hidden), device=hidden.device), at.argmax(1)]
        return state, self._linear(last, self.head_weight)

    def step(self, tokens: Tensor, cache: State) -> Tensor:
        """Append a token (B,) to each row; the logits (B, V) of the next."""
        return self._linear(self.hidden(tokens[:, None], None, cache)[:, 0], self.head_weight)

    def _targets(self, labels: Tensor, input_ids: Tensor) -> Tensor:
        """(B·L,): the token after each."""
        batch, length = input_ids.shape
        if labels.dtype not in (torch.int64, torch.int32):
            raise ArgumentTypeError(
                f"{self.name}: labels has dtype {labels.dtype}; expected whole numbers, torch.int64"
            )
        if labels.shape == (batch, length + 1):
            return labels[:, 1:].long().flatten()
        if labels.shape != input_ids.shape:
            raise ArgumentError(
                f"{self.name}: labels has shape {tuple(labels.shape)} but input_ids has "
                f"{tuple(input_ids.shape)}; expected the same, or one column more"
            )
        return shifted(labels.long())


@register("lstm_lm")
class LSTMLM(RecurrentLM):
    """An LSTM language model on words or pieces of words; its head is the token embedding.

    embedding_size None is the width of h: hidden_size, or proj_size.
    Sources: S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, Neural Computation 9, 1997,
    doi:10.1162/neco.1997.9.8.1735; dropout: W. Zaremba, I. Sutskever, O. Vinyals, arXiv:1409.2329; the tied
    head: O. Press, L. Wolf, arXiv:1608.05859.
    """

    name = "lstm_lm"

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int | None = None,
        hidden_size: int = 650,
        num_layers: int = 2,
        dropout: float = 0.0,
        tie_word_embeddings: bool = True,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        *,
        nn: Any = kz_nn,
        **layer_options: Any,
    ) -> None:
        self._build(nn, dict(locals()))


@register("char_rnn")
class CharRNN(RecurrentLM):
    """A language model on characters or bytes: a small vocabulary, a small embedding, a wide recurrence.

    cell: "lstm", "gru" or "rnn" (tanh).
    Sources: I. Sutskever, J. Martens, G. Hinton, Generating Text with Recurrent Neural Networks, ICML 2011;
    A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015.
    """

    name = "char_rnn"

    def __init__(
        self,
        vocab_size: int = 256,
        cell: str = "lstm",
        embedding_size: int | None = 64,
        hidden_size: int = 512,
        num_layers: int = 2,
        dropout: float = 0.0,
        tie_word_embeddings: bool = False,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        *,
        nn: Any = kz_nn,
        **layer_options: Any,
    ) -> None:
        self._build(nn, dict(locals()))


@register("lstm_classifier")
class LSTMClassifier(Recurrent):
    """logits = max_t(h_t) W_headᵀ + b, with h the states of an LSTM in both directions over E[tokens].

    The maximum is over the tokens of a row, by feature; dropout is on the embedding and on the maximum.
    initializer_range: standard deviation of E and W_head at first.
    Source: A. Conneau, D. Kiela, H. Schwenk, L. Barrault, A. Bordes, Supervised Learning of Universal Sentence
    Representations from Natural Language Inference Data, arXiv:1705.02364, section 3.2.
    """

    name = "lstm_classifier"

    def __init__(
        self,
        vocab_size: int,
        num_labels: int = 2,
        embedding_size: int = 256,
        hidden_size: int = 256,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        initializer_range: float = 0.3,
        pad_token_id: int | None = None,
        *,
        nn: Any = kz_nn,
        **layer_options: Any,
    ) -> None:
        super().__init__(dict(locals()))
        self.tokens = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id)
        self.dropout = nn.Dropout(dropout)
        self.rnn = self.make_layer(embedding_size, nn, bidirectional=bidirectional)
        self.head = nn.Linear(width(self.rnn) * (2 if bidirectional else 1), num_labels)
        self._loss = nn.functional.cross_entropy
        initialise(self, initializer_range)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, labels: Tensor | None = None
    ) -> Tensor:
        """Logits (B, num_labels), or the mean cross-entropy where labels (B,) are given.

        input_ids (B, L): int64. attention_mask (B, L): 0 for padding, which takes no part.
        """
        check_tokens("lstm_classifier", input_ids, attention_mask, limit=sys.maxsize, option="")
        if not input_ids.shape[1]:
            raise ArgumentError("lstm_classifier: a row has no token; expected at least one in each row")
        tokens = None if attention_mask is None else attention_mask.bool()
        y, _ = recur(self.rnn, self.dropout(self.tokens(input_ids)), tokens=tokens)
        if tokens is not None:
            y = y.masked_fill(~tokens[:, :, None], float("-inf"))
        logits = self.head(self.dropout(y.amax(1)))
        return logits if labels is None else self._loss(logits, labels.long().flatten())


@register("gru_forecaster")
class GRUForecaster(Recurrent):
    """h_L = GRU(x_1 ... x_L);  ŷ_k = x_L + W_k h_L + b_k, k = 1 ... horizon: the values that follow.

    The head gives the change since the last value, so that a model that knows nothing says persistence.
    Source: K. Cho et al., Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation, arXiv:1406.1078.
    """

    name = "gru_forecaster"
    cell = "gru"

    def __init__(
        self,
        in_features: int = 1,
        hidden_size: int = 32,
        num_layers: int = 1,
        horizon: int = 1,
        dropout: float = 0.0,
        *,
        nn: Any = kz_nn,
        **layer_options: Any,
    ) -> None:
        super().__init__(dict(locals()))
        if horizon < 1:
            raise ArgumentError(f"gru_forecaster: horizon is {horizon}; expected 1 or more")
        self.rnn = self.make_layer(in_features, nn)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, horizon * in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, in_features), of the scale it was trained on -> (B, horizon, in_features)."""
        features = self.options["in_features"]
        if x.dim() != 3 or x.shape[2] != features or not x.shape[1]:
            raise ArgumentError(
                f"gru_forecaster: x has shape {tuple(x.shape)}; expected (batch, length, {features}), of a "
                f"length from 1"
            )
        y, _ = self.rnn(x)
        change = self.head(self.dropout(y[:, -1])).unflatten(1, (self.options["horizon"], features))
        return x[:, -1:] + change

    @torch.no_grad()
    def forecast(self, x: Tensor, steps: int) -> Tensor:
        """The `steps` values after x, (B, steps, in_features): its own forecasts are read on from `horizon`."""
        training = self.training
        self.eval()
        try:
            seen = x
            while seen.shape[1] < x.shape[1] + steps:
                seen = torch.cat([seen, self(seen[:, -x.shape[1] :])], 1)
        finally:
            self.train(training)
        return seen[:, x.shape[1] : x.shape[1] + steps]
