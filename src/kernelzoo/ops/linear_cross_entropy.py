"""Cross entropy of x Wᵀ + b, chunk by chunk of rows, so that the logits are never whole.

Gradients, with dz the cross entropy's gradient of a chunk of logits: dx = dz W, dW = Σ dzᵀ x, db = Σ dz. Where the
reduction is a mean or a sum they are computed in the forward, while the chunk's logits are there (as in
Liger-Kernel, Hsu et al., arXiv:2410.10989), and scaled in the backward.
"""

import math

import torch
from torch.nn import functional as T

from .core import ArgumentError, KernelFunction, autocast_dtype, below, define
from .core.mirror import REDUCTIONS, torchs_own
from .cross_entropy import EXPECTED, acc_dtype, agrees, target_fits, weight_fits


def _grads(x, w, need_dx, need_dw, need_db):
    # as kernels/class_loss.py adds them up
    dtype = x.dtype if x.is_cuda and x.dtype == torch.bfloat16 else acc_dtype(x)
    return (
        x.new_empty(x.shape, dtype=dtype) if need_dx else None,
        w.new_empty(w.shape, dtype=dtype) if need_dw else None,
        w.new_empty(w.shape[0], dtype=dtype) if need_db else None,
    )


def _contiguous(*args):
    return tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args)


linear_cross_entropy_fwd = define(
    "linear_cross_entropy_fwd(Tensor x, Tensor w, Tensor? b, Tensor target, Tensor? weight, int ignore_index, "
    "str reduction, float smoothing, bool wide, bool need_dx, bool need_dw, bool need_db) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "cross_entropy",
    fake=lambda x, w, b, target, weight, ignore_index, reduction, smoothing, wide, *need: (
        x.new_empty(x.shape[:1] if reduction == "none" else (), dtype=torch.float32 if wide else x.dtype),
        *_grads(x, w, *need),
    ),
    prepare=_contiguous,
)
linear_cross_entropy_bwd = define(
    "linear_cross_entropy_bwd(Tensor dy, Tensor x, Tensor w, Tensor? b, Tensor target, Tensor? weight, "
    "int ignore_index, str reduction, float smoothing, bool need_dx, bool need_dw, bool need_db) "
    "-> (Tensor, Tensor, Tensor)",
    "cross_entropy",
    fake=lambda dy, x, w, b, target, weight, ignore_index, reduction, smoothing, *need: _grads(x, w, *need),
    prepare=_contiguous,
)

# "auto" on a CPU: with fewer logits a call's chunks have nothing to hide.
SMALL = 1 << 22


class LinearCrossEntropy(KernelFunction):
    """Saved for the backward: x, W, b, the target and the weights; and for a mean or a sum the gradients, which the
    first backward scales in place and hands out. A second one (retain_graph) computes them anew."""

    module = "cross_entropy"
    mixed = True  # under autocast the class weights are float32 beside 16-bit logits

    @classmethod
    def label(cls, *args):
        return "linear_cross_entropy"

    @staticmethod
    def formula(x, w, b, target, weight, ignore_index, reduction, smoothing, wide):
        logits = T.linear(x, w, b)
        if wide:
            logits = logits.float()
            target = target.float() if target.is_floating_point() else target
        return T.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
        )

    @staticmethod
    def rule(x, w, *args):
        few = below(x.numel() * w.size(0), SMALL * max(1, w.size(1)))
        return "few logits" if few else None

    @staticmethod
    def forward(ctx, x, w, b, target, weight, ignore_index, reduction, smoothing, wide, backend):
        early = reduction != "none"
        need = [early and n for n in ctx.needs_input_grad[:3]]
        loss, *grads = linear_cross_entropy_fwd(
            x, w, b, _long(target), weight, ignore_index, reduction, smoothing, wide, *need, backend
        )
        ctx.options = ignore_index, reduction, smoothing, wide
        ctx.backend = backend
        if torch.compiler.is_compiling():
            ctx.save_for_backward(x, w, b, target, weight, *grads)
        else:
            ctx.save_for_backward(x, w, b, target, weight)
            ctx.once = [grads] if any(need) else []
        return loss

    @staticmethod
    def backward(ctx, dy):
        x, w, b, target, weight, *grads = ctx.saved_tensors
        ignore_index, reduction, smoothing, _ = ctx.options
        need = ctx.needs_input_grad[:3]
        if grads and reduction != "none":  # compiled: the graph owns what it saved
            return _cast([None if g is None else g * dy for g in grads], (x, w, b))
        try:
            grads = ctx.once.pop()
        except (AttributeError, IndexError):
            grads = linear_cross_entropy_bwd(
                dy, x, w, b, _long(target), weight, ignore_index, reduction, smoothing, *need, ctx.backend
            )
            return _cast(grads, (x, w, b))
        if dy.is_cuda or dy.item() != 1:  # asking a GPU would wait for it
            for g in grads:
                if g is not None:
                    g.mul_(dy)
        return _cast(grads, (x, w, b))

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors[:5], *ctx.options)


