"""Recurrent layers: LSTM, GRU and plain RNN over a whole sequence, one layer and direction a call.

With gx = x W_ihᵀ + b, one product over all rows, a step is (σ the logistic function, ⊙ understood)

    lstm (i, f, g, o)  c = σ(f) c' + σ(i) tanh(g),  h = σ(o) tanh(c)     of  gx + h' W_hhᵀ
    gru  (r, z, n)     n = tanh(gx_n + r (h' W_hnᵀ + b_hn)),  h = (1 - z) n + z h',  r, z = σ(gx + h' W_hhᵀ)
    rnn                h = tanh(gx + h' W_hhᵀ), or relu

(S. Hochreiter and J. Schmidhuber, doi:10.1162/neco.1997.9.8.1735; K. Cho et al., arXiv:1406.1078), with the options
that `lstm` names. rnn_formula.py has it in full. Backward: the recurrence gives d(gx) of every row, from the last step
to the first; the gradients of all weights are products over all rows after it.
"""

import torch
from torch.nn import functional as T

from . import rnn_checks as check
from .core import KernelFunction, autocast_dtype, choice, define, has_avx512, torch_serves
from .core.function import transform
from .dropout import mask
from .linear import linear, linear_act_bwd, linear_act_fwd
from .norm import layer_norm as normed
from .rnn_formula import GATES, reference


def _dense(args):
    return tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args)


def _prepare_fwd(*args):
    gx, h0, batch_sizes = *args[:2], args[12]
    if batch_sizes is not None:  # a compiled call has not looked at the values yet
        check.packed("rnn_fwd", batch_sizes, gx.shape[0], h0.shape[0])
    return _dense(args)


def _prepare_bwd(out, dout, dhn, dcn, *rest):
    return _dense((dout, dhn, dcn, out, *rest))


