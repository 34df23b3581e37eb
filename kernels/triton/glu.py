"""Gated activations y = act(gate) * up over rows of adjacent elements, and their gradients in one pass."""

import triton
import triton.language as tl

from ..gated import launchers, size
from .math import act_grad, act_value, narrow, widen
from .runtime import STORAGE, acc_dtype, is_fast, launch_on


@triton.jit
def _place(N, BLOCK: tl.constexpr):
    """This program's row, its first column, and its columns."""
    num_n = tl.cdiv(N, BLOCK)
    pid = tl.program_id(0)
    start = (pid % num_n).to(tl.int64) * BLOCK
    return (pid // num_n).to(tl.int64), start, start + tl.arange(0, BLOCK)


@triton.jit
def _glu_fwd_kernel(
    gate_ptr, up_ptr, y_ptr, N, stride_gm, stride_um, stride_ym,
    ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = act(gate) * up; a program takes BLOCK columns of a row."""
    row, start, offs_n = _place(N, BLOCK)
    gate_ptr += row * stride_gm
    up_ptr += row * stride_um
    y_ptr += row * stride_ym
    # A mask against an odd size would make every load scalar: only the last block has one.
    if start + BLOCK <= N:
        gate = widen(tl.load(gate_ptr + offs_n), ACC)
        up = widen(tl.load(up_ptr + offs_n), ACC)
        y = act_value(gate, ACT, 0.0, 0.0, FAST) * up
        tl.store(y_ptr + offs_n, narrow(y, y_ptr.dtype.element_ty))
    else:
        mask = offs_n < N
        gate = widen(tl.load(gate_ptr + offs_n, mask=mask, other=0.0), ACC)
        up = widen(tl.load(up_ptr + offs_n, mask=mask, other=0.0), ACC)
        y = act_value(gate, ACT, 0.0, 0.0, FAST) * up
        tl.store(y_ptr + offs_n, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradients(dy, gate, up, ACT: tl.constexpr, FAST: tl.constexpr):
    value = act_value(gate, ACT, 0.0, 0.0, FAST)
    if ACT == "sigmoid":
        dgate = act_grad(dy * up, value, ACT, 0.0, 0.0, FAST)
    else:
        dgate = act_grad(dy * up, gate, ACT, 0.0, 0.0, FAST)
    return dgate, dy * value


@triton.jit
def _glu_bwd_kernel(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, N,
    stride_dym, stride_gm, stride_um, stride_dgm, stride_dum,
    ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dup = dy * act(gate), dgate = dy * up * act'(gate); a program takes BLOCK columns of a row."""
    row, start, offs_n = _place(N, BLOCK)
    dy_ptr += row * stride_dym
    gate_ptr += row * stride_gm
    up_ptr += row * stride_um
    dgate_ptr += row * stride_dgm
    dup_ptr += row * stride_dum
    if start + BLOCK <= N:
        dy = widen(tl.load(dy_ptr + offs_n), ACC)
        gate = widen(tl.load(gate_ptr + offs_n), ACC)
        up = widen(tl.load(up_ptr + offs_n), ACC)
        dgate, dup = _gradients(dy, gate, up, ACT, FAST)
        tl.store(dgate_ptr + offs_n, narrow(dgate, dgate_ptr.dtype.element_ty))
        tl.store(dup_ptr + offs_n, narrow(dup, dup_ptr.dtype.element_ty))
    else:
        mask = offs_n < N
        dy = widen(tl.load(dy_ptr + offs_n, mask=mask, other=0.0), ACC)
        gate = widen(tl.load(gate_ptr + offs_n, mask=mask, other=0.0), ACC)
        up = widen(tl.load(up_ptr + offs_n, mask=mask, other=0.0), ACC)
        dgate, dup = _gradients(dy, gate, up, ACT, FAST)
        tl.store(dgate_ptr + offs_n, narrow(dgate, dgate_ptr.dtype.element_ty), mask=mask)
        tl.store(dup_ptr + offs_n, narrow(dup, dup_ptr.dtype.element_ty), mask=mask)


def tile(dtype):
    """BLOCK and num_warps: two 16-byte loads a thread in flight a tensor. Not yet measured on a device."""
    return {"BLOCK": 4096 // dtype.itemsize, "num_warps": 4}


def _options(M, N, act, dtype):
    options = tile(dtype)
    grid = (M * triton.cdiv(N, options["BLOCK"]),)
    return grid, {"ACT": act, "ACC": STORAGE[acc_dtype(dtype)], "FAST": is_fast(dtype), **options}


def _fwd(gate, up, y, act):
    M, N = size(gate, up, y)
    grid, options = _options(M, N, act, y.dtype)
    with launch_on(gate):
        _glu_fwd_kernel[grid](
            gate_ptr=gate, up_ptr=up, y_ptr=y, N=N,
            stride_gm=gate.stride(0), stride_um=up.stride(0), stride_ym=y.stride(0), **options,
        )  # fmt: skip


def _bwd(dy, gate, up, dgate, dup, act):
    M, N = size(dy, gate, up, dgate, dup)
    grid, options = _options(M, N, act, dy.dtype)
    with launch_on(dy):
        _glu_bwd_kernel[grid](
            dy_ptr=dy, gate_ptr=gate, up_ptr=up, dgate_ptr=dgate, dup_ptr=dup, N=N,
            stride_dym=dy.stride(0), stride_gm=gate.stride(0), stride_um=up.stride(0),
            stride_dgm=dgate.stride(0), stride_dum=dup.stride(0), **options,
        )  # fmt: skip


glu_fwd, glu_bwd, glu_split_fwd, glu_split_bwd = launchers(_fwd, _bwd)
