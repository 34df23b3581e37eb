"""Losses element by element on CPU, each with its derivatives to the input and the target."""

import functools
import math

import numpy as np
import torch

from .. import memory
from ..elementwise_loss import factor, reduced
from .arrays import STORAGE, kernel, launch, pointer
from .math import EXP, LN2_HIGH, LN2_LOW, _log1p32, bits, f32, i32, jit
from .softmax import add

SPAN = 1 << 12  # elements whose losses are added up before they join the sum


@jit
def _log32(x):
    """ln x: Cephes' logf polynomial (S. Moshier); denormals are scaled by 2**23 first."""
    small = x < f32(1.17549435e-38)
    w = x * f32(8388608.0) if small else x
    e = i32((bits(w, i32) - i32(0x3F3504F3)) >> i32(23))
    f = bits(i32(bits(w, i32) - (e << i32(23))), f32) - f32(1)
    n = f32(e) - f32(23) if small else f32(e)
    p = f32(7.0376836292e-2)
    p = p * f + f32(-1.1514610310e-1)
    p = p * f + f32(1.1676998740e-1)
    p = p * f + f32(-1.2420140846e-1)
    p = p * f + f32(1.4249322787e-1)
    p = p * f + f32(-1.6668057665e-1)
    p = p * f + f32(2.0000714765e-1)
    p = p * f + f32(-2.4999993993e-1)
    p = p * f + f32(3.3333331174e-1)
    square = f * f
    log = (p * (square * f) + (n * LN2_LOW - f32(0.5) * square)) + (f + n * LN2_HIGH)
    log = log if x < f32(np.inf) else x
    log = f32(-np.inf) if x == f32(0) else log
    return f32(np.nan) if x < f32(0) else log


@jit
def _log64(x):
    return math.log(x) if x > 0.0 else (-np.inf if x == 0.0 else np.nan)


@jit
def _log1p64(x):
    return math.log1p(x) if x > -1.0 else (-np.inf if x == -1.0 else np.nan)


@functools.cache
def _losses(f):
    """name -> value(x, t, p), name_dx and name_dt -> its derivatives, in f."""
    exp = EXP[f]
    log, log1p = (_log32, _log1p32) if f is f32 else (_log64, _log1p64)
    table = {}

    def define(function):
        table[function.__name__] = jit(function)
        return table[function.__name__]

    @jit
    def log_rest(x):
        value = log1p(-x)
        return f(-np.inf) if x == f(1) else value

    @jit
    def bounded(x):
        return f(-100) if x < f(-100) else x

    def odd(derivative):
        """The derivative to the target of a function of x - t."""

        @jit
        def negated(x, t, p):
            return -derivative(x, t, p)

        table[derivative.__name__.removesuffix("_dx") + "_dt"] = negated

    @define
    def mse(x, t, p):
        return (x - t) * (x - t)

    @define
    def mse_dx(x, t, p):
        return f(2) * (x - t)

    odd(mse_dx)

    @define
    def l1(x, t, p):
        return abs(x - t)

    @define
    def l1_dx(x, t, p):
        return f(1) if x > t else f(-1) if x < t else f(0)

    odd(l1_dx)

    @define
    def huber(x, t, delta):
        z = abs(x - t)
        near, far = f(0.5) * z * z, delta * (z - f(0.5) * delta)
        return near if z < delta else far

    @define
    def huber_dx(x, t, delta):
        d = x - t
        return -delta if d < -delta else delta if d > delta else d

    odd(huber_dx)

    @define
    def smooth_l1(x, t, beta):
        z = abs(x - t)
        near, far = f(0.5) * z * z / beta, z - f(0.5) * beta
        return near if z < beta else far

    @define
    def smooth_l1_dx(x, t, beta):
        d = x - t
        inside = d / beta
        return f(-1) if d <= -beta else f(1) if d >= beta else inside

    odd(smooth_l1_dx)

    @define
    def bce(x, t, p):
        return (t - f(1)) * bounded(log_rest(x)) - t * bounded(log(x))

    @define
    def bce_dx(x, t, p):
        width = (f(1) - x) * x
        return (x - t) / (f(1e-12) if width < f(1e-12) else width)

    @define
    def bce_dt(x, t, p):
        return log_rest(x) - log(x)

    @define
    def bce_logits(x, t, p):
        return (f(1) - t) * x - ((x if x < f(0) else f(0)) - log1p(exp(-abs(x))))

    @define
    def bce_logits_dx(x, t, p):
        return f(1) / (f(1) + exp(-x)) - t

    @define
    def bce_logits_dt(x, t, p):
        return -x

    @define
    def kl(x, t, p):
        entropy = t * log(t)
        return (f(0) if t == f(0) else entropy) - t * x

    @define
    def kl_dx(x, t, p):
        return -t

    @define
    def kl_dt(x, t, p):
        return log(t) + t / t - x  # NaN at 0, as the derivative of torch's xlogy(t, t)

    @define
    def kl_log(x, t, p):
        return exp(t) * (t - x)

    @define
    def kl_log_dx(x, t, p):
        return -exp(t)

    @define
    def kl_log_dt(x, t, p):
        e = exp(t)
        return e * (t - x) + e

    return table


