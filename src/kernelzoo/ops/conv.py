"""Convolution, plain and transposed, over one to three dimensions: y = f(conv(x, W) + b + residual).

Plain: z[n, o, i] = b[o] + Σ_{c, t} W[o, c, t] x[n, c, s i - p + d t], x being 0 outside, with stride s, padding p and
dilation d; a channel sees those of its group alone. With dz = dy f'(z): dx[n, c, j] = Σ W[o, c, t] dz[n, o, i] over
s i - p + d t = j, dW[o, c, t] = Σ_{n, i} dz[n, o, i] x[n, c, s i - p + d t], db = Σ dz, dresidual = dz. The transposed
convolution is the plain one's dx (Dumoulin, Visin: A guide to convolution arithmetic for deep learning,
arXiv:1603.07285).
"""

import torch
from torch.nn import functional as T

from .activation import act_bwd, parse
from .conv_checks import check_residual, geometry, shape_of, transposed_geometry, transposed_size
from .conv_rule import bare_is_torchs, channels_last, left_to_torch
from .core import ArgumentError, KernelFunction, autocast_dtype, define
from .core.mirror import torchs_own

CONV = (None, T.conv1d, T.conv2d, T.conv3d)
TRANSPOSED = (None, T.conv_transpose1d, T.conv_transpose2d, T.conv_transpose3d)


# ---- the torch ops. Tensors lie as (N, D, H, W, C), missing dimensions being 1; w (O, kD, kH, kW, C / groups).

# Backends whose launchers also take x, dz and residual whose memory is in the order (N, C, D, H, W), as views of that
# shape, and w of any strides; y, dx and dw then have that order too. So NCHW stays NCHW on a CPU: 3x3 of 8x64x56x56 to
# 64 in float32 takes oneDNN 9.1, 9.9 and 10.7 ms (forward, dx, dw) against 8.8, 9.0 and 10.1 channels-last, which no
# copy wins back; what it does badly there, a filter of one tap, is matrix products, and a filter a channel has kernels
# for both. The others get all in the shape's own order, and results are copied back to NCHW: once each, never inside.
EITHER_ORDER = ("cpp", "numba")


def _swapped(t):
    """The view whose shape is in the other order: (N, D, H, W, C) as (N, C, D, H, W)."""
    return t.permute(0, 4, 1, 2, 3)


def _channels_first(x):
    """Whether x's (N, D, H, W, C) memory is in the order (N, C, D, H, W), and not in its shape's own as well."""
    return not x.is_contiguous() and _swapped(x).is_contiguous()


def _laid(t, first):
    """t in one of the two orders, copied where it is not."""
    return _swapped(t).contiguous().permute(0, 2, 3, 4, 1) if first else t.contiguous()


def _prepare(x, w, b, residual, *rest):
    first = x.is_cpu and _channels_first(x)
    residual = None if residual is None else _laid(residual, first)
    return _laid(x, first), w, None if b is None else b.contiguous(), residual, *rest


def _prepare_weight(dz, x, *rest):
    first = x.is_cpu and _channels_first(x)
    return _laid(dz, first), _laid(x, first), *rest


def _new(x, N, size, C):
    """Uninitialised, (N, *size, C) in x's order."""
    if x.device.type == "cpu" and _channels_first(x):
        return x.new_empty(N, C, *size).permute(0, 2, 3, 4, 1)
    return x.new_empty(N, *size, C)


