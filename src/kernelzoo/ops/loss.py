"""Losses element by element: l(x, t) of input x and target t, each with its two derivatives, and their reduction.

mse (x - t)², l1 |x - t|, huber δ: d²/2 for |d| < δ else δ(|d| - δ/2) (P. J. Huber, "Robust estimation of a location
parameter", doi:10.1214/aoms/1177703732), smooth_l1 β: d²/2β for |d| < β else |d| - β/2 (R. Girshick,
arXiv:1504.08083), bce -t max(ln x, -100) - (1 - t) max(ln(1 - x), -100), bce_logits (1 - t) x - ln σ(x),
kl t ln t - t x, kl_log eᵗ (t - x). d = x - t.
"""

import warnings

import torch
from torch.nn import functional as T

from .core import FRESH, KernelFunction, autocast_dtype, below, define
from .core.mirror import REDUCTIONS, reduction_of, torchs_own


def _result(x, reduction):
    return x.new_empty(x.shape if reduction == "none" else ())


def _contiguous(*args):
    return tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args)


loss_fwd = define(
    "loss_fwd(Tensor x, Tensor target, str kind, float p, str reduction) -> Tensor",
    "loss",
    fake=lambda x, target, kind, p, reduction: _result(x, reduction),
    prepare=_contiguous,
)
loss_bwd = define(
    "loss_bwd(Tensor dy, Tensor x, Tensor target, str kind, float p, str reduction, bool need_dx, bool need_dt) "
    "-> (Tensor, Tensor)",
    "loss",
    fake=lambda dy, x, target, kind, p, reduction, need_dx, need_dt: (
        x.new_empty(x.shape) if need_dx else None,
        x.new_empty(x.shape) if need_dt else None,
    ),
    prepare=_contiguous,
)

# torch's own functions of (x, t, p, reduction)
FORMULAS = {
    "mse": lambda x, t, p, reduction: torch._C._nn.mse_loss(x, t, _enum(reduction)),
    "l1": lambda x, t, p, reduction: torch._C._nn.l1_loss(x, t, _enum(reduction)),
    "huber": lambda x, t, p, reduction: torch._C._nn.huber_loss(x, t, _enum(reduction), p),
    "smooth_l1": lambda x, t, p, reduction: torch._C._nn.smooth_l1_loss(x, t, _enum(reduction), p),
    "bce": lambda x, t, p, reduction: torch._C._nn.binary_cross_entropy(x, t, None, _enum(reduction)),
    "bce_logits": lambda x, t, p, reduction: torch.binary_cross_entropy_with_logits(
        x, t, None, None, _enum(reduction)
    ),
    "kl": lambda x, t, p, reduction: torch.kl_div(x, t, _enum(reduction)),
    "kl_log": lambda x, t, p, reduction: torch.kl_div(x, t, _enum(reduction), log_target=True),
}


def _enum(reduction):
    return REDUCTIONS.index(reduction)


class Loss(KernelFunction):
    """Saved for the backward: x and the target."""

    module = "loss"

    @classmethod
    def label(cls, x, target, kind, *args):
        return kind

    @staticmethod
    def autocast(x, *args):
        return torch.float32 if autocast_dtype(x) is not None else None

    @staticmethod
    def formula(x, target, kind, p, reduction):
        return FORMULAS[kind](x, target, p, reduction)

    @staticmethod
    def rule(x, target, kind, p, reduction):
        if x.device.type != "cpu":
            return None if reduction != "none" else "torch's own kernel moves the same bytes"
        if below(x.numel() * x.dtype.itemsize, FRESH):
            return "few elements for its cost on a CPU"
        return None

    @staticmethod
    def forward(ctx, x, target, kind, p, reduction, backend):
        ctx.save_for_backward(x, target)
        ctx.options = kind, p, reduction
        ctx.backend = backend
        return loss_fwd(x, target, kind, p, reduction, backend)

    @staticmethod
    def backward(ctx, dy):
        x, target = ctx.saved_tensors
        return loss_bwd(dy, x, target, *ctx.options, *ctx.needs_input_grad[:2], ctx.backend)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors, *ctx.options)


EXPECTED = "input and target of one shape and dtype, and a reduction of 'none', 'mean' or 'sum'"


