"""What `kernelzoo verify` computes of each op: small cases of its public function beside its formula."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as T

from .. import functional as F
from ..ops import linear as linear_ops
from ..ops import softmax as softmax_ops
from ..ops.activation import DEFINITIONS, activation, parse
from ..ops.rnn_formula import GATES

# The derivative, or the value, jumps: only inputs whose sums are exact meet the same side in every dtype.
JUMPS = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "hardsigmoid", "hardswish", "hardtanh",
         "softshrink", "hardshrink", "threshold")  # fmt: skip


def exact_or_normal(shape, generator, exact, scale=1.0):
    """fp64 values: multiples of 1/2 in [-1, 1] where exact (their products' sums are exact), else normal."""
    if exact:
        return torch.randint(-2, 3, shape, generator=generator, device=generator.device).double() / 2
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device) * scale


class Case(NamedTuple):
    """ours and formula take the tensors of `make(generator)` (fp64 on the CPU), cast to the tested dtype but where
    they hold whole numbers or bools."""

    name: str
    make: Callable
    ours: Callable
    formula: Callable
    large: bool = False  # too slow for an interpreter


def _linear_cases():
    for act in (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", ("softplus", 2.0, 5.0)):
        chosen = parse("verify", act)
        for m, k, n in ((37, 65, 70), (259, 768, 514)):

            def make(g, m=m, k=k, n=n, exact=chosen.name in JUMPS):
                shapes = (((m, k), 1.0), ((n, k), k**-0.5), ((n,), 1.0))
                return [exact_or_normal(shape, g, exact, scale) for shape, scale in shapes]

            yield Case(
                f"{m}x{k}->{n} {chosen.name}",
                make,
                functools.partial(linear_ops.linear, act=act),
                functools.partial(linear_ops.LinearAct.formula, act=chosen),
                large=m > 64,
            )


# Finite: torch's own derivatives at NaN differ between its vector and its scalar loop (relu6, hardshrink).
EDGES = (0.0, 1e-30, 1e-5, 0.5, 1.0, 3.0, 6.0, 20.0, 88.0, 100.0, 1e4)


def _activation_cases():
    inputs = {
        "": lambda g: exact_or_normal((37, 129), g, False, 2.0),
        " tiny": lambda g: exact_or_normal((1031,), g, False, 1e-4),
        " tail": lambda g: exact_or_normal((1031,), g, False) - 20,
        " edges": lambda g: torch.tensor([*EDGES, *(-e for e in EDGES)], dtype=torch.float64),
    }
    for name in DEFINITIONS:
        chosen = parse("verify", name)
        for kind, values in inputs.items():
            yield Case(
                name + kind,
                lambda g, values=values: [values(g)],
                functools.partial(activation, act=chosen),
                chosen.formula,
            )


def _softmax_cases():
    for function in (softmax_ops.softmax, softmax_ops.log_softmax):
        log = function is softmax_ops.log_softmax
        for shape, dim in (((7, 33, 5), 0), ((7, 33, 5), 1), ((7, 33, 5), 2), ((9, 1031), 1)):
            yield Case(
                f"{function.__name__} {'x'.join(map(str, shape))} over {dim}",
                lambda g, shape=shape: [exact_or_normal(shape, g, False, 3.0)],
                functools.partial(function, dim=dim),
                functools.partial(softmax_ops.SoftmaxFunction.formula, dim=dim, log=log),
            )


def _normal(*shapes, scale=1.0):
    return lambda g: [exact_or_normal(shape, g, False, scale) for shape in shapes]


def _attention_cases():
    """Odd lengths and features; a bool mask, grouped heads, windows, caps and slopes as the formula has them."""
    q, k, v = (2, 4, 37, 40), (2, 4, 53, 40), (2, 4, 53, 24)
    few = (2, 2, 53, 40), (2, 2, 53, 24)

    def masked(g):
        return [*_normal(q, k, v)(g), torch.rand(37, 53, generator=g) < 0.7]

    def capped(q, k, v, softcap):
        s = q @ k.mT / q.shape[-1] ** 0.5
        return (softcap * (s / softcap).tanh()).softmax(-1) @ v

    def windowed(q, k, v, window):
        i, j = (torch.arange(n, device=q.device) for n in (q.shape[-2], k.shape[-2]))
        seen = (j >= i[:, None] - window[0]) & (j <= i[:, None] + window[1])
        return T.scaled_dot_product_attention(q, k, v, seen)

    ours, theirs = F.scaled_dot_product_attention, T.scaled_dot_product_attention
    for options in ({}, {"is_causal": True}, {"scale": 0.5}):
        said = " ".join(f"{key}={value}" for key, value in options.items()) or "plain"
        partial = (functools.partial(f, **options) for f in (ours, theirs))
        yield Case(f"37 to 53 keys, {said}", _normal(q, k, v), *partial)
    partial = (functools.partial(f, enable_gqa=True) for f in (ours, theirs))
    yield Case("4 heads on 2", _normal(q, *few), *partial)
    yield Case("bool mask", masked, ours, theirs)
    for extra, formula in (({"softcap": 2.0}, capped), ({"window": (7, 3)}, windowed)):
        yield Case(
            str(extra),
            _normal(q, k, v),
            functools.partial(ours, **extra),
            functools.partial(formula, **extra),
        )


def _norm_cases():
    for shape in ((37, 129), (5, 1031)):
        n = shape[-1:]
        for name in ("layer_norm", "rms_norm"):
            sizes = (shape, n, n) if name == "layer_norm" else (shape, n)
            ours, theirs = getattr(F, name), getattr(T, name)
            yield Case(
                f"{name} {shape[0]}x{shape[1]}",
                _normal(*sizes),
                lambda x, *w, f=ours, n=n: f(x, n, *w),
                lambda x, *w, f=theirs, n=n: f(x, n, *w),
            )
    ours, theirs = (lambda x, w, b, f=f: f(x, 3, w, b) for f in (F.group_norm, T.group_norm))
    yield Case("group_norm 2x12x9x7 in 3", _normal((2, 12, 9, 7), (12,), (12,)), ours, theirs)


def _batch_norm_cases():
    """Planes and rows (channels-last); not relu, whose derivative jumps where the sums are not exact."""

    def ours(x, w, b, residual=None, *, name, act, last):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
        return getattr(F, name)(x, None, None, w, b, True, act=act, residual=residual)

    def formula(x, w, b, residual=None, *, name, act, last):
        y = getattr(T, name)(x, None, None, w, b, True)
        return parse("verify", act).formula(y if residual is None else y + residual)

    for name in ("batch_norm", "instance_norm"):
        for last in (False, True):
            for act, shapes in ((None, ()), ("silu", ((5, 9, 11, 7),))):
                options = {"name": name, "act": act, "last": last}
                yield Case(
                    f"{name} 5x9x11x7 {'channels-last' if last else 'NCHW'}{' + residual, silu' if act else ''}",
                    _normal((5, 9, 11, 7), (9,), (9,), *shapes),
                    functools.partial(ours, **options),
                    functools.partial(formula, **options),
                )


def _rotary_cases():
    cos, sin = F.rotary_tables(29, 24)

    def formula(x, interleaved):
        c, s = (t[: x.shape[-2]].to(x.device) for t in (cos, sin))
        turned, rest = x[..., :24], x[..., 24:]
        a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        a, b = a.to(torch.promote_types(x.dtype, c.dtype)), b.to(torch.promote_types(x.dtype, c.dtype))
        pair = a * c - b * s, b * c + a * s
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        return torch.cat([turned.to(x.dtype), rest], -1)

    for interleaved in (False, True):
        yield Case(
            f"2x3x29x40, 24 features {'interleaved' if interleaved else 'in halves'}",
            _normal((2, 3, 29, 40)),
            lambda x, i=interleaved: F.rotary_embedding(x, cos.to(x.device), sin.to(x.device), interleaved=i),
            lambda x, i=interleaved: formula(x, i),
        )


def _glu_cases():
    for name, f in (("swiglu", T.silu), ("geglu", T.gelu), ("reglu", T.relu)):
        yield Case(
            f"{name} 37x129",
            _normal((37, 129), (37, 129), scale=2.0),
            getattr(F, name),
            lambda gate, up, f=f: f(gate) * up,
        )


def _loss_cases():
    names = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
    for name in names:
        for reduction in ("mean", "none"):
            ours, theirs = (functools.partial(getattr(m, name), reduction=reduction) for m in (F, T))
            yield Case(f"{name} {reduction}", _normal((37, 129), (37, 129)), ours, theirs)


def _cross_entropy_cases():
    def rows(g):
        return [*_normal((17, 257), scale=3.0)(g), torch.randint(257, (17,), generator=g)]

    def linear(g):
        x, w = _normal((37, 65), (517, 65), scale=0.5)(g)
        return [x, w, torch.randint(517, (37,), generator=g)]

    for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"ignore_index": 5}):
        ours, theirs = (functools.partial(m.cross_entropy, **options) for m in (F, T))
        yield Case(f"cross_entropy 17x257 {options or ''}".rstrip(), rows, ours, theirs)
    yield Case(
        "linear_cross_entropy 37x65->517",
        linear,
        lambda x, w, target: F.linear_cross_entropy(x, w, target),
        lambda x, w, target: T.cross_entropy(T.linear(x, w), target),
    )