def _long(target):
    return target if target.is_floating_point() else target.to(torch.int64)


def _cast(grads, like):
    return tuple(None if g is None else g.to(t.dtype) for g, t in zip(grads, like, strict=True))


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """cross_entropy(x Wᵀ + b, target) with never all the logits in memory: torch.nn.functional.linear_cross_entropy.

    Args:
        input: x, of shape (in_features,) or (N, in_features).
        linear_weight: W, of shape (C, in_features); (C, d1, ..., in_features) runs the formula.
        target: class indices, int64, of shape () or (N,); or probabilities, of the logits' shape.
        linear_bias: b, of shape (C,), or None.
        weight, reduction, label_smoothing: `cross_entropy`'s.
        ignore_index: a class index whose rows give no loss and no gradient; None is -100, and the only value that
            probabilities allow.
        options: torch's LinearCrossEntropyOptions. Ours are chunked anyway; a call that passes them is torch's own.

    Returns:
        the loss: a scalar, or of shape () or (N,) for "none"; in float32 under torch.autocast, else in input's dtype.

    The gradients of a mean or a sum are computed in the forward; backward may run twice (retain_graph) and with
    create_graph. Temporary memory: a chunk of 30 MB of logits (256 MB on a GPU), and float32 gradients for 16-bit
    weights.

    Saved for the backward: input, linear_weight, linear_bias, target, weight, and those gradients.

    Raises:
        ArgumentError (a ValueError and a RuntimeError), ArgumentTypeError: shapes, dtypes or values that do not fit.
        IndexError: a target out of range, on a CPU.
    """
    if _fits(
        input, linear_weight, target, linear_bias, weight, reduction, label_smoothing, ignore_index, options
    ):
        ignored = -100 if ignore_index is None else ignore_index
        single = input.dim() == 1
        if single:
            input, target = input.unsqueeze(0), target.unsqueeze(0)
        given = (input, linear_weight, linear_bias)
        dtype = autocast_dtype(input)
        wide = dtype is not None and input.dtype != torch.float64
        if wide:
            given = tuple(None if t is None else t.to(dtype) for t in given)
            weight = None if weight is None else weight.float()
            target = target.to(dtype) if target.is_floating_point() else target
        loss = LinearCrossEntropy.call(
            *given, target, weight, ignored, reduction, float(label_smoothing), wide
        )
        return loss.squeeze(0) if single and reduction == "none" else loss
    return torchs_own(
        "linear_cross_entropy",
        f"input of shape (N, K), linear_weight (C, K), linear_bias (C); for the logits, {EXPECTED}",
        getattr(T, "linear_cross_entropy", _composite),  # torch has it since 2.12
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )


def _fits(x, w, target, b, weight, reduction, smoothing, ignore_index, options):
    tensors = [x, w, target] + ([] if b is None else [b])
    if options is not None or not all(isinstance(t, torch.Tensor) and not t.is_nested for t in tensors):
        return False
    if x.dim() not in (1, 2) or w.dim() != 2 or w.size(1) != x.size(-1) or not x.is_floating_point():
        return False
    if reduction not in REDUCTIONS or not 0.0 <= smoothing <= 1.0:
        return False
    if b is not None and (b.dim() != 1 or b.size(0) != w.size(0)):
        return False
    if any(t.device != x.device for t in tensors):
        return False
    if not all(agrees(t, x.dtype) for t in (w, b) if t is not None):
        return False
    if target.is_floating_point() and ignore_index is not None:
        return False
    shape = (*x.shape[:-1], w.size(0))
    return target_fits(shape, x.dtype, target, -100) and weight_fits(x, w.size(0), weight)


def _composite(
    input, linear_weight, target, *, linear_bias, weight, reduction, ignore_index, label_smoothing, options
):
    """torch's function where torch is older than it."""
    if options is not None:
        raise ArgumentError("options need torch's own linear_cross_entropy")
    classes, *inner, features = linear_weight.shape
    if linear_bias is not None:
        linear_bias = linear_bias.reshape(-1)
    logits = T.linear(input, linear_weight.reshape(classes * math.prod(inner), features), linear_bias)
    logits = logits.reshape(*input.shape[:-1], classes, *inner)
    if target.shape == logits.shape and ignore_index is not None:
        raise ArgumentError("ignore_index cannot be specified when target contains probabilities")
    return T.cross_entropy(
        logits,
        target,
        weight=weight,
        reduction=reduction,
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
    )
