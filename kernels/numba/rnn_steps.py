"""What the phases of a recurrent step are made of: the product, and loops over a row's elements.

A phase finds in its row of the table (arrays.py) addresses, 0 for what is not there, and sizes. States, products and
sums have one row a sequence, all else a row a step; rnn.py gives float32 or float64. A loop has few pointers: beyond 8
pairs that might overlap it is no vector code.
"""

import functools
import math
from collections import namedtuple

from numba import njit

from .arrays import ARGS, ROW, ROWS, STORAGE, kernel, pointer
from .math import activations, jit
from .norm import BLOCK, add, sums_of
from .softmax import _functions

COLUMNS = 4  # of a product's unit

# A product's places in its row of the table, and those of all other phases.
X, W, Y, MASK, ADDED, LDX, LDY, SEGMENTS, LENGTH, STRIDE, HEADS, HEAD_X, GROUP = range(ARGS, ARGS + 13)
(
    HIDDEN, FEATURES, TILE, GX, GH, STATE, MASKED, CELL, H_NEW, C_NEW, U, NORMAL, B_HN, PEEPHOLE, LN_WEIGHT,
    LN_CELL, H_MASK, ZONE_H, ZONE_C, OUT, GATES, CELLS, SAVED_GH, RSTD, PROJECTED, RELU, H0, C0, DOUT, DH,
    DH_NEW, SAVED_DH_NEW, DM, DC, DC_NEW, D, DGX, DGH, COLUMNS_GH,
) = range(ARGS, ARGS + 39)  # fmt: skip