def _fits(x, target, reduction, *rare):
    """Whether a kernel could take these; broadcasting, mixed dtypes and weights are torch's own composites."""
    return (
        isinstance(x, torch.Tensor)
        and isinstance(target, torch.Tensor)
        and not (x.is_nested or target.is_nested)
        and x.is_floating_point()
        and target.shape == x.shape
        and (
            target.dtype == x.dtype
            or (target.is_floating_point() and torch.is_autocast_enabled(x.device.type))
        )
        and target.device == x.device
        and reduction in REDUCTIONS
        and all(r is None for r in rare)
    )


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """(x - t)²: torch.nn.functional.mse_loss.

    Args:
        input, target: x and t, of one shape (another that broadcasts is torch's own call, with its warning).
        size_average, reduce: deprecated in torch, which still takes them for a reduction.
        reduction: "none", "mean" or "sum".
        weight: of input's shape, by which each element counts; torch's own call.

    Returns:
        the loss, of input's shape or a scalar, in input's dtype (float32 under torch.autocast).

    The kernels compute in float32 (float64 for float64) and add up in a fixed order; gradients go to both input and
    target. Saved for the backward: input and target.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes, dtypes or values that do not fit.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if _fits(input, target, reduction, weight):
        return Loss.call(input, target, "mse", 0.0, reduction)
    return _torchs("mse_loss", input, target, reduction=reduction, **_given(weight=weight))


def l1_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """|x - t|: torch.nn.functional.l1_loss. Arguments are `mse_loss`'s."""
    reduction = reduction_of(size_average, reduce, reduction)
    if _fits(input, target, reduction, weight):
        return Loss.call(input, target, "l1", 0.0, reduction)
    return _torchs("l1_loss", input, target, reduction=reduction, **_given(weight=weight))


def huber_loss(input, target, reduction="mean", delta=1.0, weight=None):
    """d²/2 where |d| < delta, delta (|d| - delta/2) elsewhere, d = x - t: torch.nn.functional.huber_loss.

    delta > 0; the other arguments are `mse_loss`'s.
    """
    if _fits(input, target, reduction, weight) and delta > 0:
        return Loss.call(input, target, "huber", float(delta), reduction)
    return _torchs("huber_loss", input, target, reduction=reduction, delta=delta, **_given(weight=weight))


def smooth_l1_loss(input, target, size_average=None, reduce=None, reduction="mean", beta=1.0):
    """d²/(2 beta) where |d| < beta, |d| - beta/2 elsewhere, d = x - t: torch.nn.functional.smooth_l1_loss.

    beta >= 0, and 0 is l1_loss; the other arguments are `mse_loss`'s.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if _fits(input, target, reduction) and beta >= 0:
        return Loss.call(input, target, "smooth_l1" if beta else "l1", float(beta), reduction)
    return _torchs("smooth_l1_loss", input, target, reduction=reduction, beta=beta)


def binary_cross_entropy(input, target, weight=None, size_average=None, reduce=None, reduction="mean"):
    """-t max(ln x, -100) - (1 - t) max(ln(1 - x), -100): torch.nn.functional.binary_cross_entropy.

    input: probabilities; a value of input or target outside [0, 1] raises on a CPU, as in torch. weight: broadcasts
    over the elements; torch's own call. The other arguments are `mse_loss`'s.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if _fits(input, target, reduction, weight) and not _banned(input):
        return Loss.call(input, target, "bce", 0.0, reduction)
    return _torchs("binary_cross_entropy", input, target, weight=weight, reduction=reduction)


def _banned(x):
    """torch refuses binary_cross_entropy under a GPU's autocast."""
    return x.is_cuda and autocast_dtype(x) is not None


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """(1 - t) x + ln(1 + exp(-x)): torch.nn.functional.binary_cross_entropy_with_logits.

    input: logits. weight, pos_weight: factors of the element and of its first term for t, which broadcast; torch's
    own call. The other arguments are `mse_loss`'s.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if _fits(input, target, reduction, weight, pos_weight):
        return Loss.call(input, target, "bce_logits", 0.0, reduction)
    return _torchs(
        "binary_cross_entropy_with_logits",
        input,
        target,
        weight=weight,
        reduction=reduction,
        pos_weight=pos_weight,
    )


def kl_div(input, target, size_average=None, reduce=None, reduction="mean", log_target=False):
    """t ln t - t x of log-probabilities x, or with log_target eᵗ (t - x): torch.nn.functional.kl_div.

    reduction: also "batchmean", the sum over the first dimension's size; "mean" warns as in torch. The other
    arguments are `mse_loss`'s.
    """
    if size_average is not None or reduce is not None:
        reduction = reduction_of(size_average, reduce, reduction)
    elif reduction == "mean" and _fits(input, target, reduction):
        _warn_of_mean()
    if _fits(input, target, "sum" if reduction == "batchmean" else reduction):
        kind = "kl_log" if log_target else "kl"
        if reduction != "batchmean":
            return Loss.call(input, target, kind, 0.0, reduction)
        loss = Loss.call(input, target, kind, 0.0, "sum")
        return loss / input.size(0) if input.dim() else loss
    return _torchs("kl_div", input, target, reduction=reduction, log_target=log_target)


def _warn_of_mean():
    warnings.warn(
        "reduction: 'mean' divides the total loss by both the batch size and the support size."
        "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
        "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
        stacklevel=3,
    )


_warn_of_mean._dynamo_marked_constant = (
    True  # torch.compile calls it while it traces: it cannot trace a warning
)


def _given(**options):
    return {name: value for name, value in options.items() if value is not None}  # newer than some torch


def _torchs(name, *args, **kwargs):
    function = getattr(T, name)
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = torchs_own(name, EXPECTED, function, *args, **kwargs)
    for warning in caught:  # from the line that called us
        warnings.warn(warning.message, stacklevel=3)
    return result
