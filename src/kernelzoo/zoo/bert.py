"""BERT, and how the transformers library's checkpoints map onto it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import (
    IGNORED,
    PROBLEMS,
    Pretrained,
    Source,
    activation,
    check_divides,
    check_one_of,
    check_tokens,
    checked_positions,
    classification_loss,
    initialise,
    key_mask,
    loss_functions,
)
from .blocks import MLP, Attention, PostNormBlock
from .registry import register

HEADS = ("mlm", "classify", None)


@register("bert")
class Bert(Pretrained):
    """An encoder with learned positions and norms after each sublayer, under a head.

    head: "mlm", masked language modelling, its output layer tied to the token embedding; "classify", a label a
    sequence, from the first token; None, the hidden states. The other options are BertConfig's of the
    transformers library; num_labels and problem_type belong to "classify".
    Source: J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, BERT: Pre-training of Deep Bidirectional Transformers
    for Language Understanding, arXiv:1810.04805.
    """

    name = "bert"
    model_type, prefix = "bert", "bert."
    supported = {  # noqa: RUF012
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "position_embedding_type": ("absolute",),
    }
    ignored = (r"^cls\.", r"^(bert\.)?pooler\.", r"^(classifier|qa_outputs)\.", r"embeddings\.position_ids$")
    architecture = "Bert"
    mlm_head = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions")
    classify_head = ("bert.pooler.dense", "classifier")
    head_act: str | None = None  # the activation in the mlm head; None is hidden_act
    dropout_first = False  # of the classifier's input

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        classifier_dropout: float | None = None,
        tie_word_embeddings: bool = True,
        head: str | None = "mlm",
        num_labels: int = 2,
        problem_type: str | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        self._build(nn, dict(locals()))

    def _build(self, nn: Any, options: dict[str, Any]) -> None:
        Pretrained.__init__(self, options)
        o = self.options
        width = o["hidden_size"]
        check_divides(self.name, hidden_size=width, num_attention_heads=o["num_attention_heads"])
        check_one_of(self.name, "head", o["head"], HEADS)
        check_one_of(self.name, "problem_type", o["problem_type"], PROBLEMS)
        act = activation(self.name, o["hidden_act"])
        norm = functools.partial(nn.LayerNorm, width, eps=o["layer_norm_eps"])
        self.limit = self._positions()
        self.tokens = nn.Embedding(o["vocab_size"], width, padding_idx=o["pad_token_id"])
        self.positions = self._position_table(nn)
        self.types = nn.Embedding(o["type_vocab_size"], width)
        self.norm = norm()
        self.dropout = nn.Dropout(o["hidden_dropout_prob"])
        self.blocks = nn.ModuleList(
            PostNormBlock(
                norm,
                Attention(width, o["num_attention_heads"], dropout=o["attention_probs_dropout_prob"], nn=nn),
                MLP(width, o["intermediate_size"], act, nn=nn),
                o["hidden_dropout_prob"],
                nn=nn,
            )
            for _ in range(o["num_hidden_layers"])
        )
        if o["head"] == "mlm":
            self.head = MaskedLMHead(
                width,
                o["vocab_size"],
                self.head_act or act,
                norm,
                tied=o["tie_word_embeddings"],
                nn=nn,
            )
        elif o["head"] == "classify":
            dropout = o["classifier_dropout"]
            dropout = o["hidden_dropout_prob"] if dropout is None else dropout
            self.head = ClassifyHead(width, o["num_labels"], dropout, self.dropout_first, nn=nn)
        self._losses = loss_functions(nn)
        initialise(self, o["initializer_range"])

    def _positions(self) -> int:
        """How many tokens a sequence may have."""
        return self.options["max_position_embeddings"]

    def _position_table(self, nn: Any) -> kz_nn.Module:
        return nn.Embedding(self.options["max_position_embeddings"], self.options["hidden_size"])

    def _position_vectors(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        if position_ids is None:
            return self.positions.weight[: input_ids.shape[1]]
        return self.positions(position_ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the loss where labels are given.

        input_ids (B, L): int64; attention_mask (B, L): 0 for padding; token_type_ids (B, L): the segment, 0
        unless given; position_ids (B, L): as in the source unless given.
        "mlm": logits (B, L, V); labels (B, L), the token at a masked place and -100 elsewhere: the mean loss.
        "classify": logits (B, num_labels); labels (B,) class numbers, or floats as problem_type asks.
        None: hidden states (B, L, hidden_size); no labels.
        """
        per_token = labels if self.options["head"] == "mlm" else None
        check_tokens(
            self.name,
            input_ids,
            attention_mask,
            limit=self.limit,
            option="max_position_embeddings",
            labels=per_token,
            token_type_ids=token_type_ids,
        )
        if position_ids is not None:
            position_ids = checked_positions(self.name, position_ids, input_ids)
        types = self.types.weight[0] if token_type_ids is None else self.types(token_type_ids)
        x = self.tokens(input_ids) + types + self._position_vectors(input_ids, position_ids)
        x = self.dropout(self.norm(x))
        mask = None if attention_mask is None else key_mask(attention_mask)
        for block in self.blocks:
            x = block(x, mask)
        if self.options["head"] == "mlm":
            return self.head(x, self.tokens.weight, labels)
        if self.options["head"] == "classify":
            logits = self.head(x[:, 0])
            if labels is None:
                return logits
            return classification_loss(self.name, self.options["problem_type"], logits, labels, self._losses)
        if labels is not None:
            check_one_of(self.name, "head for labels", None, HEADS[:2])
        return x

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        given = super().from_config(config)
        for architecture in config.get("architectures") or ():
            if architecture.startswith(cls.architecture) and architecture[len(cls.architecture) :] in ENDINGS:
                given["head"] = ENDINGS[architecture[len(cls.architecture) :]]
        if config.get("id2label"):
            given["num_labels"] = len(config["id2label"])
        return given

    def to_config(self) -> dict[str, Any]:
        config = {key: value for key, value in self.options.items() if key not in ("head", "num_labels")}
        ending = next(ending for ending, head in ENDINGS.items() if head == self.options["head"])
        if self.options["head"] == "classify" or self.label_names:
            config |= self.named_labels()
        return {"architectures": [self.architecture + ending], **config}

    def sources(self) -> dict[str, Source]:
        o, base = self.options, self.prefix
        pairs = {
            "tokens.weight": f"{base}embeddings.word_embeddings.weight",
            "positions.weight": f"{base}embeddings.position_embeddings.weight",
            "types.weight": f"{base}embeddings.token_type_embeddings.weight",
        }
        layers = {"norm": f"{base}embeddings.LayerNorm"}
        names = {}
        for i in range(o["num_hidden_layers"]):
            layer, width = f"{base}encoder.layer.{i}", o["hidden_size"]
            for part in ("weight", "bias"):
                keys = tuple(f"{layer}.attention.self.{one}.{part}" for one in ("query", "key", "value"))
                names[f"blocks.{i}.attn.qkv.{part}"] = Source(keys, (width,) * 3)
            for ours, theirs in BLOCK.items():
                layers[f"blocks.{i}.{ours}"] = f"{layer}.{theirs}"
        if o["head"] == "mlm":
            layers["head.dense"], layers["head.norm"], out = self.mlm_head
            if o["tie_word_embeddings"]:
                pairs["head.bias"] = f"{out}.bias"
            else:
                layers["head.out"] = f"{out}.decoder"
        elif o["head"] == "classify":
            layers["head.dense"], layers["head.out"] = self.classify_head
        for ours, theirs in layers.items():
            pairs |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
        return {**{ours: Source((theirs,)) for ours, theirs in pairs.items()}, **names}

    def tied(self) -> dict[str, str]:
        if self.options["head"] != "mlm" or not self.options["tie_word_embeddings"]:
            return {}
        out = self.mlm_head[2]
        return {
            f"{out}.decoder.weight": f"{self.prefix}embeddings.word_embeddings.weight",
            f"{out}.decoder.bias": f"{out}.bias",
        }


