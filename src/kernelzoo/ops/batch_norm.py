"""Batch and instance normalisation: y = act((x - mean) rstd w_c + b_c + residual), rstd = 1/sqrt(var + eps), mean and
var over all samples and positions of a channel (Ioffe, Szegedy: Batch Normalization, arXiv:1502.03167) or over the
positions of a channel of one sample (Ulyanov, Vedaldi, Lempitsky: Instance Normalization, arXiv:1607.08022).

Backward, with z what act is applied to, g = dy act'(z) and x̂ = (x - mean) rstd: dx = w rstd (g - mean(g) -
x̂ mean(g x̂)), in evaluation w rstd g; the residual's gradient is g, dw_c = Σ g x̂, db_c = Σ g.
"""

import math

import torch
from torch.nn import functional as T

from .activation import DEFINITIONS, IDENTITY, parse
from .batch_norm_checks import explain, fits
from .core import KernelFunction, below, define, leaves_to_torch, torch_serves


def acc_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def layout_of(x):
    """The memory format that the kernels take x in: its own where it has one, else contiguous."""
    if x.dim() in (4, 5) and not x.is_contiguous():
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format


def _alike(x, *others):
    """x and tensors of its shape in one memory format; None stays."""
    layout = layout_of(x)
    return [None if t is None else t.contiguous(memory_format=layout) for t in (x, *others)]


