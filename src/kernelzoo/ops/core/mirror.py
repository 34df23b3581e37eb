"""Calls that go to torch's own function, and what its error says of them."""

import torch
from torch.nn import _reduction

from .checks import ArgumentError, ArgumentTypeError
from .function import torch_serves

REDUCTIONS = ("none", "mean", "sum")


def reduction_of(size_average, reduce, reduction):
    """The reduction that torch's deprecated pair asks for, with its warning, or `reduction` itself."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)


def torchs_own(name, expected, function, *args, **kwargs):
    """function(*args): torch's, whose error gets the name of the call and the shapes that came and that fit.

    Errors of another type than torch's for bad arguments (a target out of range, memory, a device) stay.
    """
    for a in args[:2]:
        if not hasattr(a, "__torch_function__"):
            raise ArgumentTypeError(f"{name}: got {type(a).__name__} for a Tensor, expected {expected}")
    try:
        result = function(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        if type(error) not in (RuntimeError, ValueError, TypeError):
            raise
        kind = ArgumentTypeError if type(error) is TypeError else ArgumentError
        came = ", ".join(_described(a) for a in args[:2])
        raise kind(f"{name}: {error}; got {came}, expected {expected}") from None
    if isinstance(args[0], torch.Tensor):
        torch_serves(name, "no kernel takes these options, shapes or dtypes", *args, *kwargs.values())
    return result


def _described(a):
    if hasattr(a, "dtype"):
        return f"{str(a.dtype).removeprefix('torch.')} of shape {tuple(a.shape)}"
    return type(a).__name__
