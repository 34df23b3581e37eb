"""Softmax over one dimension: y_i = exp(x_i) / Σ_j exp(x_j), and its logarithm.

Backward: dx = y (dy - Σ dy y) for softmax, dx = dy - exp(y) Σ dy for log_softmax.
"""

import operator

import torch
from torch.nn import functional as T

from .core import FRESH, ArgumentTypeError, KernelFunction, autocast_dtype, below, define

aten = torch.ops.aten

softmax_fwd = define(
    "softmax_fwd(Tensor x, bool log) -> Tensor",
    "softmax",
    fake=lambda x, log: torch.empty_like(x, memory_format=torch.contiguous_format),
    prepare=lambda x, log: (x.contiguous(), log),
)
softmax_bwd = define(
    "softmax_bwd(Tensor dy, Tensor y, bool log) -> Tensor",
    "softmax",
    fake=lambda dy, y, log: torch.empty_like(y, memory_format=torch.contiguous_format),
    prepare=lambda dy, y, log: (dy.contiguous(), y.contiguous(), log),
)


class SoftmaxFunction(KernelFunction):
    """Saved for the backward: the output."""

    module = "softmax"

    @staticmethod
    def autocast(x, dim, log):
        return torch.float32 if x.is_cuda and autocast_dtype(x) is not None else None

    @staticmethod
    def label(x, dim, log):
        return "log_softmax" if log else "softmax"

    @staticmethod
    def formula(x, dim, log):
        return T.log_softmax(x, dim) if log else T.softmax(x, dim)

    @staticmethod
    def rule(x, dim, log):
        """On 2 CPU cores a softmax in kept memory runs at 0.6 of torch's speed at 2^20, 1.2 to 1.7 in fresh memory;
        over another dimension than the last, in 16 bits, at 0.7."""
        if x.device.type != "cpu":
            return "torch's own kernel moves the same bytes; no GPU has been measured yet"
        if below(x.numel() * x.dtype.itemsize, FRESH):
            return "few elements for its cost on a CPU"
        if x.dtype.itemsize == 2 and dim % x.dim() != x.dim() - 1:
            return "16 bits over another dimension than the last on a CPU"
        return None

    @staticmethod
    def forward(ctx, x, dim, log, backend):
        y = softmax_fwd(_rows(x, dim), log, backend)
        y = aten._unsafe_view(y, x.shape)  # no view: users may write to it in place
        ctx.save_for_backward(y)
        ctx.dim, ctx.log, ctx.backend = dim, log, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return (softmax_bwd(_rows(dy, ctx.dim), _rows(y, ctx.dim), ctx.log, ctx.backend).view(y.shape),)

    @classmethod
    def _by_formula(cls, ctx, dy):
        (y,) = ctx.saved_tensors
        if ctx.log:
            return [dy - y.exp() * dy.sum(ctx.dim, keepdim=True)]
        return [y * (dy - (dy * y).sum(ctx.dim, keepdim=True))]


def _rows(t, dim):
    """t as contiguous (outer, n, inner) with n the size of dim."""
    shape = t.shape or (1,)
    dim %= len(shape)
    outer, inner = 1, 1
    for size in shape[:dim]:
        outer *= size
    for size in shape[dim + 1 :]:
        inner *= size
    return t.reshape(outer, shape[dim], inner)


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    """y_i = exp(x_i) / Σ_j exp(x_j) over dimension `dim`: torch.nn.functional.softmax.

    input: any shape; dim: the dimension that sums to 1 (None, deprecated in torch, is torch's own call);
    dtype: converts the input first. Returns y, of input's shape. Saved for the backward: y.
    """
    return _softmax("softmax", T.softmax, input, dim, _stacklevel, dtype, log=False)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    """y_i = x_i - log Σ_j exp(x_j) over dimension `dim`: torch.nn.functional.log_softmax.

    Arguments and what is saved are `softmax`'s.
    """
    return _softmax("log_softmax", T.log_softmax, input, dim, _stacklevel, dtype, log=True)


def _softmax(name, torch_function, input, dim, _stacklevel, dtype, log):
    if not isinstance(input, torch.Tensor):
        if hasattr(input, "__torch_function__"):  # torch.fx
            return torch_function(input, dim, _stacklevel + 2, dtype)
        raise ArgumentTypeError(f"{name}: input must be a Tensor, got {type(input).__name__}")
    if dim is None:
        return torch_function(input, None, _stacklevel + 2, dtype)
    if isinstance(dim, bool) or not hasattr(dim, "__index__"):
        raise ArgumentTypeError(f"{name}: dim must be an int, got {dim!r}")
    dim = operator.index(dim)
    rank = max(input.dim(), 1)
    if not -rank <= dim < rank:
        raise IndexError(
            f"{name}: Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {dim}); "
            f"input has shape {tuple(input.shape)}"
        )
    if dtype is not None:
        if autocast_dtype(input) is not None:  # which dtype outranks
            return torch_function(input, dim, _stacklevel + 2, dtype)
        input = input.to(dtype)
    return SoftmaxFunction.call(input, dim, log)
