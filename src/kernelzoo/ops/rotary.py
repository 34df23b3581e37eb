"""Rotary position embedding: each pair of features (a, b) at position p turned by the angle θ = p·base^(-2i/dim):
(a cos θ - b sin θ, b cos θ + a sin θ).

Backward: the turn by -θ.
"""

import torch

from .core import ArgumentError, ArgumentTypeError, KernelFunction, below, define, torch_serves
from .core.checks import same_device
from .core.function import transform

rotary = define(
    "rotary(Tensor x, Tensor cos, Tensor sin, Tensor? position_ids, bool interleaved, bool inverse) -> Tensor",
    "rotary",
    fake=lambda x, *_: torch.empty_like(x) if _adjacent(x) else x.new_empty(x.shape),
    prepare=lambda x, cos, sin, position_ids, *flags: (
        x if _adjacent(x) else x.clone(memory_format=torch.contiguous_format),
        _table(cos, x),
        _table(sin, x),
        None if position_ids is None else _checked(position_ids, cos, flags[1]).long(),
        *flags,
    ),
)


def _adjacent(x):
    """Whether x's features are: so the kernels read it, and lay the result out like it."""
    return x.stride(3) == 1 or x.shape[3] == 1


def _checked(position_ids, cos, already=False):
    """In the op and in the formula, so that compiled code raises too; on other devices a look would wait for them."""
    if not already and position_ids.device.type == "cpu" and position_ids.numel():
        rows = cos.shape[0]
        low, high = (int(t) for t in position_ids.aminmax())
        if low < 0 or high >= rows:
            raise ArgumentError(
                f"rotary_embedding: position_ids go from {low} to {high} but the tables have {rows} rows; expected "
                f"positions in [0, {rows}): make longer tables with rotary_tables or RotaryEmbedding.reach"
            )
    return position_ids


