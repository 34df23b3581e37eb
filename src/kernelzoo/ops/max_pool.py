"""Max-pooling: y_o = max of x over the window of o, and where it was found.

The window of o has the positions o·stride - padding + t·dilation, 0 ≤ t < kernel, inside the input; of adaptive
pooling ⌊o I/O⌋ … ⌈(o+1) I/O⌉ - 1. Of equal values the first is taken, of NaNs the last, as in torch.
Backward: dx_i = Σ dy_o over the outputs that took i, each input collecting its own.
"""

import contextlib
import math

import torch
from torch.nn import functional as T

from .core import KernelFunction, autocast_dtype, below, define
from .pool_checks import (
    LONGEST,
    channels_last,
    each,
    five,
    is_image,
    laid_out,
    left_to_torch,
    only_numba,
    padded,
    torchs,
)

aten = torch.ops.aten

WINDOWS = "int[] kernel, int[] stride, int[] padding, int[] dilation"
INDEX = {"tap": torch.uint8, "flat": torch.int64}

max_pool_fwd = define(
    f"max_pool_fwd(Tensor x, SymInt[] out, {WINDOWS}, str index, bool last) -> (Tensor, Tensor)",
    "pool",
    fake=lambda x, out, kernel, stride, padding, dilation, index, last: (
        laid_out(x, out, last),
        None if index == "none" else laid_out(x, out, last, INDEX[index]),
    ),
)
max_pool_bwd = define(
    f"max_pool_bwd(Tensor dy, Tensor index, SymInt[] size, {WINDOWS}, bool last) -> Tensor",
    "pool",
    fake=lambda dy, index, size, kernel, stride, padding, dilation, last: laid_out(dy, size, last),
)


class MaxPoolFunction(KernelFunction):
    """Saved for the backward: of each output the number of the tap that it took, in a byte; its place in the plane,
    in int64, where this is returned, the windows have more than 256 taps or adaptive windows differ."""

    module = "pool"

    @staticmethod
    def autocast(x, name, args, out, kernel, stride, padding, dilation, indices):
        return torch.float32 if len(out) == 3 and not x.is_cuda and autocast_dtype(x) is not None else None

    @staticmethod
    def label(x, name, args, out, kernel, stride, padding, dilation, indices):
        return name

    @staticmethod
    def formula(x, name, args, out, kernel, stride, padding, dilation, indices):
        return getattr(T, name)(x, *args)

    @staticmethod
    def rule(x, name, args, out, kernel, stride, padding, dilation, indices):
        if x.device.type != "cpu":
            return "no GPU has been measured yet"
        if below(x.numel(), LARGE_LAST if channels_last(five(x, len(out))) else SMALL):
            return "few elements on a CPU"
        if below(x.shape[-1], SHORT) and not channels_last(five(x, len(out))):
            return "short rows on a CPU"
        return only_numba(x)

    @staticmethod
    def forward(ctx, x, name, args, out, kernel, stride, padding, dilation, indices, backend):
        rank = len(out)
        x5 = five(x, rank)
        last = channels_last(x5)
        wanted = ctx.needs_input_grad[0]
        index = "flat" if indices or not kernel or math.prod(kernel) > 256 else "tap"
        index = index if wanted or indices else "none"
        windows = tuple(map(list, _three(kernel, stride, padding, dilation)))
        out = padded(out, 1)
        y, chosen = max_pool_fwd(x5, out, *windows, index, last, backend)
        shape = (*x.shape[: x.dim() - rank], *out[3 - rank :])
        y = aten._unsafe_view(y, shape)  # no view: users may write to it in place
        if wanted:
            ctx.save_for_backward(chosen)
            ctx.size, ctx.shape, ctx.windows, ctx.last, ctx.backend = (
                x5.shape[2:],
                x.shape,
                windows,
                last,
                backend,
            )
        if not indices:
            return y
        places = aten._unsafe_view(chosen, shape)
        if wanted:
            ctx.mark_non_differentiable(places)
        return y, places

    @staticmethod
    def backward(ctx, dy, _=None):
        (chosen,) = ctx.saved_tensors
        dx = max_pool_bwd(dy.reshape(chosen.shape), chosen, ctx.size, *ctx.windows, ctx.last, ctx.backend)
        return (dx.view(ctx.shape),)

    @classmethod
    def _by_formula(cls, ctx, dy, _=None):
        (chosen,) = ctx.saved_tensors
        places = _places(chosen, ctx.size, *ctx.windows).flatten(2)
        dx = dy.new_zeros((*places.shape[:2], math.prod(ctx.size)))
        return [dx.scatter_add(2, places, dy.reshape(places.shape)).view(ctx.shape)]


def _three(kernel, stride, padding, dilation):
    """Three of each; none where the pooling is adaptive."""
    if not kernel:
        return (), (), (), ()
    return padded(kernel, 1), padded(stride, 1), padded(padding, 0), padded(dilation, 1)


def _places(chosen, size, kernel, stride, padding, dilation):
    """The place in the plane of what each output took."""
    if chosen.dtype == torch.int64:
        return chosen
    tap, place = chosen.long(), 0
    taps = (tap // (kernel[1] * kernel[2]), tap // kernel[2] % kernel[1], tap % kernel[2])
    for i in range(3):
        o = torch.arange(chosen.shape[2 + i], device=chosen.device).view(-1, *(1,) * (2 - i))
        place = place * size[i] + o * stride[i] - padding[i] + taps[i] * dilation[i]
    return place


# "auto" on a CPU, C++ over eager, forward and backward, 3x3 of stride 2 and 2x2: planes 0.6 to 0.7 at 64 Ki elements,
# 1.2 to 1.4 at 400 Ki (28x28), 0.8 to 1.2 in rows of 14, 2 to 5 above; channels last 0.5 to 1.2 at 1.6 Mi, 1.4 to 2.9
# at 12.8 Mi.
SMALL = 1 << 18
SHORT = 28
LARGE_LAST = 1 << 22
# What torch's own functions end in. The look at sizes that decides for them comes first, and their Python, a third of
# the host's time, is passed by: a call finds its code out of the caches, which made 170 us of 20 (16x256x14x14).
OWN = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}


