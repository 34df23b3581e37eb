"""batch_norm and instance_norm, with the residual and the activation behind them, of planes and of rows (sizes).

Kernels take what there is one of a channel (of an instance) ready-made: mean, scale = w * rstd, shift = b.
"""

import functools

import numpy as np
import torch

from .. import memory
from ..batch_norm import sizes, stripes_of
from .arrays import STORAGE, kernel, launch, pointer
from .math import ROUNDED_LAMBD, activations, jit
from .norm import BLOCK, add, addresses, sum_rows, sums_of

NOTHING, RESIDUAL, OUTPUT = range(3)  # what is saved beside x


@functools.cache
def _plane_moments_kernel(dtype):
    store_t, f, load, _ = STORAGE[dtype]
    mean_of, _ = sums_of(dtype)

    @kernel
    def _plane_moments_kernel(first, last, args, p0, p1):
        """Mean and variance of a channel, in two reads of it. A unit is a channel of an instance."""
        x_ptr, mean_ptr, var_ptr = pointer(args[0], store_t), pointer(args[1], f), pointer(args[2], f)
        N, C, L = args[3], args[4], args[5]
        for unit in range(first, last):
            start = (unit // C * N * C + unit % C) * L
            total = 0.0
            for n in range(N):
                total += mean_of(x_ptr, start + n * C * L, L)
            mean = total / N
            about = f(mean)
            squares, off = 0.0, 0.0
            for n in range(N):
                for begin in range(start + n * C * L, start + n * C * L + L, BLOCK):
                    part, off_part = f(0), f(0)
                    for i in range(begin, min(begin + BLOCK, start + n * C * L + L)):
                        d = load(x_ptr[i]) - about
                        part = add(part, d * d)
                        off_part = add(off_part, d)
                    squares += part
                    off += off_part
            off /= N * L
            mean_ptr[unit] = f(about + off)
            var_ptr[unit] = f(squares / (N * L) - off * off)

    return _plane_moments_kernel


@functools.cache
def _row_moments_kernel(dtype):
    store_t, _, load, _ = STORAGE[dtype]

    @kernel
    def _row_moments_kernel(first, last, args, p0, p1):
        """Mean and squares about it of a stripe's rows, in two reads of it. A unit is a stripe of an instance."""
        x_ptr, mean_ptr, squares_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], np.float64),
            pointer(args[2], np.float64),
        )
        N, C, stripes, rows = args[3], args[4], args[5], args[6]
        for unit in range(first, last):
            begin = unit // stripes * N + min(N, unit % stripes * rows)
            end = unit // stripes * N + min(N, unit % stripes * rows + rows)
            at = unit * C
            for c in range(C):
                mean_ptr[at + c] = 0.0
                squares_ptr[at + c] = 0.0
            for r in range(begin, end):
                for c in range(C):
                    mean_ptr[at + c] += load(x_ptr[r * C + c])
            for c in range(C):
                mean_ptr[at + c] /= max(1, end - begin)
            for r in range(begin, end):
                for c in range(C):
                    d = load(x_ptr[r * C + c]) - mean_ptr[at + c]
                    squares_ptr[at + c] += d * d

    return _row_moments_kernel


@jit
def _normal(x, mean, scale, shift):
    return (x - mean) * scale + shift