def _fake(channels):
    def fake(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
        y = _new(x, x.shape[0], size, channels(w, groups))
        return y, torch.empty_like(y) if save_z else None

    return fake


_ARGUMENTS = (
    "Tensor w, Tensor? b, Tensor? residual, SymInt[] size, int[] stride, int[] padding, int[] dilation, int groups, "
    "str act, float p0, float p1, bool save_z) -> (Tensor, Tensor)"
)
conv_fwd = define(
    f"conv_fwd(Tensor x, {_ARGUMENTS}",
    "conv",
    fake=_fake(lambda w, groups: w.shape[0]),
    prepare=_prepare,
)
conv_bwd_input = define(
    f"conv_bwd_input(Tensor dz, {_ARGUMENTS}",
    "conv",
    fake=_fake(lambda w, groups: w.shape[4] * groups),
    prepare=_prepare,
)
conv_bwd_weight = define(
    "conv_bwd_weight(Tensor dz, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
    "bool need_db) -> (Tensor, Tensor)",
    "conv",
    fake=lambda dz, x, kernel, stride, padding, dilation, groups, need_db: (
        _new(x, dz.shape[4], kernel, x.shape[4] // groups),
        x.new_empty(dz.shape[4]) if need_db else None,
    ),
    prepare=_prepare_weight,
)


# ---- the Function


def _volume(t):
    """(N, C, *) as (N, D, H, W, C): a view."""
    for _ in range(5 - t.dim()):
        t = t.unsqueeze(2)
    return t.permute(0, 2, 3, 4, 1)


def _unvolume(t, rank):
    """(N, D, H, W, C) as (N, C, *): a view."""
    t = _swapped(t)
    for _ in range(3 - rank):
        t = t.squeeze(2)
    return t


def _outside_autograd(t, rank):
    """_unvolume(t), no view to autograd: users may write to it in place."""
    if torch.compiler.is_compiling():
        return _unvolume(t, rank)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return _unvolume(t, rank)


def _of_three(size):
    return [*[1] * (3 - len(size)), *size]


class ConvFunction(KernelFunction):
    """Saved for the backward: x, W, b; with an activation also the residual (which only the double backward reads), and
    y where f' can be had from it, z otherwise."""

    module = "conv"

    @staticmethod
    def label(x, weight, bias, residual, g, act):
        return f"conv{'_transpose' if g.transposed else ''}{len(g.stride)}d"

    @staticmethod
    def autocast(x, weight, bias, residual, g, act):
        return autocast_dtype(x)

    @staticmethod
    def formula(x, weight, bias, residual, g, act):
        rank = len(g.stride)
        if g.transposed:
            least = transposed_size(
                x.shape[2:], weight.shape[2:], g.stride, g.padding, g.dilation, (0,) * rank
            )
            extra = [n - m for n, m in zip(g.size, least, strict=True)]
            z = TRANSPOSED[rank](x, weight, bias, g.stride, g.padding, extra, g.groups, g.dilation)
        else:
            x, padding = _padded(x, weight, g)
            z = CONV[rank](x, weight, bias, g.stride, padding, g.dilation, g.groups)
        if residual is not None:
            z = z + residual.to(z.dtype)  # they differ under autocast only
        return act.formula(z)

    @staticmethod
    def rule(x, weight, bias, residual, g, act):
        return left_to_torch(x, weight, residual, g, act)

    @staticmethod
    def forward(ctx, x, weight, bias, residual, g, act, backend):
        from_y = act.saves_output(x.dtype)
        save_z = any(ctx.needs_input_grad) and act.name != "none" and not from_y
        rank = len(g.stride)
        last = channels_last(x) or (rank > 1 and channels_last(weight))  # as torch
        given = [_placed(t, last, backend, x) for t in (x, residual)]
        op = conv_bwd_input if g.transposed else conv_fwd
        y, z = op(
            given[0], _weight(weight, backend, x), bias, given[1], _of_three(g.size), *g.of_three(), *act.flat(),
            save_z, backend,
        )  # fmt: skip
        y = _ordered(_outside_autograd(y, rank), last)
        z = None if z is None else _unvolume(z, rank)
        kept = residual if act.name != "none" else None
        ctx.save_for_backward(x, weight, bias, kept, y if from_y else z)
        ctx.g, ctx.act, ctx.backend, ctx.last = g, act, backend, last
        ctx.residual_shape = None if residual is None or kept is not None else residual.shape
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, _, _, saved = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        g, rank, backend, act = ctx.g, len(ctx.g.stride), ctx.backend, ctx.act
        dz = dy if act.name == "none" else act_bwd(dy, saved, *act.flat(), backend)
        volume = _placed(dz, ctx.last, backend, x) if need_dx or need_dw else None
        dx = dw = db = None
        if need_dx:
            op = conv_fwd if g.transposed else conv_bwd_input
            dx, _ = op(
                volume, _weight(weight, backend, x), None, None, _of_three(x.shape[2:]), *g.of_three(), "none", 0.0,
                0.0, False, backend,
            )  # fmt: skip
            dx = _ordered(_unvolume(dx, rank), ctx.last)
        if need_dw:
            pair = volume, _placed(x, ctx.last, backend, x)
            dw, db = conv_bwd_weight(
                *(pair[::-1] if g.transposed else pair), _of_three(weight.shape[2:]), *g.of_three(),
                need_db and not g.transposed, backend,
            )  # fmt: skip
            dw = _unvolume(dw, rank)
            if dw.stride() != weight.stride():
                dw = torch.empty_like(weight).copy_(dw)
        if need_db and db is None:
            db = dz.sum([i for i in range(rank + 2) if i != 1])
        return dx, dw, db, dz if need_dr else None

    @staticmethod
    def inputs(ctx):
        x, weight, bias, residual, _ = ctx.saved_tensors
        if ctx.residual_shape is not None:
            residual = x.new_zeros(()).expand(
                ctx.residual_shape
            )  # with no activation no gradient depends on it
        return x, weight, bias, residual, ctx.g, ctx.act.twice()


def _either(backend, x):
    return backend in EITHER_ORDER or (backend == "auto" and x.is_cpu)


def _placed(t, last, backend, x):
    """t (N, C, *) as a launcher takes it: (N, D, H, W, C), copied where its memory is in another order."""
    if t is None:
        return None
    return _laid(_volume(t), first=not last and _either(backend, x))


def _weight(weight, backend, x):
    w = _volume(weight)
    return w if _either(backend, x) else w.contiguous()


def _ordered(t, last):
    """A result (N, C, *) in the order that was asked for: copied only where a kernel knows channels-last alone."""
    return t if last else t.contiguous()


def _padded(x, weight, g):
    """x and the padding, alike at both ends, that give y of size g.size: torch's convolutions pad both ends alike."""
    ends, padding = [], []
    for n, k, s, p, d, out in zip(
        x.shape[2:], weight.shape[2:], g.stride, g.padding, g.dilation, g.size, strict=True
    ):
        span = d * (k - 1) + 1
        behind = p if (n + 2 * p - span) // s + 1 == out else (out - 1) * s + span - n - p
        both = max(0, min(p, behind))
        ends = [p - both, behind - both, *ends]
        padding.append(both)
    return (T.pad(x, ends) if any(ends) else x), padding


# ---- the public functions


def conv1d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    act=None,
    residual=None,
    causal=False,
):
    """y = f(conv(x, W) + b + residual) over one dimension: see `conv2d`.

    causal: y[i] sees x up to i alone: dilation (kernel - 1) zeros stand before x, as many outputs come as inputs
    (⌈L / stride⌉), and `padding` must be 0. It is conv1d(pad(x, (dilation (kernel - 1), 0))) without the copy, and
    conv1d(x, padding=dilation (kernel - 1))[..., :L] without the copy in its backward.
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, act, residual, causal)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, act=None, residual=None):
    """y = f(conv(x, W) + b + residual): torch.nn.functional.conv2d, with a sum and an activation f fused behind it.

    Args:
        input: x, of shape (N, C, H, W) or (C, H, W); conv1d: (N, C, L), conv3d: (N, C, D, H, W).
        weight: W, of shape (O, C / groups, kH, kW).
        bias: b, of shape (O,), or None.
        stride, padding, dilation: a number, or one a spatial dimension; padding also "valid" (0) or "same" (as many
            outputs as inputs, the odd zero behind; stride 1 only).
        groups: into how many groups C and O are divided.
        act: None, the name of an activation, or (name, parameter, ...), as in `linear`.
        residual: of y's shape, added before f.

    Returns:
        y, of shape (N, O, oH, oW) with oH = ⌊(H + 2 padding - dilation (kH - 1) - 1) / stride⌋ + 1, in the arguments'
        common dtype (autocast's under torch.autocast); its memory is channels-last where x's is, or (2d and 3d) W's.

    float64, float32, bfloat16 and float16 run on kernels; every other dtype and layout runs the formula. Sums are
    float32 (float64 for float64); in 16 bits on a CPU z is rounded before f as in torch. A large float32 filter of 3x3
    at stride 1 has its products on a CPU by Winograd's F(2x2, 3x3) (Lavin, Gray: Fast algorithms for convolutional
    neural networks, arXiv:1509.09308): an element's rounding error follows the largest of the four with it in a tile.

    Saved for the backward: x, W, b; with an activation the residual, and y where f' can be had from it (relu, relu6,
    leaky_relu with a positive slope, hardtanh, sigmoid, tanh), else z, and these only when a gradient can be asked
    for.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes, devices or numbers that do not fit, an unknown act.
        ArgumentTypeError (a TypeError and a RuntimeError): dtypes that do not fit, arguments of another type.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, act, residual)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, act=None, residual=None):
    """y = f(conv(x, W) + b + residual) over three dimensions: see `conv2d`."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, act, residual)


def conv_transpose1d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    *,
    act=None,
    residual=None,
):
    """y = f(conv_transpose(x, W) + b + residual) over one dimension: see `conv_transpose2d`."""
    options = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose(1, input, weight, bias, options, act, residual)


def conv_transpose2d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    *,
    act=None,
    residual=None,
):
    """y = f(conv_transpose(x, W) + b + residual): torch.nn.functional.conv_transpose2d with a sum and an activation f
    fused behind it: the gradient that `conv2d` with this W has to its input.

    Args:
        input: x, of shape (N, C, H, W) or (C, H, W); conv_transpose1d: (N, C, L), conv_transpose3d: (N, C, D, H, W).
        weight: W, of shape (C, O / groups, kH, kW).
        bias: b, of shape (O,), or None.
        stride, padding, dilation: of the convolution whose gradient it is: a number, or one a spatial dimension.
        output_padding: rows and columns more, behind, below stride or dilation.
        groups, act, residual: as in `conv2d`.

    Returns:
        y, of shape (N, O, oH, oW) with oH = (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1.

    dtypes, what is saved for the backward, and errors: as in `conv2d`.
    """
    options = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose(2, input, weight, bias, options, act, residual)


def conv_transpose3d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    *,
    act=None,
    residual=None,
):
    """y = f(conv_transpose(x, W) + b + residual) over three dimensions: see `conv_transpose2d`."""
    options = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose(3, input, weight, bias, options, act, residual)


AXES = (None, "L", "H, W", "D, H, W")


def _conv(rank, x, weight, bias, stride, padding, dilation, groups, act, residual, causal=False):
    name = f"conv{rank}d"
    act = parse(name, act)
    bare = act.name == "none" and residual is None and not causal
    options = (stride, padding, dilation, groups)
    if not (bare and groups == 1 and bare_is_torchs(x, weight)):
        g = geometry(rank, x, weight, bias, *options, causal)
        if g is not None:
            return _call(name, x, weight, bias, residual, g, act)
        if causal:
            raise ArgumentError(
                f"{name}: causal=True takes padding 0, input (N, C, L) and weight (O, C / groups, kernel), got padding "
                f"{padding!r}, input of shape {shape_of(x)}, weight of shape {shape_of(weight)}"
            )
    expected = (
        f"input ([N,] C, {AXES[rank]}) and weight (O, C / groups, kernel), padded input no smaller than it"
    )
    z = torchs_own(name, expected, CONV[rank], x, weight, bias, *options)
    return z if bare else _behind(name, z, residual, act)


def _conv_transpose(rank, x, weight, bias, options, act, residual):
    name, groups = f"conv_transpose{rank}d", options[3]
    act = parse(name, act)
    bare = act.name == "none" and residual is None
    if not (bare and groups == 1 and bare_is_torchs(x, weight)):
        g = transposed_geometry(rank, x, weight, bias, *options)
        if g is not None:
            return _call(name, x, weight, bias, residual, g, act)
    expected = (
        f"input ([N,] C, {AXES[rank]}), weight (C, O / groups, kernel), output_padding < stride or dilation"
    )
    z = torchs_own(name, expected, TRANSPOSED[rank], x, weight, bias, *options)
    return z if bare else _behind(name, z, residual, act)


def _call(name, x, weight, bias, residual, g, act):
    unbatched = x.dim() == weight.dim() - 1
    if unbatched:
        if g.groups > 1:
            # torch's gradient to W is wrong where W and an unbatched x have the channels innermost
            x = x.contiguous()
        x = x.unsqueeze(0)
    if residual is not None:
        channels = weight.size(1) * g.groups if g.transposed else weight.size(0)
        shape = (channels, *g.size) if unbatched else (x.size(0), channels, *g.size)
        check_residual(name, residual, shape, x)
        residual = residual.unsqueeze(0) if unbatched else residual
    if act.autocast(x) is not None:  # softplus, which is float32 under torch's autocast
        y = ConvFunction.formula(x, weight, bias, residual, g, act)
    else:
        y = ConvFunction.call(x, weight, bias, residual, g, act)
    return y.squeeze(0) if unbatched else y


def _behind(name, z, residual, act):
    """What stands behind a convolution that is torch's own: a layout, dtype or proxy that no kernel takes."""
    if residual is not None:
        if isinstance(z, torch.Tensor):
            check_residual(name, residual, tuple(z.shape), z)
        z = z + residual
    return act.formula(z)
