"""The recurrent modules: torch's own classes over kernelzoo's functions, and the options that cuDNN lacks."""

import torch
from torch.nn.utils.rnn import PackedSequence

from ..ops import rnn as ops
from ..ops import rnn_cell as cells
from ..ops import rnn_checks as check
from ..ops.core import ArgumentError
from ..ops.core.checks import same_device
from ..ops.dropout import dropout
from .dynamo import allow_rnn

EXTRAS = """

    Options of ours, keyword-only (kernelzoo.functional.lstm has their formulas and sources):
        layer_norm: both products of a layer are normalised{cell}: parameters weight_ln_ih_l0, weight_ln_hh_l0{keys}.
        zoneout: {zoneout}.
        recurrent_dropout: of the state before its product, one mask a sequence.
        weight_dropout: of the recurrent weight, one mask a call.
        heads: a block-diagonal recurrent weight: weight_hh_l0 has 1 / heads of its columns.{more}
    """

# what repr shows where it is not the default
OPTIONS = (
    ("layer_norm", False),
    ("zoneout", 0.0),
    ("recurrent_dropout", 0.0),
    ("weight_dropout", 0.0),
    ("heads", 1),
    ("peephole", False),
)


class _Layers:
    """Layers and directions, PackedSequence, the states' shapes: what LSTM, GRU and RNN share."""

    def __init__(
        self,
        *args,
        layer_norm=False,
        zoneout=0.0,
        recurrent_dropout=0.0,
        weight_dropout=0.0,
        heads=1,
        **kwargs,
    ):
        allow_rnn()
        name = type(self).__name__
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:
            if not hasattr(self, "proj_size") or not str(error).startswith("proj_size"):
                raise
            raise ArgumentError(
                f"{name}: {error}; got proj_size={self.proj_size} and hidden_size={self.hidden_size}"
            ) from None
        check.zones(name, self.mode.lower(), zoneout)
        self.layer_norm = layer_norm
        self.zoneout = zoneout
        self.recurrent_dropout = check.probability(name, "recurrent_dropout", recurrent_dropout)
        self.weight_dropout = check.probability(name, "weight_dropout", weight_dropout)
        self.heads = check.divides(name, heads, self.hidden_size, self._outputs())
        self._register_extras()

    def __setstate__(self, state):
        allow_rnn()
        super().__setstate__(state)

    def _outputs(self):
        return self.proj_size or self.hidden_size

    def _suffixes(self):
        """Of every layer's and direction's parameters."""
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def _extra_shapes(self, width):
        """What a layer has besides torch's parameters."""
        return {"weight_ln_ih": (width,), "weight_ln_hh": (width,)} if self.layer_norm else {}

    def _register_extras(self):
        for suffix in self._suffixes():
            weight = getattr(self, f"weight_hh{suffix}")
            new = {name + suffix: shape for name, shape in self._extra_shapes(weight.size(0)).items()}
            if self.heads > 1:
                new[f"weight_hh{suffix}"] = weight.size(0), weight.size(1) // self.heads
            for name, shape in new.items():
                setattr(self, name, torch.nn.Parameter(weight.new_empty(shape)))
        if self.heads > 1 or self._extra_shapes(1):
            self._init_flat_weights()
            self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if "_ln_" in name:
                torch.nn.init.constant_(parameter, name.startswith("weight"))

    def flatten_parameters(self):
        """Nothing to do: the kernels read each weight where it lies."""

    def forward(self, input, hx=None):
        x, batch_sizes, order, back = (
            input if isinstance(input, PackedSequence) else (input, None, None, None)
        )
        batched = self._check_input(x, batch_sizes)
        if batch_sizes is None and not batched:
            x = x.unsqueeze(1)
        elif batch_sizes is None and self.batch_first:
            x = x.transpose(0, 1)
        states = self._check_states(hx, x, batch_sizes, batched)
        if self._torch_serves(x, batch_sizes):
            return super().forward(input, hx)
        if order is not None:
            states = [s.index_select(1, order) for s in states]
        ended = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = dropout(x, self.dropout)
            x = self._layer(x, layer, batch_sizes, states, ended)
        final = [torch.stack(each) for each in zip(*ended, strict=True)]
        if back is not None:
            final = [s.index_select(1, back) for s in final]
        if batch_sizes is not None:
            x = PackedSequence(x, batch_sizes, order, back)
        elif not batched:
            x, final = x.squeeze(1), [s.squeeze(1) for s in final]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(final) if self.mode == "LSTM" else final[0]

    def _torch_serves(self, x, batch_sizes):
        """Whether "auto" leaves all layers to torch's own call."""
        if torch.compiler.is_compiling() or any(
            getattr(self, name, value) != value for name, value in OPTIONS
        ):
            return False
        return x.is_cpu and ops.torch_serves_layers(
            self.mode.lower(), x, x.size(1), self.hidden_size, batch_sizes
        )

    def _layer(self, x, layer, batch_sizes, states, ended):
        """The output of a layer's directions side by side; their final states are appended to `ended`."""
        outputs = []
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + self.bidirectional]:
            y, *final = self._direction(
                x,
                [s[len(ended)] for s in states],
                *(getattr(self, f"weight_{which}{suffix}") for which in ("ih", "hh")),
                *(getattr(self, f"bias_{which}{suffix}") if self.bias else None for which in ("ih", "hh")),
                batch_sizes,
                suffix=suffix,
                reverse=suffix.endswith("reverse"),
                heads=self.heads,
                zoneout=self.zoneout,
                recurrent_dropout=self.recurrent_dropout,
                weight_dropout=self.weight_dropout,
                training=self.training,
                layer_norm=[getattr(self, name + suffix) for name in self._norms]
                if self.layer_norm
                else None,
            )
            outputs.append(y)
            ended.append(final)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    _norms = ("weight_ln_ih", "weight_ln_hh")

    def _check_input(self, x, batch_sizes):
        """Whether there is a dimension of sequences; torch's errors for what does not fit."""
        name = type(self).__name__
        check.tensors(name, input=x)
        if batch_sizes is None and x.dim() not in (2, 3):
            raise ArgumentError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")
        self.check_input(x if x.dim() == 3 or batch_sizes is not None else x.unsqueeze(1), batch_sizes)
        if batch_sizes is None and not x.size(int(self.batch_first and x.dim() == 3)):
            raise ArgumentError(
                f"{name}: Expected sequence length to be larger than 0, got input of shape {tuple(x.shape)}"
            )
        return x.dim() == 3

    def _check_states(self, hx, x, batch_sizes, batched):
        """[h0] or [h0, c0], each (layers * directions, B, P or H); zeros where none are given."""
        name = type(self).__name__
        given = [s for s in check.states(name, self.mode.lower(), hx) if s is not None]
        B = x.size(1) if batch_sizes is None else check.batch_size(batch_sizes, *given[:1], dim=1)
        sizes = [self._outputs(), self.hidden_size] if self.mode == "LSTM" else [self.hidden_size]
        shapes = [(self.num_layers * (1 + self.bidirectional), B, size) for size in sizes]
        if hx is None:
            return [x.new_zeros(shape) for shape in shapes]
        if batch_sizes is None and not batched:
            if any(s.dim() != 2 for s in given):
                raise ArgumentError(
                    f"{name}: For unbatched 2-D input, hx should also be 2-D but got "
                    f"{' and '.join(f'{s.dim()}-D' for s in given)}"
                )
            given = [s.unsqueeze(1) for s in given]
        for i, (state, shape) in enumerate(zip(given, shapes, strict=True)):
            if state.dim() != 3 or tuple(state.shape) != shape:
                which = f"hidden[{i}]" if self.mode == "LSTM" else "hidden"
                raise ArgumentError(f"{name}: Expected {which} size {shape}, got {list(state.shape)}")
            same_device(name, "hx", state, "input", x)
        return given

    def extra_repr(self):
        said = super().extra_repr()
        for name, default in OPTIONS:
            value = getattr(self, name, default)
            said += f", {name}={value}" if value != default else ""
        return said


