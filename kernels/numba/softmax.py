"""softmax and log_softmax over the middle dimension of (outer, n, inner)."""

import functools
import math

import numpy as np
from numba import njit

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer, stack
from .math import EXP, bits, jit

BLOCK = 256  # terms of a sum added up before they join it: the error of a long row stays that of a short one
TILE = 64  # columns that are reduced side by side when inner > 1: 4 to 8 vectors, and their sums stay in L1


@njit(fastmath={"reassoc"}, forceinline=True)
def add(total, term):
    """A sum's step, in an order that the compiler may choose: only so is a sum vector code."""
    return total + term


@functools.cache
def _functions(f):
    whole = np.int32 if f is np.float32 else np.int64
    top, rest = (31, 0x7FFFFFFF) if f is np.float32 else (63, 0x7FFFFFFFFFFFFFFF)
    top, rest = whole(top), whole(rest)

    @jit
    def to_key(x):
        """A whole number with x's order: its maximum is vector code, the floats' with their NaN is not."""
        key = bits(x, whole)
        return whole(key ^ ((key >> top) & rest))

    @jit
    def from_key(key):
        return bits(whole(key ^ ((key >> top) & rest)), f)

    tiny = np.finfo(f).tiny

    @jit
    def flush(x):
        """Denormals as 0: they make a matrix product that reads them 25 times slower."""
        return f(0) if abs(x) < tiny else x

    return whole, to_key, from_key, flush


@functools.cache
def _fwd_kernel(log, dtype):
    store_t, f, load, store = STORAGE[dtype]
    exp = EXP[f]
    whole, to_key, from_key, _ = _functions(f)
    lowest = whole(to_key(f(-np.inf)))

    @kernel
    def _softmax_fwd_kernel(first, last, args, p0, p1):
        """y = exp(x - max) / sum, log: x - max - ln sum. A unit is a row of n elements."""
        x_ptr, y_ptr = pointer(args[0], store_t), pointer(args[1], store_t)
        n = args[2]
        for row in range(first, last):
            key = lowest
            for i in range(row * n, row * n + n):
                key = max(key, to_key(load(x_ptr[i])))
            highest = from_key(key)
            total = f(0)
            for start in range(row * n, row * n + n, BLOCK):
                part = f(0)
                for i in range(start, min(start + BLOCK, row * n + n)):
                    part = add(part, exp(load(x_ptr[i]) - highest))
                total += part
            if log:
                ln_total = f(math.log(total))
                for i in range(row * n, row * n + n):
                    y_ptr[i] = store((load(x_ptr[i]) - highest) - ln_total)
            else:
                for i in range(row * n, row * n + n):
                    y_ptr[i] = store(exp(load(x_ptr[i]) - highest) / total)

    return _softmax_fwd_kernel


@functools.cache
def _fwd_strided_kernel(log, dtype):
    store_t, f, load, store = STORAGE[dtype]
    exp = EXP[f]
    whole, to_key, from_key, _ = _functions(f)
    lowest = whole(to_key(f(-np.inf)))

    @kernel
    def _softmax_fwd_kernel(first, last, args, p0, p1):
        """The same down n rows of `inner` columns. A unit is a tile of TILE columns."""
        x_ptr, y_ptr = pointer(args[0], store_t), pointer(args[1], store_t)
        n, inner = args[2], args[3]
        tiles = (inner + TILE - 1) // TILE
        key, highest, total = stack(TILE, whole), stack(TILE, f), stack(TILE, f)
        for unit in range(first, last):
            column = unit % tiles * TILE
            width = min(TILE, inner - column)
            start = unit // tiles * n * inner + column
            for j in range(width):
                key[j] = lowest
                total[j] = f(0)
            for i in range(n):
                for j in range(width):
                    key[j] = max(key[j], to_key(load(x_ptr[start + i * inner + j])))
            for j in range(width):
                highest[j] = from_key(key[j])
            for i in range(n):
                for j in range(width):
                    total[j] += exp(load(x_ptr[start + i * inner + j]) - highest[j])
            if log:
                for j in range(width):
                    total[j] = math.log(total[j])
            for i in range(n):
                for j in range(width):
                    x = load(x_ptr[start + i * inner + j]) - highest[j]
                    y_ptr[start + i * inner + j] = store(x - total[j] if log else exp(x) / total[j])

    return _softmax_fwd_kernel


@functools.cache
def _bwd_kernel(log, dtype):
    store_t, f, load, store = STORAGE[dtype]
    exp = EXP[f]
    *_, flush = _functions(f)

    @kernel
    def _softmax_bwd_kernel(first, last, args, p0, p1):
        """dx = y (dy - sum(dy y)), log: dx = dy - exp(y) sum(dy). A unit is a row of n elements."""
        dx_ptr, dy_ptr, y_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
        )
        n = args[3]
        for row in range(first, last):
            total = f(0)
            for start in range(row * n, row * n + n, BLOCK):
                part = f(0)
                for i in range(start, min(start + BLOCK, row * n + n)):
                    part = add(part, load(dy_ptr[i]) if log else load(dy_ptr[i]) * load(y_ptr[i]))
                total += part
            for i in range(row * n, row * n + n):
                dy, y = load(dy_ptr[i]), load(y_ptr[i])
                dx_ptr[i] = store(flush(dy - exp(y) * total if log else y * (dy - total)))

    return _softmax_bwd_kernel


@functools.cache
def _bwd_strided_kernel(log, dtype):
    store_t, f, load, store = STORAGE[dtype]
    exp = EXP[f]
    *_, flush = _functions(f)

    @kernel
    def _softmax_bwd_kernel(first, last, args, p0, p1):
        """The same down n rows of `inner` columns. A unit is a tile of TILE columns."""
        dx_ptr, dy_ptr, y_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[2], store_t),
        )
        n, inner = args[3], args[4]
        tiles = (inner + TILE - 1) // TILE
        total = stack(TILE, f)
        for unit in range(first, last):
            column = unit % tiles * TILE
            width = min(TILE, inner - column)
            start = unit // tiles * n * inner + column
            for j in range(width):
                total[j] = f(0)
            for i in range(n):
                for j in range(width):
                    dy, y = load(dy_ptr[start + i * inner + j]), load(y_ptr[start + i * inner + j])
                    total[j] += dy if log else dy * y
            for i in range(n):
                for j in range(width):
                    dy, y = load(dy_ptr[start + i * inner + j]), load(y_ptr[start + i * inner + j])
                    dx = dy - exp(y) * total[j] if log else y * (dy - total[j])
                    dx_ptr[start + i * inner + j] = store(flush(dx))

    return _softmax_bwd_kernel


def _units(shape):
    outer, _, inner = shape
    return outer if inner == 1 else outer * -(-inner // TILE)


def softmax_fwd(x, log):
    y = memory.empty_like(x)
    _, n, inner = x.shape
    build = _fwd_kernel if inner == 1 else _fwd_strided_kernel
    launch(build(log, x.dtype), _units(x.shape), x.numel(), (x.data_ptr(), y.data_ptr(), n, inner))
    return y


def softmax_bwd(dy, y, log):
    dx = memory.empty_like(y)
    _, n, inner = y.shape
    build = _bwd_kernel if inner == 1 else _bwd_strided_kernel
    args = (dx.data_ptr(), dy.data_ptr(), y.data_ptr(), n, inner)
    launch(build(log, y.dtype), _units(y.shape), y.numel(), args)
    return dx
