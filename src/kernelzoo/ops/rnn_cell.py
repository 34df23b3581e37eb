"""One step of an LSTM, a GRU or a plain RNN: torch.lstm_cell and its like, as a sequence of one step (rnn.py)."""

import torch

from . import rnn_checks as check
from .core import choice
from .core.function import transform
from .rnn import RNNFunction, biases, promoted, torchs_weights

TORCHS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


class CellFunction(RNNFunction):
    """One step; torch's own cell where "auto" takes no kernel."""

    @staticmethod
    def label(*args):
        return args[15] + "_cell"

    @classmethod
    def torch_call(cls, *args):
        if choice.state.chosen != "auto" or transform():
            return cls.formula(*args)
        x, w_ih, bias, h0, c0, w_hh, b_hn, *_, mode, _, _, _ = args
        hx = h0 if c0 is None else (h0, c0)
        found = TORCHS[mode](x, hx, *torchs_weights(w_ih, w_hh, bias, b_hn))
        return (found, found, None) if c0 is None else (found[0], *found)


def _cell(mode, input, h0, c0, w_ih, w_hh, b_ih, b_hh):
    """(h, c or None) after one step."""
    H = check.cell(f"{mode}_cell", mode, input, h0, c0, w_ih, w_hh, b_ih, b_hh)
    bias, b_hn = biases(mode, b_ih, b_hh, H)
    nothing = (None,) * 7
    _, h, c = CellFunction.call(input, w_ih, bias, h0, c0, w_hh, b_hn, *nothing, None, mode, False, 1, 1e-5)
    return promoted(mode in ("lstm", "gru"), (h0 if c0 is None else c0).dtype, h, c)


def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """(h, c) after one step of an LSTM: torch.lstm_cell.

    input: (B, features); hx: (h, c), of (B, H) each; w_ih (4 H, features), w_hh (4 H, H), biases (4 H,) or None.
    Kernels, accuracy and what is saved are `lstm`'s. Raises ArgumentError, ArgumentTypeError, with torch's messages.
    """
    if hx is None:
        raise check.ArgumentTypeError("lstm_cell: hx must be a tuple of two Tensors (h0, c0), got NoneType")
    h0, c0 = check.states("lstm_cell", "lstm", hx)
    return _cell("lstm", input, h0, c0, w_ih, w_hh, b_ih, b_hh)


def gru_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """h after one step of a GRU: torch.gru_cell; of 3 H rows each weight, else as `lstm_cell`."""
    return _cell("gru", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """h = tanh(x W_ihᵀ + h' W_hhᵀ + b): torch.rnn_tanh_cell; of H rows each weight, else as `lstm_cell`."""
    return _cell("rnn_tanh", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_relu_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """h = relu(x W_ihᵀ + h' W_hhᵀ + b): torch.rnn_relu_cell; of H rows each weight, else as `lstm_cell`."""
    return _cell("rnn_relu", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]