def _conv_cases():
    """Every function; a filter a channel, both orders of memory."""
    cases = (
        ("conv2d", (2, 9, 17, 19), (14, 9, 3, 3), {"padding": 1}),
        ("conv2d", (2, 8, 13, 15), (6, 4, 3, 2), {"stride": 2, "groups": 2}),
        ("conv1d", (2, 7, 37), (5, 7, 4), {"dilation": 2}),
        ("conv3d", (1, 4, 5, 6, 7), (5, 4, 2, 3, 3), {"padding": 1}),
        ("conv_transpose2d", (2, 6, 7, 9), (6, 5, 3, 3), {"stride": 2, "output_padding": 1}),
        ("conv1d", (2, 19, 131), (19, 1, 4), {"padding": 3, "groups": 19}),
        ("conv2d", (2, 19, 17, 15), (19, 1, 3, 3), {"padding": 1, "groups": 19}),
    )
    for name, x, w, options in cases:
        channels = w[1] * options.get("groups", 1) if "transpose" in name else w[0]
        ours, theirs = (functools.partial(getattr(m, name), **options) for m in (F, T))
        said = "".join(f" {key}={value}" for key, value in options.items())
        for act in (None, "gelu"):
            chosen = parse("verify", act)
            yield Case(
                f"{name} {'x'.join(map(str, x))}, {'x'.join(map(str, w))}{said} {chosen.name}",
                _normal(x, w, (channels,)),
                functools.partial(ours, act=act),
                lambda *given, f=theirs, act=chosen: act.formula(f(*given)),
            )
    yield Case(
        "conv2d 2x19x17x15 channels-last, a filter a channel",
        _normal((2, 19, 17, 15), (19, 1, 3, 3), (19,)),
        lambda x, w, b: F.conv2d(x.contiguous(memory_format=torch.channels_last), w, b, padding=1, groups=19),
        lambda x, w, b: T.conv2d(x, w, b, padding=1, groups=19),
    )