def _acc(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _table(table, x):
    return table.detach().to(_acc(x)).contiguous()


def _four(x):
    """x (..., L, D) as (B, H, L, D), B its first dimension: a view where the dimensions between allow one."""
    rank = x.dim()
    if rank == 4:
        return x
    if rank == 3:
        return x[:, None]
    return x[None, None] if rank == 2 else x.reshape(x.shape[0], -1, *x.shape[-2:])


# "auto" on a CPU, C++ over eager, forward and backward together: at 2^12 it runs at 1.05, at 2^14 at 1.2, at 2^18 at
# 2.3 to 3.3.
SMALL = 1 << 13


class RotaryFunction(KernelFunction):
    """Saved for the backward: cos, sin and position_ids."""

    module = "rotary"
    mixed = True

    @staticmethod
    def label(x, cos, sin, position_ids, interleaved):
        return "rotary_embedding"

    @staticmethod
    def formula(x, cos, sin, position_ids, interleaved):
        acc, half = _acc(x), cos.shape[-1]
        if position_ids is None:
            cos, sin = cos[: x.shape[-2]], sin[: x.shape[-2]]
        else:
            if not torch.compiler.is_compiling() and transform() is None:
                _checked(position_ids, cos)
            cos, sin = cos[position_ids], sin[position_ids]
        cos, sin = cos.to(acc), sin.to(acc)
        if cos.dim() == 3:  # (B, L, half) beside (B, ..., L, half)
            shape = (cos.shape[0], *(1,) * (x.dim() - 3), *cos.shape[1:])
            cos, sin = cos.reshape(shape), sin.reshape(shape)
        turned, rest = x[..., : 2 * half].to(acc), x[..., 2 * half :]
        a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        pair = (a * cos - b * sin, b * cos + a * sin)
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        return torch.cat([turned.to(x.dtype), rest], -1) if rest.shape[-1] else turned.to(x.dtype)

    @staticmethod
    def rule(x, cos, sin, position_ids, interleaved):
        """On a GPU, where nothing is measured yet: torch composes some eight passes."""
        if x.device.type == "cpu" and below(x.numel(), SMALL):
            return "few elements for its cost on a CPU"
        return None

    @staticmethod
    def forward(ctx, x, cos, sin, position_ids, interleaved, backend):
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.interleaved, ctx.backend = interleaved, backend
        y = rotary(_four(x), cos, sin, position_ids, interleaved, False, backend)
        return torch.ops.aten._unsafe_view(y, x.shape) if x.dim() != 4 else y

    @staticmethod
    def backward(ctx, dy):
        cos, sin, position_ids = ctx.saved_tensors
        dx = rotary(_four(dy), cos, sin, position_ids, ctx.interleaved, True, ctx.backend)
        return (dx.view(dy.shape),)

    @classmethod
    def _by_formula(cls, ctx, dy):
        cos, sin, position_ids = ctx.saved_tensors
        return [cls.formula(dy, cos, -sin, position_ids, ctx.interleaved)]


def rotary_embedding(x, cos, sin, position_ids=None, *, interleaved=False):
    """Turn the leading R features of x at position p by the angles whose cosines and sines are cos[p] and sin[p].

    (Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.)

    Args:
        x: of shape (..., L, D), such as (B, H, L, D), any strides; the result is laid out like it.
        cos, sin: of shape (P, R/2), R <= D even, any floating dtype (`rotary_tables` makes them); the other D - R
            features pass through.
        position_ids: whole numbers in [0, P) of shape (L,), or (B, L) with B the first of x's dimensions; None is
            0 ... L-1.
        interleaved: False pairs feature i with i + R/2 (GPT-NeoX, Llama); True pairs 2i with 2i + 1 (GPT-J, RoFormer).

    Returns:
        y, of x's shape and dtype, computed in float32 (float64 for float64) and rounded once.

    Saved for the backward: cos, sin and position_ids. Where cos or sin ask for a gradient the formula runs.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes or devices that do not fit; on a CPU, positions
            outside the tables. On other devices positions are not looked at, which would wait for the device: one
            outside the tables takes the nearest row that is there.
        ArgumentTypeError (a TypeError and a RuntimeError): positions that are no whole numbers, tables that are not
            floating.
    """
    if not _fits(x, cos, sin, position_ids):
        _explain(x, cos, sin, position_ids)
        return RotaryFunction.formula(x, cos, sin, position_ids, interleaved)
    if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
        torch_serves("rotary_embedding", "gradients of the tables are the formula's", x)
        return RotaryFunction.formula(x, cos, sin, position_ids, interleaved)
    return RotaryFunction.call(x, cos, sin, position_ids, bool(interleaved))


def _fits(x, cos, sin, position_ids):
    """Whether a kernel could take these: one cheap look, so that a good call pays for no explanation."""
    for t in (x, cos, sin):
        if (
            not isinstance(t, torch.Tensor)
            or t.is_nested
            or not t.is_floating_point()
            or t.device != x.device
        ):
            return False
    if x.dim() < 2 or cos.dim() != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > x.shape[-1]:
        return False
    if position_ids is None:
        return cos.shape[0] >= x.shape[-2]
    if not isinstance(position_ids, torch.Tensor) or position_ids.dtype not in (torch.int64, torch.int32):
        return False
    if position_ids.device != x.device:
        return False
    shape = position_ids.shape
    return shape == x.shape[-2:-1] or (len(shape) == 2 and x.dim() > 2 and shape == (x.shape[0], x.shape[-2]))


def _explain(x, cos, sin, position_ids):
    """Raise what is wrong with arguments that do not fit; return where the formula takes them all the same."""
    name = "rotary_embedding"
    for what, t in (("x", x), ("cos", cos), ("sin", sin), ("position_ids", position_ids)):
        if not isinstance(t, torch.Tensor) and (t is not None or what != "position_ids"):
            if hasattr(t, "__torch_function__"):  # torch.fx
                return
            raise ArgumentTypeError(f"{name}: {what} must be a Tensor, got {type(t).__name__}")
    for what, t in (("cos", cos), ("sin", sin)):
        if not t.is_floating_point():
            raise ArgumentTypeError(f"{name}: {what} has dtype {t.dtype}; expected a floating dtype")
        same_device(name, what, t, "x", x)
    if not x.is_floating_point():
        raise ArgumentTypeError(f"{name}: x has dtype {x.dtype}; expected a floating dtype")
    if x.dim() < 2:
        raise ArgumentError(f"{name}: x has shape {tuple(x.shape)}; expected (..., L, D)")
    if cos.dim() != 2 or cos.shape != sin.shape:
        raise ArgumentError(
            f"{name}: cos has shape {tuple(cos.shape)} and sin {tuple(sin.shape)}; expected (positions, R/2) for both"
        )
    if 2 * cos.shape[1] > x.shape[-1]:
        raise ArgumentError(
            f"{name}: the tables turn {2 * cos.shape[1]} features but x has {x.shape[-1]}; expected at most "
            f"{x.shape[-1] // 2} columns, got {cos.shape[1]}"
        )
    if position_ids is None:
        if cos.shape[0] < x.shape[-2]:
            raise ArgumentError(
                f"{name}: x has {x.shape[-2]} positions but the tables have {cos.shape[0]} rows; make longer "
                f"tables with rotary_tables({x.shape[-2]}, {2 * cos.shape[1]})"
            )
        return
    if position_ids.is_floating_point() or position_ids.is_complex() or position_ids.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{name}: position_ids has dtype {position_ids.dtype}; expected whole numbers (torch.int64)"
        )
    same_device(name, "position_ids", position_ids, "x", x)
    if not (
        position_ids.shape == x.shape[-2:-1]
        or (x.dim() > 2 and position_ids.shape == (x.shape[0], x.shape[-2]))
    ):
        raise ArgumentError(
            f"{name}: position_ids has shape {tuple(position_ids.shape)} but x has {tuple(x.shape)}; expected "
            f"({x.shape[-2]},) or ({x.shape[0]}, {x.shape[-2]})"
        )
    raise ArgumentTypeError(f"{name}: position_ids has dtype {position_ids.dtype}; convert it with .long()")


