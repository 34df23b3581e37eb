"""Residual networks: ResNet, ResNeXt, wide ResNet, SE-ResNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.recompute import can_recompute, recomputed
from .base import ArgumentError, check_one_of
from .vision import ConvNorm, ImageModel, SqueezeExcite, he_fan_out, initialise, variants


class Basic(kz_nn.Module):
    """y = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stride: int,
        dilation: int,
        groups: int,
        se: bool,
        nn: Any,
    ) -> None:
        super().__init__()
        if dilation > 1 or groups > 1 or width != outputs or se:
            raise ArgumentError(
                'resnet: a block="basic" has no dilation, groups, other widths nor se; expected block="bottleneck"'
            )
        downsample = make_shortcut(inputs, outputs, stride, nn)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, act="relu")
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, act="relu")
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        keeps = keeps_shortcut(self, x)
        with recomputed(x):
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.conv1(x)
        x = self.bn1(x)
        with recomputed(x):
            x = self.conv2(x)
        return self.bn2(x, residual=shortcut, keep_residual=keeps)


class Bottleneck(kz_nn.Module):
    """y = relu(norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))) + shortcut(x)).

    The 3x3 convolution has the stride, as in torchvision's and NVIDIA's v1.5. se: squeeze-and-excitation before
    the sum, with a sixteenth of the channels.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stride: int,
        dilation: int,
        groups: int,
        se: bool,
        nn: Any,
    ) -> None:
        super().__init__()
        downsample = make_shortcut(inputs, outputs, stride, nn)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, act="relu")
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width, act="relu")
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, act=None if se else "relu")
        self.se = SqueezeExcite(outputs, outputs // 16, nn=nn) if se else None
        self.downsample = downsample
        self._relu = nn.functional.relu

    def forward(self, x: Tensor) -> Tensor:
        keeps = keeps_shortcut(self, x)
        with recomputed(x):
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.conv1(x)
        x = self.bn1(x)
        with recomputed(x):
            x = self.conv2(x)
        x = self.bn2(x)
        with recomputed(x):
            x = self.conv3(x)
        if self.se is None:
            return self.bn3(x, residual=shortcut, keep_residual=keeps)
        return self._relu(self.se(self.bn3(x)) + shortcut)


def keeps_shortcut(block: Basic | Bottleneck, x: Tensor) -> bool:
    """Whether the block's last norm keeps x, which the first convolution keeps too, and not its own result, so that the
    next block can compute that anew: every second result."""
    return block.downsample is None and not can_recompute(x)


def make_shortcut(inputs: int, outputs: int, stride: int, nn: Any) -> ConvNorm | None:
    """x in the shape of the branch that it is added to; None where it is."""
    if stride == 1 and inputs == outputs:
        return None
    return ConvNorm(inputs, outputs, 1, stride, act=None, nn=nn)


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck}


class Trunk(kz_nn.Module):
    """A 7x7 convolution, a max-pool and four stages of residual blocks: what classifies and what segments share."""

    def _build(
        self,
        nn: Any,
        block: str,
        layers: tuple[int, ...],
        groups: int,
        width_per_group: int,
        dilate: tuple[bool, ...] | None,
        num_channels: int,
        se: bool = False,
    ) -> int:
        """Add the layers; the channels that they end with. dilate: stages 2 to 4 widen their reach, not shrink."""
        check_one_of("resnet", "block", block, tuple(BLOCKS))
        dilate = (False, False, False) if dilate is None else tuple(dilate)
        if len(layers) != 4 or len(dilate) != 3:
            raise ArgumentError(
                f"resnet: layers is {layers!r} and replace_stride_with_dilation {dilate!r}; expected four numbers "
                f"of blocks and three of True and False"
            )
        make = BLOCKS[block]
        self.conv1 = nn.Conv2d(num_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, act="relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, dilation = 64, 1
        for stage, (depth, keeps) in enumerate(zip(layers, (False, *dilate), strict=True)):
            planes, stride, reach = 64 << stage, 1 if stage == 0 else 2, dilation
            if keeps:
                dilation, stride = dilation * stride, 1
            width, outputs = planes * width_per_group // 64 * groups, planes * make.expansion
            blocks = []
            for _ in range(depth):
                blocks.append(make(inputs, width, outputs, stride, reach, groups, se, nn))
                inputs, stride, reach = outputs, 1, dilation
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        return inputs

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Results of the third and of the fourth stage."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        third = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)


class ResNet(Trunk, ImageModel):
    """Stages of residual blocks, the mean over all places, a linear layer.

    block: "basic", two 3x3 convolutions, or "bottleneck"; layers: blocks of each stage. groups and width_per_group
    size a bottleneck's 3x3 convolution. replace_stride_with_dilation: for each of the last three stages.
    zero_init_residual: each block starts as the identity.
    Sources: K. He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385; S. Xie et al.,
    Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431 (ResNeXt); S. Zagoruyko,
    N. Komodakis, Wide Residual Networks, arXiv:1605.07146; J. Hu, L. Shen, G. Sun, Squeeze-and-Excitation
    Networks, arXiv:1709.01507 (seresnet50, by timm's names).
    """

    def __init__(
        self,
        block: str = "bottleneck",
        layers: tuple[int, ...] = (3, 4, 6, 3),
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: tuple[bool, ...] | None = None,
        num_channels: int = 3,
        se: bool = False,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        dilate = replace_stride_with_dilation
        features = self._build(nn, block, layers, groups, width_per_group, dilate, num_channels, se)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)
        initialise(self, he_fan_out, biases=False)
        if zero_init_residual:
            for layer in self.modules():
                if isinstance(layer, (Basic, Bottleneck)):
                    last = layer.bn2 if isinstance(layer, Basic) else layer.bn3
                    torch.nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.fc(self.avgpool(self.stages(x)[1]).flatten(1))


TABLE: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2)},
    "resnet34": {"block": "basic"},
    "resnet50": {},
    "resnet101": {"layers": (3, 4, 23, 3)},
    "resnet152": {"layers": (3, 8, 36, 3)},
    "resnext50_32x4d": {"groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"layers": (3, 4, 23, 3), "groups": 32, "width_per_group": 8},
    "wide_resnet50_2": {"width_per_group": 128},
    "seresnet50": {"se": True, "zero_init_residual": True},
}
globals().update(variants(ResNet, TABLE))
