"""Group normalisation: y = (x - mean) rstd w_c + b_c, mean and rstd = 1/sqrt(var + eps) over a group of channels
(Wu, He: Group Normalization, arXiv:1803.08494).

Backward, with x̂ = (x - mean) rstd and g = w_c dy: dx = rstd (g - mean(g) - x̂ mean(g x̂)) with the means over the
group; dw_c = Σ dy x̂, db_c = Σ dy over samples and positions.
"""

import numbers

import torch
from torch.nn import functional as T

from .core import (
    FRESH,
    ArgumentError,
    ArgumentTypeError,
    KernelFunction,
    autocast_dtype,
    below,
    define,
    leaves_to_torch,
    torch_serves,
)
from .core.checks import same_device
from .norm import served

aten = torch.ops.aten


def _acc(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_fwd(x, w, b, groups, eps):
    statistic = x.new_empty(x.shape[0] * groups, dtype=_acc(x.dtype))
    return x.new_empty(x.shape), statistic, torch.empty_like(statistic)


def _fake_bwd(dy, x, w, mean, rstd, groups, need_dx, need_dw, need_db):
    affine = x.new_empty(x.shape[1], dtype=x.dtype if w is None else w.dtype)
    return (
        x.new_empty(x.shape) if need_dx else None,
        affine if need_dw else None,
        torch.empty_like(affine) if need_db else None,
    )


def _dense(*args):
    return tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args)


group_norm_fwd = define(
    "group_norm_fwd(Tensor x, Tensor? w, Tensor? b, int groups, float eps) -> (Tensor, Tensor, Tensor)",
    "group_norm",
    fake=_fake_fwd,
    prepare=_dense,
)
group_norm_bwd = define(
    "group_norm_bwd(Tensor dy, Tensor x, Tensor? w, Tensor mean, Tensor rstd, int groups, bool need_dx, "
    "bool need_dw, bool need_db) -> (Tensor, Tensor, Tensor)",
    "group_norm",
    fake=_fake_bwd,
    prepare=_dense,
)


# Elements. "auto" on a CPU: at 8x64x56x56 in fp32 the C++ kernels run at 0.83 to 0.85 of torch's speed; from FRESH
# bytes (of float32) on they save page faults.
SMALL = FRESH // 4


class GroupNormFunction(KernelFunction):
    """Saved for the backward: x, weight, bias, and of each group its mean and rstd in float32 (float64 for
    float64)."""

    module = "group_norm"
    mixed = True  # what `served` lets through

    @staticmethod
    def autocast(x, weight, bias, groups, eps):
        return torch.float32 if x.is_cuda and autocast_dtype(x) is not None else None

    @staticmethod
    def formula(x, weight, bias, groups, eps):
        return T.group_norm(x, groups, weight, bias, eps)

    @staticmethod
    def rule(x, weight, bias, groups, eps):
        if x.device.type != "cpu":
            return "torch's own kernel moves the same bytes; no GPU has been measured yet"
        if below(x.numel(), SMALL):
            return "few elements for torch's own kernel to lose on a CPU"
        return None if x.is_contiguous() else "another layout than the kernels' own"

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, backend):
        y, mean, rstd = group_norm_fwd(
            x.reshape(x.shape[0], x.shape[1], -1), weight, bias, groups, float(eps), backend
        )
        y = aten._unsafe_view(y, x.shape)  # no view: users may write to it in place
        layout = _layout(x)
        if layout is not None:
            y = y.contiguous(memory_format=layout)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.backend = groups, eps, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, _, mean, rstd = ctx.saved_tensors
        flat = (x.shape[0], x.shape[1], -1)
        dx, dw, db = group_norm_bwd(
            dy.reshape(flat), x.reshape(flat), weight, mean, rstd, ctx.groups, *ctx.needs_input_grad[:3], ctx.backend
        )  # fmt: skip
        return None if dx is None else dx.view(x.shape), dw, db

    @staticmethod
    def inputs(ctx):
        x, weight, bias, _, _ = ctx.saved_tensors
        return x, weight, bias, ctx.groups, ctx.eps


