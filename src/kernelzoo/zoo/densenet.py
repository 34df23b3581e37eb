"""Densely connected convolutional networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import nn as kz_nn
from .vision import ImageModel, initialise, variants


class DenseLayer(kz_nn.Module):
    """conv3x3(relu(norm(conv1x1(relu(norm(everything so far)))))): growth_rate more channels."""

    def __init__(
        self, inputs: int, growth_rate: int, bn_size: int, drop_rate: float, memory_efficient: bool, nn: Any
    ) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(inputs, act="relu")
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, act="relu")
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.memory_efficient = memory_efficient

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        if self.memory_efficient and torch.is_grad_enabled():
            narrow = checkpoint(self._narrow, features, use_reentrant=False)
        else:
            narrow = self._narrow(features)
        return self.dropout(self.conv2(self.norm2(narrow)))

    def _narrow(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.conv1(self.norm1(torch.cat(features, 1)))


class DenseBlock(kz_nn.ModuleDict):
    """Layers each of which reads what all before it gave."""

    def forward(self, x: Tensor) -> Tensor:
        features = (x,)
        for layer in self.values():
            features = (*features, layer(features))
        return torch.cat(features, 1)


class Transition(kz_nn.Sequential):
    """Half as many channels on half as many rows and columns."""

    def __init__(self, inputs: int, nn: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, act="relu")
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


class DenseNet(ImageModel):
    """Blocks in which every layer reads the results of all before it, and transitions that halve between them.

    growth_rate: channels that a layer adds (k in the paper); block_config: layers of each block; bn_size: a layer's
    inner channels over growth_rate; drop_rate: dropout behind each layer. memory_efficient: the concatenation,
    norm and first convolution of each layer are computed again in the backward, not kept (G. Pleiss et al.,
    Memory-Efficient Implementation of DenseNets, arXiv:1707.06990).
    Source: G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, Densely Connected Convolutional Networks,
    arXiv:1608.06993.
    """

    heads, stem, smallest = ("classifier.",), "features.conv0.weight", 29
    # the files of torchvision's site are older than its names
    old_names = (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2")

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: tuple[int, ...] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        channels = num_init_features
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(num_channels, channels, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels, act="relu"))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for i, depth in enumerate(block_config, 1):
            block = DenseBlock()
            for j in range(1, depth + 1):
                block[f"denselayer{j}"] = DenseLayer(
                    channels, growth_rate, bn_size, drop_rate, memory_efficient, nn
                )
                channels += growth_rate
            self.features.add_module(f"denseblock{i}", block)
            if i < len(block_config):
                self.features.add_module(f"transition{i}", Transition(channels, nn))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels, act="relu"))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, torch.nn.init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


TABLE: dict[str, dict[str, Any]] = {
    "densenet121": {},
    "densenet161": {"growth_rate": 48, "block_config": (6, 12, 36, 24), "num_init_features": 96},
    "densenet169": {"block_config": (6, 12, 32, 32)},
    "densenet201": {"block_config": (6, 12, 48, 32)},
}
globals().update(variants(DenseNet, TABLE))