def _rnn_cases():
    """Padded and packed, against torch's own; not relu, whose derivative jumps where the sums are not exact."""
    B, features, H = 3, 19, 33
    packed = torch.tensor([3] * 5 + [2] * 9 + [1] * 3)
    ours = {"lstm": F.lstm, "gru": F.gru, "rnn_tanh": F.rnn}
    theirs = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh}

    def formula(x, *weights, mode, batch_sizes):
        h = x.new_zeros(1, B, H)
        hx = (h, h) if mode == "lstm" else h
        if batch_sizes is not None:
            return theirs[mode](x, batch_sizes, hx, weights, True, 1, 0.0, False, False)[0]
        return theirs[mode](x, hx, weights, True, 1, 0.0, False, False, False)[0]

    for mode, function in ours.items():
        width = GATES[mode] * H
        for batch_sizes in (None, packed):

            def make(g, width=width, batch_sizes=batch_sizes):
                rows = (17, B, features) if batch_sizes is None else (int(batch_sizes.sum()), features)
                shapes = (((width, features), 0.2), ((width, H), 0.2), ((width,), 1.0), ((width,), 1.0))
                return [exact_or_normal(s, g, False, scale) for s, scale in ((rows, 1.0), *shapes)]

            yield Case(
                f"{mode} 17x{B}x{features}->{H}{'' if batch_sizes is None else ' packed'}",
                make,
                lambda x, *w, f=function, sizes=batch_sizes: f(x, None, *w, batch_sizes=sizes)[0],
                functools.partial(formula, mode=mode, batch_sizes=batch_sizes),
            )


def _pool_cases():
    """Both layouts; windows that overlap, reach into the padding, and differ in size; three kinds of interpolation."""
    calls = (
        ("max_pool2d", (3, 2, 1)),
        ("avg_pool2d", (3, 2, 1, True, False)),
        ("adaptive_max_pool2d", (5,)),
        ("adaptive_avg_pool2d", (1,)),
        ("interpolate", (None, 2.0, "nearest")),
        ("interpolate", (None, 1.7, "bilinear")),
        ("interpolate", ((8, 9), None, "bilinear", True)),
    )
    for name, args in calls:
        for last in (False, True):

            def given(module, x, name=name, args=args, last=last):
                x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
                return getattr(module, name)(x, *args)

            said = f"{name} {args} 2x19x13x22{' channels last' if last else ''}"
            ours, theirs = (functools.partial(given, module) for module in (F, T))
            yield Case(said, _normal((2, 19, 13, 22)), ours, theirs, large=args[0] != 3 or last)


CASES = {
    "linear": _linear_cases,
    "activation": _activation_cases,
    "softmax": _softmax_cases,
    "attention": _attention_cases,
    "norm": _norm_cases,
    "batch_norm": _batch_norm_cases,
    "pool": _pool_cases,
    "conv": _conv_cases,
    "rnn": _rnn_cases,
    "rotary": _rotary_cases,
    "glu": _glu_cases,
    "loss": _loss_cases,
    "cross_entropy": _cross_entropy_cases,
}