@functools.cache
def _fwd_kernel(dtype, planes, act, has_r):
    store_t, f, load, store = STORAGE[dtype]
    value = activations(f)[act]
    rounded = act in ROUNDED_LAMBD

    @kernel
    def _batch_norm_fwd_kernel(first, last, args, p0, p1):
        """y = act((x - mean) * scale + shift + r). A unit is a plane of L elements, or a row of C."""
        address = pointer(args[0], np.int64)
        x_ptr, r_ptr, y_ptr = (
            pointer(address[0], store_t),
            pointer(address[1], store_t),
            pointer(address[2], store_t),
        )
        mean_ptr, scale_ptr, shift_ptr = (
            pointer(address[3], f),
            pointer(address[4], f),
            pointer(address[5], f),
        )
        N, C, L = args[1], args[2], args[3]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for unit in range(first, last):
            if planes:
                c = unit // (C * N) * C + unit % C
                mean, scale, shift = mean_ptr[c], scale_ptr[c], shift_ptr[c]
                for i in range(unit * L, unit * L + L):
                    z = _normal(load(x_ptr[i]), mean, scale, shift)
                    if has_r:
                        z += load(r_ptr[i])
                    y_ptr[i] = store(value(z, p0, p1))
            else:
                at = unit // N * C
                for c in range(C):
                    z = _normal(
                        load(x_ptr[unit * C + c]), mean_ptr[at + c], scale_ptr[at + c], shift_ptr[at + c]
                    )
                    if has_r:
                        z += load(r_ptr[unit * C + c])
                    y_ptr[unit * C + c] = store(value(z, p0, p1))

    return _batch_norm_fwd_kernel


@functools.cache
def _incoming(f, act, saved_is):
    """g = dy act'(z) of values in f, z computed anew where the output is not saved."""
    if act == "none":
        return jit(lambda dy, x, saved, mean, scale, shift, p0, p1: dy)
    value, gradient = activations(f)[act], activations(f)[act + "_grad"]
    of_output = act in ("sigmoid", "tanh")

    @jit
    def incoming(dy, x, saved, mean, scale, shift, p0, p1):
        if saved_is == OUTPUT:
            return gradient(dy, saved, p0, p1)
        z = _normal(x, mean, scale, shift)
        if saved_is == RESIDUAL:
            z += saved
        if of_output:
            z = value(z, p0, p1)
        return gradient(dy, z, p0, p1)

    return incoming


