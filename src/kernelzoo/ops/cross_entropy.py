"""Cross entropy of logits x (N, C, ...) with class indices t or class probabilities q, and nll_loss.

With weights w, smoothing ε, q' = (1 - ε) q + ε/C (q the one-hot row of t for indices):
    l = Σ_c w_c q'_c (lse(x) - x_c),    lse(x) = log Σ_c exp(x_c)
and 0 where t is ignored. The mean divides by Σ w_t over the rows that count; by the rows for probabilities.

Backward, s the row's incoming gradient and p = exp(x - lse): dx_c = s (Σ_k w_k q'_k p_c - w_c q'_c).
Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", arXiv:1512.00567. The row's maximum and
sum in one walk: Milakov, Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

import torch
from torch.nn import functional as T

from .core import KernelFunction, autocast_dtype, below, define
from .core.mirror import REDUCTIONS, reduction_of, torchs_own

aten = torch.ops.aten


def acc_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _loss(x, reduction, wide):
    shape = (x.shape[0], x.shape[2]) if reduction == "none" else ()
    return x.new_empty(shape, dtype=torch.float32 if wide else x.dtype)


def _contiguous(*args):
    return tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args)


cross_entropy_fwd = define(
    "cross_entropy_fwd(Tensor x, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float smoothing, bool wide) -> (Tensor, Tensor, Tensor)",
    "cross_entropy",
    fake=lambda x, target, weight, ignore_index, reduction, smoothing, wide: (
        _loss(x, reduction, wide),
        x.new_empty((3, x.shape[0], x.shape[2]), dtype=acc_dtype(x)),
        x.new_empty((), dtype=acc_dtype(x)),
    ),
    prepare=_contiguous,
)
cross_entropy_bwd = define(
    "cross_entropy_bwd(Tensor dy, Tensor x, Tensor target, Tensor? weight, Tensor stats, Tensor factor, "
    "int ignore_index, float smoothing) -> Tensor",
    "cross_entropy",
    fake=lambda dy, x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    prepare=_contiguous,
)
nll_loss_fwd = define(
    "nll_loss_fwd(Tensor x, Tensor target, Tensor? weight, int ignore_index, str reduction, bool wide) "
    "-> (Tensor, Tensor)",
    "cross_entropy",
    fake=lambda x, target, weight, ignore_index, reduction, wide: (
        _loss(x, reduction, wide),
        x.new_empty((), dtype=acc_dtype(x)),
    ),
    prepare=_contiguous,
)
nll_loss_bwd = define(
    "nll_loss_bwd(Tensor dy, Tensor x, Tensor target, Tensor? weight, Tensor factor, int ignore_index) -> Tensor",
    "cross_entropy",
    fake=lambda dy, x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    prepare=_contiguous,
)


# Logits. "auto" on a CPU, forward and backward together, C++ beside eager and compile, ms: fp32 1024x1000 1.1, 1.1,
# 1.4; 4096x1000 4.9, 9.1, 4.3; 8192x1000 11, 24, 11; bf16 4096x1000 4.0, 4.3, 14; 8192x1000 5.2, 7.8, 7.9.
SMALL = 1 << 22


class _ClassLoss:
    """What both share: x as (outer, C, inner), the target likewise, results in x's shape."""

    module = "cross_entropy"
    mixed = True  # under autocast the weights are float32 beside 16-bit logits

    @classmethod
    def rule(cls, x, *args):
        if x.device.type != "cpu":
            return None
        if below(x.numel(), SMALL):
            return "few logits for its cost on a CPU"
        if x.dim() > 2:
            return "classes that are not the last dimension are copied first on a CPU"
        return None


