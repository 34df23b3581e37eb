"""GPT-2, and how the transformers library's checkpoints map onto it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import nn as kz_nn
from .base import Source, activation, check_divides, initialise
from .blocks import MLP, Attention, PreNormBlock, add_norm
from .cache import Cache
from .causal import CausalLM
from .registry import register


@register("gpt2")
class GPT2(CausalLM):
    """A decoder with learned positions and norms before each sublayer; its head is the token embedding.

    Options are GPT2Config's of the transformers library. n_inner None is 4·n_embd.
    Source: A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever, Language Models are Unsupervised
    Multitask Learners, OpenAI, 2019.
    """

    name = "gpt2"
    limit_option, layers_option = "n_positions", "n_layer"
    model_type, prefix = "gpt2", "transformer."
    supported = {"add_cross_attention": (False,)}  # noqa: RUF012
    ignored = (r"\.attn\.(masked_)?bias$", r"^(score|multiple_choice_head)\.")

    def __init__(
        self,
        vocab_size: int = 50257,
        n_positions: int = 1024,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        n_inner: int | None = None,
        activation_function: str = "gelu_new",
        resid_pdrop: float = 0.1,
        embd_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        scale_attn_weights: bool = True,
        scale_attn_by_inverse_layer_idx: bool = False,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()), nn)
        check_divides("gpt2", n_embd=n_embd, n_head=n_head)
        act = activation("gpt2", activation_function)
        norm = functools.partial(nn.LayerNorm, n_embd, eps=layer_norm_epsilon)
        scale = (n_embd // n_head) ** -0.5 if scale_attn_weights else 1.0
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(n_positions, n_embd)
        self.dropout = nn.Dropout(embd_pdrop)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                norm,
                Attention(
                    n_embd,
                    n_head,
                    dropout=attn_pdrop,
                    scale=scale / (i + 1) if scale_attn_by_inverse_layer_idx else scale,
                    nn=nn,
                ),
                MLP(n_embd, 4 * n_embd if n_inner is None else n_inner, act, nn=nn),
                resid_pdrop,
                nn=nn,
            )
            for i in range(n_layer)
        )
        self.norm = norm()
        if not tie_word_embeddings:
            self.head = nn.Linear(n_embd, vocab_size, bias=False)
        initialise(self, initializer_range)
        for block in self.blocks:  # as many summands on the residual stream, each smaller (section 2.3)
            for layer in (block.attn.out, block.mlp.down):
                torch.nn.init.normal_(layer.weight, std=initializer_range / math.sqrt(2 * n_layer))

    @property
    def head_weight(self) -> Tensor:
        return self.tokens.weight if self.options["tie_word_embeddings"] else self.head.weight

    def hidden(
        self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> Tensor:
        if position_ids is None:
            at = self.positions.weight[: input_ids.shape[1]]
        else:
            at = self.positions(position_ids)
        delta, stream = None, self.dropout(self.tokens(input_ids) + at)
        for i, block in enumerate(self.blocks):
            past = cache.layers[i] if cache else None
            delta, stream = block(delta, stream, mask, causal=True, cache=past)
        return add_norm(self.norm, delta, stream)[0]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        return super().from_config({"bos_token_id": 50256, "eos_token_id": 50256, **config})

    def to_config(self) -> dict[str, Any]:
        return {"architectures": ["GPT2LMHeadModel"], **self.options}

    def sources(self) -> dict[str, Source]:
        names = {
            "tokens.weight": Source(("transformer.wte.weight",)),
            "positions.weight": Source(("transformer.wpe.weight",)),
        }
        for i in range(self.options["n_layer"]):
            for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2")):
                for part in ("weight", "bias"):
                    names[f"blocks.{i}.{ours}.{part}"] = Source((f"transformer.h.{i}.{theirs}.{part}",))
            for ours, theirs in LINEAR.items():
                for part in ("weight", "bias"):
                    key = f"transformer.h.{i}.{theirs}.{part}"
                    names[f"blocks.{i}.{ours}.{part}"] = Source((key,), transposed=part == "weight")
        for part in ("weight", "bias"):
            names[f"norm.{part}"] = Source((f"transformer.ln_f.{part}",))
        if not self.options["tie_word_embeddings"]:
            names["head.weight"] = Source(("lm_head.weight",))
        return names

    def tied(self) -> dict[str, str]:
        tied = self.options["tie_word_embeddings"]
        return {"lm_head.weight": "transformer.wte.weight"} if tied else {}


# their Conv1D holds a weight as (in, out)
LINEAR = {
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
