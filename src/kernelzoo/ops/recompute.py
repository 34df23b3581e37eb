"""Memory for time: a batch norm's result computed anew in the backward, in place of being kept for it."""

import contextlib

import torch
from torch.autograd.graph import saved_tensors_hooks

from .batch_norm import BatchNormFunction, batch_norm_fwd


def _node(y):
    """What computed y, if y can be had again from what its backward keeps."""
    if torch.compiler.is_compiling() or not isinstance(y, torch.Tensor):  # torch.fx
        return None
    node = y.grad_fn
    if not isinstance(node, BatchNormFunction._function._backward_cls) or node.instances:
        return None
    return node if not node.residual or (node.act.name != "none" and not node.from_output) else None


def can_recompute(y):
    """Whether `recomputed(y)` keeps less."""
    return _node(y) is not None


def recomputed(y):
    """A context in which what a layer keeps of y for its backward is not y: y = f((x - mean) rstd w + b + residual) is
    computed again there from what batch norm's backward keeps in any case.

    >>> y = norm(x)  # BatchNorm2d(..., act="relu")
    >>> with recomputed(y):
    ...     z = conv(y)

    It costs a pass over x, and saves y's memory from here to its last use in the forward. Where y is not what a kernel
    of `batch_norm` gave, or with a residual that it does not keep (`keep_residual`), or a graph is compiled, nothing
    changes. y must not be written to.
    Source: S. Rota Bulò, L. Porzi, P. Kontschieder, In-Place Activated BatchNorm, arXiv:1712.02616, section 3.
    """
    node = _node(y)
    if node is None:
        return contextlib.nullcontext()
    place = y.data_ptr(), y.shape, y.stride(), y.dtype

    def pack(t):
        return node if (t.data_ptr(), t.shape, t.stride(), t.dtype) == place else t

    def unpack(kept):
        return kept if isinstance(kept, torch.Tensor) else _again(kept)

    return saved_tensors_hooks(pack, unpack)


def _again(node):
    x, weight, bias, residual, mean, var = node.saved_tensors
    with torch.no_grad():
        act = node.act.flat()
        return batch_norm_fwd(
            x, residual, weight, bias, mean, var, False, float(node.eps), *act, node.backend
        )[0]
