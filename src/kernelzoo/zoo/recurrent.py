"""Recurrent models: two language models, a classifier of sequences, a forecaster of series."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from .. import nn as kz_nn
from ..ops.core import ArgumentError, ArgumentTypeError
from .base import IGNORED, Pretrained, check_one_of, check_tokens, initialise, shifted
from .generate import Generates
from .registry import register

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


class State:
    """What recurrent layers carry from call to call: `parts`, (layers, B, hidden) each; none yet: zeros.

    An LSTM's parts are h and c, any other layer's is h. Detached, it carries values and no gradient.
    """

    def __init__(self, parts: tuple[Tensor, ...] = ()) -> None:
        self.parts = parts

    def detach(self) -> None:
        self.parts = tuple(part.detach() for part in self.parts)

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows may repeat or leave out."""
        self.parts = tuple(part[:, rows] for part in self.parts)


def make_layer(
    model: str, cell: str, inputs: int, hidden: int, layers: int, *, dropout: float, nn: Any, **how: Any
) -> torch.nn.Module:
    """nn.LSTM, nn.GRU or nn.RNN, batch first; the forget gates of an LSTM start open, with a bias of 1.

    Source of the bias: R. Jozefowicz, W. Zaremba, I. Sutskever, An Empirical Exploration of Recurrent Network
    Architectures, ICML 2015, section 2.2.
    """
    check_one_of(model, "cell", cell, tuple(CELLS))
    # torch warns of a dropout between layers where there is one layer
    dropout = dropout if layers > 1 else 0.0
    layer = getattr(nn, CELLS[cell])(inputs, hidden, layers, batch_first=True, dropout=dropout, **how)
    if cell == "lstm":
        for name, bias in layer.named_parameters():
            if name.startswith("bias_ih"):
                torch.nn.init.ones_(bias[hidden : 2 * hidden])
    return layer


def recur(
    layer: torch.nn.Module,
    x: Tensor,
    state: State | None = None,
    *,
    tokens: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The outputs (B, L, D·hidden) of a batch-first layer over x (B, L, E), and the state after each row.

    tokens: bool (B, L), False for padding, which is skipped wherever it stands; its output is 0. starts: bool
    (B, L), True for tokens before which the state becomes zero. Rows are cut there, and the pieces run side by
    side as one packed batch.
    """
    parts = state.parts if state else ()
    if tokens is None and starts is None:
        y, last = layer(x, _given(layer, parts))
        return y, State(_parts(last))
    if tokens is None:
        tokens = torch.ones_like(starts)
    first = tokens & (tokens.cumsum(1) == 1)
    if not first.any(1).all():
        raise ArgumentError("a row has no token; expected at least one in each row")
    cut = first if starts is None else first | starts
    at = cut[tokens].nonzero()[:, 0]  # of each piece, where it begins among all tokens
    lengths = torch.diff(at, append=at.new_tensor([int(tokens.sum())])).tolist()
    leads = first[tokens][at]
    if parts:
        rows = tokens.nonzero()[at, 0]
        goes_on = leads if starts is None else leads & ~starts[tokens][at]
        parts = tuple(part[:, rows] * goes_on[:, None].to(part.dtype) for part in parts)
    packed = pack_sequence(x[tokens].split(lengths), enforce_sorted=False)
    y, last = layer(packed, _given(layer, parts))
    flat = torch.cat(unpack_sequence(y))
    out = flat.new_zeros(*tokens.shape, flat.shape[1])
    out[tokens] = flat
    closes = leads.roll(-1)  # the piece before one that leads a row ends the row before
    return out, State(tuple(part[:, closes] for part in _parts(last)))


def _given(layer: torch.nn.Module, parts: tuple[Tensor, ...]) -> Any:
    """Parts as the layer takes them: a pair, a tensor, or None for zeros."""
    return (parts if isinstance(layer, torch.nn.LSTM) else parts[0]) if parts else None


def _parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


class RecurrentLM(Generates, Pretrained):
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
        width = o["embedding_size"] or o["hidden_size"]
        if o["tie_word_embeddings"] and width != o["hidden_size"]:
            raise ArgumentError(
                f"{self.name}: embedding_size={width} is not hidden_size={o['hidden_size']}, as "
                f"tie_word_embeddings needs; leave embedding_size out or pass tie_word_embeddings=False"
            )
        self.tokens = nn.Embedding(o["vocab_size"], width)
        self.dropout = nn.Dropout(o["dropout"])
        self.rnn = make_layer(
            self.name,
            o.get("cell", "lstm"),
            width,
            o["hidden_size"],
            o["num_layers"],
            dropout=o["dropout"],
            nn=nn,
        )
        if not o["tie_word_embeddings"]:
            self.head = nn.Linear(o["hidden_size"], o["vocab_size"], bias=False)
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy
        torch.nn.init.normal_(self.tokens.weight, std=width**-0.5)

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
        if starts is not None and not starts.any():
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

    embedding_size None is hidden_size.
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
    ) -> None:
        self._build(nn, dict(locals()))


@register("lstm_classifier")
class LSTMClassifier(Pretrained):
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
    ) -> None:
        super().__init__(dict(locals()))
        self.tokens = nn.Embedding(vocab_size, embedding_size, padding_idx=pad_token_id)
        self.dropout = nn.Dropout(dropout)
        self.rnn = make_layer(
            "lstm_classifier",
            "lstm",
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout,
            nn=nn,
            bidirectional=bidirectional,
        )
        self.head = nn.Linear(hidden_size * (2 if bidirectional else 1), num_labels)
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
class GRUForecaster(Pretrained):
    """h_L = GRU(x_1 ... x_L);  ŷ_k = x_L + W_k h_L + b_k, k = 1 ... horizon: the values that follow.

    The head gives the change since the last value, so that a model that knows nothing says persistence.
    Source: K. Cho et al., Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation, arXiv:1406.1078.
    """

    name = "gru_forecaster"

    def __init__(
        self,
        in_features: int = 1,
        hidden_size: int = 32,
        num_layers: int = 1,
        horizon: int = 1,
        dropout: float = 0.0,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        if horizon < 1:
            raise ArgumentError(f"gru_forecaster: horizon is {horizon}; expected 1 or more")
        self.rnn = make_layer(
            "gru_forecaster", "gru", in_features, hidden_size, num_layers, dropout=dropout, nn=nn
        )
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
