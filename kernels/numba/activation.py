"""y = act(x) and dx = dy act'(saved), element by element in storage order."""

import functools

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer
from .math import ROUNDED_LAMBD, activations


@functools.cache
def _fwd_kernel(act, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value = activations(f)[act]
    rounded = act in ROUNDED_LAMBD

    @kernel
    def _act_fwd_kernel(first, last, args, p0, p1):
        """y = act(x); a unit is an element."""
        x_ptr, y_ptr = pointer(args[0], store_t), pointer(args[1], store_t)
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for i in range(first, last):
            y_ptr[i] = store(value(load(x_ptr[i]), p0, p1))

    return _act_fwd_kernel


@functools.cache
def _bwd_kernel(act, dtype):
    store_t, f, load, store = STORAGE[dtype]
    gradient = activations(f)[act + "_grad"]
    rounded = act + "_grad" in ROUNDED_LAMBD

    @kernel
    def _act_bwd_kernel(first, last, args, p0, p1):
        """dx = dy act'(saved); a unit is an element."""
        dx_ptr, dy_ptr, saved_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
        )
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for i in range(first, last):
            dx_ptr[i] = store(gradient(load(dy_ptr[i]), load(saved_ptr[i]), p0, p1))

    return _act_bwd_kernel


def act_fwd(x, act, p0, p1):
    y = memory.empty_like(x)
    n = x.numel()
    launch(_fwd_kernel(act, x.dtype), n, n, (x.data_ptr(), y.data_ptr()), p0, p1)
    return y


def act_bwd(dy, saved, act, p0, p1):
    dx = memory.empty_like(dy)
    n = dy.numel()
    launch(_bwd_kernel(act, dy.dtype), n, n, (dx.data_ptr(), dy.data_ptr(), saved.data_ptr()), p0, p1)
    return dx
