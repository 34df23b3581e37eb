"""Convolution: blocks of columns (im2col) times the weights by torch.mm, a pass over each product while it is warm; a
direct kernel where each channel has a filter of its own.

Everything is computed with channels innermost; tensors in the order (N, C, D, H, W) are copied to it and back. The
gradient to the input is a convolution too: of dz with stride - 1 zeros between its elements, by the filters turned
around. 16-bit operands are widened where the columns are made, so that sums are float32 and rounded once.
"""

import functools

import numpy as np
import torch

from .. import memory
from ..conv import channels_first, depthwise, ordered
from ..product import products
from .arrays import STORAGE, kernel, launch, pointer, stack
from .math import ROUNDED_LAMBD, activations, jit

# Elements of a block of columns: 4 MB of float32.
COLUMNS = 1 << 20
CHANNELS = 64  # that a direct kernel sums at once: a literal, as the sums lie on its stack
PARTS = 64  # the most sums of depthwise weight gradients of their own


def conv_fwd(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """z = conv(x, w) + b + residual, y = act(z): y and z, or None where not saved."""
    taps = (size, stride, [1, 1, 1], padding, dilation)
    behind = (b, residual, act, p0, p1, save_z and act != "none")
    return _convolution(x, w, taps, groups, behind)


def conv_bwd_input(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """The same with the gradient that a convolution has to its input in the convolution's place."""
    O, *kernel_size, C = w.shape
    turned = w.reshape(groups, O // groups, *kernel_size, C).flip(2, 3, 4).permute(0, 5, 2, 3, 4, 1)
    front = [d * (k - 1) - p for d, k, p in zip(dilation, kernel_size, padding, strict=True)]
    taps = (size, [1, 1, 1], stride, front, dilation)
    behind = (b, residual, act, p0, p1, save_z and act != "none")
    return _convolution(dz, turned.reshape(groups * C, *kernel_size, O // groups), taps, groups, behind)


def conv_bwd_weight(dz, x, kernel, stride, padding, dilation, groups, need_db):
    """dw (O, *kernel, C / groups), and db (O,) where needed."""
    first, O, C = channels_first(x), dz.shape[4], x.shape[4]
    dz, x = dz.contiguous(), x.contiguous()
    taps = (dz.shape[1:4], stride, [1, 1, 1], padding, dilation)
    if groups == C == O:
        dw, db = _depthwise_weight(dz, x, kernel, taps)
    else:
        dw, db = _dense_weight(dz, x, kernel, taps, groups)
    return ordered(dw.to(x.dtype), first), db.to(x.dtype) if need_db else None


def _accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _convolution(x, w, taps, groups, behind):
    """taps: y's size; then of u, which is x with up - 1 zeros between its elements: step, up, padding in front and
    dilation, so that y[i] sees u[step i - padding + dilation t]."""
    b, residual, act, p0, p1, save_z = behind
    first = channels_first(x)
    x = x.contiguous()
    z = memory.empty((x.shape[0], *taps[0], w.shape[0]), x.dtype)
    y = memory.empty_like(z) if save_z else z
    b = torch.full((w.shape[0],), -0.0, dtype=x.dtype) if b is None else b.contiguous()  # z + -0.0 is z
    residual = None if residual is None else residual.contiguous()
    finish = functools.partial(_finish, z, y, b, residual, act, p0, p1, save_z)
    if depthwise(w, x.shape[4], groups):
        _depthwise(x, w, taps, finish)
    else:
        _dense(x, w, taps, groups, finish)
    return ordered(y, first), ordered(z, first) if save_z else None


# ---- the product by columns


def _padded(x, kernel_size, taps):
    """u with its padding, as far as the taps reach: x itself where that is all of it."""
    pieces, length = [], []
    for n, k, o, step, up, p, d in zip(x.shape[1:4], kernel_size, *taps, strict=True):
        reach = (o - 1) * step + d * (k - 1) + 1
        begin = -(-max(0, -p) // up)
        end = max(begin, min(n, (reach - p + up - 1) // up))
        pieces.append((slice(begin, end), slice(begin * up + p, max(0, (end - 1) * up + p + 1), up)))
        length.append(reach)
    if list(x.shape[1:4]) == length and all(
        i == (slice(0, n), slice(0, n, 1)) for i, n in zip(pieces, length, strict=True)
    ):
        return x
    u = memory.empty((x.shape[0], *length, x.shape[4]), x.dtype).zero_()
    if all(source.stop > source.start for source, _ in pieces):
        (d, to_d), (h, to_h), (w, to_w) = pieces
        u[:, to_d, to_h, to_w].copy_(x[:, d, h, w])
    return u


def _blocks(N, size, columns):
    """Contiguous parts of the outputs (n, d, h, w), as slices, of at most COLUMNS elements of columns."""
    D, H, W = size
    whole = slice(None)
    if D * H * W * columns <= COLUMNS:
        step = max(1, COLUMNS // (D * H * W * columns))
        for n in range(0, N, step):
            yield slice(n, n + step), whole, whole, whole
        return
    rows = COLUMNS // (W * columns)
    step = W if rows else max(1, COLUMNS // columns)
    for n in range(N):
        for d in range(D):
            for h in range(0, H, max(1, rows)):
                for w in range(0, W, step):
                    yield slice(n, n + 1), slice(d, d + 1), slice(h, h + max(1, rows)), slice(w, w + step)


def _columns(x, kernel_size, taps, groups):
    """((rows' part, columns (groups, rows, taps C / groups)), ...) of all outputs, in the accumulator's dtype. A block
    lives until the next is asked for."""
    size, step, _, _, dilation = taps
    u = _padded(x, kernel_size, taps)
    N, C, acc = x.shape[0], x.shape[4], _accumulator(x.dtype)
    n, *strides, c = u.stride()
    outputs = [a * i for a, i in zip(strides, step, strict=True)]
    between = [a * i for a, i in zip(strides, dilation, strict=True)]
    seen = u.as_strided(
        (N, *size, groups, *kernel_size, C // groups), (n, *outputs, C // groups, *between, c)
    )
    K = C // groups * kernel_size[0] * kernel_size[1] * kernel_size[2]
    for block in _blocks(N, size, groups * K):
        part = seen[block].permute(4, 0, 1, 2, 3, 5, 6, 7, 8)
        columns = memory.workspace(part.shape, acc).copy_(part)
        yield block, columns.view(groups, -1, K)


def _dense(x, w, taps, groups, finish):
    O, *kernel_size, _ = w.shape
    acc = _accumulator(x.dtype)
    by = w.reshape(groups, O // groups, -1).to(acc).mT
    row = 0
    for _, columns in _columns(x, kernel_size, taps, groups):
        product = torch.bmm(columns, by) if groups > 1 else products.matmul(columns[0], by[0])
        rows = columns.shape[1]
        if groups > 1:
            product = product.transpose(0, 1).reshape(rows, O).contiguous()
        finish(product, row, rows)
        row += rows


def _dense_weight(dz, x, kernel_size, taps, groups):
    O, acc = dz.shape[4], _accumulator(x.dtype)
    db = torch.zeros(O, dtype=acc)
    dw = None
    for block, columns in _columns(x, kernel_size, taps, groups):
        part = dz[block].reshape(-1, groups, O // groups).to(acc)
        share = torch.bmm(columns.mT, part.transpose(0, 1))
        dw = share if dw is None else dw.add_(share)
        db += part.sum(0).view(-1)
    return dw.mT.reshape(O, *kernel_size, -1), db


# ---- kernels


@functools.cache
def _finish_kernel(act, has_residual, save_z, dtype):
    store_t, f, load, store = STORAGE[dtype]
    value = activations(f)[act]
    rounded = act in ROUNDED_LAMBD

    @kernel
    def _conv_finish_kernel(first, last, args, p0, p1):
        """z = product + b + residual, y = act(z). A unit is a row of N channels; those of the product are z's from
        `row` on."""
        product_ptr, b_ptr = pointer(args[0], f), pointer(args[3], store_t)
        z_ptr, y_ptr, r_ptr = pointer(args[1], store_t), pointer(args[2], store_t), pointer(args[4], store_t)
        N, row = args[5], args[6]
        p0 = load(store(f(p0))) if rounded else f(p0)
        p1 = f(p1)
        for m in range(first, last):
            for n in range(N):
                z = product_ptr[m * N + n] + load(b_ptr[n])
                if has_residual:
                    z += load(r_ptr[(row + m) * N + n])
                if save_z:
                    z_ptr[(row + m) * N + n] = store(z)
                y_ptr[(row + m) * N + n] = store(value(z, p0, p1))

    return _conv_finish_kernel


def _finish(z, y, b, residual, act, p0, p1, save_z, product, row, rows):
    """Rows row ... row + rows - 1 of the results, from their product in the accumulator's dtype."""
    N = z.shape[-1]
    kernel = _finish_kernel(act, residual is not None, save_z, z.dtype)
    address = 0 if residual is None else residual.data_ptr()
    args = (product.data_ptr(), z.data_ptr(), y.data_ptr(), b.data_ptr(), address, N, row)
    launch(kernel, rows, rows * N, args, p0, p1)


# A direct kernel's problem: sizes, and for each dimension _GROUP numbers more, from _DIMS on.
_CHANNELS, _DIMS = 0, 1
_IN, _OUT, _TAPS, _STEP, _UP, _PADDING, _DILATION, _GROUP = range(8)


def _problem(x, kernel_size, taps):
    dims = zip(x.shape[1:4], taps[0], kernel_size, *taps[1:], strict=True)
    return np.array([x.shape[4], *(v for dim in dims for v in dim)], np.int64)


@jit
def _tap(problem, dim, i, t):
    """Where in x, along a dimension, tap t of output i lies, or -1."""
    at = _DIMS + dim * _GROUP
    q = i * problem[at + _STEP] - problem[at + _PADDING] + t * problem[at + _DILATION]
    up = problem[at + _UP]
    if q < 0 or q % up:
        return -1
    return q // up if q // up < problem[at + _IN] else -1


@jit
def _pixel(problem, row):
    """(n, d, h, w) of an output."""
    D, H, W = problem[_DIMS + _OUT], problem[_DIMS + _GROUP + _OUT], problem[_DIMS + 2 * _GROUP + _OUT]
    return row // (W * H * D), row // (W * H) % D, row // W % H, row % W


@functools.cache
def _direct_kernel(dtype):
    store_t, f, load, _ = STORAGE[dtype]

    @kernel
    def _depthwise_fwd_kernel(first, last, args, p0, p1):
        """product[m, c] = sum over taps of w[t, c] x[..., c]. A unit is an output's row of channels."""
        product_ptr, x_ptr = pointer(args[0], f), pointer(args[1], store_t)
        w_ptr, problem, row = pointer(args[2], f), pointer(args[3], np.int64), args[4]
        C, acc = problem[_CHANNELS], stack(CHANNELS, f)
        D, H, W = problem[_DIMS + _IN], problem[_DIMS + _GROUP + _IN], problem[_DIMS + 2 * _GROUP + _IN]
        taps_d, taps_h = problem[_DIMS + _TAPS], problem[_DIMS + _GROUP + _TAPS]
        taps_w = problem[_DIMS + 2 * _GROUP + _TAPS]
        for m in range(first, last):
            n, d, h, w = _pixel(problem, row + m)
            for c0 in range(0, C, CHANNELS):
                channels = min(CHANNELS, C - c0)
                for c in range(channels):
                    acc[c] = f(0)
                for i in range(taps_d):
                    xd = _tap(problem, 0, d, i)
                    for j in range(taps_h if xd >= 0 else 0):
                        xh = _tap(problem, 1, h, j)
                        for k in range(taps_w if xh >= 0 else 0):
                            xw = _tap(problem, 2, w, k)
                            if xw >= 0:
                                at = (((n * D + xd) * H + xh) * W + xw) * C + c0
                                by = ((i * taps_h + j) * taps_w + k) * C + c0
                                for c in range(channels):
                                    acc[c] += w_ptr[by + c] * load(x_ptr[at + c])
                for c in range(channels):
                    product_ptr[m * C + c0 + c] = acc[c]

    return _depthwise_fwd_kernel


def _depthwise(x, w, taps, finish):
    C, kernel_size = x.shape[4], w.shape[1:4]
    acc = _accumulator(x.dtype)
    by = w.reshape(C, -1).t().contiguous().to(acc)
    problem = _problem(x, kernel_size, taps)
    N, (D, H, W) = x.shape[0], taps[0]
    rows, step = N * D * H * W, max(1, COLUMNS // C)
    for row in range(0, rows, step):
        product = memory.workspace((min(step, rows - row), C), acc)
        args = (product.data_ptr(), x.data_ptr(), by.data_ptr(), problem.ctypes.data, row)
        launch(_direct_kernel(x.dtype), len(product), product.numel() * by.shape[0], args)
        finish(product, row, len(product))


@functools.cache
def _direct_weight_kernel(dtype):
    store_t, f, load, _ = STORAGE[dtype]

    @kernel
    def _depthwise_bwd_weight_kernel(first, last, args, p0, p1):
        """sums[part] (taps + 1, C) = sum of dz x over a part's outputs, and of dz. A unit is a part."""
        sums_ptr, dz_ptr, x_ptr = pointer(args[0], f), pointer(args[1], store_t), pointer(args[2], store_t)
        problem, parts, rows = pointer(args[3], np.int64), args[4], args[5]
        C = problem[_CHANNELS]
        D, H, W = problem[_DIMS + _IN], problem[_DIMS + _GROUP + _IN], problem[_DIMS + 2 * _GROUP + _IN]
        taps_d, taps_h = problem[_DIMS + _TAPS], problem[_DIMS + _GROUP + _TAPS]
        taps_w = problem[_DIMS + 2 * _GROUP + _TAPS]
        taps = taps_d * taps_h * taps_w
        for part in range(first, last):
            own = part * (taps + 1) * C
            for c in range((taps + 1) * C):
                sums_ptr[own + c] = f(0)
            for m in range(part * rows // parts, (part + 1) * rows // parts):
                n, d, h, w = _pixel(problem, m)
                for c in range(C):
                    sums_ptr[own + taps * C + c] += load(dz_ptr[m * C + c])
                for i in range(taps_d):
                    xd = _tap(problem, 0, d, i)
                    for j in range(taps_h if xd >= 0 else 0):
                        xh = _tap(problem, 1, h, j)
                        for k in range(taps_w if xh >= 0 else 0):
                            xw = _tap(problem, 2, w, k)
                            if xw >= 0:
                                at = (((n * D + xd) * H + xh) * W + xw) * C
                                to = own + ((i * taps_h + j) * taps_w + k) * C
                                for c in range(C):
                                    sums_ptr[to + c] += load(dz_ptr[m * C + c]) * load(x_ptr[at + c])

    return _depthwise_bwd_weight_kernel


def _depthwise_weight(dz, x, kernel_size, taps):
    C, rows = x.shape[4], dz.shape[:4].numel()
    count, parts = kernel_size[0] * kernel_size[1] * kernel_size[2], min(PARTS, rows)
    sums = memory.workspace((parts, count + 1, C), _accumulator(x.dtype))
    problem = _problem(x, kernel_size, taps)
    args = (sums.data_ptr(), dz.data_ptr(), x.data_ptr(), problem.ctypes.data, parts, rows)
    launch(_direct_weight_kernel(x.dtype), parts, dz.numel() * count, args)
    total = sums.sum(0, dtype=torch.float64)
    return total[:count].t().reshape(C, *kernel_size, 1), total[count]