def _acc(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_fwd(gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode,
              reverse, heads, eps, save):  # fmt: skip
    (rows, width), P = gx.shape, h0.shape[1]
    H, normalised, acc = w_hh.shape[0] // GATES[mode], ln_weight is not None, _acc(gx.dtype)
    gates = gh = None
    if save and mode in ("lstm", "gru"):
        gates = gx.new_empty(rows, width)
    elif save and zone_h is not None:
        gates = gx.new_empty(rows, P)
    if save and (normalised or mode == "gru"):
        gh = gx.new_empty(rows, width if normalised else H)
    return (
        gx.new_empty(rows, P),
        h0.new_empty(h0.shape),
        None if c0 is None else c0.new_empty(c0.shape),
        gates,
        gx.new_empty(rows, H, dtype=acc) if save and mode == "lstm" else None,
        gh,
        gx.new_empty(rows, dtype=acc) if save and normalised else None,
    )


def _fake_bwd(out, dout, dhn, dcn, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, *rest):
    dgx = out.new_empty(out.shape[0], w_hh.shape[0])
    shaped = (dgx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell)
    return tuple(
        t.new_empty(t.shape) if need else None for t, need in zip(shaped, rest[-len(shaped) :], strict=True)
    )


_INPUTS = (
    "Tensor h0, Tensor? c0, Tensor w_hh, Tensor? b_hn, Tensor? w_hr, Tensor? peephole, Tensor? ln_weight, "
    "Tensor? ln_cell, Tensor? h_mask, Tensor? zone_h, Tensor? zone_c, Tensor? batch_sizes"
)
_OPTIONS = "str mode, bool reverse, int heads, float eps"
rnn_fwd = define(
    f"rnn_fwd(Tensor gx, {_INPUTS}, {_OPTIONS}, bool save) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "rnn",
    fake=_fake_fwd,
    prepare=_prepare_fwd,
)
# out first, as every op's first tensor is there: the launchers take (dout, dhn, dcn, out, ...)
rnn_bwd = define(
    f"rnn_bwd(Tensor out, Tensor? dout, Tensor? dhn, Tensor? dcn, {_INPUTS}, Tensor? gates, Tensor? cells, Tensor? gh, "
    f"Tensor? rstd, {_OPTIONS}, bool need_dgx, bool need_dh0, bool need_dc0, bool need_dw_hh, bool need_db_hn, "
    "bool need_dw_hr, bool need_dpeephole, bool need_dln_weight, bool need_dln_cell) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "rnn",
    fake=_fake_bwd,
    prepare=_prepare_bwd,
)


def _project(x, w, b, backend):
    """x wᵀ + b: on a CPU by the backend's choice of torch's products, on a GPU cuBLAS's."""
    if backend in ("triton", "cuda") or x.is_cuda:
        return T.linear(x, w, b)
    return linear_act_fwd(x, w, b, "none", 0.0, 0.0, False, backend)[0]


def _project_bwd(dz, x, w, need_dx, need_dw, need_db, backend):
    if backend in ("triton", "cuda") or x.is_cuda:
        return (
            dz @ w if need_dx else None,
            dz.t() @ x if need_dw else None,
            dz.sum(0) if need_db else None,
        )
    return linear_act_bwd(dz, x, w, None, "none", 0.0, 0.0, need_dx, need_dw, need_db, backend)


# Cells. "auto" on a CPU, float32, C++ over torch's LSTM (oneDNN) on 2 cores, a training step and inference: 1.04 and
# 0.98 (T 10, B 4, H 32), 1.40 and 0.72 (T 50, B 1, H 64), 0.88 and 0.88 (T 50, B 16, H 128). GRU and RNN, of which
# torch calls every step, 1.3 to 2.1 and 0.9 to 1.6 at those sizes. Sequences: a training step at T 256, H 512 0.88
# (B 16) and 1.15 (B 1), with AVX2 alone 0.86 (B 1).
SMALL_LSTM = 128
MANY_SEQUENCES = 8
TORCHS_BEST = "a small LSTM, one of many sequences, or without AVX-512 any, is torch's own on a CPU"


def _torchs_lstm(x, B, H, batch_sizes):
    if torch.compiler.is_compiling() or batch_sizes is not None:
        return False
    return (
        x.is_cpu and x.dtype == torch.float32 and (H <= SMALL_LSTM or B >= MANY_SEQUENCES or not has_avx512())
    )


class RNNFunction(KernelFunction):
    """A layer in one direction. x (R, features) with w_ih and bias, or with w_ih None what they would have given.

    Saved for the backward: the arguments, the output and what the recurrence leaves of each row: the activated gates,
    the cell in float32 (float64 for float64), with layer norm x̂ and rstd of the recurrent product; the input's
    product itself is not.
    """

    module = "rnn"

    @staticmethod
    def label(*args):
        return args[15]

    @staticmethod
    def autocast(x, *rest):
        return autocast_dtype(x)

    @staticmethod
    def formula(x, w_ih, bias, *rest):
        return reference(x if w_ih is None else T.linear(x, w_ih, bias), *rest)

    @staticmethod
    def rule(x, w_ih, bias, h0, c0, w_hh, *rest):
        torchs = c0 is not None and _torchs_lstm(x, *c0.shape, rest[8])
        return TORCHS_BEST if torchs and _plain(x, w_ih, bias, h0, c0, w_hh, *rest) else None

    @classmethod
    def torch_call(cls, *args):
        own = choice.state.chosen == "auto" and not transform() and _plain(*args)
        return _torchs_own(*args) if own else cls.formula(*args)

    @staticmethod
    def unserved_by(backend, *args):
        w_hr, ln_weight, ln_cell, heads = args[7], args[9], args[10], args[17]
        if backend != "cuda" or (w_hr is None and ln_weight is None and ln_cell is None and heads == 1):
            return None
        return "its recurrent kernels take no projection, no layer norm and no heads; Triton's do"

    @staticmethod
    def forward(ctx, x, w_ih, bias, *rest):
        *rest, backend = rest
        gx = x if w_ih is None else _project(x, w_ih, bias, backend)
        save = any(ctx.needs_input_grad)
        out, hn, cn, *saved = rnn_fwd(gx, *rest, save, backend)
        if save:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, w_ih, bias, *rest[:12], out, *saved)
            ctx.options, ctx.backend = rest[12:], backend
        return out, hn, cn

    @staticmethod
    def backward(ctx, dout, dhn, dcn):
        x, w_ih, _, *rest = ctx.saved_tensors
        inputs, (out, *saved) = rest[:12], rest[12:]
        need_x, need_w, need_b, *needs = ctx.needs_input_grad[:11]
        need_dgx = need_x or need_w or need_b
        dgx, *grads = rnn_bwd(
            out, dout, dhn, dcn, *inputs, *saved, *ctx.options, need_dgx, *needs, ctx.backend
        )
        if w_ih is None:
            return dgx, None, None, *grads
        if not need_dgx:
            return None, None, None, *grads
        return *_project_bwd(dgx, x, w_ih, need_x, need_w, need_b, ctx.backend), *grads

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors[:15], *ctx.options)


