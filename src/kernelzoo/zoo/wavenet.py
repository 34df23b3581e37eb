"""WaveNet: the next sample of a sound from those before it, by dilated causal convolutions."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError
from .base import IGNORED, Pretrained, check_tokens, shifted
from .generate import Generates
from .registry import register


class Past:
    """What each convolution has yet to look back on: of every block, its last inputs, (B, C, reach)."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows may repeat or leave out."""
        self.parts = [part[rows] for part in self.parts]


class GatedBlock(torch.nn.Module):
    """z = tanh(W_f * x) · sigmoid(W_g * x), the convolutions causal and dilated;  x + W_r z, W_s z.

    Both halves of the gate are one convolution. last: no block comes after it, and its output is x.
    """

    def __init__(
        self, channels: int, gated: int, skip: int, kernel: int, dilation: int, last: bool, nn: Any
    ) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation  # how many inputs before the present one it looks at
        self.gated = gated
        self.conv = nn.Conv1d(channels, 2 * gated, kernel, dilation=dilation)
        self.residual = None if last else nn.Conv1d(gated, channels, 1)
        self.skip = nn.Conv1d(gated, skip, 1)
        self._tanh, self._sigmoid, self._pad = nn.functional.tanh, nn.functional.sigmoid, nn.functional.pad

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, C, L) -> (the block's output (B, C, L), its part of the sum (B, skip, L)); past: the inputs before,
        (B, C, reach), silence (zeros) unless given."""
        seen = self._pad(x, (self.reach, 0)) if past is None else torch.cat([past, x], 2)
        signal, gate = self.conv(seen).split(self.gated, 1)
        z = self._tanh(signal) * self._sigmoid(gate)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


@register("wavenet")
class WaveNet(Generates, Pretrained):
    """logits_t = W_2 relu(W_1 relu(Σ_k W_s z_k)): the next code from a stack of gated blocks over E[codes].

    Block k of `stacks`·`layers` has dilation 2^(k mod layers), so that a prediction looks back on
    `receptive_field` = stacks·(kernel_size - 1)·(2^layers - 1) + 1 codes. The codes are 8-bit µ-law samples
    (`kernelzoo.data.mu_law`). The paper's first convolution over one-hot codes is the embedding.
    Source: A. van den Oord et al., WaveNet: A Generative Model for Raw Audio, arXiv:1609.03499. Generation with
    kept inputs: T. L. Paine et al., Fast Wavenet Generation Algorithm, arXiv:1611.09482.
    """

    name = "wavenet"

    def __init__(
        self,
        num_codes: int = 256,
        residual_channels: int = 32,
        gate_channels: int = 32,
        skip_channels: int = 128,
        layers: int = 8,
        stacks: int = 2,
        kernel_size: int = 2,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        for option, value in self.options.items():
            least = 2 if option == "kernel_size" else 1
            if value < least:
                raise ArgumentError(f"wavenet: {option} is {value}; expected {least} or more")
        self.receptive_field = stacks * (kernel_size - 1) * (2**layers - 1) + 1
        self.codes = nn.Embedding(num_codes, residual_channels)
        self.blocks = nn.ModuleList(
            GatedBlock(
                residual_channels,
                gate_channels,
                skip_channels,
                kernel_size,
                2 ** (k % layers),
                k == stacks * layers - 1,
                nn,
            )
            for k in range(stacks * layers)
        )
        self.mix = nn.Conv1d(skip_channels, skip_channels, 1)
        self.head = nn.Conv1d(skip_channels, num_codes, 1)
        self._relu, self._loss = nn.functional.relu, nn.functional.cross_entropy

    def forward(
        self, input_ids: Tensor, attention_mask: None = None, *, labels: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, num_codes) of the code after each, or the mean loss where labels are given.

        input_ids (B, L): int64 codes. labels: usually the input_ids; code i is scored on label i + 1, labels of
        -100 are left out.
        """
        check_tokens("wavenet", input_ids, None, limit=sys.maxsize, option="", labels=labels)
        if attention_mask is not None:
            raise ArgumentError(
                "wavenet: attention_mask is given; expected rows of one length, with no padding"
            )
        logits = self._logits(input_ids).transpose(1, 2)
        if labels is None:
            return logits
        return self._loss(logits.flatten(0, 1), shifted(labels.long()), ignore_index=IGNORED)

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, new: int) -> tuple[Past, Tensor]:
        """Read the prompts (B, L): what they leave, and the logits (B, num_codes) of the first code after them."""
        if attention_mask is not None or not input_ids.numel():
            raise ArgumentError("wavenet: expected prompts of one length from 1, with no padding")
        past = Past([])
        return past, self._logits(input_ids, past)[:, :, -1]

    def step(self, tokens: Tensor, cache: Past) -> Tensor:
        """Append a code (B,) to each row; the logits (B, num_codes) of the next."""
        return self._logits(tokens[:, None], cache)[:, :, -1]

    def _logits(self, codes: Tensor, past: Past | None = None) -> Tensor:
        """(B, num_codes, L); `past`, empty before the first codes, is moved on."""
        x = self.codes(codes).transpose(1, 2)
        before = past.parts if past else []
        after, total = [], 0.0
        for k, block in enumerate(self.blocks):
            if past is not None:
                seen = before[k] if before else x.new_zeros(*x.shape[:2], block.reach)
                after.append(torch.cat([seen, x], 2)[:, :, -block.reach :])
            x, skip = block(x, seen if past is not None else None)
            total = total + skip
        if past is not None:
            past.parts = after
        return self.head(self._relu(self.mix(self._relu(total))))
