"""What the zoo's transformers share: their options kept for saving, checks of token inputs, initialisation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nn as kz_nn
from ..ops.core import ArgumentError, ArgumentTypeError

IGNORED = -100  # a label that takes no part in a loss, as in the transformers library

# names of a checkpoint's config -> the activations of `kernelzoo.nn.Linear`
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


class CheckpointError(ValueError):
    """Weights that are truncated, foreign, or of another model."""


class Source(NamedTuple):
    """Where a parameter comes from in the transformers library's checkpoints.

    names: its keys there; several are put one below the other, `rows` rows of each. transposed: it is stored
    as (in, out). shape: in which it is stored, where that is another.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] | None = None
    transposed: bool = False
    shape: tuple[int, ...] | None = None


class Pretrained(kz_nn.Module):
    """A model that keeps the options it was built with, and knows its name in the transformers library.

    What a model says of itself there: `model_type` (empty where that library has none like it), `prefix` of its
    keys inside a model with a head, `supported` values of config keys that are no options here, `ignored`
    patterns of keys that hold no weight of it (heads it was not built with, constants).
    """

    name = ""  # in the zoo
    model_type = ""
    prefix = ""
    supported: dict[str, tuple] = {}  # noqa: RUF012 (constants of a class)
    ignored: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None  # of num_labels, where a checkpoint says them
    heads: tuple[str, ...] = ("head.",)  # keys of what new_head=True starts afresh
    sized = False  # True: the shapes of its weights say how large it is, a file without settings loads
    old_names: tuple[str, str] | None = None  # (pattern, its replacement) of keys in files without settings

    def __init__(self, options: dict[str, Any]) -> None:
        """options: the constructor's locals()."""
        super().__init__()
        self.options = {k: v for k, v in options.items() if k not in ("self", "nn", "__class__")}
        for key, value in self.options.items():
            # range() would take it for none
            if key.endswith(("_layer", "_layers")) and isinstance(value, int) and value < 0:
                raise ArgumentError(f"{self.name}: {key} is {value}; expected 0 or more")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The options that a config.json stands for."""
        accepted = inspect.signature(cls).parameters
        return {key: value for key, value in config.items() if key in accepted and key != "nn"}

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """The options that the shapes of weights stand for, where these are `sized`."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """The config.json of the options."""
        return dict(self.options)

    def named_labels(self) -> dict[str, Any]:
        """num_labels, as a config.json says them."""
        names = self.label_names or [f"LABEL_{i}" for i in range(self.options["num_labels"])]
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    def sources(self) -> dict[str, Source]:
        """Our name of each parameter -> where it is in a checkpoint of a model with a head."""
        raise NotImplementedError

    def tied(self) -> dict[str, str]:
        """Keys of a checkpoint that hold a copy of another."""
        return {}


def activation(model: str, name: str) -> str:
    """The activation of `nn.Linear` that a config calls `name`."""
    if name not in ACTIVATIONS:
        raise ArgumentError(f"{model}: unknown activation {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_divides(model: str, **sizes: int) -> None:
    """The second of two named sizes divides the first, and both are positive."""
    (whole, n), (part, heads) = sizes.items()
    if n < 1 or heads < 1 or n % heads:
        raise ArgumentError(
            f"{model}: {whole}={n} is not a multiple of {part}={heads}; each head needs as many features"
        )


def check_one_of(model: str, option: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ArgumentError(
            f"{model}: {option} is {value!r}; expected {' or '.join(repr(c) for c in choices)}"
        )


def check_tokens(
    model: str,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    limit: int,
    option: str,
    past: int = 0,
    new: int = 0,
    **others: Tensor | None,
) -> None:
    """Token ids (B, L) that fit into `limit` positions after `past` ones and before `new` ones, and a mask.

    others: further tensors of shape (B, L), by the names of their arguments.
    """
    if input_ids.dim() != 2:
        raise ArgumentError(
            f"{model}: input_ids has shape {tuple(input_ids.shape)}; expected (batch, length), "
            f"a single sequence as input_ids[None]"
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ArgumentTypeError(
            f"{model}: input_ids has dtype {input_ids.dtype}; expected token numbers, torch.int64"
        )
    length = past + input_ids.shape[1] + new
    if length > limit:
        after = f" after {past} in the cache" if past else ""
        before, what = (f" and {new} new ones", " or ask for fewer") if new else ("", "")
        raise ArgumentError(
            f"{model}: {input_ids.shape[1]} tokens{before}{after} do not fit into {option}={limit}; "
            f"shorten the input{what}"
        )
    for name, t in (("attention_mask", attention_mask), *others.items()):
        if t is not None and t.shape != input_ids.shape:
            raise ArgumentError(
                f"{model}: {name} has shape {tuple(t.shape)} but input_ids has {tuple(input_ids.shape)}; "
                f"expected the same"
            )
    for name, t in others.items():
        if t is not None and (t.is_floating_point() or t.dtype == torch.bool):
            raise ArgumentTypeError(
                f"{model}: {name} has dtype {t.dtype}; expected whole numbers, torch.int64"
            )


def checked_positions(model: str, position_ids: Tensor, input_ids: Tensor) -> Tensor:
    """position_ids (L,), (1, L) or (B, L) as (B, L)."""
    batch, length = input_ids.shape
    if tuple(position_ids.shape) not in ((length,), (1, length), (batch, length)):
        raise ArgumentError(
            f"{model}: position_ids has shape {tuple(position_ids.shape)}; expected ({length},) or "
            f"({batch}, {length})"
        )
    if position_ids.is_floating_point():
        raise ArgumentTypeError(
            f"{model}: position_ids has dtype {position_ids.dtype}; expected whole numbers"
        )
    return position_ids.expand(batch, length)


def key_mask(attention_mask: Tensor) -> Tensor:
    """(B, L), 1 where there is a token and 0 where there is padding -> bool (B, 1, 1, L), for attention."""
    return attention_mask.bool()[:, None, None, :]


def causal_mask(attention_mask: Tensor) -> Tensor:
    """(B, L) -> bool (B, 1, L, L): tokens up to the query's own; a padding query sees itself."""
    length = attention_mask.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device)
    return key_mask(attention_mask) & square.tril() | torch.eye(
        length, dtype=torch.bool, device=attention_mask.device
    )