def _plain(x, w_ih, bias, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
           mode, reverse, heads, eps):  # fmt: skip
    """Whether torch has a call of its own for it: no option of ours, and no packed sequences backwards."""
    options = (peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c)
    if heads > 1 or w_ih is None or any(t is not None for t in options) or not h0.numel():
        return False
    dtypes = {t.dtype for t in (x, w_ih, bias, h0, c0, w_hh, b_hn, w_hr) if t is not None}
    return len(dtypes) == 1 and not (reverse and batch_sizes is not None)


TORCHS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


def torch_serves_layers(mode, x, B, H, batch_sizes):
    """Whether "auto" leaves layers without options to torch's own call for all of them, and a line in the trace."""
    if choice.state.chosen != "auto" or transform():
        return False
    reason = TORCHS_BEST if mode == "lstm" and _torchs_lstm(x, B, H, batch_sizes) else None
    if choice.automatic("rnn", x.device.type, x.dtype) is None:
        reason = f"no kernel for {x.dtype} on {x.device.type}"
    if reason:
        torch_serves(mode, reason, x)
    return reason is not None


def torchs_weights(w_ih, w_hh, bias, b_hn):
    """The weights and, where there is any, both biases, as torch takes them."""
    if bias is None and b_hn is None:
        return [w_ih, w_hh]
    first = w_ih.new_zeros(w_ih.size(0)) if bias is None else bias
    second = torch.zeros_like(first) if b_hn is None else T.pad(b_hn, (2 * b_hn.size(0), 0))
    return [w_ih, w_hh, first, second]


def _torchs_own(x, w_ih, bias, h0, c0, w_hh, b_hn, w_hr, *rest):
    batch_sizes, mode, reverse = rest[6:9]
    weights = torchs_weights(w_ih, w_hh, bias, b_hn)
    biased = len(weights) > 2
    if w_hr is not None:
        weights.append(w_hr)
    hx = h0[None] if c0 is None else (h0[None], c0[None])
    if batch_sizes is not None:
        out, *states = TORCHS[mode](x, batch_sizes, hx, weights, biased, 1, 0.0, False, False)
    else:
        x = x.view(-1, h0.size(0), x.size(1))
        x = x.flip(0) if reverse else x
        out, *states = TORCHS[mode](x, hx, weights, biased, 1, 0.0, False, False, False)
        out = (out.flip(0) if reverse else out).flatten(0, 1)
    return out, states[0][0], None if c0 is None else states[1][0]


def _zone(x, shape, p, training):
    """Where the old state stays: drawn in training, its expectation otherwise; None where nowhere."""
    if p == 0.0:
        return None
    return (mask(x, shape, p) == 0).to(x.dtype) if training else x.new_full(shape, p)


def biases(mode, bias_ih, bias_hh, H):
    """(what is added to the input's product, b_hn)."""
    if bias_hh is None:
        return bias_ih, None
    b_hn = None
    if mode == "gru":
        b_hn = bias_hh[2 * H :]
        bias_hh = T.pad(bias_hh[: 2 * H], (0, H))
    return bias_hh if bias_ih is None else bias_ih + bias_hh, b_hn