class CrossEntropy(_ClassLoss, KernelFunction):
    """Saved for the backward: x, the target and the weights, each row's maximum, log Σ exp(x - max) and Σ w q'."""

    @staticmethod
    def formula(x, target, weight, ignore_index, reduction, smoothing, wide):
        if wide:
            x, target, weight = (_float(t) for t in (x, target, weight))
        return T.cross_entropy(
            x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
        )

    @staticmethod
    def forward(ctx, x, target, weight, ignore_index, reduction, smoothing, wide, backend):
        loss, stats, factor = cross_entropy_fwd(
            _rows(x), _target_rows(x, target), weight, ignore_index, reduction, smoothing, wide, backend
        )
        ctx.save_for_backward(x, target, weight, stats, factor)
        ctx.options = ignore_index, reduction, smoothing, wide
        ctx.backend = backend
        return _shaped(loss, x, reduction)

    @staticmethod
    def backward(ctx, dy):
        x, target, weight, stats, factor = ctx.saved_tensors
        ignore_index, reduction, smoothing, _ = ctx.options
        dx = cross_entropy_bwd(
            _grad_rows(dy, x, reduction),
            _rows(x),
            _target_rows(x, target),
            weight,
            stats,
            factor,
            ignore_index,
            smoothing,
            ctx.backend,
        )
        return (dx.view(x.shape),)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors[:3], *ctx.options)


class NllLoss(_ClassLoss, KernelFunction):
    """Saved for the backward: the log-probabilities (for their shape), the target and the weights, as torch does."""

    @classmethod
    def label(cls, *args):
        return "nll_loss"

    @staticmethod
    def formula(x, target, weight, ignore_index, reduction, wide):
        if wide:
            x, weight = _float(x), _float(weight)
        return T.nll_loss(x, target, weight, ignore_index=ignore_index, reduction=reduction)

    @classmethod
    def rule(cls, x, *args):
        if x.device.type != "cpu":
            return "one element a row is read, and torch's backward writes its zeros as fast"
        if not (x.requires_grad and torch.is_grad_enabled()):
            return "one element a row is read"  # 8192x50257: torch 0.09 ms, the kernel 0.22
        return super().rule(x, *args)

    @staticmethod
    def forward(ctx, x, target, weight, ignore_index, reduction, wide, backend):
        loss, factor = nll_loss_fwd(
            _rows(x), _target_rows(x, target), weight, ignore_index, reduction, wide, backend
        )
        ctx.save_for_backward(x, target, weight, factor)
        ctx.options = ignore_index, reduction, wide
        ctx.backend = backend
        return _shaped(loss, x, reduction)

    @staticmethod
    def backward(ctx, dy):
        x, target, weight, factor = ctx.saved_tensors
        ignore_index, reduction, _ = ctx.options
        dx = nll_loss_bwd(
            _grad_rows(dy, x, reduction),
            _rows(x),
            _target_rows(x, target),
            weight,
            factor,
            ignore_index,
            ctx.backend,
        )
        return (dx.view(x.shape),)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors[:3], *ctx.options)


def _float(t):
    return t.float() if t is not None and t.is_floating_point() else t


def _rows(x):
    """x (N, C, ...) or (C,) as (outer, C, inner)."""
    if x.dim() == 1:
        return x.reshape(1, -1, 1)
    inner = 1
    for size in x.shape[2:]:
        inner *= size
    return x.reshape(x.shape[0], x.shape[1], inner)


def _target_rows(x, target):
    """Indices as (outer, inner) int64, probabilities as (outer, C, inner)."""
    if target.is_floating_point():
        return _rows(target)
    return target.to(torch.int64).reshape(x.shape[0] if x.dim() > 1 else 1, -1)


def _grad_rows(dy, x, reduction):
    return dy.reshape(x.shape[0] if x.dim() > 1 else 1, -1) if reduction == "none" else dy


def _shaped(loss, x, reduction):
    if reduction != "none":
        return loss
    # no view: users may write to it in place
    return aten._unsafe_view(loss, (x.shape[0], *x.shape[2:]) if x.dim() > 1 else ())


