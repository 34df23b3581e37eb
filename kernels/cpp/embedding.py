"""Embedding on CPU: rows copied by index, and the gradient's rows summed each by one thread."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def embedding_fwd(weight, indices):
    """y (N, D) = weight[indices]. weight (V, D) of adjacent columns; indices int64 (N,) contiguous, in range."""
    y = memory.empty((indices.shape[0], weight.shape[1]), weight.dtype)
    _cpu.embedding_fwd(
        weight.data_ptr(),
        weight.stride(0),
        indices.data_ptr(),
        y.data_ptr(),
        *y.shape,
        DTYPES[weight.dtype],
        torch.get_num_threads(),
    )
    return y


def embedding_bwd(dy, indices, num_weights, padding_idx, scale_grad_by_freq):
    """dw (num_weights, D): row v is the sum of dy's rows whose index is v, in their order. dy (N, D) of adjacent
    columns."""
    rows, D = dy.shape
    dw = memory.empty((num_weights, D), dy.dtype)
    _cpu.embedding_bwd(
        dy.data_ptr(),
        dy.stride(0),
        indices.data_ptr(),
        dw.data_ptr(),
        rows,
        num_weights,
        D,
        padding_idx,
        scale_grad_by_freq,
        DTYPES[dy.dtype],
        torch.get_num_threads(),
    )
    return dw