def _layer(name, mode, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, reverse, heads, weight_hr=None,
           peephole=None, layer_norm=None, zoneout=0.0, recurrent_dropout=0.0, weight_dropout=0.0, training=False,
           eps=1e-5):  # fmt: skip
    """(output, hn, cn or None)."""
    h0, c0 = check.states(name, mode, hx)
    norms = check.norms(name, mode, layer_norm)
    H, P, B = check.layer(
        name, mode, input, h0, c0, weight_ih, weight_hh, (bias_ih, bias_hh), batch_sizes, weight_hr, heads, peephole,
        norms,
    )  # fmt: skip
    zone_h, zone_c = check.zones(name, mode, zoneout)
    recurrent_dropout = check.probability(name, "recurrent_dropout", recurrent_dropout)
    weight_dropout = check.probability(name, "weight_dropout", weight_dropout)
    x = input if batch_sizes is not None else input.reshape(-1, input.size(-1))
    if h0 is None:
        h0 = x.new_zeros(B, P)
        c0 = x.new_zeros(B, H) if mode == "lstm" else None
    wide = (h0 if c0 is None else c0).dtype
    if training and weight_dropout:
        weight_hh = weight_hh * mask(weight_hh, weight_hh.shape, weight_dropout)
    h_mask = mask(x, (B, P), recurrent_dropout) if training and recurrent_dropout else None
    zone_h = _zone(x, (x.size(0), P), zone_h, training)
    zone_c = _zone(x, (x.size(0), H), zone_c, training)
    bias, b_hn = biases(mode, bias_ih, bias_hh, H)
    ln_weight = ln_cell = None
    if norms:
        x = normed(linear(x, weight_ih), (weight_ih.size(0),), norms[0], bias, eps)
        weight_ih = bias = None
        ln_weight, ln_cell = norms[1], torch.stack(norms[2:]) if norms[2:] else None
    out, hn, cn = RNNFunction.call(
        x, weight_ih, bias, h0, c0, weight_hh, b_hn, weight_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c,
        batch_sizes, mode, reverse, heads, eps,
    )  # fmt: skip
    by_steps = mode == "gru" or (mode == "lstm" and batch_sizes is not None)
    out, hn, cn = promoted(by_steps, wide, out, hn, cn)
    return out if batch_sizes is not None else out.view(*input.shape[:2], P), hn, cn


def promoted(by_steps, wide, *results):
    """The results in the dtype of torch's, which under autocast on a CPU is the state's where torch goes by steps:
    autocast knows only their products."""
    first = results[0]
    if not by_steps or first.is_cuda or first.dtype == wide or autocast_dtype(first) is None:
        return results
    return tuple(None if t is None else t.to(wide) for t in results)


