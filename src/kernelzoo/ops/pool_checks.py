"""What pooling and interpolation share: sizes a dimension, layouts, and torch's errors with both sides named."""

import math

import torch

from .core import ArgumentError, ArgumentTypeError, choice, leaves_to_torch, torch_serves

LONGEST = 1 << 29  # of a dimension: the kernels' tables hold 32-bit numbers


def whole(value):
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def each(value, rank):
    """One int for each of `rank` dimensions, from an int or a sequence of one or `rank`; else None."""
    if whole(value):
        return (value,) * rank
    if not isinstance(value, (tuple, list, torch.Size)) or not all(whole(v) for v in value):
        return None
    return tuple(value) * rank if len(value) == 1 else tuple(value) if len(value) == rank else None


def is_image(x, rank):
    """Whether x is a tensor that a kernel could take: (N, C, *) or (C, *) with `rank` more dimensions."""
    return (
        isinstance(x, torch.Tensor)
        and not x.is_nested
        and x.dim() in (rank + 1, rank + 2)
        and x.is_floating_point()
        and all(size < LONGEST for size in x.shape[-rank:])
    )


def padded(values, filler):
    """Three values, those given last."""
    return (filler,) * (3 - len(values)) + tuple(values)


def five(x, rank):
    """x (N, C, *) or (C, *) as (N, C, D, H, W), of sizes 1 where it has none."""
    if x.dim() == rank + 1:
        x = x.unsqueeze(0)
    for _ in range(3 - rank):
        x = x.unsqueeze(2)
    return x


def channels_last(x):
    """Whether the channels of x (N, C, D, H, W) are adjacent."""
    return x.stride(1) == 1 and x.stride(4) != 1 and x.size(1) > 1


def only_numba(x):
    """Why "auto" takes torch's own call on a CPU where C++ kernels are not here, or None: Numba's run at 0.15 to 0.8 of
    its speed (max-pooling 3x3, average pooling 3x3, bilinear x2; 4 Ki to 800 Ki elements)."""
    if choice.automatic("pool", x.device.type, x.dtype) == "numba":
        return "torch's own call is faster than Numba's kernels"
    return None


def left_to_torch(x, planes, last, short=0):
    """`leaves_to_torch` under `planes` elements or in rows of fewer than `short`, or under `last` elements where x's
    channels are adjacent."""
    if not leaves_to_torch(x, math.inf):
        return False
    if x.dim() > 3 and x.stride(1) == 1 and x.stride(-1) != 1:
        return x.numel() < last
    return x.numel() < planes or x.size(-1) < short


def laid_out(x, sizes, last, dtype=None):
    """Uninitialised, of x's (N, C) and these sizes, as launchers lay it out."""
    if last:
        return x.new_empty((x.shape[0], *sizes, x.shape[1]), dtype=dtype).permute(0, 4, 1, 2, 3)
    return x.new_empty((*x.shape[:2], *sizes), dtype=dtype)


def torchs(name, function, expected, input, *args, **kwargs):
    """function(input, *args): torch's own, whose error gets the call's name, what came and what was expected."""
    if not hasattr(input, "__torch_function__"):
        raise ArgumentTypeError(f"{name}: input must be a Tensor, got {type(input).__name__}")
    try:
        result = function(input, *args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        if type(error) not in (RuntimeError, ValueError, TypeError):
            raise
        kind = ArgumentTypeError if type(error) is TypeError else ArgumentError
        given = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        shape = tuple(input.shape) if isinstance(input, torch.Tensor) else "?"
        raise kind(
            f"{name}: {error}; got input of shape {shape} and ({', '.join(given)}), expected {expected}"
        ) from None
    if isinstance(input, torch.Tensor):
        torch_serves(name, "no kernel takes these options, shapes or dtypes", input)
    return result
