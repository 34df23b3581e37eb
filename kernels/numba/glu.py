"""Gated activations: y = act(gate) * up over rows of adjacent elements."""

import functools

import numpy as np

from ..gated import launchers, size
from .arrays import STORAGE, kernel, launch, pointer
from .math import activations

TILE = 4096  # columns a unit takes


@functools.cache
def _fwd_kernel(act, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value = activations(f)[act]

    @kernel
    def _glu_fwd_kernel(first, last, args, p0, p1):
        """y = act(gate) up. A unit is TILE columns of a row."""
        N, stride_gate, stride_up, stride_y = args[3], args[4], args[5], args[6]
        tiles = (N + TILE - 1) // TILE
        for unit in range(first, last):
            row, start = unit // tiles, unit % tiles * TILE
            gate_ptr = pointer(args[0] + row * stride_gate, store_t)
            up_ptr = pointer(args[1] + row * stride_up, store_t)
            y_ptr = pointer(args[2] + row * stride_y, store_t)
            for i in range(start, min(start + TILE, N)):
                y_ptr[i] = store(value(load(gate_ptr[i]), f(0), f(0)) * load(up_ptr[i]))

    return _glu_fwd_kernel


@functools.cache
def _bwd_kernel(act, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value, gradient = activations(f)[act], activations(f)[act + "_grad"]
    from_output = act == "sigmoid"

    @kernel
    def _glu_bwd_kernel(first, last, args, p0, p1):
        """dup = dy act(gate), dgate = dy up act'(gate). A unit is TILE columns of a row."""
        strides, N = pointer(args[5], np.int64), args[6]
        tiles = (N + TILE - 1) // TILE
        for unit in range(first, last):
            row, start = unit // tiles, unit % tiles * TILE
            dy_ptr = pointer(args[0] + row * strides[0], store_t)
            gate_ptr = pointer(args[1] + row * strides[1], store_t)
            up_ptr = pointer(args[2] + row * strides[2], store_t)
            dgate_ptr = pointer(args[3] + row * strides[3], store_t)
            dup_ptr = pointer(args[4] + row * strides[4], store_t)
            for i in range(start, min(start + TILE, N)):
                dy, gate = load(dy_ptr[i]), load(gate_ptr[i])
                v = value(gate, f(0), f(0))
                dgate = gradient(dy * load(up_ptr[i]), v if from_output else gate, f(0), f(0))
                dup_ptr[i] = store(dy * v)
                dgate_ptr[i] = store(dgate)

    return _glu_bwd_kernel


def _bytes(*tensors):
    return [t.stride(0) * t.elementsize() for t in tensors]


def _addresses(*tensors):
    return [t.data_ptr() for t in tensors]


def _fwd(gate, up, y, act):
    M, N = size(gate, up, y)
    args = (*_addresses(gate, up, y), N, *_bytes(gate, up, y))
    launch(_fwd_kernel(act, y.dtype), M * -(-N // TILE), M * N, args)


def _bwd(dy, gate, up, dgate, dup, act):
    tensors = (dy, gate, up, dgate, dup)
    M, N = size(*tensors)
    strides = np.array(_bytes(*tensors), dtype=np.int64)
    args = (*_addresses(*tensors), strides.ctypes.data, N)
    launch(_bwd_kernel(act, dy.dtype), M * -(-N // TILE), M * N, args)


glu_fwd, glu_bwd, glu_split_fwd, glu_split_bwd = launchers(_fwd, _bwd)
