"""Embedding: y = weight[indices], and the gradient's rows summed each by one program, in the order of the indices."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _embedding_fwd_kernel(weight_ptr, indices_ptr, y_ptr, D, stride_wv, BLOCK_D: tl.constexpr):
    """y[n] = weight[indices[n]]; a program takes BLOCK_D columns of a row of y."""
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = offs_d < D
    index = tl.load(indices_ptr + row)
    values = tl.load(weight_ptr + index * stride_wv + offs_d, mask=mask, other=0.0)
    tl.store(y_ptr + row * D + offs_d, values, mask=mask)


@triton.jit
def _embedding_bwd_kernel(
    dy_ptr, order_ptr, starts_ptr, dw_ptr, D, stride_dyn, padding,
    SCALE: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dw[v] = sum of dy[order[i]] for starts[v] <= i < starts[v + 1], over their number where SCALE.

    A program takes BLOCK_D columns of a row of dw, and adds BLOCK_N rows of dy at a time.
    """
    v = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    begin, end = tl.load(starts_ptr + v), tl.load(starts_ptr + v + 1)
    end = tl.where(v == padding, begin, end)
    acc = tl.zeros((BLOCK_D,), ACC)
    for start in range(begin, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        row = tl.load(order_ptr + offs_n, mask=mask_n, other=0)
        dy = tl.load(
            dy_ptr + (row * stride_dyn)[:, None] + offs_d[None, :],
            mask=mask_n[:, None] & mask_d[None, :],
            other=0.0,
        )
        acc += tl.sum(widen(dy, ACC), axis=0)
    if SCALE:
        acc = acc / tl.maximum(end - begin, 1).to(ACC)
    tl.store(dw_ptr + v * D + offs_d, narrow(acc, dw_ptr.dtype.element_ty), mask=mask_d)


def tile(target, D):
    """BLOCK_D, BLOCK_N and num_warps: at most 1024 columns, 4096 elements of dy at once. Not yet measured on a
    device."""
    widest, elements = (1024, 4096) if target.backend != "interpreter" else (16, 64)
    block_d = min(triton.next_power_of_2(D), widest)
    return {"BLOCK_D": block_d, "BLOCK_N": max(elements // block_d, 1), "num_warps": 4}


def embedding_fwd(weight, indices):
    """weight (V, D) of adjacent columns; indices int64 (N,), contiguous, in range; y (N, D) contiguous."""
    rows, D = indices.shape[0], weight.shape[1]
    y = weight.new_empty((rows, D))
    options = tile(target_of(weight), D)
    options.pop("BLOCK_N")
    with launch_on(weight):
        _embedding_fwd_kernel[(rows, triton.cdiv(D, options["BLOCK_D"]))](
            weight_ptr=weight, indices_ptr=indices, y_ptr=y, D=D, stride_wv=weight.stride(0), **options
        )
    return y


def embedding_bwd(dy, indices, num_weights, padding_idx, scale_grad_by_freq):
    """dw (num_weights, D) from dy (N, D) of adjacent columns."""
    D = dy.shape[1]
    dw = dy.new_empty((num_weights, D))
    values, order = torch.sort(indices, stable=True)
    starts = torch.searchsorted(values, torch.arange(num_weights + 1, device=dy.device))
    options = tile(target_of(dy), D)
    with launch_on(dy):
        _embedding_bwd_kernel[(num_weights, triton.cdiv(D, options["BLOCK_D"]))](
            dy_ptr=dy, order_ptr=order, starts_ptr=starts, dw_ptr=dw, D=D, stride_dyn=dy.stride(0),
            padding=padding_idx, SCALE=scale_grad_by_freq, ACC=STORAGE[acc_dtype(dy.dtype)], **options,
        )  # fmt: skip
    return dw
