"""Normalisation of rows, with the residual sum that precedes it in a transformer.

layer_norm: y = (s - mean) rstd w + b, rstd = 1/sqrt(var + eps), var = mean((s - mean)²) (Ba, Kiros, Hinton: Layer
Normalization, arXiv:1607.06450). rms_norm: y = s rstd w, rstd = 1/sqrt(mean(s²) + eps) (Zhang, Sennrich: Root Mean
Square Layer Normalization, arXiv:1910.07467). s = x + residual, or x.

Backward, with x̂ = (s - mean) rstd and g = w dy: ds' = rstd (g - mean(g) - x̂ mean(g x̂)) + ds, without mean(g) for
rms_norm, is the gradient of x and of the residual; dw = Σ dy x̂, db = Σ dy over rows.
"""

import math
import numbers

import torch
from torch.nn import functional as T

from .core import (
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

aten = torch.ops.aten


def _wider(x, residual):
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def _acc(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _flat(t):
    return None if t is None else t.reshape(-1).contiguous()


def _dense(t):
    return None if t is None else t.contiguous()


def _fake_fwd(x, residual, w, b, eps, rms):
    dtype = _wider(x, residual)
    y = x.new_empty(x.shape, dtype=dtype)
    statistic = x.new_empty(x.shape[0], dtype=_acc(dtype))
    return (
        y,
        None if residual is None else torch.empty_like(y),
        None if rms else statistic,
        torch.empty_like(statistic),
    )


norm_fwd = define(
    "norm_fwd(Tensor x, Tensor? residual, Tensor? w, Tensor? b, float eps, bool rms) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "norm",
    fake=_fake_fwd,
    prepare=lambda x, residual, w, b, eps, rms: (
        x.contiguous(),
        _dense(residual),
        _dense(w),
        _dense(b),
        eps,
        rms,
    ),
)
norm_bwd = define(
    "norm_bwd(Tensor dy, Tensor? ds, Tensor x, Tensor? w, Tensor? mean, Tensor rstd, bool need_dx, "
    "bool need_dw, bool need_db) -> (Tensor, Tensor, Tensor)",
    "norm",
    fake=lambda dy, ds, x, w, mean, rstd, need_dx, need_dw, need_db: (
        x.new_empty(x.shape) if need_dx else None,
        x.new_empty(x.shape[1], dtype=x.dtype if w is None else w.dtype) if need_dw else None,
        x.new_empty(x.shape[1], dtype=x.dtype if w is None else w.dtype) if need_db else None,
    ),
    prepare=lambda dy, ds, x, w, mean, rstd, *needs: (
        dy.contiguous(),
        _dense(ds),
        x.contiguous(),
        _dense(w),
        _dense(mean),
        rstd.contiguous(),
        *needs,
    ),
)


class NormFunction(KernelFunction):
    """Saved for the backward: s, weight, bias, and of each row rstd and (layer_norm) the mean, in float32 (float64
    for float64)."""

    module = "norm"
    mixed = True  # what `_served` lets through

    @staticmethod
    def autocast(x, weight, bias, residual, shape, eps, rms):
        return torch.float32 if x.is_cuda and autocast_dtype(x) is not None else None

    @staticmethod
    def label(x, weight, bias, residual, shape, eps, rms):
        return "rms_norm" if rms else "layer_norm"

    @staticmethod
    def formula(x, weight, bias, residual, shape, eps, rms):
        s = x if residual is None else x + residual
        y = T.rms_norm(s, shape, weight, eps) if rms else T.layer_norm(s, shape, weight, bias, eps)
        return y if residual is None else (y, s)

    @staticmethod
    def rule(x, weight, bias, residual, shape, eps, rms):
        if x.device.type != "cpu":
            if residual is None:
                return "torch's own kernel moves the same bytes; no GPU has been measured yet"
            return "few elements on a GPU" if below(x.numel(), SMALL_GPU) else None
        if below(x.numel(), SMALL):
            return "few elements on a CPU"
        if not rms and below(x.numel(), LARGE if residual is None else LARGE_SUM):
            return "few elements for torch's own kernel to lose on a CPU"
        if not rms and residual is not None and x.dtype.itemsize == 2:
            return "torch's two calls are as fast in 16 bits"  # 4096x1024 bf16: 0.94 to 0.98
        return None

    @staticmethod
    def forward(ctx, x, weight, bias, residual, shape, eps, rms, backend):
        n = 1
        for size in shape:
            n *= size
        if eps is None:
            eps = torch.finfo(_acc(_wider(x, residual))).eps
        rows = None if residual is None else residual.reshape(-1, n)
        y, s, mean, rstd = norm_fwd(
            x.reshape(-1, n), rows, _flat(weight), _flat(bias), float(eps), rms, backend
        )
        y = aten._unsafe_view(y, x.shape)  # no view: users may write to it in place
        if residual is not None:
            s = aten._unsafe_view(s, x.shape)
        if any(ctx.needs_input_grad):
            ctx.set_materialize_grads(False)
            if residual is not None and not (ctx.needs_input_grad[0] or ctx.needs_input_grad[3]):
                ctx.mark_non_differentiable(s)
            ctx.save_for_backward(x if residual is None else s, weight, bias, mean, rstd)
            ctx.dtypes = x.dtype, None if residual is None else residual.dtype
            ctx.shape, ctx.eps, ctx.rms, ctx.backend = shape, eps, rms, backend
        return y if residual is None else (y, s)

    @staticmethod
    def backward(ctx, dy, ds=None):
        s, weight, bias, mean, rstd = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        d, dw, db = ds, None, None
        if dy is not None:
            n = s.numel() // rstd.numel()
            d, dw, db = norm_bwd(
                dy.reshape(-1, n), None if ds is None else ds.reshape(-1, n), s.reshape(-1, n), _flat(weight),
                mean, rstd, need_dx or need_dr, need_dw, need_db, ctx.backend,
            )  # fmt: skip
            d = None if d is None else d.view(s.shape)
            dw = None if dw is None else dw.view(weight.shape)
            db = None if db is None else db.view(bias.shape)
        return (*_shared(d, ctx.dtypes, need_dx, need_dr, dw, db),)

    @classmethod
    def _by_formula(cls, ctx, dy, ds=None):
        s, weight, bias, _, _ = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        d, dw, db = ds, None, None
        if dy is not None:
            s, weight, bias = (None if t is None else t.view_as(t) for t in (s, weight, bias))
            if weight is None and need_db:  # torch's own second derivative leaves out Σ dy without a weight
                weight = torch.ones_like(bias)
            needs = ((s, need_dx or need_dr), (weight, need_dw), (bias, need_db))
            y = cls.formula(s, weight, bias, None, ctx.shape, ctx.eps, ctx.rms)
            found = iter(torch.autograd.grad(y, [t for t, need in needs if need], dy, create_graph=True))
            d, dw, db = (next(found) if need else None for _, need in needs)
            if ds is not None and d is not None:
                d = d + ds
        return [*_shared(d, ctx.dtypes, need_dx, need_dr, dw, db)]


def _shared(d, dtypes, need_dx, need_dr, dw, db):
    """The gradients in the arguments' order: d is x's as well as the residual's, each in its own dtype."""
    dx = d.to(dtypes[0]) if need_dx and d is not None else None
    dr = d.to(dtypes[1]) if need_dr and d is not None else None
    return dx, dw, db, dr


# Of fewer elements x̂ is always the same (±1 of two), dx nothing but rounding, and nothing is left to a kernel.
SHORTEST = 4
# Elements. "auto" on a CPU, forward and backward together, C++ over the best of eager and compile on one loaded core:
# rms_norm, which torch composes of several passes, 1.0 at 256x768 and 2.2 at 4096x1024; layer_norm 0.6 at 256x768, 0.85
# at 2048x1024 and 1.1 at 4096x1024 (fp32 and bf16); with a residual 0.7, 1.2 (bf16 1.0) and 1.2.
SMALL = 1 << 17
LARGE = 1 << 22
LARGE_SUM = 1 << 21
# On a GPU nothing has been measured yet. The residual's sum saves a read of s: worth the 20 us that a call costs the
# host from here on at 4.8 TB/s.
SMALL_GPU = 1 << 24


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05, *, residual=None):
    """y = (s - mean(s)) / sqrt(var(s) + eps) · w + b over the last dimensions: torch.nn.functional.layer_norm.

    Args:
        input: x, of shape (*, *normalized_shape).
        normalized_shape: the sizes of the dimensions that are normalised together.
        weight, bias: w and b, of shape normalized_shape, or None.
        eps: added to the (biased) variance.
        residual: None, or a tensor of x's shape that is added first.

    Returns:
        y, of x's shape; with a residual (y, s), s = x + residual in their common dtype. Without it s is x.

    float64, float32, bfloat16 and float16 run on kernels, and so does a 16-bit x with weight, bias and residual in
    float32; every other dtype and layout runs the formula. Statistics are float32 (float64 for float64).

    Saved for the backward: s, w, and two numbers a row.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes or devices that do not fit.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
    """
    if residual is None and leaves_to_torch(input, LARGE):
        try:
            return torch.layer_norm(input, normalized_shape, weight, bias, eps)
        except (RuntimeError, TypeError):
            _explain("layer_norm", input, normalized_shape, weight, bias, eps, None)
            raise
    return _norm("layer_norm", input, normalized_shape, weight, bias, eps, residual, False)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, residual=None):
    """y = s / sqrt(mean(s²) + eps) · w over the last dimensions: torch.nn.functional.rms_norm.

    eps None is float32's machine epsilon (float64's for float64). The other arguments, the results, the dtypes and
    the errors are `layer_norm`'s. Saved for the backward: s, w, and one number a row.
    """
    return _norm("rms_norm", input, normalized_shape, weight, None, eps, residual, True)


