"""GoogLeNet and Inception v3: convolutions of several sizes side by side."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import ArgumentError
from .registry import register
from .vision import ImageModel, Pair, check_images, initialise


class GoogLeNetOutputs(NamedTuple):
    """What the model gives in training: the logits of its end, and of two places on the way."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class InceptionOutputs(NamedTuple):
    """What the model gives in training: the logits of its end, and of one place on the way."""

    logits: Tensor
    aux_logits: Tensor


class Conv(kz_nn.Module):
    """y = relu(norm(conv(x)))."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Pair, stride: int = 1, padding: Pair = 0, *, nn: Any
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, act="relu", eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class AuxiliaryModel(ImageModel):
    """A model that classifies at its end and, in training, on the way: options aux_logits and transform_input."""

    auxiliary: tuple[str, ...] = ()  # names of the classifiers on the way

    def check(self, x: Tensor) -> None:
        super().check(x)
        if self.options["transform_input"] and x.shape[1] != 3:
            raise ArgumentError(
                f"{self.name}: transform_input takes 3 channels, but num_channels={x.shape[1]}"
            )

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        aux = any(key.startswith(f"{cls.auxiliary[0]}.") for key in shapes)
        return {**super().from_shapes(shapes), "aux_logits": aux}

    def _prepare(self, x: Tensor) -> Tensor:
        """The images as the weights expect them, mean 0.5 and deviation 0.5 a channel, from ImageNet's."""
        self.check(x)
        if not self.options["transform_input"]:
            return x
        channels = zip(x.unbind(1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        return torch.stack([c * (std / 0.5) + (mean - 0.5) / 0.5 for c, mean, std in channels], 1)

    def _initialise(self, std: float, **others: float) -> None:
        """Truncated normal weights; others: deviations of the weights of layers by their names."""
        special = {id(self.get_submodule(name).weight): value for name, value in others.items()}

        def draw(weight: Tensor) -> None:
            torch.nn.init.trunc_normal_(weight, std=special.get(id(weight), std), a=-2, b=2)

        initialise(self, draw, draw, biases=False)


class Inception(kz_nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; 1x1 and 3x3; a max-pool and 1x1.

    The third has 5x5 in the paper; torchvision's weights have 3x3.
    """

    def __init__(
        self, inputs: int, one: int, three: Sequence[int], five: Sequence[int], pool: int, nn: Any
    ) -> None:
        super().__init__()
        make = functools.partial(Conv, nn=nn)
        self.branch1 = make(inputs, one, 1)
        self.branch2 = nn.Sequential(make(inputs, three[0], 1), make(*three, 3, padding=1))
        self.branch3 = nn.Sequential(make(inputs, five[0], 1), make(*five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), make(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNetAux(kz_nn.Module):
    def __init__(self, inputs: int, num_classes: int, dropout: float, nn: Any) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = Conv(inputs, 128, 1, nn=nn)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024, act="relu")
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.fc1(self.conv(self.pool(x)).flatten(1))))


# channels of the branches, 1x1, (1x1, 3x3), (1x1, 5x5), behind the pool; table 1 of the paper
GOOGLENET = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


@register("googlenet")
class GoogLeNet(AuxiliaryModel):
    """Nine Inception blocks; in training GoogLeNetOutputs, with the logits of two classifiers on the way.

    transform_input: images arrive normalised as for torchvision's other models; its own ImageNet weights of this
    one are used so, and no file says it.
    Source: C. Szegedy et al., Going Deeper with Convolutions, arXiv:1409.4842.
    """

    name = "googlenet"
    heads, auxiliary, stem = ("fc.", "aux1.fc2.", "aux2.fc2."), ("aux1", "aux2"), "conv1.conv.weight"
    ignored = (r"^aux[12]\.",)
    smallest = 15

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        init_weights: bool = True,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        pool = functools.partial(nn.MaxPool2d, stride=2, ceil_mode=True)
        self.conv1 = Conv(num_channels, 64, 7, 2, 3, nn=nn)
        self.maxpool1 = pool(3)
        self.conv2 = Conv(64, 64, 1, nn=nn)
        self.conv3 = Conv(64, 192, 3, padding=1, nn=nn)
        self.maxpool2 = pool(3)
        channels = 192
        for place, (one, three, five, behind) in GOOGLENET.items():
            if place in ("4a", "5a"):
                setattr(self, f"maxpool{int(place[0]) - 1}", pool(3 if place == "4a" else 2))
            setattr(self, f"inception{place}", Inception(channels, one, three, five, behind, nn))
            channels = one + three[1] + five[1] + behind
        self.aux1 = GoogLeNetAux(512, num_classes, dropout_aux, nn) if aux_logits else None
        self.aux2 = GoogLeNetAux(528, num_classes, dropout_aux, nn) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        if init_weights:
            self._initialise(0.01)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """Logits (B, num_classes); GoogLeNetOutputs in training with aux_logits."""
        x = self.maxpool1(self.conv1(self._prepare(x)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        after_4a = self.inception4a(x)
        after_4d = self.inception4d(self.inception4c(self.inception4b(after_4a)))
        x = self.maxpool4(self.inception4e(after_4d))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.aux1 is None or not self.training:
            return logits
        return GoogLeNetOutputs(logits, self.aux2(after_4d), self.aux1(after_4a))


class Step(NamedTuple):
    """A convolution of a branch: its name, channels and kernel. stride 2 goes without padding."""

    name: str
    channels: int
    kernel: Pair
    stride: int = 1


class Fork(NamedTuple):
    """Two convolutions of the same thing, side by side."""

    left: Step
    right: Step


Branch = tuple[str | Step | Fork, ...]  # steps; "mean" or "max" for a pool


def chain(name: str, *steps: tuple) -> Branch:
    """Steps called name_1, name_2, ..."""
    return tuple(Step(f"{name}_{i}", *step) for i, step in enumerate(steps, 1))


def block_a(pool: int) -> tuple[Branch, ...]:
    """Figure 5 of the paper, its 5x5 left as they are in a branch."""
    return (
        (Step("branch1x1", 64, 1),),
        chain("branch5x5", (48, 1), (64, 5)),
        chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        ("mean", Step("branch_pool", pool, 1)),
    )


def block_c(channels: int) -> tuple[Branch, ...]:
    """Figure 6 of the paper, n = 7."""
    row, column = (1, 7), (7, 1)
    c = channels
    return (
        (Step("branch1x1", 192, 1),),
        chain("branch7x7", (c, 1), (c, row), (192, column)),
        chain("branch7x7dbl", (c, 1), (c, column), (c, row), (c, column), (192, row)),
        ("mean", Step("branch_pool", 192, 1)),
    )


def fork(name: str) -> Fork:
    return Fork(Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1)))


BLOCK_B = (
    (Step("branch3x3", 384, 3, 2),),
    chain("branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
    ("max",),
)
BLOCK_D = (
    chain("branch3x3", (192, 1), (320, 3, 2)),
    chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
    ("max",),
)
BLOCK_E = (  # figure 7 of the paper
    (Step("branch1x1", 320, 1),),
    (Step("branch3x3_1", 384, 1), fork("branch3x3_2")),
    (Step("branch3x3dbl_1", 448, 1), Step("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")),
    ("mean", Step("branch_pool", 192, 1)),
)
INCEPTION_V3 = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": BLOCK_E,
    "Mixed_7c": BLOCK_E,
}


class Mixed(kz_nn.Module):
    """Branches side by side; `channels` come out."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...], nn: Any) -> None:
        super().__init__()
        self.branches, self.channels = branches, 0
        for branch in branches:
            width = inputs
            for step in branch:
                if isinstance(step, Fork):
                    self._add(width, step.left, nn)
                    width = self._add(width, step.right, nn) + step.left.channels
                elif isinstance(step, Step):
                    width = self._add(width, step, nn)
            self.channels += width
        self.mean = nn.AvgPool2d(3, 1, 1)
        self.max = nn.MaxPool2d(3, 2)

    def _add(self, inputs: int, step: Step, nn: Any) -> int:
        height, width = (step.kernel, step.kernel) if isinstance(step.kernel, int) else step.kernel
        padding = 0 if step.stride > 1 else (height // 2, width // 2)
        setattr(self, step.name, Conv(inputs, step.channels, step.kernel, step.stride, padding, nn=nn))
        return step.channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(branch, x) for branch in self.branches], 1)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, Fork):
                x = torch.cat([getattr(self, side.name)(x) for side in step], 1)
            else:
                x = getattr(self, step if isinstance(step, str) else step.name)(x)
        return x


class InceptionAux(kz_nn.Module):
    def __init__(self, inputs: int, num_classes: int, nn: Any) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv0 = Conv(inputs, 128, 1, nn=nn)
        self.conv1 = Conv(128, 768, 5, nn=nn)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mean(self.conv1(self.conv0(self.pool(x)))).flatten(1))