@functools.cache
def _fwd_kernel(kind, each, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value = _losses(f)[kind]
    checked = kind == "bce"

    @kernel
    def _loss_fwd_kernel(first, last, args, p0, p1):
        """The sum of a span's losses, each loss too where asked; how many of a bce's lie outside [0, 1]."""
        x_ptr, t_ptr, out_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
        )
        sums_ptr, outside_ptr = pointer(args[3], np.float64), pointer(args[4], np.int64)
        n = args[5]
        p = f(p0)
        for span in range(first, last):
            begin, end = span * SPAN, min(span * SPAN + SPAN, n)
            total = np.float64(0)
            for start in range(begin, end, 256):
                part = f(0)
                for i in range(start, min(start + 256, end)):
                    part = add(part, value(load(x_ptr[i]), load(t_ptr[i]), p))
                total += part
            sums_ptr[span] = total
            if each:
                for i in range(begin, end):
                    out_ptr[i] = store(value(load(x_ptr[i]), load(t_ptr[i]), p))
            if checked:
                inside = np.int64(0)
                for i in range(begin, end):
                    x, t = load(x_ptr[i]), load(t_ptr[i])
                    inside += 1 if (x >= f(0)) & (x <= f(1)) & (t >= f(0)) & (t <= f(1)) else 0
                outside_ptr[span] = end - begin - inside

    return _loss_fwd_kernel


@functools.cache
def _bwd_kernel(kind, each, to_target, dtype):
    store_t, f, load, store = STORAGE[dtype]
    grad = _losses(f)[kind + ("_dt" if to_target else "_dx")]

    @kernel
    def _loss_bwd_kernel(first, last, args, p0, g):
        """dx = dy l'(x, t), or with one dy for all g l'(x, t). A unit is a span."""
        x_ptr, t_ptr, dy_ptr, dx_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
            pointer(args[3], store_t),
        )
        p, one = f(p0), f(g)
        for i in range(first * SPAN, min(last * SPAN, args[4])):
            scale = load(dy_ptr[i]) if each else one
            dx_ptr[i] = store(scale * grad(load(x_ptr[i]), load(t_ptr[i]), p))

    return _loss_bwd_kernel


def loss_fwd(x, target, kind, p, reduction):
    each = reduction == "none"
    out = memory.empty_like(x) if each else None
    n = x.numel()
    spans = -(-n // SPAN)
    sums = x.new_empty(spans, dtype=torch.float64)
    outside = x.new_zeros(spans, dtype=torch.int64)
    addresses = x.data_ptr(), target.data_ptr(), out.data_ptr() if each else 0, sums.data_ptr()
    launch(_fwd_kernel(kind, each, x.dtype), spans, n, (*addresses, outside.data_ptr(), n), p)
    # one thread: torch's sum of a long vector depends on how many it has
    total = math.fsum(sums.tolist()) if sums.isfinite().all() else sums.sum().item()
    scalar = reduced(total, kind == "bce" and bool(outside.any()), x, target, reduction)
    return out if each else scalar


def loss_bwd(dy, x, target, kind, p, reduction, need_dx, need_dt):
    each = reduction == "none"
    g = 0.0 if each else factor(dy, x, reduction)
    n = x.numel()
    results = []
    for need, to_target in ((need_dx, False), (need_dt, True)):
        results.append(memory.empty_like(x) if need else None)
        if need:
            addresses = x.data_ptr(), target.data_ptr(), dy.data_ptr(), results[-1].data_ptr()
            launch(_bwd_kernel(kind, each, to_target, x.dtype), -(-n // SPAN), n, (*addresses, n), p, g)
    return tuple(results)
