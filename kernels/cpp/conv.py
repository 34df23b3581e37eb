"""Convolution on CPU: torch's product (oneDNN's) and one pass of ours over its result; channels that have a filter each
go through kernels of ours.

The bias goes into the product, so that in 16 bits it is added before the product is rounded. Few CPUs multiply float16:
its product is computed in float32.
"""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.conv import back, channels_first, depthwise, empty_as, even, ordered, swapped
from kernelzoo.kernels.cpp import winograd
from kernelzoo.kernels.cpp.native import ACTS, DTYPES

aten = torch.ops.aten


def conv_fwd(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """z = conv(x, w) + b + residual, y = act(z): y and z, or None where not saved. x (N, D, H, W, C), w (O, kD, kH, kW,
    C / groups) of any strides, y (N, *size, O)."""
    options = (stride, padding, dilation, groups)
    behind = (residual, act, p0, p1, save_z)
    if depthwise(w, x.shape[4], groups):
        return _depthwise(x, w, b, size, options, behind, backward=False)
    first = channels_first(x)
    if _pointwise(first, w.shape, padding, groups, x.dtype):
        return _behind(_matrices(x, w.reshape(w.shape[0], -1), b, size, stride), *behind)
    if winograd.serves(x, w.shape[1:4], size, stride, dilation, groups, w.shape[0]):
        z = winograd.fwd(x, w, b, size, padding, backward=False)
        if z is not None:
            return _behind(z, *behind)
    ends, padding = even(x.shape[1:4], w.shape[1:4], size, stride, padding, dilation)
    if any(ends):
        x = ordered(back(torch.nn.functional.pad(swapped(x), ends)), first)
    return _behind(_product(x, w, b, first, size, stride, padding, dilation, None, groups), *behind)


def conv_bwd_input(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """The same with the gradient that a convolution has to its input in the convolution's place: dz (N, oD, oH, oW, O),
    the results (N, *size, C)."""
    options = (stride, padding, dilation, groups)
    behind = (residual, act, p0, p1, save_z)
    if depthwise(w, w.shape[4] * groups, groups):
        return _depthwise(dz, w, b, size, options, behind, backward=True)
    first = channels_first(dz)
    if _pointwise(first, w.shape, padding, groups, dz.dtype) and (b is None or max(stride) == 1):
        z = _matrices(dz, w.reshape(w.shape[0], -1).t(), b, dz.shape[1:4], [1, 1, 1])
        return _behind(z if list(size) == list(z.shape[1:4]) else _apart(z, size, stride), *behind)
    if winograd.serves(dz, w.shape[1:4], size, stride, dilation, groups, w.shape[4]):
        z = winograd.fwd(dz, w, b, size, padding, backward=True)
        if z is not None:
            return _behind(z, *behind)
    rest = _rest(size, dz, w, stride, padding, dilation)
    if all(0 <= r < max(s, d) for r, s, d in zip(rest, stride, dilation, strict=True)):
        return _behind(_product(dz, w, b, first, size, stride, padding, dilation, rest, groups), *behind)
    # the gradient to an x with its padding, of which what is beyond x is taken off
    ends, padding = even(size, w.shape[1:4], dz.shape[1:4], stride, padding, dilation)
    whole = [n + i + j for n, i, j in zip(size, ends[-2::-2], ends[-1::-2], strict=True)]
    rest = _rest(whole, dz, w, stride, padding, dilation)
    z = _product(dz, w, b, first, whole, stride, padding, dilation, rest, groups)
    z = back(torch.nn.functional.pad(swapped(z), [-n for n in ends]))
    return _behind(ordered(z, first), *behind)


def _rest(size, dz, w, stride, padding, dilation):
    """What a transposed convolution's result must have behind what its input gives."""
    each = zip(size, dz.shape[1:4], w.shape[1:4], stride, padding, dilation, strict=True)
    return [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in each]


def conv_bwd_weight(dz, x, kernel, stride, padding, dilation, groups, need_db):
    """dw (O, *kernel, C / groups), and db (O,) where needed: dz (N, oD, oH, oW, O), x (N, D, H, W, C)."""
    first, O, C = channels_first(x), dz.shape[4], x.shape[4]
    if groups == C == O:
        return _depthwise_weight(dz, x, kernel, stride, padding, dilation, need_db)
    if _pointwise(first, (O, *kernel, C), padding, groups, x.dtype):
        z = swapped(dz).reshape(dz.shape[0], O, -1)
        dw = torch.addbmm(x.new_empty(O, C), z, _taken(x, stride).mT, beta=0)
        return back(dw.view(O, C, 1, 1, 1)), z.sum((0, 2)) if need_db else None
    if winograd.serves(x, kernel, dz.shape[1:4], stride, dilation, groups, O):
        dw = winograd.bwd_weight(dz, x, kernel, padding)
        if dw is not None:
            return dw, dz.sum((0, 1, 2, 3)) if need_db else None
    if max(kernel) == 1 and max(padding) == 0 and max(stride) > 1:
        # What it sees alone: channels-last, of channels that fill no vector and rows that go on behind the last output
        # (x 2x5x12x6, stride 2), oneDNN's gradient writes outside its memory on AVX2.
        D, H, W = dz.shape[1:4]
        x = ordered(x[:, :: stride[0], :: stride[1], :: stride[2]][:, :D, :H, :W], first)
        stride = [1, 1, 1]
    ends, padding = even(x.shape[1:4], kernel, dz.shape[1:4], stride, padding, dilation)
    if any(ends):
        x = ordered(back(torch.nn.functional.pad(swapped(x), ends)), first)
    shape, dtype = (O, *kernel, C // groups), x.dtype
    w = (
        back(x.new_empty(O, C // groups, *kernel)) if first else x.new_empty(shape)
    )  # only its shape and order are read
    if dtype == torch.float16 or (dtype == torch.bfloat16 and _narrow(x.shape[1:4], kernel, dilation)):
        dz, x, w = dz.float(), x.float(), w.float()
    given, options = _planes((dz, x, w), (stride, padding, dilation))
    _, dw, db = aten.convolution_backward(
        *given, [O], *options, False, [0] * len(options[0]), groups, [False, True, need_db]
    )
    dw = ordered(back(dw.view(O, C // groups, *kernel)), first).to(dtype)
    return dw, db.to(dtype) if need_db else None


def _narrow(sizes, kernel, dilation):
    """Whether x is narrower than the filter in some dimension: there oneDNN's bfloat16 gradient to w leaves taps
    unwritten that meet nothing but padding, and misses terms of db."""
    return any(n < d * (k - 1) + 1 for n, k, d in zip(sizes, kernel, dilation, strict=True))


def _pointwise(first, shape, padding, groups, dtype):
    """Whether a convolution of channels-first tensors is matrix products as they lie: one tap, nothing padded.

    oneDNN's takes more there: forward, dx and dw of 8x256x56x56 to 64 in float32 7.4, 25.9 and 8.1 ms on 2 cores
    against 5.8, 6.1 and 5.7; dx at stride 2 44.
    """
    wide = dtype in (torch.float32, torch.float64)
    return first and groups == 1 and wide and max(shape[1:4]) == 1 and max(padding) == 0


def _taken(x, stride):
    """What a convolution of one tap sees, (N, C, outputs): x as it lies, a copy where it skips elements."""
    return swapped(x)[:, :, :: stride[0], :: stride[1], :: stride[2]].reshape(x.shape[0], x.shape[4], -1)


def _matrices(x, w, b, size, stride):
    """w (O, C) times each sample, + b: (N, *size, O) of x's order, channels-first."""
    N, x = x.shape[0], _taken(x, stride)
    z = memory.empty((N, w.shape[0], x.shape[2]), x.dtype)
    w = w.expand(N, *w.shape)
    if b is None:
        torch.bmm(w, x, out=z)
    else:
        torch.baddbmm(b.view(1, -1, 1), w, x, out=z)
    return back(z.view(N, -1, *size))


def _apart(z, size, stride):
    """z's elements `stride` apart, zeros between."""
    N, D, H, W, C = z.shape
    whole = memory.empty((N, C, *size), z.dtype).zero_()
    ends = [(n - 1) * s + 1 for n, s in zip((D, H, W), stride, strict=True)]
    whole[:, :, : ends[0] : stride[0], : ends[1] : stride[1], : ends[2] : stride[2]] = swapped(z)
    return back(whole)


def _fresh(t):
    """t (N, C, *) with the strides that a fresh tensor of its order has, in sizes of 1 too: the gradient to a grouped
    filter of one tap is wrong in oneDNN where x (1, 8, 1, 17) has strides (8, 1, 136, 8)."""
    if 1 not in t.shape:
        return t
    last = t.movedim(1, -1)
    if last.is_contiguous():
        return last.reshape(-1).view(last.shape).movedim(-1, 1)
    return t.reshape(-1).view(t.shape)


def _planes(tensors, options, depth=1):
    """What torch's convolutions take, and (stride, padding, dilation) for it: (N, C, D, H, W), or (N, C, H, W) where
    there is no depth; depth: the result's."""
    tensors = [swapped(t) for t in tensors]
    if depth == 1 and options[1][0] == 0 and all(t.shape[2] == 1 for t in tensors):
        tensors, options = [t.squeeze(2) for t in tensors], [list(o[1:]) for o in options]
    return [_fresh(t) for t in tensors], options


def _product(x, w, b, first, size, stride, padding, dilation, rest, groups):
    """conv(x, w) + b in x's order; where there is a `rest`, the transposed one with that output padding."""
    N, dtype = x.shape[0], x.dtype
    if dtype == torch.float16:
        x, w, b = x.float(), w.float(), None if b is None else b.float()
    (x, w), (stride, padding, dilation) = _planes((x, w), (stride, padding, dilation), size[0])
    rank = len(stride)
    extra = [0] * rank if rest is None else list(rest[3 - rank :])
    z = aten.convolution(x, w, b, stride, padding, dilation, rest is not None, extra, groups)
    z = ordered(back(z.view(N, z.shape[1], *size)), first)
    return z.to(dtype)


def _behind(z, residual, act, p0, p1, save_z):
    """z += residual, y = act(z): in place where z is not saved."""
    if residual is None and act == "none":
        return z, None
    y = memory.empty_like(z) if save_z else z
    _cpu.add_act(
        z.data_ptr(), 0 if residual is None else residual.data_ptr(), y.data_ptr(), z.numel(), save_z,
        DTYPES[z.dtype], ACTS[act], p0, p1, torch.get_num_threads(),
    )  # fmt: skip
    return y, z if save_z else None


def _problem(N, C, sizes, out, kernel, options, first):
    stride, padding, dilation, _ = options
    return _cpu.Depthwise(N, C, list(sizes), list(out), list(kernel), stride, padding, dilation, first)


def _depthwise(x, w, b, size, options, behind, backward):
    residual, act, p0, p1, save_z = behind
    N, C = x.shape[0], x.shape[4]
    problem = _problem(N, C, x.shape[1:4], size, w.shape[1:4], options, channels_first(x))
    z = empty_as(x, N, size, C)
    y = memory.empty_like(z) if save_z else z
    w = w.reshape(C, -1).contiguous()
    _cpu.depthwise_fwd(
        problem, backward, x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(),
        0 if residual is None else residual.data_ptr(), z.data_ptr(), y.data_ptr(), save_z, DTYPES[x.dtype],
        ACTS[act], p0, p1, torch.get_num_threads(),
    )  # fmt: skip
    return y, z if save_z else None


def _depthwise_weight(dz, x, kernel, stride, padding, dilation, need_db):
    N, C = x.shape[0], x.shape[4]
    problem = _problem(
        N, C, x.shape[1:4], dz.shape[1:4], kernel, (stride, padding, dilation, C), channels_first(x)
    )
    dw = empty_as(x, C, kernel, 1)
    db = torch.empty(C, dtype=x.dtype) if need_db else None
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = memory.workspace((_cpu.depthwise_partial(problem, DTYPES[x.dtype]),), accumulator)
    _cpu.depthwise_bwd_weight(
        problem, dz.data_ptr(), x.data_ptr(), dw.data_ptr(), 0 if db is None else db.data_ptr(), partial.data_ptr(),
        DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return dw, db
