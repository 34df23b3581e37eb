"""Mirror of torch.nn.functional: what kernelzoo accelerates, and torch's own object for every other name."""

import torch.nn.functional as _torch

from .ops.activation import (
    celu,
    elu,
    gelu,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    softshrink,
    softsign,
    tanh,
    tanhshrink,
    threshold,
)
from .ops.group_norm import group_norm
from .ops.linear import linear
from .ops.norm import layer_norm, rms_norm
from .ops.dropout import dropout, dropout_add
from .ops.embedding import embedding
from .ops.glu import geglu, glu, reglu, swiglu
from .ops.linear import linear
from .ops.rotary import rotary_embedding, rotary_tables
from .ops.softmax import log_softmax, softmax

__all__ = [name for name in dir() if not name.startswith("_")]


def __getattr__(name):
    return getattr(_torch, name)


def __dir__():
    return sorted({*__all__, *dir(_torch)})
