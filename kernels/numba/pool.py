"""Max-pooling: each output takes the largest value of its window, each input collects from the outputs that took it."""

import functools
import math

import numpy as np
import torch
from numba import njit

from .. import memory
from ..pool import INDEX, lanes, unlaned, windows
from .arrays import STORAGE, kernel, launch, pointer, stack

PIECE = 128  # outputs, or inputs, that are worked on at once


@njit(forceinline=True, error_model="numpy")
def tap_at(i, start, dilation):
    """The tap by which a window that begins at `start` holds position i, or -1."""
    return (i - start) // dilation if (i - start) % dilation == 0 else -1


# What a table of int64 holds for the kernels, in this order.
(X, Y, CHOSEN, REACH, COVERS, LANES, D, H, W, OD, OH, OW, KH, KW, DD, DH, DW, FLAT) = range(18)


@functools.cache
def _fwd_kernel(dtype, single):
    """single: L = 1, and pieces are of outputs of a row; else of lanes."""
    store_t, f, load, store = STORAGE[dtype]

    @kernel
    def _max_pool_fwd_kernel(first, last, args, p0, p1):
        """y and index. A unit is a row of OW outputs."""
        a = pointer(args[0], np.int64)
        x_ptr, y_ptr, reach, L = (
            pointer(a[X], store_t),
            pointer(a[Y], store_t),
            pointer(a[REACH], np.int32),
            a[LANES],
        )
        tap_ptr, flat_ptr = pointer(a[CHOSEN], np.uint8), pointer(a[CHOSEN], np.int64)
        rd, rh, rw = 0, 3 * a[OD], 3 * (a[OD] + a[OH])
        best, choice = stack(PIECE, f), stack(PIECE, np.int64)
        pieces = 1 if single else (L + PIECE - 1) // PIECE
        step = PIECE if single else 1
        for row in range(first, last):
            oh, od, b = row % a[OH], row // a[OH] % a[OD], row // (a[OH] * a[OD])
            d, h = rd + 3 * od, rh + 3 * oh
            for ow in range(0, a[OW], step):
                for piece in range(pieces):
                    lane = piece * PIECE
                    width = min(PIECE, a[OW] - ow) if single else min(PIECE, L - lane)
                    w = rw + 3 * ow
                    earliest = (reach[d + 1] * a[KH] + reach[h + 1]) * a[KW]
                    for j in range(width):
                        best[j] = f(-math.inf)
                        choice[j] = earliest + reach[w + 3 * j + 1 if single else w + 1]
                    for p in range(reach[d + 1], reach[d + 2]):
                        for q in range(reach[h + 1], reach[h + 2]):
                            start = (b * a[D] + reach[d] + p * a[DD]) * a[H] + reach[h] + q * a[DH]
                            start *= a[W]
                            tap = (p * a[KH] + q) * a[KW]
                            for c in range(a[KW]):
                                if single:
                                    for j in range(width):
                                        r = w + 3 * j
                                        if reach[r + 1] <= c < reach[r + 2]:
                                            value = load(x_ptr[start + reach[r] + c * a[DW]])
                                            if (
                                                value > best[j] or value != value
                                            ):  # the last nan stays, as in torch
                                                best[j] = value
                                                choice[j] = tap + c
                                elif reach[w + 1] <= c < reach[w + 2]:
                                    at = (start + reach[w] + c * a[DW]) * L + lane
                                    for j in range(width):
                                        value = load(x_ptr[at + j])
                                        up = value > best[j] or value != value
                                        best[j] = value if up else best[j]
                                        choice[j] = tap + c if up else choice[j]
                    to = (row * a[OW] + ow) * L + lane
                    for j in range(width):
                        y_ptr[to + j] = store(best[j])
                        if a[FLAT] != 0:
                            taken = choice[j]
                            at_d = reach[d] + taken // (a[KW] * a[KH]) * a[DD]
                            at_h = reach[h] + taken // a[KW] % a[KH] * a[DH]
                            at_w = reach[w + 3 * j if single else w] + taken % a[KW] * a[DW]
                            flat_ptr[to + j] = (at_d * a[H] + at_h) * a[W] + at_w
                        elif a[CHOSEN] != 0:
                            tap_ptr[to + j] = choice[j]

    return _max_pool_fwd_kernel


