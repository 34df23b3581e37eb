"""What the recurrent ops raise before anything is launched, and the options' normal forms."""

import numbers

import torch

from .core import ArgumentError, ArgumentTypeError, autocast_dtype
from .core.checks import same_device, same_dtype
from .rnn_formula import GATES


def tensors(name, **given):
    for label, t in given.items():
        if t is not None and not isinstance(t, torch.Tensor):
            raise ArgumentTypeError(f"{name}: {label} must be a Tensor, got {type(t).__name__}")


def states(name, mode, hx):
    """(h0, c0) of the argument hx; c0 is None but for an LSTM."""
    if mode != "lstm":
        tensors(name, hx=hx)
        return hx, None
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        came = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise ArgumentTypeError(f"{name}: hx must be a tuple of two Tensors (h0, c0), got {came}")
    tensors(name, h0=hx[0], c0=hx[1])
    return tuple(hx)


def packed(name, batch_sizes, rows, sequences=None):
    """The values of batch_sizes, which a compiled call looks at only when it runs; sequences: as the state has them."""
    sizes = batch_sizes.tolist()
    if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise ArgumentError(
            f"{name}: batch_sizes must be positive and never rise, got {sizes}; lengths of 0 cannot be packed"
        )
    if sum(sizes) != rows:
        raise ArgumentError(f"{name}: batch_sizes sum to {sum(sizes)} but input has {rows} rows")
    if sequences not in (None, sizes[0]):
        raise ArgumentError(f"{name}: batch_sizes begin with {sizes[0]} but the state has {sequences} rows")