def _dense(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _prepare_fwd(x, residual, w, b, mean, var, *rest):
    return *_alike(x, residual), *_dense(w, b, mean, var), *rest


def _prepare_bwd(dy, x, saved, w, b, mean, var, *rest):
    x, dy, saved = _alike(x, dy, saved)
    return dy, x, saved, *_dense(w, b, mean, var), *rest


def _statistic(x, instances):
    return x.new_empty(x.shape[1] * (x.shape[0] if instances else 1), dtype=acc_of(x.dtype))


def _fake_fwd(x, residual, w, b, mean, var, instances, eps, act, p0, p1):
    y = torch.empty_like(_alike(x)[0])
    if mean is not None:
        return y, None, None
    return y, _statistic(x, instances), _statistic(x, instances)


def _fake_bwd(dy, x, saved, w, b, *args):
    need_dx, need_dr, need_dw, need_db = args[-4:]
    affine = next((t.dtype for t in (w, b) if t is not None), x.dtype)
    return (
        torch.empty_like(_alike(x)[0]) if need_dx else None,
        torch.empty_like(_alike(x)[0]) if need_dr else None,
        x.new_empty(x.shape[1], dtype=affine) if need_dw else None,
        x.new_empty(x.shape[1], dtype=affine) if need_db else None,
    )


batch_norm_stats = define(
    "batch_norm_stats(Tensor x, bool instances) -> (Tensor, Tensor)",
    "batch_norm",
    fake=lambda x, instances: (_statistic(x, instances), _statistic(x, instances)),
    prepare=lambda x, instances: (*_alike(x), instances),
)
batch_norm_fwd = define(
    "batch_norm_fwd(Tensor x, Tensor? residual, Tensor? w, Tensor? b, Tensor? mean, Tensor? var, bool instances, "
    "float eps, str act, float p0, float p1) -> (Tensor, Tensor, Tensor)",
    "batch_norm",
    fake=_fake_fwd,
    prepare=_prepare_fwd,
)
batch_norm_sums = define(
    "batch_norm_sums(Tensor dy, Tensor x, Tensor? saved, Tensor? w, Tensor? b, Tensor mean, Tensor var, "
    "bool instances, bool from_output, float eps, str act, float p0, float p1) -> (Tensor, Tensor)",
    "batch_norm",
    fake=lambda dy, x, saved, w, b, mean, var, *_: (torch.empty_like(mean), torch.empty_like(mean)),
    prepare=_prepare_bwd,
)
batch_norm_bwd = define(
    "batch_norm_bwd(Tensor dy, Tensor x, Tensor? saved, Tensor? w, Tensor? b, Tensor mean, Tensor var, "
    "Tensor? sum_g, Tensor? sum_gx, float count, bool training, bool instances, bool from_output, float eps, str act, "
    "float p0, float p1, bool need_dx, bool need_dr, bool need_dw, bool need_db) -> (Tensor, Tensor, Tensor, Tensor)",
    "batch_norm",
    fake=_fake_bwd,
    prepare=_prepare_bwd,
)


# "auto" on a CPU: C++ over eager on 2 cores of an AMD EPYC (Zen 4), forward and backward together, fp32 unless said
# otherwise. With relu behind it 1.4 to 2.4 at 16x64x16x16 in NCHW and 0.8 in channels-last, where 16x64x28x28 gives
# 1.2 to 1.6; bf16 0.9 to 1.0 at 16x64x28x28, 1.0 to 1.2 at 16x128x28x28, and with a residual 0.8 to 1.1 at every size.
# Alone 1.9 to 2.1 at 16x64x28x28 in NCHW, 0.6 to 0.9 in channels-last, bf16 0.7 to 1.0. Evaluated with relu 0.7 to 0.8
# at 16x64x16x16 in NCHW, 1.2 to 1.3 at 16x128x28x28, and in channels-last 1.05; evaluated alone it is one pass in both.
FEW = 1 << 18  # elements, under which torch has every call
FEW_ROWS = 3 << 18
# Planes of fewer than 64 elements: 16x512x7x7 with relu 0.94, and with AVX2 alone 0.95, where 32x512x7x7 gives 1.1.
SHORT, FEW_SHORT = 64, 3 << 18
FEW_ALONE = 1 << 19
FEW_NARROW = 1 << 20
FEW_EVALUATED = 1 << 20
# On a GPU nothing has been measured yet. What follows the norm saves a read and a write of all elements, or three of
# them in the backward: from here on more than the 20 us that a call costs the host at 4.8 TB/s.
SMALL_GPU = 1 << 24


def _least(x, alone, residual, training):
    """The elements from which a kernel is taken on a CPU, or None where it never is."""
    rows, narrow = x.dim() == 2 or layout_of(x) is not torch.contiguous_format, x.dtype.itemsize == 2
    if alone:
        return FEW_ALONE if training and not rows and not narrow else None
    if narrow:
        return FEW_NARROW if residual is None else None
    if not training:
        return FEW if rows else FEW_EVALUATED
    if rows:
        return FEW_ROWS
    return FEW_SHORT if below(x.shape[2:].numel(), SHORT) else FEW


class BatchNormFunction(KernelFunction):
    """Saved for the backward: x, weight, bias, of each channel (of each instance) its mean and variance in float32
    (float64 for float64), and with a residual and an activation y, where act' can be had from it, else the residual.

    Without a residual nothing is saved for the activation: z is computed anew from x, which the backward reads in any
    case, where y would be one more tensor to read twice, and to keep where the next layer does not keep its input.
    With one, y is what the next layer keeps; the residual may be kept by nobody else, unless the caller says so.
    """

    module = "batch_norm"
    mixed = True  # what `served` lets through

    @staticmethod
    def label(
        x, weight, bias, residual, running_mean, running_var, training, momentum, instances, eps, act, keeps
    ):
        return "instance_norm" if instances else "batch_norm"

    @staticmethod
    def formula(
        x, weight, bias, residual, running_mean, running_var, training, momentum, instances, eps, act, keeps=False
    ):  # fmt: skip
        normalise = T.instance_norm if instances else T.batch_norm
        y = normalise(x, running_mean, running_var, weight, bias, training, momentum, eps)
        if residual is not None:
            y = y + residual  # what was y is free for act's result: 0.3 of 7.8 ms (16x64x56x56 in bf16)
        return act.formula(y)

    @staticmethod
    def rule(
        x, weight, bias, residual, running_mean, running_var, training, momentum, instances, eps, act, keeps
    ):
        alone = residual is None and act.name == "none"
        if x.device.type != "cpu":
            if alone:
                return "torch's own kernel moves the same bytes; no GPU has been measured yet"
            return "few elements on a GPU" if below(x.numel(), SMALL_GPU) else None
        least = _least(x, alone, residual, training)
        if least is None:
            return "torch's own calls are as fast for this layout and dtype on a CPU"
        return "few elements on a CPU" if below(x.numel(), least) else None

    @staticmethod
    def forward(
        ctx, x, weight, bias, residual, running_mean, running_var, training, momentum, instances, eps, act, keeps,
        backend,
    ):  # fmt: skip
        mean = var = None
        if not training:
            instances = False
            mean, var = running_mean.to(acc_of(x.dtype)), running_var.to(acc_of(x.dtype))
        y, *found = batch_norm_fwd(
            x, residual, weight, bias, mean, var, instances, float(eps), *act.flat(), backend
        )
        if training:
            mean, var = found
        if any(ctx.needs_input_grad):
            ctx.set_materialize_grads(False)
            if training:
                ctx.mark_non_differentiable(mean, var)
            saved, ctx.residual = None, residual is not None
            ctx.from_output = residual is not None and not keeps and act.saves_output(x.dtype)
            if residual is not None and act.name != "none":
                saved = y if ctx.from_output else residual
            ctx.save_for_backward(x, weight, bias, saved, mean, var)
            ctx.training, ctx.instances, ctx.eps, ctx.act, ctx.backend = (
                training,
                instances,
                eps,
                act,
                backend,
            )
        return (y, mean, var) if training else y

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:  # nobody used y
            return None, None, None, None
        x, weight, bias, saved, mean, var = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        same = ctx.act.name == "none"  # dr is dy
        dx = dw = db = dr = None
        if need_dx or need_dw or need_db or not same:
            dx, dr, dw, db = batch_norm_bwd(
                dy, x, saved, weight, bias, mean, var, None, None, 0.0, ctx.training, ctx.instances, ctx.from_output,
                float(ctx.eps), *ctx.act.flat(), need_dx, need_dr and not same, need_dw, need_db, ctx.backend,
            )  # fmt: skip
        return dx, dw, db, dy if same and need_dr else dr

    @classmethod
    def _by_formula(cls, ctx, dy, *_):
        if dy is None:
            return [None] * 4
        x, weight, bias, saved, mean, var = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        x, weight, bias = (None if t is None else t.view_as(t) for t in (x, weight, bias))
        if (
            weight is None and bias is not None
        ):  # torch's own second derivative leaves out Σ dy without a weight
            weight = torch.ones_like(bias)
        act, residual = ctx.act.twice(), None
        if ctx.from_output:  # the residual itself is not here, nor needed
            dy, act = DEFINITIONS[act.name].from_output(dy, saved, *act.params), IDENTITY
        elif saved is not None:
            residual = saved.view_as(saved)
        if ctx.training:
            z = cls.formula(
                x, weight, bias, residual, None, None, True, 0.0, ctx.instances, ctx.eps, IDENTITY
            )
        else:
            z = normalised(x, weight, bias, mean, var, ctx.eps)
            z = z if residual is None else z + residual
        wanted = [t for t, need in ((x, need_dx), (weight, need_dw), (bias, need_db)) if need]
        if residual is not None and need_dr:
            wanted.append(residual)
        found = iter(torch.autograd.grad(act.formula(z), wanted, dy, create_graph=True) if wanted else ())
        dx, dw, db = (next(found) if need else None for need in (need_dx, need_dw, need_db))
        return [dx, dw, db, next(found, dy) if need_dr else None]


def normalised(x, weight, bias, mean, var, eps):
    """(x - mean) / sqrt(var + eps) · w + b in plain torch, in mean's dtype, rounded to x's."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    y = (x - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def update(running, found, momentum):
    """running = (1 - momentum) running + momentum found, in found's dtype."""
    if running.dtype == found.dtype:
        running.lerp_(found, momentum)
    else:
        running.copy_(torch.lerp(running.to(found.dtype), found, momentum))


def update_both(running_mean, running_var, mean, var, momentum, count):
    """The running mean, and the running (unbiased) variance, after a batch of `count` elements a channel; of several
    instances, the mean of theirs."""
    var = var * (count / (count - 1))
    if mean.numel() != running_mean.numel():
        mean, var = (t.view(-1, running_mean.numel()).mean(0) for t in (mean, var))
    update(running_mean, mean, momentum)
    update(running_var, var, momentum)


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05, *,
    act=None, residual=None, keep_residual=False,
):  # fmt: skip
    """y = f((x - mean) / sqrt(var + eps) · w + b + residual) over each channel: torch.nn.functional.batch_norm, with
    the sum and the activation f of a residual block fused behind it.

    Args:
        input: x, of shape (N, C, *); contiguous and channels-last memory is used as it lies.
        running_mean, running_var: of shape (C,), or None. In training they are updated in place, to
            (1 - momentum) · running + momentum · the batch's, with the unbiased variance; else they are mean and var.
        weight, bias: w and b, of shape (C,), or None.
        training: whether mean and (biased) var are x's own.
        momentum: the share of the batch in the running statistics.
        eps: added to the variance.
        act: None, an activation's name, or (name, parameter, ...), as in `linear`.
        residual: None, or a tensor of x's shape and dtype that is added before the activation.
        keep_residual: whether the backward has the residual kept, which another layer keeps in any case, in place of
            y, which none need then keep (`kernelzoo.ops.recompute`).

    Returns:
        y, of x's shape, dtype and memory format.

    float64, float32, bfloat16 and float16 run on kernels, and so does a 16-bit x with float32 for all that is of shape
    (C,); every other dtype and layout runs the formula. Statistics are float32 (float64 for float64).

    Saved for the backward: x, w, b, two numbers a channel; with a residual and an activation also y, where f' can be
    had from it (as in `linear`), or the residual.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes or devices that do not fit; one value a channel in
            training.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
    """
    return _normalise(
        "batch_norm",
        T.batch_norm,
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        act,
        residual,
        keep_residual,
    )


