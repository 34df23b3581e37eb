"""Linear layer with a fused activation: y = f(x Wᵀ + b).

Backward, with z = x Wᵀ + b: dz = dy f'(z), dx = dz W, dW = dzᵀ x, db = Σ dz over rows.
"""

import torch
from torch.nn import functional as T

from .activation import parse
from .core import (
    ArgumentError,
    ArgumentTypeError,
    KernelFunction,
    autocast_dtype,
    below,
    define,
    has_amx,
    product_wins,
)
from .core.checks import same_device, same_dtype

aten = torch.ops.aten

linear_act_fwd = define(
    "linear_act_fwd(Tensor x, Tensor w, Tensor? b, str act, float p0, float p1, bool save_z) -> (Tensor, Tensor)",
    "linear",
    fake=lambda x, w, b, act, p0, p1, save_z: (
        x.new_empty(x.shape[0], w.shape[0]),
        x.new_empty(x.shape[0], w.shape[0]) if save_z else None,
    ),
)
linear_act_bwd = define(
    "linear_act_bwd(Tensor dy, Tensor x, Tensor w, Tensor? saved, str act, float p0, float p1, "
    "bool need_dx, bool need_dw, bool need_db) -> (Tensor, Tensor, Tensor)",
    "linear",
    fake=lambda dy, x, w, saved, act, p0, p1, need_dx, need_dw, need_db: (
        x.new_empty(x.shape) if need_dx else None,
        (w.new_empty(w.shape) if w.is_contiguous() else w.new_empty(w.shape[::-1]).t()) if need_dw else None,
        w.new_empty(w.shape[0]) if need_db else None,
    ),
)


# "auto" on a CPU, fp32, forward and backward together, C++ over eager on 2 cores: with fewer outputs than SMALL a
# call's fixed cost is not won back (64x128->256: 0.6 to 0.7; 256x784->512: 0.92 to 0.98; 512x512->1024: 1.0 to 1.4).
# Without AMX a bfloat16 product takes so long (0.4 TFLOP/s on 2 cores) that what surrounds it does not show where
# torch's own activation is as good: 0.94 to 1.03 of eager's speed at 2048x384->1536, but for these of SLOW_BF16, whose
# torch kernels are slow: gelu_tanh 1.08, silu 1.06, softplus 1.06, mish 1.52.
SMALL = 1 << 19
SLOW_BF16 = ("gelu_tanh", "silu", "softplus", "mish")
# On a GPU nothing has been measured yet. In 16 bits the epilogue saves a read and a write of the outputs, or three of
# them in the backward: from here on more than the 20 us that a call costs the host at 4.8 TB/s.
SMALL_GPU = 1 << 24


# A bare product's floating-point operations from which a faster product's gain shows over a call's cost; and where
# torch's takes 10 to 100 times as long, as in 16 bits without the instructions for them.
LARGE_PRODUCT = 1 << 27
LARGE_PRODUCT_16 = 1 << 18


def _is_large(x, weight, dtype):
    """Whether the kernels' product alone, in a dtype, beats torch's by more than a call costs."""
    if x.device.type != "cpu" or not product_wins(dtype):
        return False
    least = LARGE_PRODUCT_16 if dtype.itemsize == 2 else LARGE_PRODUCT
    return not below(2 * x.numel() * weight.size(0), least)


class LinearAct(KernelFunction):
    """Saved for the backward: x, W, b (as torch does) and y where f' can be had from it, z otherwise."""

    module = "linear"

    @staticmethod
    def autocast(x, weight, bias, act):
        return autocast_dtype(x)

    @staticmethod
    def formula(x, weight, bias, act):
        return act.formula(T.linear(x, weight, bias))

    @staticmethod
    def rule(x, weight, bias, act):
        dtype = autocast_dtype(x) or x.dtype  # asked before the arguments are cast, and after
        if act.name == "none":
            return None if _is_large(x, weight, dtype) else "a bare product is torch's own"
        if x.device.type != "cpu":
            if x.dtype.itemsize != 2:
                return "float32 and float64 products on a GPU are cuBLAS's"
            few = below(x.numel() * weight.size(0), SMALL_GPU * weight.size(1))
            return "few outputs on a GPU" if few else None
        if dtype.itemsize == 2 and _is_large(x, weight, dtype):
            return None
        if below(x.numel() * weight.size(0), SMALL * weight.size(1)):
            return "few outputs on a CPU"
        if x.dtype == torch.bfloat16 and act.name not in SLOW_BF16 and not has_amx():
            return "bfloat16 on a CPU without AMX"
        return None

    @staticmethod
    def forward(ctx, x, weight, bias, act, backend):
        from_y = act.saves_output(x.dtype)
        save_z = any(ctx.needs_input_grad) and act.name != "none" and not from_y
        y, z = linear_act_fwd(x.reshape(-1, x.shape[-1]), weight, bias, *act.flat(), save_z, backend)
        y = aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0]))  # no view: users may write to it in place
        ctx.save_for_backward(x, weight, bias, y if from_y else z)
        ctx.act, ctx.backend = act, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, _, saved = ctx.saved_tensors
        n, k = weight.shape
        if saved is not None:
            saved = saved.reshape(-1, n).contiguous()  # a saved-tensor hook may have laid it out anew
        dx, dw, db = linear_act_bwd(
            dy.reshape(-1, n),
            x.reshape(-1, k),
            weight,
            saved,
            *ctx.act.flat(),
            *ctx.needs_input_grad[:3],
            ctx.backend,
        )
        return None if dx is None else dx.view(x.shape), dw, db

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors[:3], ctx.act.twice())