def shifted(labels: Tensor) -> Tensor:
    """labels (B, L) -> the targets of each position, (B·L,): the next token; none after the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()


def initialise(model: torch.nn.Module, std: float) -> None:
    """N(0, std²) for the weights of linear layers, convolutions and embeddings, 0 for biases and padding rows."""
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
        elif isinstance(layer, torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=std)
            if layer.padding_idx is not None:
                with torch.no_grad():
                    layer.weight[layer.padding_idx].zero_()


def classification_loss(
    model: str, problem: str | None, logits: Tensor, labels: Tensor, functions: dict[str, Callable]
) -> Tensor:
    """The loss that the transformers library takes: squared error, cross-entropy or one sigmoid a label.

    problem: "regression", "single_label_classification", "multi_label_classification", or None: by the number
    of labels and the dtype. functions: mse_loss, cross_entropy and binary_cross_entropy_with_logits.
    """
    if problem is None:
        if logits.shape[-1] == 1:
            problem = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            problem = "single_label_classification"
        else:
            problem = "multi_label_classification"
    if problem == "single_label_classification":
        return functions["cross_entropy"](logits, labels.long().flatten())
    if logits.numel() != labels.numel():
        raise ArgumentError(
            f"{model}: labels has shape {tuple(labels.shape)} but {problem} expects {tuple(logits.shape)}"
        )
    labels = labels.reshape(logits.shape)
    if problem == "regression":
        return functions["mse_loss"](logits, labels)
    return functions["binary_cross_entropy_with_logits"](logits, labels)


PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")


def loss_functions(nn: Any) -> dict[str, Callable]:
    names = ("mse_loss", "cross_entropy", "binary_cross_entropy_with_logits")
    return {name: getattr(nn.functional, name) for name in names}