@register("inception_v3")
class InceptionV3(AuxiliaryModel):
    """Blocks of factorised convolutions; in training InceptionOutputs, with the logits of a classifier on the way.

    transform_input: images arrive normalised as for torchvision's other models; its own ImageNet weights of this
    one are used so, and no file says it. Images of 75x75 upwards, of 299x299 in training with aux_logits.
    Source: C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567.
    """

    name = "inception_v3"
    heads, auxiliary, stem = ("fc.", "AuxLogits.fc."), ("AuxLogits",), "Conv2d_1a_3x3.conv.weight"
    ignored = (r"^AuxLogits\.",)
    smallest = 75

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        init_weights: bool = True,
        dropout: float = 0.5,
        num_channels: int = 3,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        self.Conv2d_1a_3x3 = Conv(num_channels, 32, 3, 2, nn=nn)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, nn=nn)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1, nn=nn)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1, nn=nn)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, nn=nn)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        channels = 192
        self.AuxLogits = None
        for place, branches in INCEPTION_V3.items():
            if place == "Mixed_7a" and aux_logits:
                self.AuxLogits = InceptionAux(channels, num_classes, nn)
            block = Mixed(channels, branches, nn)
            setattr(self, place, block)
            channels = block.channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        if init_weights:
            self._initialise(0.1, **({"AuxLogits.fc": 0.001} if aux_logits else {}))

    def check(self, x: Tensor) -> None:
        super().check(x)
        if self.training and self.AuxLogits is not None:
            check_images(self.name, x, x.shape[1], 299, " in training with aux_logits=True")

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        """Logits (B, num_classes); InceptionOutputs in training with aux_logits."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(self._prepare(x))))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        middle = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.AuxLogits is None or not self.training:
            return logits
        return InceptionOutputs(logits, self.AuxLogits(middle))
