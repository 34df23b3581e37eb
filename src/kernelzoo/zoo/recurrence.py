"""What the recurrent models share: their layers and the layers' options, the carried state, resets and padding."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..ops.core import ArgumentError
from ..ops.pieces import pieces
from .base import Pretrained, check_one_of

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# options of kernelzoo.nn's recurrent layers that every model over them takes: their types and defaults
LAYER_OPTIONS = {
    "proj_size": (int, 0),
    "layer_norm": (bool, False),
    "zoneout": (float | tuple[float, ...], 0.0),
    "recurrent_dropout": (float, 0.0),
    "weight_dropout": (float, 0.0),
    "heads": (int, 1),
    "peephole": (bool, False),
}
LSTMS_OWN = ("proj_size", "peephole")
TORCHS_OWN = ("proj_size",)


class Recurrent(Pretrained):
    """A model over recurrent layers. Its constructor ends in **layer_options: keywords of LAYER_OPTIONS."""

    cell = "lstm"  # where it is no option

    def __init_subclass__(cls) -> None:
        """Spell the layer's options out, for who asks the constructor what it takes."""
        super().__init_subclass__()
        build = cls.__dict__.get("__init__")
        if build is None:
            return
        signature = inspect.signature(build)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fixed = "cell" not in signature.parameters
        cls.layer_options = {
            name: default
            for name, (_, default) in LAYER_OPTIONS.items()
            if not fixed or cls.cell == "lstm" or name not in LSTMS_OWN
        }
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in cls.layer_options.items()
        ]
        build.__signature__ = signature.replace(parameters=[*own, *more])
        build.__annotations__ |= {name: LAYER_OPTIONS[name][0] for name in cls.layer_options}

    def __init__(self, options: dict[str, Any]) -> None:
        given = options["layer_options"]
        for name in given:
            if name not in self.layer_options:
                raise TypeError(
                    f"{self.name}: no option is called {name!r}; expected {', '.join(self.layer_options)}"
                )
        rest = {key: value for key, value in options.items() if key != "layer_options"}
        super().__init__({**rest, **self.layer_options, **given})

    def make_layer(self, inputs: int, nn: Any, **how: Any) -> torch.nn.Module:
        """nn.LSTM, nn.GRU or nn.RNN as the options say, batch first; an LSTM's forget gates start open, with a bias
        of 1.

        Source of the bias: R. Jozefowicz, W. Zaremba, I. Sutskever, An Empirical Exploration of Recurrent Network
        Architectures, ICML 2015, section 2.2.
        """
        o = self.options
        cell, hidden, layers = o.get("cell", self.cell), o["hidden_size"], o["num_layers"]
        check_one_of(self.name, "cell", cell, tuple(CELLS))
        kind = getattr(nn, CELLS[cell])
        chosen = {name: o[name] for name, default in self.layer_options.items() if o[name] != default}
        for name, value in chosen.items():
            if cell != "lstm" and name in LSTMS_OWN:
                raise ArgumentError(
                    f"{self.name}: {name}={value!r} is an option of LSTMs; the cell is {cell!r}"
                )
            if kind is getattr(torch.nn, CELLS[cell]) and name not in TORCHS_OWN:
                raise ArgumentError(
                    f"{self.name}: {name}={value!r} is an option of kernelzoo.nn.{CELLS[cell]}; this model is to be in "
                    f"plain PyTorch, whose {CELLS[cell]} has none like it"
                )
        # torch warns of a dropout between layers where there is one layer
        dropout = o["dropout"] if layers > 1 else 0.0
        layer = kind(inputs, hidden, layers, batch_first=True, dropout=dropout, **how, **chosen)
        if cell == "lstm":
            for name, bias in layer.named_parameters():
                if name.startswith("bias_ih"):
                    torch.nn.init.ones_(bias[hidden : 2 * hidden])
        return layer


def width(layer: torch.nn.Module) -> int:
    """Features of h in one direction."""
    return layer.proj_size or layer.hidden_size


class State:
    """What recurrent layers carry from call to call: `parts`, (layers, B, features) each; none yet: zeros.

    An LSTM's parts are h and c, any other layer's is h. Detached, it carries values and no gradient.
    """

    def __init__(self, parts: tuple[Tensor, ...] = ()) -> None:
        self.parts = parts

    def detach(self) -> None:
        self.parts = tuple(part.detach() for part in self.parts)

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows may repeat or leave out."""
        self.parts = tuple(part[:, rows] for part in self.parts)


def recur(
    layer: torch.nn.Module,
    x: Tensor,
    state: State | None = None,
    *,
    tokens: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The outputs (B, L, D·features) of a batch-first layer over x (B, L, E), and the state after each row.

    tokens: bool (B, L), False for padding, which is skipped wherever it stands; its output is 0. starts: bool
    (B, L), True for tokens before which the state becomes zero. Rows are cut there, and the pieces run side by
    side as one packed batch.
    """
    parts = state.parts if state else ()
    if tokens is None and starts is None:
        y, last = layer(x, _given(layer, parts))
        return y, State(_parts(last))
    if tokens is None:
        tokens = torch.ones_like(starts)
    source, batch_sizes, row, goes_on, ends = pieces(tokens, starts)
    parts = tuple(part[:, row] * goes_on[:, None].to(part.dtype) for part in parts)
    packed = PackedSequence(x.flatten(0, 1).index_select(0, source), batch_sizes)
    y, last = layer(packed, _given(layer, parts))
    out = y.data.new_zeros(tokens.numel(), y.data.shape[1]).index_copy(0, source, y.data)
    return out.unflatten(0, tokens.shape), State(tuple(part[:, ends] for part in _parts(last)))


def _given(layer: torch.nn.Module, parts: tuple[Tensor, ...]) -> Any:
    """Parts as the layer takes them: a pair, a tensor, or None for zeros."""
    return (parts if isinstance(layer, torch.nn.LSTM) else parts[0]) if parts else None


def _parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
