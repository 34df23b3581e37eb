"""Dropout y = x * m / (1 - p) (+ residual), m drawn where it is used."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .random import words4
from .runtime import STORAGE, acc_dtype, launch_on


@triton.jit
def _dropout_kernel(
    x_ptr, residual_ptr, y_ptr, seed_ptr, numel, least, scale: tl.float64,
    HAS_RESIDUAL: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x * (word < least ? 0 : scale) (+ residual); a program takes BLOCK elements, four to a block of words."""
    pid = tl.program_id(0).to(tl.int64)
    w0, w1, w2, w3 = words4(tl.load(seed_ptr), pid * (BLOCK // 4) + tl.arange(0, BLOCK // 4))
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    kept = tl.full([], scale, ACC)
    factor = tl.where(words.to(tl.int64) < least, kept - kept, kept)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    # A mask against an odd size would make every load scalar: only the last block has one.
    if pid * BLOCK + BLOCK <= numel:
        y = widen(tl.load(x_ptr + offs), ACC) * factor
        if HAS_RESIDUAL:
            y += widen(tl.load(residual_ptr + offs), ACC)
        tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty))
    else:
        mask = offs < numel
        y = widen(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC) * factor
        if HAS_RESIDUAL:
            y += widen(tl.load(residual_ptr + offs, mask=mask, other=0.0), ACC)
        tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty), mask=mask)


def tile(dtype):
    """BLOCK and num_warps: two 16-byte loads a thread in flight a tensor. Not yet measured on a device."""
    return {"BLOCK": 4096 // dtype.itemsize, "num_warps": 4}


def dropout_fwd(x, residual, seed, p):
    """x, residual (or None) contiguous; seed int64 (1,) on x's device."""
    y = torch.empty_like(x)
    options = tile(x.dtype)
    with launch_on(x):
        _dropout_kernel[(triton.cdiv(x.numel(), options["BLOCK"]),)](
            x_ptr=x, residual_ptr=x if residual is None else residual, y_ptr=y, seed_ptr=seed, numel=x.numel(),
            least=min(round(p * 2**32), 2**32 - 1), scale=1 / (1 - p),
            HAS_RESIDUAL=residual is not None, ACC=STORAGE[acc_dtype(x.dtype)], **options,
        )  # fmt: skip
    return y
