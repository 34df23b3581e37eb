"""Dropout: y = x·m/(1-p), m drawn anew for each call, 1 with probability 1-p and 0 else.

Backward: dx = dy·m/(1-p) with the same m, which is not saved: it is drawn again from the seed (core/random.py), element
i of the contiguous tensor being number i.
"""

import torch
from torch.nn import functional as T

from .core import (
    ArgumentError,
    ArgumentTypeError,
    KernelFunction,
    below,
    choice,
    define,
    draw_seed,
    torch_serves,
)
from .core.function import transform
from .core.random import kept

dropout_fwd = define(
    "dropout_fwd(Tensor x, Tensor? residual, Tensor seed, float p) -> Tensor",
    "dropout",
    fake=lambda x, residual, seed, p: torch.empty_like(x, memory_format=torch.contiguous_format),
    prepare=lambda x, residual, seed, p: (
        x.contiguous(),
        None if residual is None else residual.contiguous(),
        seed,
        p,
    ),
)


def noise(x, seed, p):
    """What x is multiplied with: m/(1-p), in x's shape and dtype."""
    index = torch.arange(x.numel(), dtype=torch.int64, device=x.device)
    return kept(seed, index, p).view(x.shape).to(x.dtype) * (1 / (1 - p))


def mask(x, shape, p):
    """m/(1-p) of the shape, in x's dtype, drawn anew: by torch's generator the same on every backend."""
    if p == 1.0:
        return x.new_zeros(shape)
    seed, ones = draw_seed(x), x.new_ones(shape)
    backend = choice.state.chosen
    if backend == "auto":
        backend = choice.automatic("dropout", x.device.type, x.dtype)
        if backend and torch.compiler.is_compiling():
            backend = "auto"
    elif backend == "torch" or choice.cannot_serve(backend, "dropout", x.device.type, x.dtype):
        backend = None
    if backend is None or transform():
        return noise(ones, seed, p)
    return dropout_fwd(ones, None, seed, p, backend)


# "auto" on a CPU, C++ over eager, forward and backward together: at 2^12 it runs at 0.8, at 2^14 at 1.6, at 2^18 at 6.
SMALL = 1 << 14


class DropoutFunction(KernelFunction):
    """Saved for the backward: the seed."""

    module = "dropout"

    @staticmethod
    def label(x, residual, p):
        return "dropout" if residual is None else "dropout_add"

    @staticmethod
    def formula(x, residual, p):
        y = T.dropout(x, p, True)
        return y if residual is None else residual + y

    @staticmethod
    def rule(x, residual, p):
        if x.device.type != "cpu":
            # torch's writes the sum in a pass of its own; nothing is measured on a GPU yet
            return (
                "torch's own kernel is one pass; no GPU has been measured yet" if residual is None else None
            )
        return "few elements for its cost on a CPU" if below(x.numel(), SMALL) else None

    @staticmethod
    def forward(ctx, x, residual, p, backend):
        seed = draw_seed(x)
        ctx.save_for_backward(seed)
        ctx.p, ctx.backend = p, backend
        return dropout_fwd(x, residual, seed, p, backend)

    @staticmethod
    def backward(ctx, dy):
        (seed,) = ctx.saved_tensors
        dx = dropout_fwd(dy, None, seed, ctx.p, ctx.backend) if ctx.needs_input_grad[0] else None
        return dx, dy if ctx.needs_input_grad[1] else None

    @classmethod
    def _by_formula(cls, ctx, dy):
        (seed,) = ctx.saved_tensors
        return [dy * noise(dy, seed, ctx.p), dy if ctx.needs_input_grad[1] else None]


def dropout(input, p=0.5, training=True, inplace=False):
    """y = input·m/(1-p): torch.nn.functional.dropout (Srivastava et al., Dropout: A Simple Way to Prevent Neural
    Networks from Overfitting, JMLR 15, 2014).

    input: any shape; p: the probability of an element to become 0, in [0, 1]; training: False returns the input;
    inplace: torch's own call. Which elements are kept follows torch's generator (one number is drawn from it a call)
    and is the same on every backend of ours, though not torch's choice. Saved for the backward: the seed.

    Raises ArgumentError (a ValueError) for p outside [0, 1], ArgumentTypeError (a TypeError) for what is no tensor.
    """
    if not isinstance(input, torch.Tensor):
        if hasattr(input, "__torch_function__"):  # torch.fx
            return T.dropout(input, p, training, inplace)
        raise ArgumentTypeError(f"dropout: input must be a Tensor, got {type(input).__name__}")
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"dropout probability has to be between 0 and 1, but got {p}")
    if inplace or not training or p in (0, 1) or input.is_nested:
        if inplace and training and 0 < p < 1:
            torch_serves("dropout", "inplace=True is torch's own", input)
        return T.dropout(input, p, training, inplace)
    return DropoutFunction.call(input, None, float(p))


def dropout_add(input, residual, p=0.5, training=True):
    """y = residual + dropout(input, p, training), in one pass.

    residual: of input's shape, device and dtype (else it is added by torch). Saved for the backward: the seed.
    Errors are `dropout`'s.
    """
    for name, t in (("input", input), ("residual", residual)):
        if not isinstance(t, torch.Tensor):
            if hasattr(t, "__torch_function__"):  # torch.fx
                return residual + T.dropout(input, p, training)
            raise ArgumentTypeError(f"dropout_add: {name} must be a Tensor, got {type(t).__name__}")
    if (
        not training
        or not 0.0 < p < 1.0
        or input.is_nested
        or residual.is_nested
        or residual.shape != input.shape
        or residual.dtype != input.dtype
        or residual.device != input.device
    ):
        return residual + dropout(input, p, training)
    return DropoutFunction.call(input, residual, float(p))