def output_size(size, kernel, stride, padding, dilation, ceil):
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (room + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (out - 1) * stride >= size + padding:  # a window that would begin in the padding on the right
        out -= 1
    return out


def _max_pool(rank, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    name = f"max_pool{rank}d"
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if left_to_torch(input, SMALL, LARGE_LAST, SHORT):
        if not return_indices:
            move = () if stride is None else stride
            with contextlib.suppress(RuntimeError, TypeError, ValueError):  # which torchs() is to explain
                return OWN[rank](input, kernel_size, move, padding, dilation, ceil_mode)
    elif is_image(input, rank):
        kernel, pad, step = each(kernel_size, rank), each(padding, rank), each(dilation, rank)
        move = kernel if stride is None or stride == [] or stride == () else each(stride, rank)
        if None not in (kernel, pad, step, move) and _fits(kernel, move, pad, step):
            ceil = bool(ceil_mode)
            out = tuple(map(output_size, input.shape[-rank:], kernel, move, pad, step, (ceil,) * rank))
            if all(size > 0 for size in out):
                return MaxPoolFunction.call(
                    input, name, args, out, kernel, move, pad, step, bool(return_indices)
                )
    return torchs(
        name,
        getattr(T, name),
        f"shape (N, C, {SIZES[rank]}) or (C, {SIZES[rank]}), windows no larger than the padded input, and padding "
        f"of at most half a window",
        input,
        *args,
    )


def _fits(kernel, stride, padding, dilation):
    return all(
        k > 0 and s > 0 and d > 0 and 0 <= p <= (d * (k - 1) + 1) // 2 and d * k < LONGEST
        for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)
    )


def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """y_o = max over t of x[o·stride - padding + t·dilation]: torch.nn.functional.max_pool1d.

    Args:
        input: x, of shape (N, C, L) or (C, L).
        kernel_size, stride, padding, dilation: of the windows, an int for all dimensions or a tuple of one each;
            stride None is kernel_size. What is padded is -inf.
        ceil_mode: whether windows that reach beyond the padding on the right are pooled too.
        return_indices: whether to return where in its plane each value was found as well.

    Returns:
        y, of shape (N, C, L_out) or (C, L_out) and in x's memory format, or (y, int64 indices of that shape).

    float64, float32, bfloat16 and float16 run on kernels; every other dtype and layout is torch's own call.

    Saved for the backward: a byte an output (an int64 with return_indices or more than 256 taps); not x.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): windows larger than the padded input, padding that is negative
            or more than half a window, another number of dimensions.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
    """
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """`max_pool1d` of (N, C, H, W) or (C, H, W): torch.nn.functional.max_pool2d."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """`max_pool1d` of (N, C, D, H, W) or (C, D, H, W): torch.nn.functional.max_pool3d."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def adaptive_sizes(x, output_size, rank):
    """output_size for each dimension, x's own where it says None; None where torch must have its say."""
    sizes = x.shape[-rank:]
    if isinstance(output_size, (tuple, list)) and len(output_size) == rank:
        output_size = tuple(n if o is None else o for n, o in zip(sizes, output_size, strict=True))
    elif output_size is None and rank > 1:
        output_size = tuple(sizes)
    out = each(output_size, rank)
    return out if out is not None and all(0 < o < LONGEST for o in out) else None


def _adaptive_max_pool(rank, input, output_size, return_indices):
    name, args = f"adaptive_max_pool{rank}d", (output_size, return_indices)
    if not left_to_torch(input, SMALL, LARGE_LAST) and is_image(input, rank):
        out = adaptive_sizes(input, output_size, rank)
        if out is not None:
            sizes, kernel = input.shape[-rank:], ()
            if all(n % o == 0 for n, o in zip(sizes, out, strict=True)):  # equal windows
                kernel = tuple(int(n // o) for n, o in zip(sizes, out, strict=True))
            zeros, ones = (0,) * rank, (1,) * rank
            return MaxPoolFunction.call(
                input, name, args, out, kernel, kernel, zeros, ones, bool(return_indices)
            )
    return torchs(name, getattr(T, name), f"shape (N, C, {SIZES[rank]}) or (C, {SIZES[rank]}) and as many positive "
                  f"sizes", input, *args)  # fmt: skip


def adaptive_max_pool1d(input, output_size, return_indices=False):
    """The largest x[i], ⌊o I/O⌋ ≤ i < ⌈(o+1) I/O⌉, for each of O outputs: torch.nn.functional.adaptive_max_pool1d.

    Args:
        input: x, of shape (N, C, L) or (C, L).
        output_size: O, an int or a tuple of one a dimension; None is the input's size.
        return_indices: whether to return where in its plane each value was found as well.

    Results, dtypes, what is saved and errors are `max_pool1d`'s; windows of different sizes save an int64 an output.
    """
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input, output_size, return_indices=False):
    """`adaptive_max_pool1d` of (N, C, H, W) or (C, H, W): torch.nn.functional.adaptive_max_pool2d."""
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input, output_size, return_indices=False):
    """`adaptive_max_pool1d` of (N, C, D, H, W) or (C, D, H, W): torch.nn.functional.adaptive_max_pool3d."""
    return _adaptive_max_pool(3, input, output_size, return_indices)
