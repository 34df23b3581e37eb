"""Embedding: rows copied by index, and the gradient's rows summed each by one thread."""

import functools

import numpy as np
import torch

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer, stack

PIECE = 512  # columns that are summed at once: 2 KB of float32


@functools.cache
def _fwd_kernel(dtype):
    store_t, *_ = STORAGE[dtype]

    @kernel
    def _embedding_fwd_kernel(first, last, args, p0, p1):
        """y = weight[indices]. A unit is a row of y."""
        weight_ptr, indices = pointer(args[0], store_t), pointer(args[1], np.int64)
        y_ptr, stride, D = pointer(args[2], store_t), args[3], args[4]
        for row in range(first, last):
            start = indices[row] * stride
            for i in range(D):
                y_ptr[row * D + i] = weight_ptr[start + i]

    return _embedding_fwd_kernel


@functools.cache
def _bwd_kernel(dtype):
    store_t, f, load, store = STORAGE[dtype]

    @kernel
    def _embedding_bwd_kernel(first, last, args, p0, p1):
        """dw[v] = sum of dy[order[i]] for starts[v] <= i < starts[v + 1], over their number where args[6]. A unit is
        a row of dw."""
        dy_ptr, order = pointer(args[0], store_t), pointer(args[1], np.int64)
        starts, dw_ptr = pointer(args[2], np.int64), pointer(args[3], store_t)
        stride, D, scaled, padding = args[4], args[5], args[6], args[7]
        total = stack(PIECE, f)
        for v in range(first, last):
            begin, end = starts[v], starts[v + 1]
            if v == padding:
                end = begin
            for column in range(0, D, PIECE):
                width = min(PIECE, D - column)
                for j in range(width):
                    total[j] = f(0)
                for i in range(begin, end):
                    row = order[i] * stride + column
                    for j in range(width):
                        total[j] += load(dy_ptr[row + j])
                by = f(end - begin) if scaled != 0 and end > begin else f(1)
                for j in range(width):
                    dw_ptr[v * D + column + j] = store(total[j] / by)

    return _embedding_bwd_kernel


def embedding_fwd(weight, indices):
    y = memory.empty((indices.shape[0], weight.shape[1]), weight.dtype)
    rows, D = y.shape
    args = (weight.data_ptr(), indices.data_ptr(), y.data_ptr(), weight.stride(0), D)
    launch(_fwd_kernel(weight.dtype), rows, rows * D, args)
    return y


def embedding_bwd(dy, indices, num_weights, padding_idx, scale_grad_by_freq):
    D = dy.shape[1]
    dw = memory.empty((num_weights, D), dy.dtype)
    order = torch.argsort(indices, stable=True)
    starts = torch.zeros(num_weights + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(indices, minlength=num_weights).cumsum(0)
    args = (
        dy.data_ptr(),
        order.data_ptr(),
        starts.data_ptr(),
        dw.data_ptr(),
        dy.stride(0),
        D,
        int(scale_grad_by_freq),
        padding_idx,
    )
    launch(_bwd_kernel(dy.dtype), num_weights, dw.numel(), args)
    return dw
