"""Gated activations: y = f(gate)·up.

Backward, in one pass: dup = dy f(gate), dgate = dy up f'(gate).
"""

import operator

import torch
from torch.nn import functional as T

from .activation import DEFINITIONS
from .core import FRESH, ArgumentError, ArgumentTypeError, KernelFunction, below, define
from .core.checks import same_device

aten = torch.ops.aten


def _empty(gate):
    return gate.new_empty(gate.shape)


glu_fwd = define(
    "glu_fwd(Tensor gate, Tensor up, str act) -> Tensor",
    "glu",
    fake=lambda gate, up, act: _empty(gate),
    prepare=lambda gate, up, act: (_rows(gate), _rows(up), act),
)
glu_bwd = define(
    "glu_bwd(Tensor dy, Tensor gate, Tensor up, str act) -> (Tensor, Tensor)",
    "glu",
    fake=lambda dy, gate, up, act: (_empty(gate), _empty(gate)),
    prepare=lambda dy, gate, up, act: (_rows(dy), _rows(gate), _rows(up), act),
)
glu_split_fwd = define(
    "glu_split_fwd(Tensor x) -> Tensor",
    "glu",
    fake=lambda x: x.new_empty(x.shape[0], x.shape[1] // 2),
    prepare=lambda x: (_rows(x),),
)
glu_split_bwd = define(
    "glu_split_bwd(Tensor dy, Tensor x) -> Tensor",
    "glu",
    fake=lambda dy, x: _empty(x),
    prepare=lambda dy, x: (_rows(dy), _rows(x)),
)


def _rows(t):
    """(M, N) with adjacent columns, copied only where they are not."""
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def _flat(t):
    """(..., N) as (M, N): a view where the leading dimensions allow one."""
    return t.reshape(-1, t.shape[-1]) if t.dim() else t.reshape(1, 1)


# "auto" on a CPU, C++ over eager, forward and backward together: at 2^16 swiglu runs at 0.7, at 2^18 at 1.0 (bf16) to
# 1.2, at 2^24 at 4.3 (bf16 2.9). glu, which torch fuses too, wins in fresh memory only (core.FRESH): at 2^18 it runs at
# 0.8 to 0.9, at 2^24 at 3.1 (bf16 1.6).
SMALL = 1 << 18


class GatedFunction(KernelFunction):
    """Saved for the backward: gate and up."""

    module = "glu"

    @staticmethod
    def label(gate, up, act):
        return {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}[act]

    @staticmethod
    def formula(gate, up, act):
        return DEFINITIONS[act].formula(gate) * up

    @staticmethod
    def rule(gate, up, act):
        """On a GPU, where nothing is measured yet: torch reads and writes the result of f once more than needed."""
        if gate.device.type == "cpu" and below(gate.numel(), SMALL):
            return "few elements for its cost on a CPU"
        return None

    @staticmethod
    def forward(ctx, gate, up, act, backend):
        y = glu_fwd(_flat(gate), _flat(up), act, backend)
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.backend = act, backend
        return aten._unsafe_view(y, gate.shape)  # no view: users may write to it in place

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate, dup = glu_bwd(_flat(dy), _flat(gate), _flat(up), ctx.act, ctx.backend)
        return dgate.view(gate.shape), dup.view(gate.shape)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors, ctx.act)


class GLUFunction(KernelFunction):
    """Saved for the backward: the input."""

    module = "glu"

    @staticmethod
    def label(x, dim):
        return "glu"

    @staticmethod
    def formula(x, dim):
        return T.glu(x, dim)

    @staticmethod
    def rule(x, dim):
        if x.device.type != "cpu":
            return "torch's own kernel moves the same bytes; no GPU has been measured yet"
        few = below(x.numel() * x.dtype.itemsize, FRESH)
        return "few elements for its cost on a CPU" if few else None

    @staticmethod
    def forward(ctx, x, dim, backend):
        rows, shape = _halves(x, dim)
        ctx.save_for_backward(x)
        ctx.dim, ctx.backend = dim, backend
        return aten._unsafe_view(glu_split_fwd(rows, backend), shape)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        rows, _ = _halves(x, ctx.dim)
        dx = glu_split_bwd(dy.reshape(rows.shape[0], -1), rows, ctx.backend)
        return (dx.view(x.shape),)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors, ctx.dim)


def _halves(x, dim):
    """x as (M, 2 N), a row's halves being what dim is split into, and the result's shape."""
    dim %= x.dim()
    outer = 1
    for size in x.shape[:dim]:
        outer *= size
    shape = (*x.shape[:dim], x.shape[dim] // 2, *x.shape[dim + 1 :])
    return x.reshape(outer, -1), shape


def swiglu(gate, up):
    """y = silu(gate)·up, silu(x) = x·σ(x) (Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202).

    gate, up: one shape and device, any strides: the two halves of one (..., 2 N) tensor are read where they are.
    Returns y, of that shape, in their common dtype; computed in float32 (float64 for float64) and rounded once.
    Saved for the backward: gate and up. float64, float32, bfloat16 and float16 run on kernels.

    Raises ArgumentError (a ValueError and a RuntimeError) where shapes or devices differ, ArgumentTypeError (a
    TypeError and a RuntimeError) for what is no tensor.
    """
    return _gated("swiglu", gate, up, "silu")


def geglu(gate, up, approximate="none"):
    """y = gelu(gate)·up (Shazeer, arXiv:2002.05202); approximate: "none" or "tanh", as in `gelu`.

    Arguments, errors and what is saved are `swiglu`'s.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"geglu: approximate must be either none or tanh, got {approximate!r}.")
    return _gated("geglu", gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def reglu(gate, up):
    """y = max(gate, 0)·up (Shazeer, arXiv:2002.05202). Arguments, errors and what is saved are `swiglu`'s."""
    return _gated("reglu", gate, up, "relu")


def _gated(name, gate, up, act):
    for what, t in (("gate", gate), ("up", up)):
        if not isinstance(t, torch.Tensor):
            if hasattr(t, "__torch_function__"):  # torch.fx
                return GatedFunction.formula(gate, up, act)
            raise ArgumentTypeError(f"{name}: {what} must be a Tensor, got {type(t).__name__}")
    if gate.is_nested or up.is_nested:
        return GatedFunction.formula(gate, up, act)
    if gate.shape != up.shape:
        raise ArgumentError(
            f"{name}: up has shape {tuple(up.shape)} but gate has {tuple(gate.shape)}; expected the same shape"
        )
    if gate.device != up.device:
        same_device(name, "up", up, "gate", gate)
    return GatedFunction.call(gate, up, act)


def glu(input, dim=-1):
    """y = a·σ(b), a and b the halves of input along dim: torch.nn.functional.glu (Dauphin et al., arXiv:1612.08083).

    input: any shape with an even size of dim. Returns y, of input's shape with dim halved. Saved for the backward:
    the input.
    """
    if not isinstance(input, torch.Tensor):
        if hasattr(input, "__torch_function__"):  # torch.fx
            return T.glu(input, dim)
        raise ArgumentTypeError(f"glu: input must be a Tensor, got {type(input).__name__}")
    rank = input.dim()
    if input.is_nested or rank == 0 or isinstance(dim, bool) or not hasattr(dim, "__index__"):
        return T.glu(input, dim)  # torch's error
    dim = operator.index(dim)
    if not -rank <= dim < rank or input.shape[dim] % 2:
        return T.glu(input, dim)
    return GLUFunction.call(input, dim)
