"""RoBERTa: BERT's layers, positions counted from the padding token's number, and its own names of heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import nn as kz_nn
from .base import ArgumentError
from .bert import Bert
from .registry import register


@register("roberta")
class Roberta(Bert):
    """BERT's encoder, trained longer on more text and without next-sentence prediction.

    Options and heads are `bert`'s, with RobertaConfig's defaults of the transformers library. Token i of a
    sequence, padding not counted, has position pad_token_id + 1 + i; so a sequence holds
    max_position_embeddings - pad_token_id - 1 tokens.
    Source: Y. Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, arXiv:1907.11692.
    """

    name = "roberta"
    model_type, prefix = "roberta", "roberta."
    ignored = (r"^lm_head\.", r"^(roberta\.)?pooler\.", r"^(classifier|qa_outputs)\.", r"\.position_ids$")
    architecture = "Roberta"
    mlm_head = ("lm_head.dense", "lm_head.layer_norm", "lm_head")
    classify_head = ("classifier.dense", "classifier.out_proj")
    head_act = "gelu"
    dropout_first = True

    def __init__(
        self,
        vocab_size: int = 50265,
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
        pad_token_id: int = 1,
        classifier_dropout: float | None = None,
        tie_word_embeddings: bool = True,
        head: str | None = "mlm",
        num_labels: int = 2,
        problem_type: str | None = None,
        *,
        nn: Any = kz_nn,
    ) -> None:
        self._build(nn, dict(locals()))

    def _positions(self) -> int:
        pad = self.options["pad_token_id"]
        if pad is None:
            raise ArgumentError("roberta: pad_token_id is None; expected a number, positions count from it")
        return self.options["max_position_embeddings"] - pad - 1

    def _position_table(self, nn: Any) -> kz_nn.Module:
        o = self.options
        return nn.Embedding(o["max_position_embeddings"], o["hidden_size"], padding_idx=o["pad_token_id"])

    def _position_vectors(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        if position_ids is None:
            pad = self.options["pad_token_id"]
            tokens = (input_ids != pad).long()
            position_ids = tokens.cumsum(1) * tokens + pad
        return self.positions(position_ids)