def rotary_tables(positions, dim, base=10000.0, *, inv_freq=None, device=None, dtype=torch.float32):
    """cos and sin of p·inv_freq[i] for p = 0 ... positions-1 and i = 0 ... dim/2-1.

    Args:
        positions: how many rows the tables have.
        dim: features that are turned, even.
        base: inv_freq[i] = base^(-2i/dim), unless inv_freq is given.
        inv_freq: dim/2 numbers, turns a position in radians (for scaled variants).
        device, dtype: the tables'.

    Returns:
        cos, sin, of shape (positions, dim/2). The angles are float32, as in the models that were trained with such
        tables, and float64 for dtype float64.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ArgumentError(f"rotary_tables: dim must be an even int of at least 2, got {dim!r}")
    if isinstance(positions, bool) or not isinstance(positions, int | torch.SymInt) or positions < 0:
        raise ArgumentError(f"rotary_tables: positions must be an int of at least 0, got {positions!r}")
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    if inv_freq is None:
        exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).to(acc) / dim
        inv_freq = 1.0 / base**exponents
    else:
        inv_freq = torch.as_tensor(inv_freq, dtype=acc, device=device)
        if inv_freq.shape != (dim // 2,):
            raise ArgumentError(
                f"rotary_tables: inv_freq has shape {tuple(inv_freq.shape)}; expected ({dim // 2},) for dim {dim}"
            )
    angles = torch.arange(positions, device=inv_freq.device, dtype=torch.int64).to(acc)[:, None] * inv_freq
    return angles.cos().to(dtype), angles.sin().to(dtype)
