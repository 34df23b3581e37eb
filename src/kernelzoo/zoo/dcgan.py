"""DCGAN: a generator of images and the discriminator that it learns against."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError
from .base import Pretrained
from .registry import register

STD = 0.02  # of the weights at first: the paper's section 4
LEAKY = ("leaky_relu", 0.2)  # ibid.


class Generator(torch.nn.Module):
    """z -> an image: transposed convolutions that double the side, batch norm and ReLU behind each but the last."""

    def __init__(self, latent: int, side: int, widths: list[int], channels: int, nn: Any) -> None:
        super().__init__()
        sizes = [*widths, channels]
        self.start = nn.ConvTranspose2d(latent, sizes[0], side, bias=False)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(sizes[i], sizes[i + 1], 4, stride=2, padding=1, bias=i == len(widths) - 1)
            for i in range(len(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, act="relu") for n in widths)
        self._tanh = nn.functional.tanh

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z[:, :, None, None])
        for norm, up in zip(self.norms, self.up, strict=True):
            x = up(norm(x))
        return self._tanh(x)


class Discriminator(torch.nn.Module):
    """An image -> a logit: convolutions of stride 2, leaky ReLU behind each, batch norm but behind the first."""

    def __init__(self, side: int, widths: list[int], channels: int, nn: Any) -> None:
        super().__init__()
        sizes = [channels, *widths]
        self.down = nn.ModuleList(
            nn.Conv2d(*sizes[i : i + 2], 4, stride=2, padding=1, bias=i == 0, act=None if i else LEAKY)
            for i in range(len(widths))
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(n, act=LEAKY) if i else nn.Identity() for i, n in enumerate(widths)
        )
        self.end = nn.Conv2d(widths[-1], 1, side)

    def forward(self, x: Tensor) -> Tensor:
        for norm, down in zip(self.norms, self.down, strict=True):
            x = norm(down(x))
        return self.end(x).flatten()


@register("dcgan")
class DCGAN(Pretrained):
    """x = generator(z), z ~ N(0, 1);  discriminator(x): the logit that x is real. Images are in [-1, 1].

    image_size: 8, 16, 32 ...; sides double from 4, or from 2 for images of 8, to image_size; channels halve down
    to `width` before the last layer. latent_size: of z.
    Source: A. Radford, L. Metz, S. Chintala, Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks, arXiv:1511.06434; there image_size is 64 and width 128, latent_size 100.
    """

    name = "dcgan"

    def __init__(
        self,
        image_size: int = 64,
        num_channels: int = 3,
        width: int = 64,
        latent_size: int = 100,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        for option in ("num_channels", "width", "latent_size"):
            if self.options[option] < 1:
                raise ArgumentError(f"dcgan: {option} is {self.options[option]}; expected 1 or more")
        if image_size < 8 or image_size & (image_size - 1):
            raise ArgumentError(f"dcgan: image_size is {image_size}; expected a power of two from 8")
        levels = max(2, int(math.log2(image_size // 4)))
        widths = [width * 2**i for i in range(levels)]
        side = image_size // 2**levels
        self.generator = Generator(latent_size, side, widths[::-1], num_channels, nn)
        self.discriminator = Discriminator(side, widths, num_channels, nn)
        for layer in self.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                torch.nn.init.normal_(layer.weight, std=STD)
                if layer.bias is not None:
                    torch.nn.init.zeros_(layer.bias)
            elif isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(layer.weight, 1.0, STD)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, latent_size) -> images (B, num_channels, image_size, image_size) in [-1, 1]."""
        latent = self.options["latent_size"]
        if z.dim() != 2 or z.shape[1] != latent:
            raise ArgumentError(f"dcgan: z has shape {tuple(z.shape)}; expected (batch, {latent})")
        return self.generator(z)

    def discriminate(self, images: Tensor) -> Tensor:
        """images (B, num_channels, image_size, image_size) in [-1, 1] -> logits (B,), above 0 for real."""
        size, channels = self.options["image_size"], self.options["num_channels"]
        if images.dim() != 4 or images.shape[1:] != (channels, size, size):
            raise ArgumentError(
                f"dcgan: images has shape {tuple(images.shape)}; expected (batch, {channels}, {size}, {size})"
            )
        return self.discriminator(images)
