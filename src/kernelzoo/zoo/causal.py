"""What a causal language model does around its layers: checks, cache, head and loss, generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.core import ArgumentError
from .base import IGNORED, Pretrained, causal_mask, check_tokens, checked_positions, shifted
from .cache import Cache
from .generate import Generates


class CausalLM(Generates, Pretrained):
    """A decoder of tokens. A model gives `hidden`, `head_weight`, and its limit of positions."""

    limit_option = ""  # the option that holds the number of positions
    layers_option = ""  # and the number of layers

    def __init__(self, options: dict[str, Any], nn: Any) -> None:
        super().__init__(options)
        self.limit = options[self.limit_option]
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy

    def hidden(
        self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """The last layer's output (B, L, C) after its norm; mask is bool (B, 1, L, L) or None for causal."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """(V, C)"""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, L, V) of the token after each, or the mean loss where labels are given.

        input_ids (B, L): int64. attention_mask (B, L): 0 for padding, which no token sees; with a cache it
        covers the new tokens, and padding stands at the end of a row. position_ids (B, L): 0 .. L-1, after the
        cache's tokens, unless given. labels (B, L): usually the input_ids; token i is scored on label i + 1,
        labels of -100 are left out. cache: `new_cache()`; its tokens come before these, and these are added.
        """
        hidden = self.decode(input_ids, attention_mask, position_ids, cache, labels)
        if labels is None:
            return self._linear(hidden, self.head_weight)
        return self._loss(
            hidden.flatten(0, 1), self.head_weight, shifted(labels.long()), ignore_index=IGNORED
        )

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """`hidden`, checked, with the mask made and the cache counted on."""
        check_tokens(
            self.name,
            input_ids,
            attention_mask,
            limit=self.limit,
            option=self.limit_option,
            past=cache.used if cache else 0,
            labels=labels,
        )
        if position_ids is not None:
            position_ids = checked_positions(self.name, position_ids, input_ids)
        if cache is None:
            mask = None if attention_mask is None else causal_mask(attention_mask)
            return self.hidden(input_ids, mask, position_ids, None)
        cache.check(self.name, input_ids)
        if position_ids is None:
            position_ids = cache.positions(input_ids)
        hidden = self.hidden(input_ids, None, position_ids, cache)
        cache.advance(input_ids.shape[1], attention_mask, input_ids)
        return hidden

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache for `capacity` tokens a row; as many as the model has positions unless given."""
        return Cache(self.options[self.layers_option], min(capacity or self.limit, self.limit))

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, new: int) -> tuple[Cache, Tensor]:
        """Read the prompts: a cache with room for `new` tokens more, and the logits (B, V) of the first."""
        check_tokens(
            self.name, input_ids, attention_mask, limit=self.limit, option=self.limit_option, new=new
        )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens = attention_mask.bool()
        lengths = tokens.sum(1)
        if not input_ids.shape[0] or not lengths.min():
            raise ArgumentError(f"{self.name}: a prompt has no token; expected at least one in each row")
        # padding goes to the end of its row, where no token sees it: neither mask nor shifted positions then
        order = (~tokens).to(torch.int8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
        cache = self.new_cache(order.shape[1] + new)
        hidden = self.decode(input_ids.gather(1, order), tokens.gather(1, order), None, cache)
        last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        return cache, self._linear(last, self.head_weight)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Append a token (B,) to each row; the logits (B, V) of the next."""
        return self._linear(self.decode(tokens[:, None], cache=cache)[:, 0], self.head_weight)
