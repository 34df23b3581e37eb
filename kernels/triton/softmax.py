"""softmax and log_softmax over the middle dimension of a contiguous (outer, n, inner) tensor."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _columns(outer, n, inner, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    """Start and mask, both (BLOCK_O, 1, BLOCK_I), of the vectors that this program normalises."""
    num_i = tl.cdiv(inner, BLOCK_I)
    pid = tl.program_id(0)
    offs_o = (pid // num_i).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = (pid % num_i).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    start = (offs_o * n * inner)[:, None, None] + offs_i[None, None, :]
    return start, (offs_o < outer)[:, None, None] & (offs_i < inner)[None, None, :]


@triton.jit
def _shifted_exp(x, peak):
    """exp(x - peak) for x <= peak, 0 where both are -inf: a vector that begins with -inf may go on finite."""
    return tl.exp(x - tl.where(peak == float("-inf"), 0.0, peak))


@triton.jit
def _softmax_fwd_kernel(
    x_ptr, y_ptr, outer, n, inner,
    LOG: tl.constexpr, ACC: tl.constexpr, ONE_PASS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """y = exp(x - max x) / sum exp(x - max x) along n, or its logarithm.

    A program normalises BLOCK_O * BLOCK_I vectors: at once from registers when BLOCK_N >= n, else in two
    walks of BLOCK_N steps: the maximum and the sum together (Milakov, Gimelshein, arXiv:1805.02867), then the
    result. A vector that is all -inf, or holds +inf or NaN, gives NaN.
    """
    start, mask_v = _columns(outer, n, inner, BLOCK_O, BLOCK_I)
    offs_n = tl.arange(0, BLOCK_N)[None, :, None].to(tl.int64)
    if ONE_PASS:
        offs = start + offs_n * inner
        mask = mask_v & (offs_n < n)
        x = widen(tl.load(x_ptr + offs, mask=mask, other=float("-inf")), ACC)
        x = x - tl.expand_dims(tl.max(x, axis=1), 1)
        e = tl.exp(x)  # 0 beyond n
        total = tl.expand_dims(tl.sum(e, axis=1), 1)
        if LOG:
            y = x - tl.log(total)
        else:
            y = e / total
        tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    else:
        peak = tl.full((BLOCK_O, 1, BLOCK_I), float("-inf"), ACC)
        total = tl.zeros((BLOCK_O, 1, BLOCK_I), ACC)
        for k in range(0, n, BLOCK_N):
            mask = mask_v & (offs_n + k < n)
            x = tl.load(x_ptr + start + (offs_n + k) * inner, mask=mask, other=float("-inf"))
            x = widen(x, ACC)
            new_peak = tl.maximum(peak, tl.expand_dims(tl.max(x, axis=1), 1))
            partial = tl.expand_dims(tl.sum(_shifted_exp(x, new_peak), axis=1), 1)
            total = total * _shifted_exp(peak, new_peak) + partial
            peak = new_peak
        for k in range(0, n, BLOCK_N):
            mask = mask_v & (offs_n + k < n)
            offs = start + (offs_n + k) * inner
            x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
            if LOG:
                y = x - peak - tl.log(total)
            else:
                y = tl.exp(x - peak) / total
            tl.store(y_ptr + offs, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _softmax_bwd_kernel(
    dy_ptr, y_ptr, dx_ptr, outer, n, inner,
    LOG: tl.constexpr, ACC: tl.constexpr, ONE_PASS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """dx = y (dy - sum dy y), or dy - exp(y) sum dy for the logarithm; tiles as in the forward kernel."""
    start, mask_v = _columns(outer, n, inner, BLOCK_O, BLOCK_I)
    offs_n = tl.arange(0, BLOCK_N)[None, :, None].to(tl.int64)
    if ONE_PASS:
        offs = start + offs_n * inner
        mask = mask_v & (offs_n < n)
        dy = widen(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
        y = widen(tl.load(y_ptr + offs, mask=mask, other=0.0), ACC)
        if LOG:
            dx = dy - tl.exp(y) * tl.expand_dims(tl.sum(dy, axis=1), 1)
        else:
            dx = y * (dy - tl.expand_dims(tl.sum(dy * y, axis=1), 1))
        tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
    else:
        acc = tl.zeros((BLOCK_O, BLOCK_N, BLOCK_I), ACC)
        for k in range(0, n, BLOCK_N):
            offs = start + (offs_n + k) * inner
            mask = mask_v & (offs_n + k < n)
            dy = widen(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
            if LOG:
                acc += dy
            else:
                acc += dy * widen(tl.load(y_ptr + offs, mask=mask, other=0.0), ACC)
        total = tl.expand_dims(tl.sum(acc, axis=1), 1)
        for k in range(0, n, BLOCK_N):
            offs = start + (offs_n + k) * inner
            mask = mask_v & (offs_n + k < n)
            dy = widen(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
            y = widen(tl.load(y_ptr + offs, mask=mask, other=0.0), ACC)
            if LOG:
                dx = dy - tl.exp(y) * total
            else:
                dx = y * (dy - total)
            tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)


def tile(target, dtype, n, inner):
    """Tile of both kernels for vectors of length n. Not yet measured on a device.

    Adjacent elements lie along n when inner is 1, else along inner: there 32 of them make a warp's
    transaction. One pass reads every tensor once, and holds at most 64 KB of each in the registers of 16
    warps: 128 bytes a thread. Short vectors share a program, up to 2048 elements.
    """
    one_pass_limit, shared_limit, widest = (1 << 16) // max(dtype.itemsize, 4), 2048, 32
    if target.backend == "interpreter":  # small, so that tiny shapes reach every branch
        one_pass_limit, shared_limit, widest = 128, 64, 4
    block_i = min(triton.next_power_of_2(inner), widest)
    block_n = triton.next_power_of_2(n)
    one_pass = block_n * block_i <= one_pass_limit
    if not one_pass:
        block_n = one_pass_limit // 4 // block_i
    block_o = max(1, shared_limit // (block_n * block_i))
    num_warps = min(max(block_o * block_n * block_i // 1024, 4), 16)
    blocks = {"BLOCK_O": block_o, "BLOCK_N": block_n, "BLOCK_I": block_i}
    return blocks | {"ONE_PASS": one_pass, "num_warps": num_warps}


def _launch(kernel, like, log, **tensors):
    outer, n, inner = like.shape
    options = tile(target_of(like), like.dtype, n, inner)
    programs = triton.cdiv(outer, options["BLOCK_O"]) * triton.cdiv(inner, options["BLOCK_I"])
    with launch_on(like):
        kernel[(programs,)](
            **tensors, outer=outer, n=n, inner=inner, LOG=log, ACC=STORAGE[acc_dtype(like.dtype)], **options
        )


def softmax_fwd(x, log):
    """softmax of a contiguous (outer, n, inner) over n, or log_softmax; the result is contiguous."""
    y = torch.empty_like(x)
    _launch(_softmax_fwd_kernel, x, log, x_ptr=x, y_ptr=y)
    return y


def softmax_bwd(dy, y, log):
    """The gradient from contiguous dy and the forward's output y, both (outer, n, inner)."""
    dx = torch.empty_like(dy)
    _launch(_softmax_bwd_kernel, dy, log, dy_ptr=dy, y_ptr=y, dx_ptr=dx)
    return dx
