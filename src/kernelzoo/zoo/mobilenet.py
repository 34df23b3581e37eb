"""Networks of inverted residual blocks: MobileNet v2 and v3, EfficientNet."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import ArgumentError
from .registry import register
from .vision import (
    Chain,
    ConvNorm,
    ImageModel,
    InvertedResidual,
    divisible,
    he_fan_out,
    initialise,
    variants,
)

normal = functools.partial(torch.nn.init.normal_, std=0.01)


class FeatureModel(ImageModel):
    """features, the mean over all places, classifier."""

    stem = "features.0.0.weight"

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class InvertedResidualV2(kz_nn.Module):
    """InvertedResidual without squeeze-and-excitation, its layers numbered as torchvision's MobileNetV2's."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand_ratio: int, nn: Any) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        width = inputs * expand_ratio
        layers = [ConvNorm(inputs, width, 1, act="relu6", nn=nn)] if expand_ratio != 1 else []
        self.conv = Chain(
            *layers,
            ConvNorm(width, width, 3, stride, groups=width, act="relu6", nn=nn),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, x if self.residual else None)


# expansion, channels, blocks, stride of the first; table 2 of the paper
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@register("mobilenet_v2")
class MobileNetV2(FeatureModel):
    """width_mult: factor of all channels, which are rounded to multiples of round_nearest.

    inverted_residual_setting: (expansion, channels, blocks, stride of the first) of each stage.
    Source: M. Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381.
    """

    name = "mobilenet_v2"
    heads = ("classifier.1.",)

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: tuple[tuple[int, int, int, int], ...] = MOBILENET_V2,
        round_nearest: int = 8,
        dropout: float = 0.2,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        channels = divisible(32 * width_mult, round_nearest)
        layers = [ConvNorm(num_channels, channels, 3, 2, act="relu6", nn=nn)]
        for expansion, width, depth, stride in inverted_residual_setting:
            outputs = divisible(width * width_mult, round_nearest)
            for i in range(depth):
                layers.append(InvertedResidualV2(channels, outputs, 1 if i else stride, expansion, nn))
                channels = outputs
        last = divisible(1280 * max(1.0, width_mult), round_nearest)
        layers.append(ConvNorm(channels, last, 1, act="relu6", nn=nn))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self, he_fan_out, normal)


# kernel, expanded channels, channels, squeezed, activation, stride; tables 1 and 2 of the paper
Row = tuple[int, int, int, bool, str, int]
LARGE = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2),
    (3, 200, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 480, 112, True, "hardswish", 1),
    (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2),
    (5, 960, 160, True, "hardswish", 1),
    (5, 960, 160, True, "hardswish", 1),
)
SMALL = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hardswish", 2),
    (5, 240, 40, True, "hardswish", 1),
    (5, 240, 40, True, "hardswish", 1),
    (5, 120, 48, True, "hardswish", 1),
    (5, 144, 48, True, "hardswish", 1),
    (5, 288, 96, True, "hardswish", 2),
    (5, 576, 96, True, "hardswish", 1),
    (5, 576, 96, True, "hardswish", 1),
)
LAST_STAGE = 3  # blocks that reduced_tail narrows and dilated widens