def _norm(name, x, shape, weight, bias, eps, residual, rms):
    if not _fits(x, shape, weight, bias, eps, residual):
        _explain(name, x, shape, weight, bias, eps, residual)
        return NormFunction.formula(x, weight, bias, residual, shape, eps, rms)
    if residual is not None and x.is_cuda and autocast_dtype(x) is not None:
        s = x + residual  # autocast leaves an addition alone, and normalises in float32
        return NormFunction.call(s, weight, bias, None, tuple(shape), eps, rms), s
    if not served(x, weight, bias, residual) or below(math.prod(shape), SHORTEST):
        y = NormFunction.formula(x, weight, bias, residual, shape, eps, rms)
        torch_serves(
            name, f"its kernels take no such dtypes, and no rows under {SHORTEST} elements", x, weight
        )
        return y
    return NormFunction.call(x, weight, bias, residual, tuple(shape), eps, rms)


def _fits(x, shape, weight, bias, eps, residual):
    """Whether a kernel could take these: one cheap look, so that a good call pays for no explanation."""
    if not isinstance(x, torch.Tensor) or not isinstance(shape, (tuple, list)) or not shape or x.is_nested:
        return False
    tail = x.shape[-len(shape) :]
    if tail != tuple(shape) or not (eps is None or isinstance(eps, numbers.Real)):
        return False
    for t, expected in ((weight, tail), (bias, tail), (residual, x.shape)):
        if t is not None and not (
            isinstance(t, torch.Tensor)
            and t.shape == expected
            and t.device == x.device
            and t.is_floating_point()
        ):
            return False
    return True


