"""Memory for time: a batch norm's result computed anew in the backward, in place of being kept for it."""

import contextlib

import torch
from torch.autograd.graph import saved_tensors_hooks

from .batch_norm import BatchNormFunction, batch_norm_fwd


def recomputed(y):
    """A context in which what a layer keeps of y for its backward is not y: there y = f((x - mean) rstd w + b) is
    computed again from x, mean and var, which batch norm's backward keeps in any case.

    >>> y = norm(x)  # BatchNorm2d(..., act="relu")
    >>> with recomputed(y):
    ...     z = conv(y)

    It costs a pass over x, and saves y's memory from here to its last use in the forward. Where y is not what a kernel
    of `batch_norm` gave without a residual, or a graph is compiled, nothing changes. y must not be written to.
    Source: S. Rota Bulò, L. Porzi, P. Kontschieder, In-Place Activated BatchNorm, arXiv:1712.02616, section 3.
    """
    if torch.compiler.is_compiling() or not isinstance(y, torch.Tensor):  # torch.fx
        return contextlib.nullcontext()
    node = y.grad_fn
    if not isinstance(node, BatchNormFunction._function._backward_cls) or node.residual or node.instances:
        return contextlib.nullcontext()
    place = y.data_ptr(), y.shape, y.stride(), y.dtype

    def pack(t):
        return node if (t.data_ptr(), t.shape, t.stride(), t.dtype) == place else t

    def unpack(kept):
        return kept if isinstance(kept, torch.Tensor) else _again(kept)

    return saved_tensors_hooks(pack, unpack)


def _again(node):
    x, weight, bias, _, mean, var = node.saved_tensors
    with torch.no_grad():
        act = node.act.flat()
        return batch_norm_fwd(x, None, weight, bias, mean, var, False, float(node.eps), *act, node.backend)[0]