@functools.cache
def _bwd_kernel(dtype, flat, single):
    store_t, f, load, store = STORAGE[dtype]
    index_t = np.int64 if flat else np.uint8

    @kernel
    def _max_pool_bwd_kernel(first, last, args, p0, p1):
        """dx. A unit is a row of W inputs."""
        a = pointer(args[0], np.int64)
        dy_ptr, dx_ptr, index_ptr = (
            pointer(a[X], store_t),
            pointer(a[Y], store_t),
            pointer(a[CHOSEN], index_t),
        )
        reach, covers, L = pointer(a[REACH], np.int32), pointer(a[COVERS], np.int32), a[LANES]
        rh, rw = 3 * a[OD], 3 * (a[OD] + a[OH])
        total = stack(PIECE, f)
        pieces = 1 if single else (L + PIECE - 1) // PIECE
        step = PIECE if single else 1
        for row in range(first, last):
            h, d, b = row % a[H], row // a[H] % a[D], row // (a[H] * a[D])
            cd, ch = 2 * d, 2 * (a[D] + h)
            for w in range(0, a[W], step):
                for piece in range(pieces):
                    lane = piece * PIECE
                    width = min(PIECE, a[W] - w) if single else min(PIECE, L - lane)
                    cw = 2 * (a[D] + a[H] + w)
                    for j in range(width):
                        total[j] = f(0)
                    for od in range(covers[cd], covers[cd + 1]):
                        p = tap_at(d, reach[3 * od], a[DD])
                        for oh in range(covers[ch], covers[ch + 1]):
                            q = tap_at(h, reach[rh + 3 * oh], a[DH])
                            if p < 0 or q < 0:
                                continue
                            start = ((b * a[OD] + od) * a[OH] + oh) * a[OW]
                            tap = (p * a[KH] + q) * a[KW]
                            for j in range(width if single else 1):
                                flat_at = (d * a[H] + h) * a[W] + w + j
                                for ow in range(covers[cw + 2 * j], covers[cw + 2 * j + 1]):
                                    c = tap_at(w + j, reach[rw + 3 * ow], a[DW])
                                    own = flat_at if flat else tap + c
                                    if c < 0:
                                        continue
                                    at = (start + ow) * L + lane
                                    if single:
                                        if index_ptr[at] == own:
                                            total[j] += load(dy_ptr[at])
                                    else:
                                        for k in range(width):
                                            dy = load(dy_ptr[at + k])
                                            total[k] += dy if index_ptr[at + k] == own else f(0)
                    to = (row * a[W] + w) * L + lane
                    for j in range(width):
                        dx_ptr[to + j] = store(total[j])

    return _max_pool_bwd_kernel


def _table(x, y, index, size, out, w):
    """The kernels' table for tensors of (B, ..., L)."""
    addresses = [0 if t is None else t.data_ptr() for t in (x, y, index, w.reach, w.covers)]
    flat = index is not None and index.dtype == torch.int64
    return torch.tensor([*addresses, x.shape[4], *size, *out, *w.kernel[1:], *w.dilation, flat])


def max_pool_fwd(x, out, kernel, stride, padding, dilation, index, last):
    channels, size = x.shape[1], tuple(x.shape[2:])
    w = windows(size, tuple(out), *map(tuple, (kernel, stride, padding, dilation)), x.device)
    x = lanes(x, last)
    shape = (x.shape[0], *out, x.shape[4])
    y = memory.empty(shape, x.dtype)
    chosen = None if index == "none" else memory.empty(shape, INDEX[index])
    table = _table(x, y, chosen, size, out, w)
    build = _fwd_kernel(x.dtype, x.shape[4] == 1)
    launch(build, shape[0] * shape[1] * shape[2], y.numel(), (table.data_ptr(),))
    return unlaned(y, channels, last), None if chosen is None else unlaned(chosen, channels, last)


def max_pool_bwd(dy, index, size, kernel, stride, padding, dilation, last):
    channels, out = dy.shape[1], tuple(dy.shape[2:])
    w = windows(tuple(size), out, *map(tuple, (kernel, stride, padding, dilation)), dy.device)
    dy, index = lanes(dy, last), lanes(index, last)
    dx = memory.empty((dy.shape[0], *size, dy.shape[4]), dy.dtype)
    table = _table(dy, dx, index, size, out, w)
    build = _bwd_kernel(dy.dtype, index.dtype == torch.int64, dy.shape[4] == 1)
    launch(build, dx.shape[0] * dx.shape[1] * dx.shape[2], dx.numel(), (table.data_ptr(),))
    return unlaned(dx, channels, last)