def _sequence(name, x, batch_sizes):
    if batch_sizes is None:
        if x.dim() != 3:
            raise ArgumentError(
                f"{name}: input has {x.dim()} dimensions, shape {tuple(x.shape)}; expected (T, B, features), or "
                f"(rows, features) with batch_sizes"
            )
        if x.size(0) == 0:
            raise ArgumentError(
                f"{name}: Expected sequence length to be larger than 0, got input of shape {tuple(x.shape)}"
            )
        return
    if x.dim() != 2:
        raise ArgumentError(
            f"{name}: input has {x.dim()} dimensions, shape {tuple(x.shape)}; expected (rows, features) beside "
            f"batch_sizes"
        )
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu" or batch_sizes.dim() != 1:
        raise ArgumentTypeError(
            f"{name}: batch_sizes must be one-dimensional int64 on the CPU, as PackedSequence.batch_sizes; got "
            f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if not torch.compiler.is_compiling():
        packed(name, batch_sizes, x.size(0))


def layer(
    name, mode, x, h0, c0, weight_ih, weight_hh, biases, batch_sizes, weight_hr, heads, peephole, norms
):
    """Raise what does not fit of a layer's tensors; (H, P) where all does."""
    given = {
        "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": biases[0], "bias_hh": biases[1],
        "weight_hr": weight_hr, "peephole": peephole, "h0": h0, "c0": c0,
    }  # fmt: skip
    for label, t in (("input", x), ("weight_ih", weight_ih), ("weight_hh", weight_hh)):
        if not isinstance(t, torch.Tensor):
            raise ArgumentTypeError(f"{name}: {label} must be a Tensor, got {type(t).__name__}")
    tensors(name, batch_sizes=batch_sizes, **given)
    _sequence(name, x, batch_sizes)
    gates, features = GATES[mode], x.size(-1)
    if weight_hh.dim() != 2 or weight_hh.size(0) % gates or not weight_hh.size(0):
        raise ArgumentError(
            f"{name}: weight_hh has shape {tuple(weight_hh.shape)}; expected ({gates} * hidden_size, hidden_size)"
        )
    H = weight_hh.size(0) // gates
    if weight_ih.dim() == 2 and weight_ih.size(1) != features:
        raise ArgumentError(
            f"{name}: input has {features} features but weight_ih has {weight_ih.size(1)} columns; expected input of "
            f"shape (..., {weight_ih.size(1)}), got {tuple(x.shape)}"
        )
    P = H
    if weight_hr is not None:
        P = weight_hr.size(0)
        if P >= H:
            raise ArgumentError(
                f"{name}: proj_size has to be smaller than hidden_size; weight_hr of shape {tuple(weight_hr.shape)} "
                f"projects to {P}, hidden_size is {H}"
            )
    divides(name, heads, H, P)
    B = x.size(1) if batch_sizes is None else None
    if B is None:
        B = batch_size(batch_sizes, h0)
    shapes = {
        "weight_ih": (gates * H, features),
        "weight_hh": (gates * H, P // heads),
        "bias_ih": (gates * H,),
        "bias_hh": (gates * H,),
        "weight_hr": (P, H),
        "peephole": (3, H),
        "h0": (B, P),
        "c0": (B, H),
    }
    for i, t in enumerate(norms):
        label = ("input", "hidden", "cell's weight", "cell's bias")[i]
        given[label], shapes[label] = t, (gates * H,) if i < 2 else (H,)
    autocast = autocast_dtype(x) is not None
    for label, t in given.items():
        if t is None:
            continue
        if t.dim() != len(shapes[label]) or tuple(t.shape) != shapes[label]:
            said = f"layer_norm's {label}" if label in ("input", "hidden") or "cell" in label else label
            raise ArgumentError(
                f"{name}: {said} has shape {tuple(t.shape)}, expected {shapes[label]} for input of shape "
                f"{tuple(x.shape)} and hidden_size {H}"
            )
        same_device(name, label, t, "input", x)
        if not autocast:
            same_dtype(name, label, t, "input", x)
    return H, P, B


def batch_size(batch_sizes, h0=None, dim=0):
    """How many sequences are packed; a compiled call knows it from the state's dim, if one is given."""
    if h0 is not None and torch.compiler.is_compiling():
        return h0.size(dim)
    return batch_sizes[0].item()


def divides(name, heads, H, P):
    """heads, where they divide both sizes."""
    if not isinstance(heads, int) or heads < 1 or H % heads or P % heads:
        raise ArgumentError(
            f"{name}: heads must divide the {H} cells{'' if P == H else f' and {P} projected features'}, got {heads}"
        )
    return heads


def probability(name, label, p):
    if not isinstance(p, numbers.Real) or isinstance(p, bool):
        raise ArgumentTypeError(f"{name}: {label} must be a number, got {type(p).__name__}")
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"{name}: {label} has to be between 0 and 1, but got {p}")
    return float(p)


def zones(name, mode, zoneout):
    """zoneout as (of h, of c): a number is both's, and a pair is an LSTM's alone."""
    if not isinstance(zoneout, (tuple, list)):
        p = probability(name, "zoneout", zoneout)
        return p, p if mode == "lstm" else 0.0
    if mode != "lstm" or len(zoneout) != 2:
        raise ArgumentError(
            f"{name}: zoneout must be a probability{', or two (of h, of c)' if mode == 'lstm' else ''}, got {zoneout}"
        )
    return tuple(probability(name, f"zoneout of {what}", p) for what, p in zip("hc", zoneout, strict=True))


def norms(name, mode, layer_norm):
    """layer_norm's weights: () or (input, hidden), and of an LSTM's cell the weight and the bias."""
    if layer_norm is None:
        return ()
    if not isinstance(layer_norm, (tuple, list)) or len(layer_norm) not in (
        (2, 4) if mode == "lstm" else (2,)
    ):
        raise ArgumentError(
            f"{name}: layer_norm must hold the weights of the input's and the hidden state's norm"
            f"{', and may hold the cell weight and bias' if mode == 'lstm' else ''}; got "
            f"{len(layer_norm) if isinstance(layer_norm, (tuple, list)) else type(layer_norm).__name__}"
        )
    for t in layer_norm:
        if not isinstance(t, torch.Tensor):
            raise ArgumentTypeError(f"{name}: layer_norm must hold Tensors, got {type(t).__name__}")
    return tuple(layer_norm)


def cell(name, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh):
    """Raise torch's own messages for a cell's tensors."""
    gates = GATES[mode]
    for label, t in (("input", x), ("hx", h0), ("w_ih", w_ih), ("w_hh", w_hh)):
        if not isinstance(t, torch.Tensor):
            raise ArgumentTypeError(f"{name}: {label} must be a Tensor, got {type(t).__name__}")
    tensors(name, b_ih=b_ih, b_hh=b_hh)
    for label, t in (("input", x), ("hidden0", h0), ("hidden1", c0), ("w_ih", w_ih), ("w_hh", w_hh)):
        if t is not None and t.dim() != 2:
            raise ArgumentError(
                f"{name}: {label} must have 2 dimensions, got {t.dim()}, shape {tuple(t.shape)}"
            )
    H = w_hh.size(1)
    if x.size(1) != w_ih.size(1):
        raise ArgumentError(
            f"{name}: input has inconsistent input_size: got {x.size(1)} expected {w_ih.size(1)}"
        )
    for label, t in (("hidden0", h0), ("hidden1", c0)):
        if t is None:
            continue
        if t.size(0) != x.size(0):
            raise ArgumentError(
                f"{name}: Input batch size {x.size(0)} doesn't match {label} batch size {t.size(0)}"
            )
        if t.size(1) != H:
            raise ArgumentError(
                f"{name}: {label} has inconsistent hidden_size: got {t.size(1)}, expected {H}"
            )
    for label, t in (("weight_ih", w_ih), ("weight_hh", w_hh), ("bias_ih", b_ih), ("bias_hh", b_hh)):
        if t is not None and t.size(0) != gates * H:
            raise ArgumentError(
                f"{name}: {label} first dim must be {gates} * hidden_size = {gates * H}, but got {t.size(0)}"
            )
    autocast = autocast_dtype(x) is not None
    for label, t in (
        ("hidden0", h0),
        ("hidden1", c0),
        ("w_ih", w_ih),
        ("w_hh", w_hh),
        ("b_ih", b_ih),
        ("b_hh", b_hh),
    ):
        if t is not None:
            same_device(name, label, t, "input", x)
            if not autocast:
                same_dtype(name, label, t, "input", x)
    return H