# only kernels call these: without wrappers for Python and C they compile in three quarters of the time
loop = njit(
    fastmath={"contract"}, error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@functools.cache
def product_kernel(dtype):
    """dtype: of w; the rest is float32 where w has 16 bits."""
    store_t, f, load, _ = STORAGE[dtype]

    @jit
    def put(args, b, column, total):
        y, at = pointer(args[Y], f), b * args[LDY] + column
        if args[MASK] != 0:
            total *= pointer(args[MASK], f)[at]
        y[at] = y[at] + total if args[ADDED] != 0 else total

    @kernel
    def _rnn_product_kernel(first, last, args, p0, p1):
        """y = x wᵀ for the step's n rows, times a mask, added to y or not.

        y's columns come in groups of GROUP, each of a head, which reads x from head * HEAD_X on in SEGMENTS of LENGTH
        that are STRIDE apart; a row of w is those without gaps. A unit is COLUMNS of a group, done 2 rows at a time.
        """
        x, w = pointer(args[X], f), pointer(args[W], store_t)
        n, ldx, segments, length, stride, size = (
            args[ROWS], args[LDX], args[SEGMENTS], args[LENGTH], args[STRIDE], args[GROUP]
        )  # fmt: skip
        K = segments * length
        units = (size + COLUMNS - 1) // COLUMNS
        for unit in range(first, last):
            head_x = unit // units % args[HEADS] * args[HEAD_X]
            start = unit % units * COLUMNS
            width = min(COLUMNS, size - start)
            start += unit // units * size
            pairs = n // 2 if width == COLUMNS else 0
            w0, w1, w2, w3 = start * K, start * K + K, start * K + 2 * K, start * K + 3 * K
            for pair in range(pairs):
                b = 2 * pair
                s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = f(0)
                for segment in range(segments):
                    at = segment * length
                    x0 = b * ldx + head_x + segment * stride
                    x1 = x0 + ldx
                    for k in range(length):
                        u0, u1 = x[x0 + k], x[x1 + k]
                        v0, v1 = load(w[w0 + at + k]), load(w[w1 + at + k])
                        v2, v3 = load(w[w2 + at + k]), load(w[w3 + at + k])
                        s00, s01, s02, s03 = (
                            add(s00, u0 * v0), add(s01, u0 * v1), add(s02, u0 * v2), add(s03, u0 * v3)
                        )  # fmt: skip
                        s10, s11, s12, s13 = (
                            add(s10, u1 * v0), add(s11, u1 * v1), add(s12, u1 * v2), add(s13, u1 * v3)
                        )  # fmt: skip
                put(args, b, start, s00)
                put(args, b, start + 1, s01)
                put(args, b, start + 2, s02)
                put(args, b, start + 3, s03)
                put(args, b + 1, start, s10)
                put(args, b + 1, start + 1, s11)
                put(args, b + 1, start + 2, s12)
                put(args, b + 1, start + 3, s13)
            for b in range(2 * pairs, n):
                for column in range(start, start + width):
                    total = f(0)
                    for segment in range(segments):
                        at, x0 = column * K + segment * length, b * ldx + head_x + segment * stride
                        for k in range(length):
                            total = add(total, x[x0 + k] * load(w[at + k]))
                    put(args, b, column, total)

    return _rnn_product_kernel


Loops = namedtuple("Loops", "sigmoid tanh relu save settle fused normalise finish begin")


@functools.cache
def loops(dtype):
    """The loops that phases share: over n elements, from their own places in each pointer."""
    f = STORAGE[dtype][1]
    table, flush = activations(f), _functions(f)[3]
    sigmoid_of, tanh_of, relu_of = table["sigmoid"], table["tanh"], table["relu"]
    mean_of, squares_of = sums_of(dtype)

    @loop
    def sigmoid(gh, at, gx, from_, n):
        """gh = sigmoid(gx + gh)"""
        for j in range(n):
            gh[at + j] = sigmoid_of(gx[from_ + j] + gh[at + j], f(0), f(0))

    @loop
    def tanh(gh, at, gx, from_, n):
        for j in range(n):
            gh[at + j] = tanh_of(gx[from_ + j] + gh[at + j], f(0), f(0))

    @loop
    def relu(gh, at, gx, from_, n):
        for j in range(n):
            gh[at + j] = relu_of(gx[from_ + j] + gh[at + j], f(0), f(0))

    @loop
    def save(y, to, x, at, n):
        for j in range(n):
            y[to + j] = x[at + j]

    @loop
    def settle(y, to, x, at, n):
        """The gradient x without denormals, which would slow the products that read it, and a copy in y."""
        for j in range(n):
            x[at + j] = flush(x[at + j])
        for j in range(n):
            y[to + j] = x[at + j]

    @loop
    def fused(y, at, a, from_a, b, from_b, n):
        """y += a b"""
        for j in range(n):
            y[at + j] += a[from_a + j] * b[from_b + j]

    @loop
    def normalise(y, at, x, from_, n, eps):
        """y = (x - mean) rstd; the result is rstd."""
        mean = f(mean_of(x, from_, n))
        rstd = f(1.0 / math.sqrt(squares_of(x, from_, n, mean) + eps))
        for j in range(n):
            y[at + j] = (x[from_ + j] - mean) * rstd
        return rstd

    @loop
    def finish(args, b, start, n):
        """h~ becomes h: zoneout, the output's rounding, and the mask of what the next product reads."""
        P = args[FEATURES]
        at, to = b * P + start, (args[ROW] + b) * P + start
        h_new, h, out = pointer(args[H_NEW], f), pointer(args[STATE], f), pointer(args[OUT], f)
        if args[ZONE_H] != 0:
            zone = pointer(args[ZONE_H], f)
            for j in range(n):
                keep = zone[to + j]
                h_new[at + j] = keep * h[at + j] + (f(1) - keep) * h_new[at + j]
        save(out, to, h_new, at, n)
        for j in range(n):
            h[at + j] = out[to + j]
        if args[H_MASK] != 0:
            masked, mask = pointer(args[MASKED], f), pointer(args[H_MASK], f)
            for j in range(n):
                masked[at + j] = h[at + j] * mask[at + j]

    @loop
    def begin(args, b, start, n):
        """From dh, of h_t: dh_new, of h~, and what zoneout passes on, as the dh of the step before."""
        P = args[FEATURES]
        at, to = b * P + start, (args[ROW] + b) * P + start
        dh, dh_new = pointer(args[DH], f), pointer(args[DH_NEW], f)
        if args[DOUT] != 0:
            dout = pointer(args[DOUT], f)
            for j in range(n):
                dh[at + j] += dout[to + j]
        if args[ZONE_H] != 0:
            zone = pointer(args[ZONE_H], f)
            for j in range(n):
                keep = zone[to + j]
                dh_new[at + j] = (f(1) - keep) * dh[at + j]
                dh[at + j] = keep * dh[at + j]
        else:
            for j in range(n):
                dh_new[at + j] = dh[at + j]
                dh[at + j] = f(0)
        if args[SAVED_DH_NEW] != 0:
            settle(pointer(args[SAVED_DH_NEW], f), to, dh_new, at, n)

    return Loops(sigmoid, tanh, relu, save, settle, fused, normalise, finish, begin)


@functools.cache
def normalise_grad(dtype):
    f = STORAGE[dtype][1]

    @loop
    def normalise_grad(d, at, normal, from_, weight, start, rstd, n):
        """d, the gradient of weight * x̂, becomes that of x."""
        d_total, dx_total = 0.0, 0.0
        for j in range(n):
            d[at + j] *= weight[start + j]
        for first in range(0, n, BLOCK):
            d_part, dx_part = f(0), f(0)
            for j in range(first, min(first + BLOCK, n)):
                d_part = add(d_part, d[at + j])
                dx_part = add(dx_part, d[at + j] * normal[from_ + j])
            d_total += d_part
            dx_total += dx_part
        d_mean, dx_mean = f(d_total / n), f(dx_total / n)
        for j in range(n):
            d[at + j] = rstd * (d[at + j] - d_mean - normal[from_ + j] * dx_mean)

    return normalise_grad