# ends of the transformers library's class names -> our head; the first of each is written
ENDINGS = {
    "ForMaskedLM": "mlm",
    "ForPreTraining": "mlm",
    "ForSequenceClassification": "classify",
    "Model": None,
}
BLOCK = {
    "attn.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "norm2": "output.LayerNorm",
}


class MaskedLMHead(kz_nn.Module):
    """norm(act(x W_denseᵀ + b)) Eᵀ + bias, with E the token embedding, or an own weight where it is not tied."""

    def __init__(
        self, width: int, vocab_size: int, act: str, norm: Any, *, tied: bool, nn: Any = kz_nn
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, act=act)
        self.norm = norm()
        self.tied = tied
        if tied:
            self.bias = nn.Parameter(torch.zeros(vocab_size))
        else:
            self.out = nn.Linear(width, vocab_size)
        self._linear = nn.functional.linear
        self._loss = nn.functional.linear_cross_entropy

    def forward(self, x: Tensor, embedding: Tensor, labels: Tensor | None) -> Tensor:
        x = self.norm(self.dense(x))
        weight, bias = (embedding, self.bias) if self.tied else (self.out.weight, self.out.bias)
        if labels is None:
            return self._linear(x, weight, bias)
        return self._loss(
            x.flatten(0, 1), weight, labels.long().flatten(), linear_bias=bias, ignore_index=IGNORED
        )


class ClassifyHead(kz_nn.Module):
    """dropout(tanh(x W_denseᵀ + b)) W_outᵀ + b of the first token's x, itself through dropout where `twice`."""

    def __init__(self, width: int, labels: int, dropout: float, twice: bool, *, nn: Any = kz_nn) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, act="tanh")
        self.out = nn.Linear(width, labels)
        self.p, self.twice = dropout, twice
        self._dropout = nn.functional.dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.twice:
            x = self._dropout(x, self.p, self.training)
        return self.out(self._dropout(self.dense(x), self.p, self.training))