@functools.cache
def _sums_kernel(dtype, planes, act, saved_is):
    store_t, f, load, store = STORAGE[dtype]
    incoming = _incoming(f, act, saved_is)
    rounded = act + "_grad" in ROUNDED_LAMBD
    saves = saved_is != NOTHING

    @kernel
    def _batch_norm_sums_kernel(first, last, args, p0, p1):
        """The sums of g and of g * (x - mean). A unit is a channel of an instance, or a stripe of its rows."""
        address = pointer(args[0], np.int64)
        dy_ptr, x_ptr, saved_ptr = (
            pointer(address[0], store_t),
            pointer(address[1], store_t),
            pointer(address[2], store_t),
        )
        mean_ptr, scale_ptr, shift_ptr = (
            pointer(address[3], f),
            pointer(address[4], f),
            pointer(address[5], f),
        )
        g_ptr, gx_ptr = pointer(address[6], np.float64), pointer(address[7], np.float64)
        N, C, L, stripes, rows = args[1], args[2], args[3], args[4], args[5]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for unit in range(first, last):
            if planes:
                mean, scale, shift = mean_ptr[unit], scale_ptr[unit], shift_ptr[unit]
                g_total, gx_total = 0.0, 0.0
                for n in range(N):
                    start = ((unit // C * N + n) * C + unit % C) * L
                    for begin in range(start, start + L, BLOCK):
                        g_part, gx_part = f(0), f(0)
                        for i in range(begin, min(begin + BLOCK, start + L)):
                            x = load(x_ptr[i])
                            saved = load(saved_ptr[i]) if saves else f(0)
                            g = incoming(load(dy_ptr[i]), x, saved, mean, scale, shift, p0, p1)
                            g_part = add(g_part, g)
                            gx_part = add(gx_part, g * (x - mean))
                        g_total += g_part
                        gx_total += gx_part
                g_ptr[unit] = g_total
                gx_ptr[unit] = gx_total
            else:
                at, one = unit * C, unit // stripes * C
                for c in range(C):
                    g_ptr[at + c] = 0.0
                    gx_ptr[at + c] = 0.0
                begin = unit // stripes * N + min(N, unit % stripes * rows)
                end = unit // stripes * N + min(N, unit % stripes * rows + rows)
                for r in range(begin, end):
                    for c in range(C):
                        i = r * C + c
                        x, mean = load(x_ptr[i]), mean_ptr[one + c]
                        saved = load(saved_ptr[i]) if saves else f(0)
                        g = incoming(
                            load(dy_ptr[i]), x, saved, mean, scale_ptr[one + c], shift_ptr[one + c], p0, p1
                        )
                        g_ptr[at + c] += g
                        gx_ptr[at + c] += g * (x - mean)

    return _batch_norm_sums_kernel


@functools.cache
def _bwd_kernel(dtype, planes, act, saved_is, training, need_dr):
    store_t, f, load, store = STORAGE[dtype]
    incoming = _incoming(f, act, saved_is)
    rounded = act + "_grad" in ROUNDED_LAMBD
    saves = saved_is != NOTHING

    @jit
    def result(g, x, mean, scale, g_mean, x_factor):
        return scale * (g - g_mean - (x - mean) * x_factor) if training else scale * g

    @kernel
    def _batch_norm_bwd_kernel(first, last, args, p0, p1):
        """dx = scale * (g - g_mean - (x - mean) * x_factor), dr = g. A unit is a plane of L elements, or a row of C."""
        address = pointer(args[0], np.int64)
        dy_ptr, x_ptr, saved_ptr = (
            pointer(address[0], store_t),
            pointer(address[1], store_t),
            pointer(address[2], store_t),
        )
        mean_ptr, scale_ptr, shift_ptr = (
            pointer(address[3], f),
            pointer(address[4], f),
            pointer(address[5], f),
        )
        g_ptr, x_factor_ptr = pointer(address[6], f), pointer(address[7], f)
        dx_ptr, dr_ptr = pointer(address[8], store_t), pointer(address[9], store_t)
        N, C, L = args[1], args[2], args[3]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for unit in range(first, last):
            if planes:
                c = unit // (C * N) * C + unit % C
                mean, scale, shift = mean_ptr[c], scale_ptr[c], shift_ptr[c]
                g_mean, x_factor = (g_ptr[c], x_factor_ptr[c]) if training else (f(0), f(0))
                for i in range(unit * L, unit * L + L):
                    x = load(x_ptr[i])
                    saved = load(saved_ptr[i]) if saves else f(0)
                    g = incoming(load(dy_ptr[i]), x, saved, mean, scale, shift, p0, p1)
                    if need_dr:
                        dr_ptr[i] = store(g)
                    dx_ptr[i] = store(result(g, x, mean, scale, g_mean, x_factor))
            else:
                one = unit // N * C
                for j in range(C):
                    i, c = unit * C + j, one + j
                    x, mean, scale = load(x_ptr[i]), mean_ptr[c], scale_ptr[c]
                    saved = load(saved_ptr[i]) if saves else f(0)
                    g = incoming(load(dy_ptr[i]), x, saved, mean, scale, shift_ptr[c], p0, p1)
                    if need_dr:
                        dr_ptr[i] = store(g)
                    g_mean, x_factor = (g_ptr[c], x_factor_ptr[c]) if training else (f(0), f(0))
                    dx_ptr[i] = store(result(g, x, mean, scale, g_mean, x_factor))

    return _batch_norm_bwd_kernel


def batch_norm_stats(x, instances):
    I, N, C, L = sizes(x, instances)
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    if L > 1:
        mean, var = (torch.empty(I * C, dtype=acc) for _ in range(2))
        args = (x.data_ptr(), mean.data_ptr(), var.data_ptr(), N, C, L)
        launch(_plane_moments_kernel(x.dtype), I * C, x.numel(), args)
        return mean, var
    stripes = stripes_of(N, L)
    rows = -(-N // stripes)
    means, squares = memory.workspace((2, I, stripes, C), torch.float64)
    args = (x.data_ptr(), means.data_ptr(), squares.data_ptr(), N, C, stripes, rows)
    launch(_row_moments_kernel(x.dtype), I * stripes, x.numel(), args)
    counts = (N - rows * torch.arange(stripes, dtype=torch.float64)).clamp(0, rows)[:, None]
    mean = (counts * means).sum(1) / N
    var = (squares + counts * (means - mean[:, None]) ** 2).sum(1) / N
    return mean.view(-1).to(acc), var.view(-1).to(acc)


def _channels(w, b, mean, var, I, eps):
    """mean, scale and shift of the kernels; and rstd, in float64."""
    rstd = (var.double() + eps).rsqrt()
    scale = rstd if w is None else w.double().repeat(I) * rstd
    shift = torch.zeros_like(mean) if b is None else b.to(mean.dtype).repeat(I)
    return mean, scale.to(mean.dtype), shift, rstd


def batch_norm_fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1):
    I, N, C, L = sizes(x, instances)
    found = batch_norm_stats(x, instances) if mean is None else (None, None)
    if mean is None:
        mean, var = found
    y = memory.empty_like(x)
    channels = _channels(w, b, mean, var, I, eps)[:3]
    table = addresses(x, residual, y, *channels)
    build = _fwd_kernel(x.dtype, L > 1, act, residual is not None)
    launch(build, I * N * C if L > 1 else I * N, x.numel(), (table.data_ptr(), N, C, L), p0, p1)
    return y, *found


def _saved_is(saved, from_output):
    return NOTHING if saved is None else OUTPUT if from_output else RESIDUAL


def _sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1):
    """Sums of g and g * x_hat, (I * C,) in float64."""
    I, N, C, L = sizes(x, instances)
    stripes = stripes_of(N, L)
    partial = memory.workspace((2, I, stripes, C), torch.float64)
    *channels, rstd = _channels(w, b, mean, var, I, eps)
    table = addresses(dy, x, saved, *channels, *partial)
    build = _sums_kernel(x.dtype, L > 1, act, _saved_is(saved, from_output))
    args = (table.data_ptr(), N, C, L, stripes, -(-N // stripes))
    launch(build, I * C if L > 1 else I * stripes, x.numel(), args, p0, p1)
    sum_g, sum_gx = partial.sum(2).view(2, -1)
    return sum_g, sum_gx * rstd


def batch_norm_sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1):
    sums = _sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1)
    return tuple(t.to(mean.dtype) for t in sums)


def batch_norm_bwd(
    dy, x, saved, w, b, mean, var, sum_g, sum_gx, count, training, instances, from_output, eps, act, p0, p1,
    need_dx, need_dr, need_dw, need_db,
):  # fmt: skip
    I, N, C, L = sizes(x, instances)
    affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
    dx = memory.empty_like(x) if need_dx else None
    dr = memory.empty_like(x) if need_dr else None
    dw = db = g_mean = x_factor = None
    *channels, rstd = _channels(w, b, mean, var, I, eps)
    if sum_g is None and (need_dw or need_db or (need_dx and training)):
        sum_g, sum_gx = _sums(dy, x, saved, w, b, mean, var, instances, from_output, eps, act, p0, p1)
        count = N * L
        dw = sum_rows(sum_gx.view(I, C), affine) if need_dw else None
        db = sum_rows(sum_g.view(I, C), affine) if need_db else None
    if not need_dx and not need_dr:
        return None, None, dw, db
    if training and need_dx:
        g_mean, x_factor = (t.to(mean.dtype) for t in (sum_g / count, sum_gx / count * rstd))
    training = training and need_dx
    # a dx that nobody asked for costs less than a kernel compiled without it
    to = torch.empty_like(x) if dx is None else dx
    table = addresses(dy, x, saved, *channels, g_mean, x_factor, to, dr)
    build = _bwd_kernel(x.dtype, L > 1, act, _saved_is(saved, from_output), training, need_dr)
    launch(build, I * N * C if L > 1 else I * N, x.numel(), (table.data_ptr(), N, C, L), p0, p1)
    return dx, dr, dw, db