def _layout(x):
    """The channels-last format that torch's result would have, or None."""
    if x.is_contiguous() or x.dim() not in (4, 5):
        return None
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return layout if x.is_contiguous(memory_format=layout) else None


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-05):
    """y = (x - mean) / sqrt(var + eps) · w + b over groups of channels: torch.nn.functional.group_norm.

    Args:
        input: x, of shape (N, C, *).
        num_groups: into how many groups of C / num_groups channels C is divided; mean and (biased) variance are
            a group's.
        weight, bias: w and b, of shape (C,), or None.
        eps: added to the variance.

    Returns:
        y, of x's shape and dtype.

    float64, float32, bfloat16 and float16 run on kernels, and so does a 16-bit x with weight and bias in float32;
    every other dtype and layout runs the formula. Statistics are float32 (float64 for float64).

    Saved for the backward: x, w, and two numbers a group.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes or devices that do not fit.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
        ValueError: a single value a group, as torch.
    """
    if leaves_to_torch(input, SMALL):
        try:
            return T.group_norm(input, num_groups, weight, bias, eps)
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError):
            _explain(input, num_groups, weight, bias, eps)
            raise
    if not _fits(input, num_groups, weight, bias, eps):
        _explain(input, num_groups, weight, bias, eps)
        return T.group_norm(input, num_groups, weight, bias, eps)
    if not served(input, weight, bias):
        y = T.group_norm(input, num_groups, weight, bias, eps)
        torch_serves("group_norm", "its kernels take no such dtypes", input, weight, bias)
        return y
    return GroupNormFunction.call(input, weight, bias, num_groups, eps)


def _fits(x, groups, weight, bias, eps):
    """Whether a kernel could take these: one cheap look, so that a good call pays for no explanation."""
    if not isinstance(x, torch.Tensor) or x.is_nested or x.dim() < 2:
        return False
    if not isinstance(groups, (int, torch.SymInt)) or isinstance(groups, bool) or groups < 1:
        return False
    channels = x.size(1)
    if channels % groups or not isinstance(eps, numbers.Real):
        return False
    if below(x.numel(), x.size(0) * groups * 2):  # at most one value a group: torch has its say
        return False
    for t in (weight, bias):
        if t is not None and not (
            isinstance(t, torch.Tensor)
            and t.dim() == 1
            and t.size(0) == channels
            and t.device == x.device
            and t.is_floating_point()
        ):
            return False
    return True


def _explain(x, groups, weight, bias, eps):
    """Raise what is wrong with arguments that do not fit; return where torch takes them all the same, or has an
    error of its own."""
    for label, t in (("input", x), ("weight", weight), ("bias", bias)):
        if not isinstance(t, torch.Tensor) and (t is not None or label == "input"):
            if hasattr(t, "__torch_function__"):  # torch.fx
                return
            raise ArgumentTypeError(f"group_norm: {label} must be a Tensor, got {type(t).__name__}")
    if x.is_nested:
        return
    if not isinstance(groups, (int, torch.SymInt)) or isinstance(groups, bool):
        raise ArgumentTypeError(f"group_norm: num_groups must be an int, got {type(groups).__name__}")
    if not isinstance(eps, numbers.Real):
        raise ArgumentTypeError(f"group_norm: eps must be a number, got {type(eps).__name__}")
    shape = tuple(x.shape)
    if x.dim() < 2:
        raise ArgumentError(
            f"group_norm: Expected at least 2 dimensions for input tensor but received {x.dim()}; expected "
            f"shape (N, C, *), got {shape}"
        )
    if groups < 1:
        raise ArgumentError(f"group_norm: Expected num groups to be greater than 0, got {groups}")
    channels = x.size(1)
    if channels % groups:
        raise ArgumentError(
            f"group_norm: Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(shape)} and num_groups={groups}"
        )
    for label, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            if tuple(t.shape) != (channels,):
                raise ArgumentError(
                    f"group_norm: Expected {label} to be a vector of size equal to the number of channels in input, "
                    f"but got {label} of shape {list(t.shape)} and input of shape {list(shape)}"
                )
            same_device("group_norm", label, t, "input", x)