class MobileNetV3(FeatureModel):
    """Inverted residual blocks with squeeze-and-excitation and hardswish.

    inverted_residual_setting: (kernel, expanded channels, channels, squeezed, activation, stride) of each block,
    last_channel: of the layer before the last. width_mult: factor of all channels. reduced_tail: the last stage at
    half its width. dilated: the last stage reaches further instead of shrinking.
    Source: A. Howard et al., Searching for MobileNetV3, arXiv:1905.02244.
    """

    heads = ("classifier.3.",)

    def __init__(
        self,
        inverted_residual_setting: tuple[Row, ...] = LARGE,
        last_channel: int = 1280,
        num_classes: int = 1000,
        dropout: float = 0.2,
        width_mult: float = 1.0,
        reduced_tail: bool = False,
        dilated: bool = False,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        norm = {"eps": 0.001, "momentum": 0.01}
        half = 2 if reduced_tail else 1
        channels = divisible(16 * width_mult)
        layers = [ConvNorm(num_channels, channels, 3, 2, act="hardswish", nn=nn, **norm)]
        tail = len(inverted_residual_setting) - LAST_STAGE
        for i, (kernel, expanded, outputs, squeezed, act, stride) in enumerate(inverted_residual_setting):
            # the last stage's first block keeps its inner width: it comes from the stage before
            inner = expanded // half if i > tail else expanded
            expanded = divisible(inner * width_mult)
            outputs = divisible((outputs // half if i >= tail else outputs) * width_mult)
            block = InvertedResidual(
                channels,
                expanded,
                outputs,
                kernel,
                stride,
                act=act,
                squeezed=divisible(expanded // 4) if squeezed else None,
                gate="hardsigmoid",
                dilation=2 if dilated and i >= tail else 1,
                norm=norm,
                nn=nn,
            )
            layers.append(block)
            channels = outputs
        layers.append(ConvNorm(channels, 6 * channels, 1, act="hardswish", nn=nn, **norm))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = divisible(last_channel // half * width_mult)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden, act="hardswish"),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        initialise(self, he_fan_out, normal)


V3: dict[str, dict[str, Any]] = {
    "mobilenet_v3_large": {},
    "mobilenet_v3_small": {"inverted_residual_setting": SMALL, "last_channel": 1024},
}
globals().update(variants(MobileNetV3, V3))


# expansion, kernel, stride of the first, channels, blocks; table 1 of the paper
EFFICIENTNET_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(FeatureModel):
    """Inverted residual blocks with squeeze-and-excitation and SiLU, scaled in width and depth together.

    width_mult, depth_mult: factors of the channels and of the blocks of b0. stochastic_depth_prob: of the last
    block; it grows linearly from 0. norm_eps, norm_momentum: of the norms.
    inverted_residual_setting: (expansion, kernel, stride of the first, channels, blocks) of each stage of b0.
    Source: M. Tan, Q. V. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks,
    arXiv:1905.11946.
    """

    heads = ("classifier.1.",)

    def __init__(
        self,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
        inverted_residual_setting: tuple[tuple[int, int, int, int, int], ...] = EFFICIENTNET_B0,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        norm = {"eps": norm_eps, "momentum": norm_momentum}
        channels = divisible(32 * width_mult)
        layers = [ConvNorm(num_channels, channels, 3, 2, act="silu", nn=nn, **norm)]
        depths = [math.ceil(depth * depth_mult) for *_, depth in inverted_residual_setting]
        if not sum(depths):
            raise ArgumentError(f"{self.name}: inverted_residual_setting has no block; expected one at least")
        blocks = 0
        for (expansion, kernel, stride, width, _), depth in zip(
            inverted_residual_setting, depths, strict=True
        ):
            outputs, stage = divisible(width * width_mult), []
            for i in range(depth):
                block = InvertedResidual(
                    channels,
                    divisible(channels * expansion),
                    outputs,
                    kernel,
                    1 if i else stride,
                    act="silu",
                    squeezed=max(1, channels // 4),
                    squeeze_act="silu",
                    gate="sigmoid",
                    drop=stochastic_depth_prob * blocks / sum(depths),
                    norm=norm,
                    nn=nn,
                )
                stage.append(block)
                channels, blocks = outputs, blocks + 1
            layers.append(nn.Sequential(*stage))
        layers.append(ConvNorm(channels, 4 * channels, 1, act="silu", nn=nn, **norm))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))
        bound = num_classes**-0.5
        initialise(self, he_fan_out, functools.partial(torch.nn.init.uniform_, a=-bound, b=bound))


LARGE_NORM = {"norm_eps": 0.001, "norm_momentum": 0.01}
EFFICIENTNET: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {},
    "efficientnet_b1": {"depth_mult": 1.1},
    "efficientnet_b2": {"width_mult": 1.1, "depth_mult": 1.2, "dropout": 0.3},
    "efficientnet_b3": {"width_mult": 1.2, "depth_mult": 1.4, "dropout": 0.3},
    "efficientnet_b4": {"width_mult": 1.4, "depth_mult": 1.8, "dropout": 0.4},
    "efficientnet_b5": {"width_mult": 1.6, "depth_mult": 2.2, "dropout": 0.4, **LARGE_NORM},
    "efficientnet_b6": {"width_mult": 1.8, "depth_mult": 2.6, "dropout": 0.5, **LARGE_NORM},
    "efficientnet_b7": {"width_mult": 2.0, "depth_mult": 3.1, "dropout": 0.5, **LARGE_NORM},
}
globals().update(variants(EfficientNet, EFFICIENTNET))
