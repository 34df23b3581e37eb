"""Llama, and how the transformers library's checkpoints map onto it."""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import Tensor

from .. import nn as kz_nn
from .base import ArgumentError, Source, activation, check_divides, initialise
from .blocks import Attention, PreNormBlock, add_norm
from .cache import Cache
from .causal import CausalLM
from .registry import register

ROPE_TYPES = ("default", "linear", "llama3")


@register("llama")
class Llama(CausalLM):
    """A decoder with rotary positions, RMS norms before each sublayer, a gated MLP, and grouped heads.

    Options are LlamaConfig's of the transformers library; rope_theta and rope_scaling are its rope_parameters.
    rope_scaling: None; {"rope_type": "linear", "factor"}; or {"rope_type": "llama3", "factor",
    "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"} (Llama 3.1).
    Sources: H. Touvron et al., LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971;
    A. Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783.
    """

    name = "llama"
    limit_option, layers_option = "max_position_embeddings", "num_hidden_layers"
    model_type, prefix = "llama", "model."
    ignored = (r"rotary_emb\.inv_freq$", r"^(score|qa_outputs)\.")

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        mlp_bias: bool = False,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()), nn)
        kv_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        if head_dim is None:
            check_divides("llama", hidden_size=hidden_size, num_attention_heads=num_attention_heads)
            head_dim = hidden_size // num_attention_heads
        check_divides("llama", num_attention_heads=num_attention_heads, num_key_value_heads=kv_heads)
        if head_dim % 2:
            raise ArgumentError(
                f"llama: head_dim is {head_dim}; expected an even number, features turn in pairs"
            )
        self.kv_heads, self.head_dim = kv_heads, head_dim
        act = activation("llama", hidden_act)
        norm = functools.partial(nn.RMSNorm, hidden_size, eps=rms_norm_eps)
        self.tokens = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_token_id)
        self.rotary = nn.RotaryEmbedding(
            head_dim,
            min(max_position_embeddings, 2048),
            rope_theta,
            inv_freq=frequencies(head_dim, rope_theta, rope_scaling),
        )
        self.blocks = nn.ModuleList(
            PreNormBlock(
                norm,
                Attention(
                    hidden_size,
                    num_attention_heads,
                    kv_heads=kv_heads,
                    head_dim=head_dim,
                    bias=attention_bias,
                    dropout=attention_dropout,
                    nn=nn,
                ),
                nn.GatedMLP(hidden_size, intermediate_size, act, mlp_bias),
                nn=nn,
            )
            for _ in range(num_hidden_layers)
        )
        self.norm = norm()
        if not tie_word_embeddings:
            self.head = nn.Linear(hidden_size, vocab_size, bias=False)
        initialise(self, initializer_range)

    @property
    def head_weight(self) -> Tensor:
        return self.tokens.weight if self.options["tie_word_embeddings"] else self.head.weight

    def hidden(
        self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> Tensor:
        if cache is not None:
            self.rotary.reach(cache.used + input_ids.shape[1])
        rotate = functools.partial(self.rotary, position_ids=position_ids)
        delta, stream = None, self.tokens(input_ids)
        for i, block in enumerate(self.blocks):
            past = cache.layers[i] if cache else None
            delta, stream = block(delta, stream, mask, causal=True, rotate=rotate, cache=past)
        return add_norm(self.norm, delta, stream)[0]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """rope_parameters is version 5's name for rope_theta and rope_scaling together."""
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ArgumentError(
                f"llama: partial_rotary_factor is {rope['partial_rotary_factor']}; expected 1, all features turn"
            )
        scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
        given = super().from_config({"bos_token_id": 1, "eos_token_id": 2, **config})
        return {**given, "rope_theta": theta, "rope_scaling": rope if scaled else None}

    def to_config(self) -> dict[str, Any]:
        o = dict(self.options)
        scaling = o.pop("rope_scaling") or {"rope_type": "default"}
        o |= {"num_key_value_heads": self.kv_heads, "head_dim": self.head_dim}
        rope = {"rope_parameters": {**scaling, "rope_theta": o.pop("rope_theta")}}
        return {"architectures": ["LlamaForCausalLM"], **o, **rope}

    def sources(self) -> dict[str, Source]:
        o, names = self.options, {"tokens.weight": Source(("model.embed_tokens.weight",))}
        rows = (o["num_attention_heads"], self.kv_heads, self.kv_heads)
        for i in range(o["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            for part in ("weight", "bias") if o["attention_bias"] else ("weight",):
                keys = tuple(f"{layer}.self_attn.{one}_proj.{part}" for one in "qkv")
                names[f"blocks.{i}.attn.qkv.{part}"] = Source(keys, tuple(n * self.head_dim for n in rows))
                names[f"blocks.{i}.attn.out.{part}"] = Source((f"{layer}.self_attn.o_proj.{part}",))
            for part in ("weight", "bias") if o["mlp_bias"] else ("weight",):
                for one in ("gate_proj", "up_proj", "down_proj"):
                    names[f"blocks.{i}.mlp.{one}.{part}"] = Source((f"{layer}.mlp.{one}.{part}",))
            names[f"blocks.{i}.norm1.weight"] = Source((f"{layer}.input_layernorm.weight",))
            names[f"blocks.{i}.norm2.weight"] = Source((f"{layer}.post_attention_layernorm.weight",))
        names["norm.weight"] = Source(("model.norm.weight",))
        if not o["tie_word_embeddings"]:
            names["head.weight"] = Source(("lm_head.weight",))
        return names

    def tied(self) -> dict[str, str]:
        tied = self.options["tie_word_embeddings"]
        return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}


def frequencies(dim: int, base: float, scaling: dict[str, Any] | None) -> list[float] | None:
    """Angles a position, base^(-2i/dim) scaled as the config says; None where it does not scale them.

    "llama3": wavelengths above original/low_freq_factor are stretched by factor, those below
    original/high_freq_factor kept, those between interpolated (Llama 3.1's model card and code).
    """
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ROPE_TYPES:
        raise ArgumentError(
            f"llama: rope_scaling has rope_type {kind!r}; expected one of {', '.join(ROPE_TYPES)}"
        )
    needed = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind, ())
    missing = [key for key in needed if key not in scaling]
    if missing:
        raise ArgumentError(f"llama: rope_scaling of rope_type {kind!r} needs {' and '.join(missing)}")
    plain = [base ** (-i / dim) for i in range(0, dim, 2)]
    if kind == "default":
        return None
    factor = scaling["factor"]
    if kind == "linear":
        return [f / factor for f in plain]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]

    def stretched(f: float) -> float:
        turns = original * f / (2 * math.pi)  # in the original context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * f / factor + kept * f

    return [stretched(f) for f in plain]