def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-05,
    *, act=None, residual=None,
):  # fmt: skip
    """y = f((x - mean) / sqrt(var + eps) · w + b + residual) over each channel of each sample:
    torch.nn.functional.instance_norm, with the sum and the activation f fused behind it.

    As `batch_norm` with the moments of a channel of one sample, of which the running statistics take the mean over the
    samples; use_input_stats is its `training`. y has x's memory format, where torch's is contiguous.
    """
    return _normalise(
        "instance_norm", T.instance_norm, input, running_mean, running_var, weight, bias, use_input_stats, momentum,
        eps, act, residual,
    )  # fmt: skip


def _left_to_torch(x, act, residual, training):
    """Whether "auto" surely takes torch's own calls: `BatchNormFunction.rule`, before any check."""
    if not leaves_to_torch(x, math.inf) or not (
        residual is None or getattr(residual, "shape", None) == x.shape
    ):
        return False
    if x.dim() < 2 or x.numel() < FEW:
        return True
    least = _least(x, residual is None and act is IDENTITY, residual, training)
    return least is None or x.numel() < least


def _normalise(
    name, torchs, x, running_mean, running_var, weight, bias, training, momentum, eps, act, residual,
    keep_residual=False,
):  # fmt: skip
    arguments = (x, running_mean, running_var, weight, bias, training, momentum, eps)
    act = parse(name, act)
    if _left_to_torch(x, act, residual, training):
        try:
            if (
                name == "batch_norm" and x.dim() > 1 and x.numel() > x.size(1) and eps > 0
            ):  # what torch's own Python would check
                y = torch.batch_norm(
                    x, weight, bias, running_mean, running_var, training, momentum, eps, False
                )
            else:
                y = torchs(*arguments)
            if residual is not None:
                y = y + residual
            return y if act is IDENTITY else act.formula(y)
        except (RuntimeError, TypeError, ValueError, IndexError):
            explain(name, *arguments, residual)
            raise
    instances = name == "instance_norm"
    given = (
        x, weight, bias, residual, running_mean, running_var, training, momentum, instances, eps, act,
        keep_residual,
    )  # fmt: skip
    if not fits(name, *arguments, residual):
        explain(name, *arguments, residual)
        return BatchNormFunction.formula(*given)
    if not served(x, running_mean, running_var, weight, bias, residual) or act.autocast(x) is not None:
        y = BatchNormFunction.formula(*given)
        torch_serves(name, "its kernels take no such dtypes", x, weight, bias, residual)
        return y
    y = BatchNormFunction.call(*given)
    if not isinstance(y, tuple):  # torch's own call, which has updated what runs, or an evaluation
        return y
    y, mean, var = y
    if running_mean is not None:
        count = x.numel() // mean.numel()
        update_both(running_mean, running_var, mean, var, momentum, count)
    return y


def served(x, running_mean, running_var, weight, bias, residual):
    """Whether the kernels take these dtypes: one for all, or 16 bits for x and the residual, float32 for the rest."""
    if residual is not None and residual.dtype != x.dtype:
        return False
    affine = next((t.dtype for t in (weight, bias) if t is not None), None)
    if affine not in (None, x.dtype, torch.float32) or (affine == torch.float32 and x.dtype == torch.float64):
        return False
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        return False
    if running_mean is None:
        return True
    return running_mean.dtype == running_var.dtype and running_mean.dtype in (affine, x.dtype, torch.float32)
