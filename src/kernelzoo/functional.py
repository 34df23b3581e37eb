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
from .ops.attention import attention_varlen, scaled_dot_product_attention, split_heads
from .ops.attention_decode import attention_decode
from .ops.avg_pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
)
from .ops.batch_norm import batch_norm, instance_norm
from .ops.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .ops.cross_entropy import cross_entropy, nll_loss
from .ops.dropout import dropout, dropout_add
from .ops.embedding import embedding
from .ops.glu import geglu, glu, reglu, swiglu
from .ops.group_norm import group_norm
from .ops.interpolate import interpolate, upsample, upsample_bilinear, upsample_nearest
from .ops.linear import linear
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from .ops.max_pool import (
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from .ops.norm import layer_norm, rms_norm
from .ops.rnn import gru, lstm, rnn
from .ops.rnn_cell import gru_cell, lstm_cell, rnn_relu_cell, rnn_tanh_cell
from .ops.rotary import rotary_embedding, rotary_tables
from .ops.softmax import log_softmax, softmax

__all__ = [name for name in dir() if not name.startswith("_")]


def __getattr__(name):
    return getattr(_torch, name)


def __dir__():
    return sorted({*__all__, *dir(_torch)})