def lstm(
    input,
    hx,
    weight_ih,
    weight_hh,
    bias_ih=None,
    bias_hh=None,
    batch_sizes=None,
    *,
    weight_hr=None,
    reverse=False,
    heads=1,
    peephole=None,
    layer_norm=None,
    zoneout=0.0,
    recurrent_dropout=0.0,
    weight_dropout=0.0,
    training=False,
    eps=1e-5,
):
    """One layer of an LSTM in one direction: what torch.nn.LSTM computes with one layer, and its variants.

    Args:
        input: x, of shape (T, B, features); with batch_sizes the rows (R, features) of a PackedSequence.
        hx: (h0, c0), of shapes (B, P) and (B, H), or None for zeros.
        weight_ih: (4 H, features), in the order i f g o. weight_hh: (4 H, P / heads).
        bias_ih, bias_hh: (4 H,), or None.
        batch_sizes: a PackedSequence's: int64 on the CPU, how many rows each step has, none rising. Sequences of
            different lengths are computed without padding.
        weight_hr: (P, H): the projection h = W_hr (σ(o) tanh(c)) (H. Sak et al., arXiv:1402.1128); P is H without.
        reverse: from the last step to the first.
        heads: a block-diagonal recurrent product: rows of head k, of H / heads cells, see h's slice k alone.
        peephole: (3, H): p_i, p_f, p_o; p_i c' and p_f c' are added to i and f, p_o c to o (F. Gers et al.,
            JMLR 3, 2002).
        layer_norm: (w_input, w_hidden) of 4 H, or with the cell's weight and bias of H behind them: each of the two
            products is normalised over its 4 H values a row and scaled, the cell before its tanh (J. Ba et al.,
            arXiv:1607.06450). eps: added to its variances.
        zoneout: p, or (p of h, p of c): in training each element of the state keeps its old value with probability p,
            in evaluation it is p old + (1 - p) new (D. Krueger et al., arXiv:1606.01305).
        recurrent_dropout: h' is multiplied by m/(1 - p) before W_hh, one mask m for all steps of a sequence (Y. Gal
            and Z. Ghahramani, arXiv:1512.05287).
        weight_dropout: W_hh is multiplied by m/(1 - p), one mask a call (S. Merity et al., arXiv:1708.02182).
        training: whether the last two are applied and zoneout draws. Masks follow torch's generator and are the same
            on every backend.

    Returns:
        (output, (hn, cn)): h of every step, (T, B, P) or (R, P), and the states each sequence ends with.

    float64, float32, bfloat16 and float16 run on kernels; every other dtype runs the formula. Sums and the cell are
    float32 (float64 for float64); h is rounded at each step. Under torch.autocast all of it is in autocast's dtype; on
    a CPU the results of packed sequences are then the state's dtype, as torch's are.

    Saved for the backward, and only when a gradient can be asked for: the arguments, the output, and of each row the
    gates, the cell, and with layer_norm the normalised product.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes, devices, batch_sizes or options that do not fit.
        ArgumentTypeError (a TypeError and a RuntimeError): dtypes that do not fit, arguments of another type.
    """
    output, hn, cn = _layer(
        "lstm", "lstm", input, hx, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, reverse, heads, weight_hr,
        peephole, layer_norm, zoneout, recurrent_dropout, weight_dropout, training, eps,
    )  # fmt: skip
    return output, (hn, cn)


def gru(
    input,
    hx,
    weight_ih,
    weight_hh,
    bias_ih=None,
    bias_hh=None,
    batch_sizes=None,
    *,
    reverse=False,
    heads=1,
    layer_norm=None,
    zoneout=0.0,
    recurrent_dropout=0.0,
    weight_dropout=0.0,
    training=False,
    eps=1e-5,
):
    """One layer of a GRU in one direction: (output, hn), as torch.nn.GRU with one layer.

    hx: h0 (B, H) or None; weights of 3 H rows in the order r z n; layer_norm: (w_input, w_hidden) of 3 H each. The
    other arguments, dtypes and errors are `lstm`'s. Under autocast on a CPU the results have the state's dtype.
    """
    return _layer(
        "gru", "gru", input, hx, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, reverse, heads, None, None,
        layer_norm, zoneout, recurrent_dropout, weight_dropout, training, eps,
    )[:2]  # fmt: skip


def rnn(
    input,
    hx,
    weight_ih,
    weight_hh,
    bias_ih=None,
    bias_hh=None,
    batch_sizes=None,
    *,
    nonlinearity="tanh",
    reverse=False,
    heads=1,
    layer_norm=None,
    zoneout=0.0,
    recurrent_dropout=0.0,
    weight_dropout=0.0,
    training=False,
    eps=1e-5,
):
    """One layer of an Elman network in one direction: (output, hn), as torch.nn.RNN with one layer.

    hx: h0 (B, H) or None; weights of H rows; nonlinearity: "tanh" or "relu"; layer_norm: (w_input, w_hidden) of H
    each. The other arguments, dtypes and errors are `lstm`'s.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise check.ArgumentError(f"rnn: unknown nonlinearity {nonlinearity!r}, expected 'tanh' or 'relu'")
    return _layer(
        "rnn", f"rnn_{nonlinearity}", input, hx, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, reverse, heads,
        None, None, layer_norm, zoneout, recurrent_dropout, weight_dropout, training, eps,
    )[:2]  # fmt: skip
