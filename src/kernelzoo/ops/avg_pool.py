"""Average pooling: y_o = Σ x_i / divisor over the window of o.

The window of o has the positions o·stride - padding … + kernel - 1; of adaptive pooling ⌊o I/O⌋ … ⌈(o+1) I/O⌉ - 1.
Backward: dx_i = Σ dy_o / divisor_o over the outputs whose windows hold i.
"""

from torch.nn import functional as T

from .max_pool import SIZES, adaptive_sizes, output_size
from .pool_checks import LONGEST, each, is_image, left_to_torch, padded, torchs, whole
from .resample import LARGE, MANY, ResampleFunction


def _avg_pool(rank, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override=None):
    name = f"avg_pool{rank}d"
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    args = (
        (kernel_size, () if stride is None else stride, *args[2:]) if rank == 1 else (*args, divisor_override)
    )
    if not left_to_torch(input, MANY, LARGE) and is_image(input, rank):
        kernel, pad = each(kernel_size, rank), each(padding, rank)
        move = kernel if stride is None or stride == [] or stride == () else each(stride, rank)
        if None not in (kernel, pad, move) and _fits(kernel, move, pad, divisor_override):
            ceil = bool(ceil_mode)
            out = tuple(map(output_size, input.shape[-rank:], kernel, move, pad, (1,) * rank, (ceil,) * rank))
            if all(size > 0 for size in out):
                shape = (*padded(kernel, 1), *padded(move, 1), *padded(pad, 0))
                divisor = divisor_override or (-1 if count_include_pad else 0)
                return ResampleFunction.call(input, name, args, out, "avg", shape, divisor, (0.0,) * 3)
    return torchs(
        name,
        getattr(T, name),
        f"shape (N, C, {SIZES[rank]}) or (C, {SIZES[rank]}), windows no larger than the padded input, and padding "
        f"of at most half a window",
        input,
        *args,
    )


def _fits(kernel, stride, padding, divisor):
    if divisor is not None and not (whole(divisor) and divisor > 0):
        return False
    return all(
        0 < k < LONGEST and s > 0 and 0 <= p <= k // 2
        for k, s, p in zip(kernel, stride, padding, strict=True)
    )


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """y_o = Σ x[o·stride - padding + t] / divisor, 0 ≤ t < kernel: torch.nn.functional.avg_pool1d.

    Args:
        input: x, of shape (N, C, L) or (C, L).
        kernel_size, stride, padding: of the windows, an int for all dimensions or a tuple of one each; stride None is
            kernel_size. What is padded is 0.
        ceil_mode: whether windows that reach beyond the padding on the right are pooled too.
        count_include_pad: whether the divisor counts the padding.
        divisor_override (2d and 3d): the divisor, a whole number.

    Returns:
        y, of shape (N, C, L_out) or (C, L_out), in x's memory format.

    float64, float32, bfloat16 and float16 run on kernels, with sums in float32 (float64 for float64); every other
    dtype and layout, and a negative divisor, is torch's own call.

    Saved for the backward: nothing.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): windows larger than the padded input, padding that is negative
            or more than half a window, another number of dimensions.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
    """
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """`avg_pool1d` of (N, C, H, W) or (C, H, W): torch.nn.functional.avg_pool2d."""
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """`avg_pool1d` of (N, C, D, H, W) or (C, D, H, W): torch.nn.functional.avg_pool3d."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_avg_pool(rank, input, output_size):
    name = f"adaptive_avg_pool{rank}d"
    if not left_to_torch(input, LARGE, LARGE) and is_image(input, rank):
        out = adaptive_sizes(input, output_size, rank)
        if out is not None:
            return ResampleFunction.call(input, name, (output_size,), out, "adaptive", (), 0, (0.0,) * 3)
    expected = f"shape (N, C, {SIZES[rank]}) or (C, {SIZES[rank]}) and as many positive sizes"
    return torchs(name, getattr(T, name), expected, input, output_size)


def adaptive_avg_pool1d(input, output_size):
    """The mean of x[i], ⌊o I/O⌋ ≤ i < ⌈(o+1) I/O⌉, for each of O outputs: torch.nn.functional.adaptive_avg_pool1d.

    Args:
        input: x, of shape (N, C, L) or (C, L).
        output_size: O, an int or a tuple of one a dimension; None is the input's size. 1 pools globally.

    Results, dtypes, what is saved and errors are `avg_pool1d`'s.
    """
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input, output_size):
    """`adaptive_avg_pool1d` of (N, C, H, W) or (C, H, W): torch.nn.functional.adaptive_avg_pool2d."""
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input, output_size):
    """`adaptive_avg_pool1d` of (N, C, D, H, W) or (C, D, H, W): torch.nn.functional.adaptive_avg_pool3d."""
    return _adaptive_avg_pool(3, input, output_size)
