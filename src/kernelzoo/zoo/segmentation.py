"""A class for every place of an image: FCN and DeepLab v3 over a dilated ResNet-50."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .registry import register
from .resnet import Trunk
from .vision import ConvNorm, ImageModel, he_fan_out, initialise


class Backbone(Trunk):
    """A bottleneck ResNet without its head, the last two stages dilated: an eighth of the image's rows and columns."""

    def __init__(self, layers: tuple[int, ...], num_channels: int, nn: Any) -> None:
        super().__init__()
        self.channels = self._build(nn, "bottleneck", layers, 1, 64, (False, True, True), num_channels)
        initialise(self, he_fan_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.stages(x)


class FCNHead(kz_nn.Sequential):
    def __init__(self, inputs: int, num_classes: int, nn: Any) -> None:
        width = inputs // 4
        super().__init__(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, act="relu"),
            nn.Identity(),
            nn.Dropout(0.1),
            nn.Conv2d(width, num_classes, 1),
        )


class PooledConv(kz_nn.Sequential):
    """relu(norm(conv1x1(mean over all places))), at every place."""

    def __init__(self, inputs: int, outputs: int, nn: Any) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, act="relu"),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).expand(-1, -1, x.shape[2], x.shape[3])


class ASPP(kz_nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and a mean side by side, projected to 256 channels."""

    def __init__(self, inputs: int, rates: tuple[int, ...], nn: Any, outputs: int = 256) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ConvNorm(inputs, outputs, 1, nn=nn),
                *(ConvNorm(inputs, outputs, 3, dilation=rate, nn=nn) for rate in rates),
                PooledConv(inputs, outputs, nn),
            ]
        )
        self.project = nn.Sequential(
            nn.Conv2d(len(self.convs) * outputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, act="relu"),
            nn.Identity(),
            nn.Dropout(0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


class DeepLabHead(kz_nn.Sequential):
    def __init__(self, inputs: int, num_classes: int, rates: tuple[int, ...], nn: Any) -> None:
        super().__init__(
            ASPP(inputs, rates, nn),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256, act="relu"),
            nn.Identity(),
            nn.Conv2d(256, num_classes, 1),
        )


class Segmentation(ImageModel):
    """backbone, classifier and, with aux_loss, a second classifier of the third stage, each resized to the image."""

    heads = ("classifier.4.", "aux_classifier.4.")
    stem = "backbone.conv1.weight"
    ignored = (r"^aux_classifier\.",)

    def _assemble(self, nn: Any, head: Any, layers: tuple[int, ...]) -> None:
        o = self.options
        self.backbone = Backbone(layers, o["num_channels"], nn)
        channels = self.backbone.channels
        self.classifier = head(channels, o["num_classes"], nn=nn)
        self.aux_classifier = FCNHead(channels // 2, o["num_classes"], nn) if o["aux_loss"] else None
        self._resize = functools.partial(nn.functional.interpolate, mode="bilinear", align_corners=False)

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        aux = any(key.startswith("aux_classifier.") for key in shapes)
        return {**super().from_shapes(shapes), "aux_loss": aux}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """{"out": (B, num_classes, H, W)}, and "aux" likewise with aux_loss."""
        self.check(x)
        third, fourth = self.backbone(x)
        found = {"out": self._resize(self.classifier(fourth), size=x.shape[-2:])}
        if self.aux_classifier is not None:
            found["aux"] = self._resize(self.aux_classifier(third), size=x.shape[-2:])
        return found


@register("fcn_resnet50")
class FCNResNet50(Segmentation):
    """A 3x3 convolution over the features and a class for each place.

    layers: blocks of each stage of the backbone.
    Source: J. Long, E. Shelhamer, T. Darrell, Fully Convolutional Networks for Semantic Segmentation,
    arXiv:1411.4038.
    """

    name = "fcn_resnet50"

    def __init__(
        self,
        num_classes: int = 21,
        aux_loss: bool = False,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        self._assemble(nn, FCNHead, layers)


@register("deeplabv3_resnet50")
class DeepLabV3ResNet50(Segmentation):
    """Dilated convolutions of several reaches over the features (ASPP) and a class for each place.

    atrous_rates: their dilations; layers: blocks of each stage of the backbone.
    Source: L.-C. Chen, G. Papandreou, F. Schroff, H. Adam, Rethinking Atrous Convolution for Semantic Image
    Segmentation, arXiv:1706.05587.
    """

    name = "deeplabv3_resnet50"

    def __init__(
        self,
        num_classes: int = 21,
        aux_loss: bool = False,
        atrous_rates: tuple[int, ...] = (12, 24, 36),
        layers: tuple[int, ...] = (3, 4, 6, 3),
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        self._assemble(nn, functools.partial(DeepLabHead, rates=tuple(atrous_rates)), layers)
