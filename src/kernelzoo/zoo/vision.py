"""What the zoo's models of images share: options, checks of images, convolutions with norms and activations.

Parameters have torchvision's names and shapes, so that its state dicts load as they are; an activation is a part
of the layer before it, where it can be computed together with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentTypeError
from .base import ArgumentError, Pretrained
from .registry import register

Pair = int | tuple[int, int]


class ImageModel(Pretrained):
    """A model of images (B, num_channels, H, W), floating, in torchvision's architecture and names.

    Weights that torchvision or timm trained on ImageNet expect images in [0, 1] normalised by channel, mean
    (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225), unless a model says otherwise.
    """

    sized = True
    heads = ("fc.",)  # keys of the layers that num_classes sizes; the first one gives the logits
    stem = "conv1.weight"  # the parameter of shape (·, num_channels, ·, ·)
    smallest = 1  # side of the smallest image that no layer shrinks to nothing

    def check(self, x: Tensor) -> None:
        check_images(self.name, x, self.options["num_channels"], self.smallest)

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        classes, stem = shapes.get(f"{cls.heads[0]}weight", ()), shapes.get(cls.stem, ())
        found = {"num_classes": classes[0]} if classes else {}
        return found | ({"num_channels": stem[1]} if len(stem) == 4 else {})


def check_images(model: str, x: Tensor, channels: int, smallest: int, when: str = "") -> None:
    """x (B, channels, H, W), floating, H and W at least `smallest`; when: what makes them so large."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ArgumentError(
            f"{model}: images have shape {tuple(x.shape)}; expected (batch, {channels}, height, width), "
            f"num_channels={channels}"
        )
    if x.shape[2] < smallest or x.shape[3] < smallest:
        raise ArgumentError(
            f"{model}: images are {x.shape[2]}x{x.shape[3]}; expected at least {smallest}x{smallest}{when}, "
            f"resize them"
        )
    if not x.is_floating_point():
        raise ArgumentTypeError(
            f"{model}: images have dtype {x.dtype}; expected floats, in [0, 1] normalised"
        )


torch.fx.wrap("check_images")  # traced as one call: what it asks of a shape is no part of a graph


def variants(base: type[ImageModel], table: dict[str, dict[str, Any]]) -> dict[str, type[ImageModel]]:
    """name -> `base` with the table's values as defaults of its options, entered into the zoo."""
    return {name: register(name)(_variant(base, name, defaults)) for name, defaults in table.items()}


def _variant(base: type[ImageModel], name: str, defaults: dict[str, Any]) -> type[ImageModel]:
    @functools.wraps(base.__init__)
    def __init__(self, **options: Any) -> None:
        base.__init__(self, **{**defaults, **options})

    signature = inspect.signature(base.__init__)
    me, *rest = signature.parameters.values()
    rest = [p.replace(kind=p.KEYWORD_ONLY, default=defaults.get(p.name, p.default)) for p in rest]
    __init__.__signature__ = signature.replace(parameters=[me, *rest])
    members = {"__init__": __init__, "__module__": base.__module__, "__doc__": base.__doc__, "name": name}
    return type(name, (base,), members)


class Chain(kz_nn.Sequential):
    """Layers one after the other, the last of which adds a residual."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        *first, last = self
        for layer in first:
            x = layer(x)
        return last(x, residual=residual)


class ConvNorm(Chain):
    """y = act(norm(conv(x)) + residual), of the size of x at stride 1. 0 is the convolution, 1 the norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: str | None = "relu",
        nn: Any = kz_nn,
        **norm: Any,
    ) -> None:
        padding = (kernel - 1) // 2 * dilation
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs, act=act, **norm),
        )


class SqueezeExcite(kz_nn.Module):
    """y = x · gate(W_2 act(W_1 mean(x) + b_1) + b_2), one factor a channel and image.

    Source: J. Hu, L. Shen, G. Sun, Squeeze-and-Excitation Networks, arXiv:1709.01507.
    """

    def __init__(
        self, channels: int, squeezed: int, act: str = "relu", gate: str = "sigmoid", *, nn: Any = kz_nn
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1, act=act)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, act=gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(self.avgpool(x)))


class StochasticDepth(kz_nn.Module):
    """In training, each image's x becomes 0 with probability p, x / (1 - p) otherwise.

    Source: G. Huang et al., Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ArgumentError(f"StochasticDepth: p is {p}; expected a probability from 0 to 1")
        self.p = p

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        kept = torch.empty(x.shape[0], *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        kept.bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p) if self.p < 1 else kept)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class InvertedResidual(kz_nn.Module):
    """y = x + project(scale(depthwise(expand(x)))), without the sum where the shape changes.

    expand and project are 1x1 convolutions, each of the three with a norm; expand is left out where it would not
    widen. squeezed: channels between the two products of squeeze-and-excitation, None for none. drop: probability
    that an image's branch is left out in training.
    Source: M. Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381.
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        act: str,
        squeezed: int | None,
        gate: str,
        squeeze_act: str = "relu",
        dilation: int = 1,
        drop: float = 0.0,
        norm: dict[str, Any],
        nn: Any,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        layers = []
        if expanded != inputs:
            layers.append(ConvNorm(inputs, expanded, 1, act=act, nn=nn, **norm))
        how = {"groups": expanded, "dilation": dilation, "act": act}
        stride = 1 if dilation > 1 else stride
        layers.append(ConvNorm(expanded, expanded, kernel, stride, **how, nn=nn, **norm))
        if squeezed is not None:
            layers.append(SqueezeExcite(expanded, squeezed, squeeze_act, gate, nn=nn))
        layers.append(ConvNorm(expanded, outputs, 1, act=None, nn=nn, **norm))
        self.block = Chain(*layers)
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        if self.residual and self.stochastic_depth.active:
            return self.stochastic_depth(self.block(x)) + x
        return self.block(x, x if self.residual else None)


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of `by`, no less than `by` nor than 0.9 of the channels.

    Source: torchvision's and TensorFlow's MobileNets, whose checkpoints have these widths.
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def initialise(
    model: torch.nn.Module,
    conv: Callable[[Tensor], Any],
    linear: Callable[[Tensor], Any] | None = None,
    *,
    biases: bool = True,
) -> None:
    """conv and linear on the weights of such layers, one by one in their order; biases to 0 where asked.

    The order and the calls are torchvision's: a seed gives the same weights there.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            conv(layer.weight)
        elif isinstance(layer, torch.nn.Linear):
            if linear is not None:
                linear(layer.weight)
        else:
            continue
        if biases and layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)


# K. He et al., Delving Deep into Rectifiers, arXiv:1502.01852, with the variance of the gradients kept
he_fan_out = functools.partial(torch.nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
