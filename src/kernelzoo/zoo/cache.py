"""Keys and values of the tokens that a decoder has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.core import ArgumentError


class Cache:
    """Preallocated room for the keys and values of `capacity` tokens in each of `layers` layers.

    Row b holds its tokens at 0 .. lengths[b] - 1, whatever the padding of the prompts was (`generate` moves it
    to the end), so that attention needs lengths and no mask. Memory is taken at the first call, in the dtype
    and on the device of the keys.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.layers = [LayerCache(self) for _ in range(layers)]
        self.lengths: Tensor | None = None  # (B,) int32
        # of an encoder: (keys, values) a layer, and its padding (B, S)
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.memory_mask: Tensor | None = None
        self.used = 0  # the largest of lengths; kept here so that no one asks the device

    def positions(self, input_ids: Tensor) -> Tensor:
        """Positions of new tokens, (B, L), or (L,) where all rows are empty."""
        new = torch.arange(input_ids.shape[1], device=input_ids.device)
        return new if self.lengths is None else self.lengths[:, None] + new

    def advance(self, tokens: int, attention_mask: Tensor | None, like: Tensor) -> None:
        """Count the tokens just appended; attention_mask (B, L) is 0 for padding after a row's end."""
        if self.lengths is None:
            self.lengths = torch.zeros(like.shape[0], dtype=torch.int32, device=like.device)
        added = tokens if attention_mask is None else attention_mask.sum(1, dtype=torch.int32)
        self.lengths = self.lengths + added
        self.used += tokens

    def check(self, model: str, input_ids: Tensor) -> None:
        if self.used + input_ids.shape[1] > self.capacity:
            raise ArgumentError(
                f"{model}: {input_ids.shape[1]} tokens do not fit into the cache, which has {self.used} of "
                f"{self.capacity}; make a larger one"
            )
        if self.lengths is not None and input_ids.shape[0] != len(self.lengths):
            raise ArgumentError(
                f"{model}: input_ids has {input_ids.shape[0]} rows but the cache has {len(self.lengths)}"
            )

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows may repeat or leave out."""
        self.lengths = self.lengths[rows]
        for layer in self.layers:
            layer.reorder(rows, self.used)
        self.memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]


class LayerCache:
    """One layer's keys and values, (B, Hkv, capacity, D) each."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def empty(self) -> bool:
        return self.cache.used == 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write new keys and values (B, Hkv, L, D) behind each row's; (keys, values, lengths with the new)."""
        cache, length = self.cache, k.shape[2]
        if self.keys is None:
            shape = (*k.shape[:2], cache.capacity, k.shape[3])
            # zeros: what lies beyond a row's length is masked, and 0 · NaN would not be
            self.keys, self.values = k.new_zeros(shape), v.new_zeros((*shape[:3], v.shape[3]))
        end = cache.used + length
        if self.empty:
            self.keys[:, :, :length], self.values[:, :, :length] = k, v
            lengths = torch.full((k.shape[0],), length, dtype=torch.int32, device=k.device)
        else:
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            at = cache.lengths[:, None] + torch.arange(length, device=k.device)
            self.keys[rows, :, at] = k.transpose(1, 2)
            self.values[rows, :, at] = v.transpose(1, 2)
            lengths = cache.lengths + length
        return self.keys[:, :, :end], self.values[:, :, :end], lengths

    def reorder(self, rows: Tensor, used: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros((len(rows), *old.shape[1:])) if len(rows) != len(old) else old
            new[:, :, :used] = old[rows, :, :used]
            setattr(self, name, new)
