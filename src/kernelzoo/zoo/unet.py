"""U-Net: a class for every pixel of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError
from .base import Pretrained
from .registry import register


class DoubleConv(torch.nn.Module):
    """y = relu(norm(conv(relu(norm(conv(x)))))), 3x3 each: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool, nn: Any) -> None:
        super().__init__()
        how = {"padding": 1, "bias": not batch_norm, "act": None if batch_norm else "relu"}
        self.conv1 = nn.Conv2d(inputs, outputs, 3, **how)
        self.norm1 = nn.BatchNorm2d(outputs, act="relu") if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, **how)
        self.norm2 = nn.BatchNorm2d(outputs, act="relu") if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(x))


@register("unet")
class UNet(Pretrained):
    """d_0 = block(x);  d_i = block(pool(d_{i-1}));  u_n = d_n;  u_{i-1} = block([d_{i-1}, up(u_i)]);  y = conv1x1(u_0).

    depth: how often the image is halved, n, and the channels doubled, from `width`. pool: the largest of 2x2; up: a
    2x2 transposed convolution of stride 2. Unlike the paper's, the 3x3 convolutions pad by 1, so that the result
    has the input's size, and batch_norm puts a batch norm behind each, in place of its bias.
    Source: O. Ronneberger, P. Fischer, T. Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation,
    arXiv:1505.04597.
    """

    name = "unet"

    def __init__(
        self,
        num_channels: int = 3,
        num_classes: int = 2,
        width: int = 64,
        depth: int = 4,
        batch_norm: bool = True,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        for option in ("num_channels", "num_classes", "width", "depth"):
            if self.options[option] < 1:
                raise ArgumentError(f"unet: {option} is {self.options[option]}; expected 1 or more")
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(n_in, n_out, batch_norm, nn)
            for n_in, n_out in zip([num_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in widths[:-1])
        self.merge = nn.ModuleList(DoubleConv(2 * n, n, batch_norm, nn) for n in widths[:-1])
        self.head = nn.Conv2d(width, num_classes, 1)
        # the paper's section 3: N(0, 2/fan_in)
        for layer in self.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer is not self.head:
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, num_channels, H, W), H and W multiples of 2^depth -> logits (B, num_classes, H, W)."""
        channels, step = self.options["num_channels"], 2 ** self.options["depth"]
        if x.dim() != 4 or x.shape[1] != channels or x.shape[2] % step or x.shape[3] % step:
            raise ArgumentError(
                f"unet: x has shape {tuple(x.shape)}; expected (batch, {channels}, height, width), height and width "
                f"multiples of {step}: pad the images"
            )
        kept = []
        for block in self.down:
            x = block(self.pool(x) if kept else x)
            kept.append(x)
        x = kept.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)