class LSTM(_Layers, torch.nn.LSTM):
    __doc__ = (torch.nn.LSTM.__doc__ or "") + EXTRAS.format(
        cell=", and the cell before its tanh",
        keys=", weight_ln_c_l0, bias_ln_c_l0",
        zoneout="the probability that an element of the state keeps its old value, or two of them: (of h, of c)",
        more="\n        peephole: the gates see the cell: parameter peephole_l0, (3, hidden_size).",
    )

    def __init__(self, *args, peephole=False, **kwargs):
        self.peephole = peephole
        super().__init__(*args, **kwargs)

    _norms = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")

    def _extra_shapes(self, width):
        shapes = super()._extra_shapes(width)
        if self.layer_norm:
            shapes |= {"weight_ln_c": (self.hidden_size,), "bias_ln_c": (self.hidden_size,)}
        return shapes | ({"peephole": (3, self.hidden_size)} if self.peephole else {})

    def _direction(self, x, hx, *args, suffix, **options):
        y, states = ops.lstm(
            x,
            hx,
            *args,
            weight_hr=getattr(self, f"weight_hr{suffix}") if self.proj_size else None,
            peephole=getattr(self, f"peephole{suffix}") if self.peephole else None,
            **options,
        )
        return y, *states


class GRU(_Layers, torch.nn.GRU):
    __doc__ = (torch.nn.GRU.__doc__ or "") + EXTRAS.format(
        cell="", keys="", zoneout="the probability that an element of h keeps its old value", more=""
    )

    def _direction(self, x, hx, *args, suffix, **options):
        return ops.gru(x, *hx, *args, **options)


