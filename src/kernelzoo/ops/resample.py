"""Separable linear maps along depth, height and width: y_o = Σ_i w(o_d, i_d) w(o_h, i_h) w(o_w, i_w) x_i.

Average pooling and interpolation are such maps, each with weights of its own (kernels/pool.py); the backward is the
transposed map, dx_i = Σ_o w(o, i) dy_o, by the same kernel: each input collects its own.
"""

import torch
from torch.nn import functional as T

from .core import KernelFunction, autocast_dtype, below, define
from .pool_checks import channels_last, five, laid_out, only_numba, padded

aten = torch.ops.aten

resample = define(
    "resample(Tensor x, SymInt[] out, str mode, int[] shape, int divisor, float[] scales, bool transposed, bool last) "
    "-> Tensor",
    "resample",
    fake=lambda x, out, mode, shape, divisor, scales, transposed, last: laid_out(x, out, last),
)

# Elements. "auto" on a CPU, C++ over eager, forward and backward: average pooling as max-pooling; to 1, 0.3 to 0.5 at
# 800 Ki, 1.0 at 1.6 Mi, 1.6 to 6.6 at 12.8 Mi; bilinear x2 of planes 0.6 at 4 Ki, 1.2 at 16 Ki, 2.2 to 4.7 above,
# nearest 0.5, 1.0 and 1.0 to 3; channels last 0.3 to 1 up to 1.6 Mi, 1.7 to 2.4 at 12.8 Mi.
SMALL = 1 << 14
MANY = 1 << 18
LARGE = 1 << 22
FEW_LAST = 1 << 23  # interpolation channels last
AVERAGES = ("avg", "adaptive")


def _least(mode, last):
    """The elements from which on "auto" takes a kernel."""
    if mode in AVERAGES:
        return LARGE if last or mode == "adaptive" else MANY
    if last:
        return FEW_LAST
    return MANY if mode in ("nearest", "nearest-exact") else SMALL


class ResampleFunction(KernelFunction):
    """Saved for the backward: nothing but sizes.

    name, args: torch's own function and what it takes behind x. mode, shape, divisor, scales: kernels/pool.py's.
    """

    module = "resample"

    @staticmethod
    def autocast(x, name, args, out, mode, shape, divisor, scales):
        if autocast_dtype(x) is None:
            return None
        wide = mode not in AVERAGES if x.is_cuda else mode in AVERAGES and len(out) == 3
        return torch.float32 if wide else None

    @staticmethod
    def label(x, name, args, out, mode, shape, divisor, scales):
        return name

    @staticmethod
    def formula(x, name, args, out, mode, shape, divisor, scales):
        return getattr(T, name)(x, *args)

    @staticmethod
    def rule(x, name, args, out, mode, shape, divisor, scales):
        if x.device.type != "cpu":
            return "torch's own kernel moves the same bytes; no GPU has been measured yet"
        if below(x.numel(), _least(mode, channels_last(five(x, len(out))))):
            return "few elements on a CPU"
        return only_numba(x)

    @staticmethod
    def forward(ctx, x, name, args, out, mode, shape, divisor, scales, backend):
        rank = len(out)
        x5 = five(x, rank)
        last = channels_last(x5)
        given = (mode, list(shape), divisor, list(scales))
        y = resample(x5, padded(out, 1), *given, False, last, backend)
        if ctx.needs_input_grad[0]:
            ctx.size, ctx.out, ctx.shape, ctx.given = x5.shape[2:], y.shape, x.shape, given
            ctx.name, ctx.args, ctx.last, ctx.backend = name, args, last, backend
        # no view: users may write to it in place
        return aten._unsafe_view(y, (*x.shape[: x.dim() - rank], *out))

    @staticmethod
    def backward(ctx, dy):
        dx = resample(dy.reshape(ctx.out), ctx.size, *ctx.given, True, ctx.last, ctx.backend)
        return (dx.view(ctx.shape),)

    @classmethod
    def _by_formula(cls, ctx, dy):
        x = dy.new_zeros(ctx.shape).requires_grad_()  # of a linear map any x has the same derivative
        y = getattr(T, ctx.name)(x, *ctx.args)
        return [*torch.autograd.grad(y, x, dy, create_graph=True)]
