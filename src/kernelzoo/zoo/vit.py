"""Vision Transformer, and how the transformers library's checkpoints map onto it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import (
    PROBLEMS,
    ArgumentError,
    Pretrained,
    Source,
    activation,
    check_divides,
    check_one_of,
    classification_loss,
    initialise,
    loss_functions,
)
from .blocks import MLP, Attention, PreNormBlock, add_norm
from .registry import register

HEADS = ("classify", None)


@register("vit")
class ViT(Pretrained):
    """An image cut into patches, each a token, behind a class token; norms before each sublayer.

    head: "classify", logits from the class token; None, the hidden states. The other options are ViTConfig's of
    the transformers library; image_size and patch_size are numbers or (height, width).
    Source: A. Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale,
    arXiv:2010.11929.
    """

    name = "vit"
    model_type, prefix = "vit", "vit."
    ignored = (r"^classifier\.", r"^(vit\.)?pooler\.", r"^decoder\.", r"embeddings\.mask_token$")

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        qkv_bias: bool = True,
        head: str | None = "classify",
        num_labels: int = 2,
        problem_type: str | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        check_divides("vit", hidden_size=hidden_size, num_attention_heads=num_attention_heads)
        check_one_of("vit", "head", head, HEADS)
        check_one_of("vit", "problem_type", problem_type, PROBLEMS)
        act = activation("vit", hidden_act)
        self.image, self.patch = pair(image_size), pair(patch_size)
        for side, part in zip(self.image, self.patch, strict=True):
            check_divides("vit", image_size=side, patch_size=part)
        patches = (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1])
        norm = functools.partial(nn.LayerNorm, hidden_size, eps=layer_norm_eps)
        self.patches = nn.Linear(num_channels * self.patch[0] * self.patch[1], hidden_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, hidden_size))
        self.dropout = nn.Dropout(hidden_dropout_prob)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                norm,
                Attention(
                    hidden_size,
                    num_attention_heads,
                    bias=qkv_bias,
                    out_bias=True,
                    dropout=attention_probs_dropout_prob,
                    nn=nn,
                ),
                MLP(hidden_size, intermediate_size, act, nn=nn),
                hidden_dropout_prob,
                nn=nn,
            )
            for _ in range(num_hidden_layers)
        )
        self.norm = norm()
        if head == "classify":
            self.head = nn.Linear(hidden_size, num_labels)
        self._losses = loss_functions(nn)
        initialise(self, initializer_range)
        for parameter in (self.class_token, self.positions):
            torch.nn.init.trunc_normal_(parameter, std=initializer_range)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, num_labels), or the loss where labels are given; hidden states where there is no head.

        pixel_values (B, C, H, W), floating, normalised as the checkpoint asks; labels (B,) class numbers, or
        floats as problem_type asks.
        """
        expected = (self.options["num_channels"], *self.image)
        if pixel_values.dim() != 4 or pixel_values.shape[1:] != expected:
            raise ArgumentError(
                f"vit: pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, {expected[0]}, "
                f"{expected[1]}, {expected[2]}), resize the images"
            )
        x = self.patches(self._cut(pixel_values))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        delta, stream = None, self.dropout(x + self.positions)
        for block in self.blocks:
            delta, stream = block(delta, stream)
        x = add_norm(self.norm, delta, stream)[0]
        if self.options["head"] is None:
            if labels is not None:
                check_one_of("vit", "head for labels", None, HEADS[:1])
            return x
        logits = self.head(x[:, 0])
        if labels is None:
            return logits
        return classification_loss("vit", self.options["problem_type"], logits, labels, self._losses)

    def _cut(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> patches (B, N, C·h·w), row by row: the convolution with stride h, w is a product."""
        (h, w), (batch, channels) = self.patch, images.shape[:2]
        rows, columns = self.image[0] // h, self.image[1] // w
        cut = images.view(batch, channels, rows, h, columns, w).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(batch, rows * columns, channels * h * w)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        given = super().from_config(config)
        if "ViTModel" in (config.get("architectures") or ()):
            given["head"] = None
        if config.get("id2label"):
            given["num_labels"] = len(config["id2label"])
        return given

    def to_config(self) -> dict[str, Any]:
        config = {key: value for key, value in self.options.items() if key not in ("head", "num_labels")}
        if self.options["head"] == "classify" or self.label_names:
            config |= self.named_labels()
        kind = "ViTModel" if self.options["head"] is None else "ViTForImageClassification"
        return {"architectures": [kind], **config}

    def sources(self) -> dict[str, Source]:
        o, base = self.options, "vit.embeddings"
        names = {
            "class_token": Source((f"{base}.cls_token",)),
            "positions": Source((f"{base}.position_embeddings",)),
            "patches.weight": Source(
                (f"{base}.patch_embeddings.projection.weight",),
                shape=(o["hidden_size"], o["num_channels"], *self.patch),
            ),
            "patches.bias": Source((f"{base}.patch_embeddings.projection.bias",)),
        }
        layers = {"norm": "vit.layernorm"}
        if o["head"] == "classify":
            layers["head"] = "classifier"
        for i in range(o["num_hidden_layers"]):
            layer = f"vit.encoder.layer.{i}"
            for part in ("weight", "bias") if o["qkv_bias"] else ("weight",):
                keys = tuple(f"{layer}.attention.attention.{one}.{part}" for one in ("query", "key", "value"))
                names[f"blocks.{i}.attn.qkv.{part}"] = Source(keys, (o["hidden_size"],) * 3)
            for ours, theirs in BLOCK.items():
                layers[f"blocks.{i}.{ours}"] = f"{layer}.{theirs}"
        for ours, theirs in layers.items():
            names |= {f"{ours}.{part}": Source((f"{theirs}.{part}",)) for part in ("weight", "bias")}
        return names


BLOCK = {
    "norm1": "layernorm_before",
    "attn.out": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
