"""Convolutions, pools and dense layers one after the other: the tutorials' CNN, LeNet, AlexNet, VGG."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import ArgumentError, check_one_of
from .registry import register
from .vision import ImageModel, Pair, he_fan_out, initialise, variants
from .vit import pair


class SizedImageModel(ImageModel):
    """A model whose dense layers fix the size of its images, options image_size and num_channels."""

    sized = False
    heads = ("head.",)

    def check(self, x: Tensor) -> None:
        check_size(self.name, x, self.options["num_channels"], *pair(self.options["image_size"]))


def check_size(model: str, x: Tensor, channels: int, height: int, width: int) -> None:
    if x.dim() != 4 or tuple(x.shape[1:]) != (channels, height, width):
        raise ArgumentError(
            f"{model}: images have shape {tuple(x.shape)}; expected (batch, {channels}, {height}, {width}), "
            f"num_channels={channels} and image_size={height, width}"
        )


torch.fx.wrap("check_size")


def left(model: str, image_size: Pair, *steps: tuple[int, int]) -> int:
    """Positions that a plane has after steps, each a convolution's loss of rows and columns, then a pool of 2 by 2."""
    sides = []
    for side in pair(image_size):
        for loss, pool in steps:
            side = (side - loss) // pool
        sides.append(side)
    if min(sides) < 1:
        raise ArgumentError(
            f"{model}: of image_size={image_size!r} the convolutions and pools leave nothing; pass larger images "
            f"or more padding"
        )
    return sides[0] * sides[1]


@register("cnn")
class CNN(SizedImageModel):
    """Two times a 3x3 convolution, ReLU and 2x2 max-pool; a dense layer with ReLU, and one that gives the logits.

    padding: "valid", as in Keras, or "same", which small images need (8x8 digits leave nothing otherwise). The
    dense layer follows a dropout. softmax: probabilities instead of logits.
    Source: F. Chollet, Deep Learning with Python, 2017, section 5.1, and Keras' tutorials since.
    """

    name = "cnn"

    def __init__(
        self,
        num_classes: int = 10,
        image_size: Pair = 28,
        num_channels: int = 1,
        filters: tuple[int, int] = (32, 64),
        hidden: int = 64,
        padding: str = "valid",
        dropout: float = 0.0,
        softmax: bool = False,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        check_one_of("cnn", "padding", padding, ("valid", "same"))
        loss = 2 if padding == "valid" else 0
        positions = left("cnn", image_size, (loss, 2), (loss, 2))
        self.conv1 = nn.Conv2d(num_channels, filters[0], 3, padding=padding, act="relu")
        self.conv2 = nn.Conv2d(*filters, 3, padding=padding, act="relu")
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(filters[1] * positions, hidden, act="relu")
        self.head = nn.Linear(hidden, num_classes)
        self.softmax = nn.Softmax(1) if softmax else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x)).flatten(1)
        return self.softmax(self.head(self.hidden(self.dropout(x))))


@register("lenet")
class LeNet(SizedImageModel):
    """LeNet-5: 5x5 convolutions of 6, 16 and 120 maps with tanh, 2x2 means after the first two, dense 84 and logits.

    28x28 digits go in with padding=2 or padded to 32x32. Today's form of the paper's: a mean has no coefficients,
    the second convolution sees all six maps, tanh is not scaled, and the outputs are linear, not distances.
    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-Based Learning Applied to Document Recognition,
    Proceedings of the IEEE 86, 1998, doi:10.1109/5.726791.
    """

    name = "lenet"

    def __init__(
        self,
        num_classes: int = 10,
        image_size: Pair = 32,
        num_channels: int = 1,
        padding: int = 0,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        positions = left("lenet", image_size, (4 - 2 * padding, 2), (4, 2), (4, 1))
        self.conv1 = nn.Conv2d(num_channels, 6, 5, padding=padding, act="tanh")
        self.conv2 = nn.Conv2d(6, 16, 5, act="tanh")
        self.conv3 = nn.Conv2d(16, 120, 5, act="tanh")
        self.pool = nn.AvgPool2d(2)
        self.hidden = nn.Linear(120 * positions, 84, act="tanh")
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        return self.head(self.hidden(self.conv3(x).flatten(1)))


class Stacked(ImageModel):
    """features, a mean over a fixed grid of places, and classifier, numbered as torchvision's lists of layers.

    An activation is a part of the layer before it, and an Identity stands in its place.
    """

    heads, stem = ("classifier.6.",), "features.0.weight"

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register("alexnet")
class AlexNet(Stacked):
    """Source: A. Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997."""

    name = "alexnet"
    smallest = 63

    def __init__(
        self, num_classes: int = 1000, dropout: float = 0.5, num_channels: int = 3, *, nn: Any = kz_nn
    ) -> None:
        super().__init__(dict(locals()))
        relu = functools.partial(nn.Conv2d, act="relu")
        self.features = nn.Sequential(
            relu(num_channels, 64, 11, stride=4, padding=2),
            nn.Identity(),
            nn.MaxPool2d(3, 2),
            relu(64, 192, 5, padding=2),
            nn.Identity(),
            nn.MaxPool2d(3, 2),
            relu(192, 384, 3, padding=1),
            nn.Identity(),
            relu(384, 256, 3, padding=1),
            nn.Identity(),
            relu(256, 256, 3, padding=1),
            nn.Identity(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096, act="relu"),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096, act="relu"),
            nn.Identity(),
            nn.Linear(4096, num_classes),
        )


class VGG(Stacked):
    """3x3 convolutions in groups that end with a max-pool, three dense layers.

    cfg: widths of the convolutions, "M" for a pool.
    Source: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
    arXiv:1409.1556.
    """

    smallest = 32

    def __init__(
        self,
        cfg: tuple[int | str, ...] = (),
        batch_norm: bool = False,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        layers, channels = [], num_channels
        for width in cfg:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += triple(channels, width, batch_norm, nn)
                channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, 4096, act="relu"),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096, act="relu"),
            nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        if init_weights:
            initialise(self, he_fan_out, functools.partial(torch.nn.init.normal_, std=0.01))


def triple(inputs: int, outputs: int, norm: bool, nn: Any) -> list[torch.nn.Module]:
    """Convolution, norm and activation, or convolution and activation."""
    if norm:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, act="relu"), nn.Identity()]
    return [nn.Conv2d(inputs, outputs, 3, padding=1, act="relu"), nn.Identity()]


def stages(*convolutions: int) -> tuple[int | str, ...]:
    """Widths 64, 128, 256, 512 and 512, so many convolutions of each."""
    widths = (64, 128, 256, 512, 512)
    return tuple(one for width, n in zip(widths, convolutions, strict=True) for one in (*(width,) * n, "M"))


DEPTHS = {
    "vgg11": stages(1, 1, 2, 2, 2),
    "vgg13": stages(2, 2, 2, 2, 2),
    "vgg16": stages(2, 2, 3, 3, 3),
    "vgg19": stages(2, 2, 4, 4, 4),
}
TABLE = {name: {"cfg": cfg} for name, cfg in DEPTHS.items()}
TABLE |= {f"{name}_bn": {"cfg": cfg, "batch_norm": True} for name, cfg in DEPTHS.items()}
globals().update(variants(VGG, TABLE))
