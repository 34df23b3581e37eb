"""Deep Q-network: the value of each action, from stacked frames or from a vector of the state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError
from .base import Pretrained
from .registry import register

# channels, kernel, stride: V. Mnih et al. 2015, Methods, "Model architecture"
CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


@register("dqn")
class DQN(Pretrained):
    """Q(s, ·) = W h + b, h = features(s): the expected discounted sum of rewards after each action in state s.

    observation: the shape of s, (frames, height, width), which three convolutions read, or a number, of a vector
    that goes straight to the dense layers. hidden: their widths; None: 512 behind convolutions, else (128, 128).
    Source: V. Mnih et al., Human-level control through deep reinforcement learning, Nature 518, 2015,
    doi:10.1038/nature14236.
    """

    name = "dqn"

    def __init__(
        self,
        num_actions: int,
        observation: int | Sequence[int] = (4, 84, 84),
        hidden: int | Sequence[int] | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        shape = (observation,) if isinstance(observation, int) else tuple(observation)
        if len(shape) not in (1, 3) or min(shape) < 1 or num_actions < 1:
            raise ArgumentError(
                f"dqn: observation is {observation!r} and num_actions {num_actions}; expected a number or (frames, "
                f"height, width), and 1 or more"
            )
        if hidden is None:
            hidden = (512,) if len(shape) == 3 else (128, 128)
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        self.shape = shape
        self.convolutions = nn.ModuleList()
        if len(shape) == 3:
            channels, *sides = shape
            for outputs, kernel, stride in CONVOLUTIONS:
                self.convolutions.append(nn.Conv2d(channels, outputs, kernel, stride, act="relu"))
                channels, sides = outputs, [(side - kernel) // stride + 1 for side in sides]
            if min(sides) < 1:
                raise ArgumentError(f"dqn: observation is {shape}; expected frames of at least 36x36")
            shape = (channels, *sides)
        sizes = (math.prod(shape), *widths)
        self.hidden = nn.ModuleList(
            nn.Linear(n_in, n_out, act="relu") for n_in, n_out in zip(sizes, widths, strict=False)
        )
        self.head = nn.Linear(sizes[-1], num_actions)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *observation), floating -> (B, num_actions)."""
        if x.shape[1:] != self.shape or x.dim() != len(self.shape) + 1:
            shape = ", ".join(map(str, self.shape))
            raise ArgumentError(f"dqn: x has shape {tuple(x.shape)}; expected (batch, {shape})")
        for layer in self.convolutions:
            x = layer(x)
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)
