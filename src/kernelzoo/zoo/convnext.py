"""ConvNeXt: depthwise convolutions, layer norms and wide products over channels."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .vision import ImageModel, StochasticDepth, initialise, variants


def over_channels(norm: torch.nn.Module, x: Tensor) -> Tensor:
    """The norm of each place of x (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stem(kz_nn.Sequential):
    """Patches of 4x4: a convolution, then a norm."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        return over_channels(norm, conv(x))


class Downsample(kz_nn.Sequential):
    """A norm, then a 2x2 convolution of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self
        return conv(over_channels(norm, x))


class Block(kz_nn.Module):
    """y = x + layer_scale · W_2 gelu(W_1 norm(depthwise7x7(x)))."""

    def __init__(self, dim: int, layer_scale: float, drop: float, nn: Any) -> None:
        super().__init__()
        layers = {
            "0": nn.Conv2d(dim, dim, 7, padding=3, groups=dim),
            "2": nn.LayerNorm(dim, eps=1e-6),
            "3": nn.Linear(dim, 4 * dim, act="gelu"),
            "5": nn.Linear(4 * dim, dim),
        }
        self.block = nn.Sequential(OrderedDict(layers))  # 1, 4 and 6 have no weights in torchvision
        self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), layer_scale))
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, up, down = self.block
        y = down(up(norm(conv(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.stochastic_depth(self.layer_scale * y) + x


class ConvNeXt(ImageModel):
    """A stem, four stages of blocks with a halving between them, the mean over all places, a norm, a linear layer.

    dims, depths: channels and blocks of each stage. stochastic_depth_prob: of the last block; it grows linearly
    from 0. layer_scale: what each branch's factor starts with.
    Source: Z. Liu et al., A ConvNet for the 2020s, arXiv:2201.03545.
    """

    heads, stem, smallest = ("classifier.2.",), "features.0.0.weight", 32

    def __init__(
        self,
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (3, 3, 9, 3),
        stochastic_depth_prob: float = 0.1,
        layer_scale: float = 1e-6,
        num_classes: int = 1000,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        layers = [Stem(nn.Conv2d(num_channels, dims[0], 4, 4), norm(dims[0]))]
        blocks, last = 0, max(sum(depths) - 1, 1)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                layers.append(Downsample(norm(dims[i - 1]), nn.Conv2d(dims[i - 1], dim, 2, 2)))
            drops = [stochastic_depth_prob * (blocks + j) / last for j in range(depth)]
            layers.append(nn.Sequential(*(Block(dim, layer_scale, drop, nn) for drop in drops)))
            blocks += depth
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(norm(dims[-1]), nn.Identity(), nn.Linear(dims[-1], num_classes))
        draw = functools.partial(torch.nn.init.trunc_normal_, std=0.02)
        initialise(self, draw, draw)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


TABLE: dict[str, dict[str, Any]] = {
    "convnext_tiny": {},
    "convnext_small": {"depths": (3, 3, 27, 3), "stochastic_depth_prob": 0.4},
    "convnext_base": {
        "dims": (128, 256, 512, 1024),
        "depths": (3, 3, 27, 3),
        "stochastic_depth_prob": 0.5,
    },
    "convnext_large": {
        "dims": (192, 384, 768, 1536),
        "depths": (3, 3, 27, 3),
        "stochastic_depth_prob": 0.5,
    },
}
globals().update(variants(ConvNeXt, TABLE))