class RNN(_Layers, torch.nn.RNN):
    __doc__ = (torch.nn.RNN.__doc__ or "") + EXTRAS.format(
        cell="", keys="", zoneout="the probability that an element of h keeps its old value", more=""
    )

    def _direction(self, x, hx, *args, suffix, **options):
        return ops.rnn(x, *hx, *args, nonlinearity=self.nonlinearity, **options)


def _weights(cell):
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def _one_step(cell, function, input, states, count):
    """function of one step, with torch's shapes: unbatched input and states, zeros for none."""
    name = type(cell).__name__
    check.tensors(name, input=input)
    if input.dim() not in (1, 2):
        raise ArgumentError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for i, state in enumerate(states):
        if state.dim() not in (1, 2):
            which = f"hx[{i}]" if count == 2 else "hidden"
            raise ArgumentError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if not states:
        states = [x.new_zeros(x.size(0), cell.hidden_size) for _ in range(count)]
    elif not batched:
        states = [state.unsqueeze(0) for state in states]
    results = function(x, states, *_weights(cell))
    return results if batched else [t.squeeze(0) for t in results]


class LSTMCell(torch.nn.LSTMCell):
    __doc__ = torch.nn.LSTMCell.__doc__

    def forward(self, input, hx=None):
        states = [s for s in check.states("LSTMCell", "lstm", hx) if s is not None]
        return tuple(_one_step(self, cells.lstm_cell, input, states, 2))


class GRUCell(torch.nn.GRUCell):
    __doc__ = torch.nn.GRUCell.__doc__

    def forward(self, input, hx=None):
        return _single(self, cells.gru_cell, input, hx)


class RNNCell(torch.nn.RNNCell):
    __doc__ = torch.nn.RNNCell.__doc__

    def forward(self, input, hx=None):
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        step = cells.rnn_tanh_cell if self.nonlinearity == "tanh" else cells.rnn_relu_cell
        return _single(self, step, input, hx)


def _single(cell, function, input, hx):
    """A cell of one state."""
    check.tensors(type(cell).__name__, hx=hx)
    states = [] if hx is None else [hx]
    return _one_step(cell, lambda x, states, *weights: [function(x, *states, *weights)], input, states, 1)[0]