def linear(input, weight, bias=None, *, act=None):
    """y = f(x Wᵀ + b): torch.nn.functional.linear, with the activation f fused behind it.

    Args:
        input: x, of shape (*, in_features), any leading dimensions including none.
        weight: W, of shape (out_features, in_features) or (in_features,).
        bias: b, of shape (out_features,), or None.
        act: None, the name of an activation ("relu", "gelu", "gelu_tanh", "silu", ...), or
            (name, parameter, ...) with the parameters in the order of torch's function of that name,
            as in ("leaky_relu", 0.2) or ("hardtanh", -2, 2).

    Returns:
        y, of shape (*, out_features), in the arguments' common dtype (autocast's under torch.autocast).

    float64, float32, bfloat16 and float16 run on kernels; every other dtype and layout runs the formula.
    The sum, the bias and f are computed in float32 (float64 for float64); in 16 bits on a CPU, and by the CUDA C++
    kernels, z is rounded before f as in torch.

    Saved for the backward: x, W, b, and y where f' can be had from it (relu, relu6, leaky_relu with a
    positive slope, hardtanh, sigmoid, tanh), else z = x Wᵀ + b, and that only when a gradient can be asked for.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes or devices that do not fit, an unknown act.
        ArgumentTypeError (a TypeError and a RuntimeError): dtypes that do not fit, arguments of another type.
    """
    act = parse("linear", act)
    if not _fits(input, weight, bias):
        _explain(input, weight, bias)
        return LinearAct.formula(input, weight, bias, act)
    if act.autocast(input) is not None:  # softplus, which is float32 under torch's autocast
        return LinearAct.formula(input, weight, bias, act)
    return LinearAct.call(input, weight, bias, act)


def _fits(x, weight, bias):
    """Whether a kernel could take these: one cheap look, so that a good call pays for no explanation."""
    if not (isinstance(x, torch.Tensor) and isinstance(weight, torch.Tensor)) or x.is_nested or x.dim() == 0:
        return False
    if weight.dim() != 2 or weight.size(1) != x.size(-1) or weight.device != x.device:
        return False
    same = weight.dtype == x.dtype
    if bias is not None:
        if not isinstance(bias, torch.Tensor) or bias.dim() != 1 or bias.size(0) != weight.size(0):
            return False
        if bias.device != x.device:
            return False
        same = same and bias.dtype == x.dtype
    return same or torch.is_autocast_enabled(x.device.type)


def _explain(x, weight, bias):
    """Raise what is wrong with arguments that do not fit; return where torch takes them all the same: torch.fx's
    proxies, nested tensors, a weight of one dimension, a bias that it broadcasts."""
    for name, t in (("input", x), ("weight", weight), ("bias", bias)):
        if not isinstance(t, torch.Tensor) and (t is not None or name != "bias"):
            if hasattr(t, "__torch_function__"):
                return
            raise ArgumentTypeError(f"linear: {name} must be a Tensor, got {type(t).__name__}")
    if x.is_nested:
        return
    if x.dim() == 0:
        raise ArgumentError("linear: input has no dimensions; expected shape (*, in_features)")
    if weight.dim() not in (1, 2):
        raise ArgumentError(
            f"linear: weight has {weight.dim()} dimensions, shape {tuple(weight.shape)}; "
            f"expected (out_features, in_features)"
        )
    features = x.size(-1)
    if weight.size(-1) != features:
        raise ArgumentError(
            f"linear: weight has {weight.size(-1)} columns but input has {features} features; "
            f"expected weight of shape (N, {features}), got {tuple(weight.shape)}"
        )
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            same_device("linear", name, t, "input", x)
            if not torch.is_autocast_enabled(x.device.type):
                same_dtype("linear", name, t, "input", x)
    if bias is not None and bias.dim() == 1 and weight.dim() == 2 and bias.size(0) not in (weight.size(0), 1):
        raise ArgumentError(
            f"linear: bias has {bias.size(0)} elements but weight has {weight.size(0)} rows; "
            f"expected bias of shape ({weight.size(0)},)"
        )
