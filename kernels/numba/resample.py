"""Averages, interpolation and their transposes: sums over a few weighted inputs, in float64."""

import functools

import numpy as np
import torch
from numba import njit

from .. import memory
from ..pool import lanes, unlaned, weights
from .arrays import STORAGE, kernel, launch, pointer, stack

PIECE = 128  # outputs that are worked on at once

# What a table of int64 holds for the kernel, in this order.
(X, Y, TABLE, WEIGHTS, DIVISORS, LANES, D, H, W, OD, OH, OW) = range(12)


@njit(forceinline=True)
def inside(i, size):
    return min(i, size - 1)


@functools.cache
def _kernel(dtype, single):
    """single: L = 1, and pieces are of outputs of a row; else of lanes."""
    store_t, f, load, store = STORAGE[dtype]

    @kernel
    def _resample_kernel(first, last, args, p0, p1):
        """y. A unit is a row of OW outputs."""
        a = pointer(args[0], np.int64)
        x_ptr, y_ptr, table = pointer(a[X], store_t), pointer(a[Y], store_t), pointer(a[TABLE], np.int32)
        by, divisors, L = pointer(a[WEIGHTS], f), pointer(a[DIVISORS], f), a[LANES]
        th, tw = 3 * a[OD], 3 * (a[OD] + a[OH])
        total = stack(PIECE, np.float64)
        pieces = 1 if single else (L + PIECE - 1) // PIECE
        step = PIECE if single else 1
        for row in range(first, last):
            oh, od, b = row % a[OH], row // a[OH] % a[OD], row // (a[OH] * a[OD])
            d, h = 3 * od, th + 3 * oh
            for ow in range(0, a[OW], step):
                for piece in range(pieces):
                    lane = piece * PIECE
                    width = min(PIECE, a[OW] - ow) if single else min(PIECE, L - lane)
                    for j in range(width):
                        total[j] = 0.0
                    for p in range(table[d + 1]):
                        for q in range(table[h + 1]):
                            outer = by[table[d + 2] + p] * by[table[h + 2] + q]
                            start = (b * a[D] + inside(table[d] + p, a[D])) * a[H] + inside(
                                table[h] + q, a[H]
                            )
                            start *= a[W]
                            for j in range(width if single else 1):
                                w = tw + 3 * (ow + j)
                                for c in range(table[w + 1]):
                                    weight = outer * by[table[w + 2] + c]
                                    at = (start + inside(table[w] + c, a[W])) * L + lane
                                    if single:
                                        total[j] += weight * load(x_ptr[at])
                                    else:
                                        for k in range(width):
                                            total[k] += weight * load(x_ptr[at + k])
                    to = (row * a[OW] + ow) * L + lane
                    for j in range(width):
                        y = total[j]
                        if a[DIVISORS] != 0:
                            w = a[OD] + a[OH] + (ow + j if single else ow)
                            y /= divisors[od] * divisors[a[OD] + oh] * divisors[w]
                        y_ptr[to + j] = store(f(y))

    return _resample_kernel


def resample(x, out, mode, shape, divisor, scales, transposed, last):
    channels, size = x.shape[1], tuple(x.shape[2:])
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    ends = (tuple(out), size) if transposed else (size, tuple(out))
    w = weights(mode, *ends, tuple(shape), divisor, tuple(scales), transposed, acc, x.device)
    x = lanes(x, last)
    y = memory.empty((x.shape[0], *out, x.shape[4]), x.dtype)
    addresses = [0 if t is None else t.data_ptr() for t in (x, y, w.table, w.weights, w.divisors)]
    table = torch.tensor([*addresses, x.shape[4], *size, *out])
    launch(
        _kernel(x.dtype, x.shape[4] == 1),
        y.shape[0] * y.shape[1] * y.shape[2],
        y.numel(),
        (table.data_ptr(),),
    )
    return unlaned(y, channels, last)