def served(x, weight, bias, residual=None):
    """Whether the kernels take these dtypes: one for all, or 16-bit x and float32 for what is added and scaled."""
    if x.is_cuda and autocast_dtype(x) is not None:  # which makes all of them float32
        return True
    wide = _wider(x, residual)
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        return False
    if weight is None and bias is not None and bias.dtype != wide:
        return False
    if weight is not None and weight.dtype != wide and not _upwards(wide, weight.dtype):
        return False
    if residual is None or residual.dtype == x.dtype:
        return True
    return _upwards(x.dtype, residual.dtype) or _upwards(residual.dtype, x.dtype)


def _upwards(narrow, wide):
    return narrow in (torch.bfloat16, torch.float16) and wide == torch.float32


def _explain(name, x, shape, weight, bias, eps, residual):
    """Raise what is wrong with arguments that do not fit; return where torch takes them all the same, as torch.fx's
    proxies and nested tensors."""
    for label, t in (("input", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if not isinstance(t, torch.Tensor) and (t is not None or label == "input"):
            if hasattr(t, "__torch_function__"):
                return
            raise ArgumentTypeError(f"{name}: {label} must be a Tensor, got {type(t).__name__}")
    if x.is_nested:
        return
    if not isinstance(shape, (tuple, list)):
        raise ArgumentTypeError(
            f"{name}: normalized_shape must be a tuple of ints, got {type(shape).__name__}; for one dimension "
            f"of size n pass (n,)"
        )
    if not all(isinstance(size, (int, torch.SymInt)) for size in shape):
        raise ArgumentTypeError(f"{name}: normalized_shape must be a tuple of ints, got {shape!r}")
    if eps is not None and not isinstance(eps, numbers.Real):
        raise ArgumentTypeError(f"{name}: eps must be a number, got {type(eps).__name__}")
    if not shape:
        raise ArgumentError(
            f"{name}: Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
            f"element, but got normalized_shape = []"
        )
    sizes = ", ".join(map(str, shape))
    if tuple(x.shape[-len(shape) :]) != tuple(shape):
        raise ArgumentError(
            f"{name}: Given normalized_shape=[{sizes}], expected input with shape [*, {sizes}], but got input of "
            f"size {list(x.shape)}; pass its last dimensions, as normalized_shape=input.shape[-{len(shape)}:]"
        )
    for label, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != tuple(shape):
            raise ArgumentError(
                f"{name}: Expected {label} to be of same shape as normalized_shape, but got {label} of shape "
                f"{list(t.shape)} and normalized_shape = [{sizes}]"
            )
    if residual is not None and residual.shape != x.shape:
        raise ArgumentError(
            f"{name}: residual has shape {tuple(residual.shape)} but input has {tuple(x.shape)}; they must be "
            f"the same, as in residual.expand_as(input)"
        )
    for label, t in (("weight", weight), ("bias", bias), ("residual", residual)):
        if t is not None:
            same_device(name, label, t, "input", x)