EXPECTED = (
    "input of shape (C), (N, C) or (N, C, d1, ...), with a target of class indices (int64 or uint8) of shape "
    "(), (N) or (N, d1, ...) or of probabilities of the input's shape and dtype, and weights of shape (C) and "
    "the input's dtype"
)


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """l = Σ_c w_c q'_c (log Σ_k exp(x_k) - x_c), a row: torch.nn.functional.cross_entropy.

    q' = (1 - label_smoothing) q + label_smoothing / C, and q the target's probabilities or its class's one-hot row.

    Args:
        input: the logits x, of shape (C,), (N, C) or (N, C, d1, ...).
        target: class indices, int64 or uint8, of shape (), (N,) or (N, d1, ...); or probabilities, of input's shape.
        weight: w, of shape (C,), or None for ones.
        size_average, reduce: deprecated in torch, which still takes them for a reduction.
        ignore_index: a class index whose rows give no loss and no gradient (not for probabilities).
        reduction: "none", "sum", or "mean": over Σ w_t for indices, over the rows for probabilities.
        label_smoothing: ε in [0, 1].

    Returns:
        the loss, of target's (indices') shape or a scalar, in input's dtype (float32 under torch.autocast).

    float64, float32, bfloat16 and float16 run on kernels, which compute in float32 (float64 for float64) and write
    the gradient once; 16-bit logits under autocast are not copied to float32. A target that asks for a gradient
    runs the formula. On a CPU a target out of range raises torch's IndexError; on a GPU the kernel asserts, as torch's.

    Saved for the backward: input, target, weight, and three float32 a row.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes, dtypes or values that do not fit.
        IndexError: a target out of range, on a CPU.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if not (0.0 <= label_smoothing <= 1.0 and _fits(input, target, weight, reduction, ignore_index)):
        return torchs_own(
            "cross_entropy",
            EXPECTED,
            T.cross_entropy,
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    input, target, weight, wide = _under_autocast(input, target, weight)
    return CrossEntropy.call(input, target, weight, ignore_index, reduction, float(label_smoothing), wide)


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    """l = -w_t x_t, a row of log-probabilities x: torch.nn.functional.nll_loss.

    Arguments, shapes and errors are `cross_entropy`'s with class indices. Saved for the backward: input, target,
    weight.
    """
    reduction = reduction_of(size_average, reduce, reduction)
    if not _fits(input, target, weight, reduction, ignore_index) or target.is_floating_point():
        return torchs_own(
            "nll_loss",
            EXPECTED,
            T.nll_loss,
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    input, target, weight, wide = _under_autocast(input, target, weight)
    return NllLoss.call(input, target, weight, ignore_index, reduction, wide)


def _fits(x, target, weight, reduction, ignore_index):
    """Whether a kernel could take these; what does not fit, or is rare, goes to torch's own function."""
    if not (isinstance(x, torch.Tensor) and isinstance(target, torch.Tensor)) or x.is_nested:
        return False
    if not (reduction in REDUCTIONS and x.dim() and x.is_floating_point() and target.device == x.device):
        return False
    return target_fits(x.shape, x.dtype, target, ignore_index) and weight_fits(
        x, x.size(min(1, x.dim() - 1)), weight
    )


def agrees(t, dtype):
    """Whether t has the dtype, or autocast makes it so: float64 it leaves alone."""
    if t.dtype == dtype:
        return True
    return torch.float64 not in (t.dtype, dtype) and torch.is_autocast_enabled(t.device.type)


def target_fits(shape, dtype, target, ignore_index):
    """shape: the logits'; a target of probabilities has it, one of class indices lacks the classes."""
    if target.is_floating_point():
        return (
            agrees(target, dtype) and target.shape == shape and ignore_index < 0 and not target.requires_grad
        )
    return target.dtype in (torch.int64, torch.uint8) and target.shape == (*shape[:-1][:1], *shape[2:])


def weight_fits(x, classes, weight):
    if weight is None:
        return True
    if not isinstance(weight, torch.Tensor) or weight.requires_grad or weight.device != x.device:
        return False
    return agrees(weight, x.dtype) and weight.dim() == 1 and weight.size(0) == classes


def _under_autocast(x, target, weight):
    """torch computes these in float32 under autocast: 16-bit logits are read as they are, the result is float32."""
    if autocast_dtype(x) is None or x.dtype == torch.float64:
        return x, target, weight, False
    if target.is_floating_point() and target.dtype != x.dtype:
        x = x.float()
    target = target.to(x.dtype) if target.is_floating_point() else target
    return x, target, _float(weight), x.dtype != torch.float32
