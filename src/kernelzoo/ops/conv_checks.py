"""What fits together in a convolution, and the geometry that follows."""

import functools
from typing import NamedTuple

import torch

from .core import ArgumentError, ArgumentTypeError, below
from .core.checks import same_device, same_dtype


class Geometry(NamedTuple):
    """What of a convolution is no tensor, one number a spatial dimension. padding: in front; behind, x is padded as far
    as `size`, which is y's, reaches."""

    transposed: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    size: tuple[int, ...]

    def of_three(self):
        """(stride, padding, dilation, groups), each list of length 3."""
        lead = 3 - len(self.stride)
        ones = [1] * lead
        return [*ones, *self.stride], [*[0] * lead, *self.padding], [*ones, *self.dilation], self.groups


def check_residual(name, residual, shape, x):
    if not isinstance(residual, torch.Tensor):
        raise ArgumentTypeError(f"{name}: residual must be a Tensor, got {type(residual).__name__}")
    if tuple(residual.shape) != shape:
        raise ArgumentError(
            f"{name}: residual has shape {tuple(residual.shape)} but the result has {shape}; expected the same"
        )
    same_device(name, "residual", residual, "input", x)
    if not torch.is_autocast_enabled(x.device.type):
        same_dtype(name, "residual", residual, "input", x)


def shape_of(t):
    return tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__


def _numbers(value, rank, least):
    """One number a spatial dimension, as torch reads `value`, or None where it takes none or fewer than `least`."""
    whole = (int, torch.SymInt)
    if isinstance(value, whole):
        value = (value,) * rank
    elif isinstance(value, tuple | list):
        value = tuple(value) * rank if len(value) == 1 else tuple(value)
    else:
        return None
    if len(value) != rank or not all(isinstance(v, whole) and v >= least for v in value):
        return None
    return value


def _fit(rank, x, weight, bias, groups, in_dim, out_channels):
    """Whether tensors and groups are such as a kernel could take: one cheap look, so that a good call pays for no
    explanation. in_dim: weight's dimension of x's channels; out_channels(weight, groups): of y."""
    if not (isinstance(x, torch.Tensor) and isinstance(weight, torch.Tensor)) or x.is_nested:
        return False
    if x.layout is not torch.strided or weight.dim() != rank + 2 or x.dim() not in (rank + 1, rank + 2):
        return False
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1 or weight.size(0) % groups:
        return False
    per_group = weight.size(1) if in_dim == 1 else weight.size(0) // groups
    if x.size(-rank - 1) != per_group * groups or weight.device != x.device:
        return False
    if any(below(n, 1) for n in weight.shape):
        return False
    same = weight.dtype == x.dtype
    if bias is not None:
        if not isinstance(bias, torch.Tensor) or bias.dim() != 1 or bias.device != x.device:
            return False
        if bias.size(0) != out_channels(weight, groups):
            return False
        same = same and bias.dtype == x.dtype
    return same or torch.is_autocast_enabled(x.device.type)


def geometry(rank, x, weight, bias, stride, padding, dilation, groups, causal):
    """The convolution's `Geometry`, or None where torch is to say what is wrong."""
    if not _fit(rank, x, weight, bias, groups, 1, lambda w, groups: w.size(0)):
        return None
    given = (rank, x.shape[-rank:], weight.shape[2:], stride, padding, dilation, groups, causal)
    if torch.compiler.is_compiling() or not (_exact(stride) and _exact(padding) and _exact(dilation)):
        return _geometry(*given)
    try:
        return _geometry_once(*given)
    except TypeError:  # sizes that are symbols
        return _geometry(*given)


def _exact(value):
    """Whether nothing but itself is equal to it: 1.0, which is no size, and True are 1 to a cache."""
    return type(value) in (int, str) or (type(value) is tuple and set(map(type, value)) == {int})


def _geometry(rank, sizes, kernel, stride, padding, dilation, groups, causal):
    stride, dilation = _numbers(stride, rank, 1), _numbers(dilation, rank, 1)
    if stride is None or dilation is None:
        return None
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if causal:
        if _numbers(padding, rank, 0) != (0,):
            return None
        front, behind = tuple(spans), (0,)
    elif padding == "same":
        if any(s != 1 for s in stride):
            return None
        front = tuple(span // 2 for span in spans)
        behind = tuple(span - span // 2 for span in spans)
    else:
        front = behind = (0,) * rank if padding == "valid" else _numbers(padding, rank, 0)
        if front is None:
            return None
    size = []
    for n, before, after, span, s in zip(sizes, front, behind, spans, stride, strict=True):
        room = n + before + after - span - 1
        if n < 1 or room < 0:
            return None
        size.append(room // s + 1)
    return Geometry(False, stride, front, dilation, groups, tuple(size))


# A layer asks for the same one at each step. Behind other work, when its code has left the caches, to compute it takes
# 120 us of a depthwise convolution's 8 ms (8x128x56x56, stride 2).
_geometry_once = functools.lru_cache(maxsize=1024)(_geometry)


def transposed_size(sizes, kernel, stride, padding, dilation, extra):
    each = zip(sizes, kernel, stride, padding, dilation, extra, strict=True)
    return tuple((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in each)


def transposed_geometry(rank, x, weight, bias, stride, padding, output_padding, groups, dilation):
    """The transposed convolution's `Geometry`, or None where torch is to say what is wrong."""
    if not _fit(rank, x, weight, bias, groups, 0, lambda w, groups: w.size(1) * groups):
        return None
    stride, dilation = _numbers(stride, rank, 1), _numbers(dilation, rank, 1)
    padding, extra = _numbers(padding, rank, 0), _numbers(output_padding, rank, 0)
    if None in (stride, dilation, padding, extra):
        return None
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return None
    size = transposed_size(x.shape[-rank:], weight.shape[2:], stride, padding, dilation, extra)
    if any(n < 1 for n in (*x.shape[-rank:], *size)):
        return None
    return Geometry(True, stride, padding, dilation, groups, size)
