"""Fused linear layer: y = act(x @ w.T + b), and its gradients.

Forward: one GEMM kernel with the bias and the activation in its epilogue. Backward: one pass over dy applies
the derivative and sums the bias gradient, and the two GEMMs that remain are torch's.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..product import weight_gradient
from .math import INTERPRET, act_grad, act_value, narrow, widen
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, matmul_precision, target_of


@triton.jit
def tile_of(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of output tile `pid`: GROUP_M rows of tiles are walked column by column, so that
    neighbours in time share x's and w's tiles in L2."""
    num_m = tl.cdiv(M, BLOCK_M)
    num_n = tl.cdiv(N, BLOCK_N)
    first_m = pid // (GROUP_M * num_n) * GROUP_M
    rows = min(num_m - first_m, GROUP_M)
    in_group = pid % (GROUP_M * num_n)
    return first_m + in_group % rows, in_group // rows


@triton.jit
def _load_bias(b_ptr, offs_n, N, stride_b, ACC: tl.constexpr):
    b = tl.load(b_ptr + offs_n.to(tl.int64) * stride_b, mask=offs_n < N, other=0.0)
    return widen(b, ACC)[None, :]


@triton.jit
def _linear_act_fwd_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, z_ptr, M, N, K,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_b, stride_ym,
    p0: tl.float64, p1: tl.float64,
    HAS_BIAS: tl.constexpr, SAVE_Z: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """z = x @ w.T + b, y = act(z); a program computes one (BLOCK_M, BLOCK_N) tile of y from any strides."""
    pid_m, pid_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m = offs_m < M
    mask_n = offs_n < N
    x_ptrs = x_ptr + offs_m[:, None].to(tl.int64) * stride_xm + offs_k[None, :].to(tl.int64) * stride_xk
    w_ptrs = w_ptr + offs_n[None, :].to(tl.int64) * stride_wn + offs_k[:, None].to(tl.int64) * stride_wk
    step_xk = tl.full([], BLOCK_K, tl.int64) * stride_xk
    step_wk = tl.full([], BLOCK_K, tl.int64) * stride_wk

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k in range(0, K, BLOCK_K):
        mask_k = offs_k < K - k
        x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        w = tl.load(w_ptrs, mask=mask_k[:, None] & mask_n[None, :], other=0.0)
        if INTERPRET:  # its dot of bf16 operands multiplies their bit patterns
            x = widen(x, ACC)
            w = widen(w, ACC)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)
        x_ptrs += step_xk
        w_ptrs += step_wk

    if HAS_BIAS:
        acc += _load_bias(b_ptr, offs_n, N, stride_b, ACC)
    offs_y = offs_m[:, None].to(tl.int64) * stride_ym + offs_n[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if SAVE_Z:
        tl.store(z_ptr + offs_y, narrow(acc, z_ptr.dtype.element_ty), mask=mask)
    y = act_value(acc, ACT, p0, p1, FAST)
    tl.store(y_ptr + offs_y, narrow(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _linear_act_fwd_desc_kernel(
    x_desc, w_desc, b_ptr, y_desc, z_desc, M, N, K, stride_b,
    p0: tl.float64, p1: tl.float64,
    HAS_BIAS: tl.constexpr, SAVE_Z: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SLICES: tl.constexpr, NUM_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """z = x @ w.T + b, y = act(z) through tensor descriptors, which mask every edge themselves.

    Each of NUM_PROGRAMS resident programs walks the (BLOCK_M, BLOCK_N) tiles with that stride, so that the
    loads of its next tile run under the epilogue of this one. The epilogue goes in SLICES column slices (1 or
    2): half the staging memory, and half the activation's registers.
    """
    num_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), num_tiles, NUM_PROGRAMS, flatten=True):
        pid_m, pid_n = tile_of(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([pid_m * BLOCK_M, k])
            w = w_desc.load([pid_n * BLOCK_N, k])
            if INTERPRET:
                x = widen(x, ACC)
                w = widen(w, ACC)
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION, out_dtype=ACC)

        if SLICES == 1:
            parts = (acc,)
        else:
            tl.static_assert(SLICES == 2)
            halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            parts = tl.split(halves)
        for i in tl.static_range(SLICES):
            z = parts[i]
            start_n = pid_n * BLOCK_N + i * (BLOCK_N // SLICES)
            if HAS_BIAS:
                z += _load_bias(b_ptr, start_n + tl.arange(0, BLOCK_N // SLICES), N, stride_b, ACC)
            if SAVE_Z:
                z_desc.store([pid_m * BLOCK_M, start_n], narrow(z, DTYPE))
            y = act_value(z, ACT, p0, p1, FAST)
            y_desc.store([pid_m * BLOCK_M, start_n], narrow(y, DTYPE))


@triton.jit
def _linear_act_bwd_kernel(
    dy_ptr, saved_ptr, dz_ptr, partial_ptr, M, N, stride_dym, stride_dyn, stride_m, rows_per_program,
    p0: tl.float64, p1: tl.float64,
    STORE_DZ: tl.constexpr, SUM_DB: tl.constexpr, ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz = dy * act'(saved) and partial[pid_m] = sum of dz over this program's rows.

    A program walks rows_per_program rows of BLOCK_N columns in (BLOCK_M, BLOCK_N) tiles and keeps their sum
    in registers; the programs' sums are added later in a fixed order, so that two runs agree bitwise.
    """
    pid_n = tl.program_id(0)
    pid_m = tl.program_id(1)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    first_m = pid_m.to(tl.int64) * rows_per_program
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start_m in range(0, rows_per_program, BLOCK_M):
        offs_m = first_m + start_m + tl.arange(0, BLOCK_M)
        mask = (offs_m < M)[:, None] & mask_n[None, :]
        offs_dy = offs_m[:, None] * stride_dym + offs_n[None, :].to(tl.int64) * stride_dyn
        dz = widen(tl.load(dy_ptr + offs_dy, mask=mask, other=0.0), ACC)
        offs = offs_m[:, None] * stride_m + offs_n[None, :]
        if ACT != "none":
            saved = widen(tl.load(saved_ptr + offs, mask=mask, other=0.0), ACC)
            dz = act_grad(dz, saved, ACT, p0, p1, FAST)
        if STORE_DZ:
            tl.store(dz_ptr + offs, narrow(dz, dz_ptr.dtype.element_ty), mask=mask)
        if SUM_DB:
            acc += tl.where(mask, dz, 0.0)  # beyond the edge an infinite parameter would give NaN
    if SUM_DB:
        offs_partial = pid_m.to(tl.int64) * N + offs_n
        tl.store(partial_ptr + offs_partial, tl.sum(acc, axis=0), mask=mask_n)


class Tile(NamedTuple):
    """A GEMM tile; `speed` is its assumed rate on full tiles relative to the first of its list."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    speed: float
    SLICES: int = 0  # of the descriptor kernel's epilogue; 0: the pointer kernel

    def options(self):
        """The launch options that this tile fixes."""
        options = self._asdict() | {"GROUP_M": 8}
        del options["speed"]
        if not self.SLICES:
            del options["SLICES"]
        return options


# Frozen tables. The sizes follow from registers, spills and shared memory as compiled ahead of time
# (tests/aot). Nothing here has been measured on a device yet, the speeds neither: they are guessed from how
# much more a smaller tile reads.
_INTERPRETED = (Tile(32, 32, 32, 4, 1, 1.0),)  # small, so that tiny odd shapes have edges in every direction
_INTERPRETED_DESC = (Tile(32, 32, 32, 4, 1, 1.0, 1), Tile(64, 32, 16, 4, 1, 0.5, 2))
_FP64 = (  # DMMA and fp64 FMA: two registers a value
    Tile(64, 64, 16, 4, 3, 1.0),
    Tile(32, 32, 32, 4, 3, 0.6),
)
_FP32_FMA = (  # no tensor core: what counts is operand reuse in registers
    Tile(128, 64, 16, 4, 3, 1.0),
    Tile(64, 64, 16, 4, 2, 0.9),
    Tile(32, 32, 32, 4, 3, 0.5),
)
_TF32 = (  # mma.sync and wgmma; half of the 16-bit tile's depth for the same bytes
    Tile(128, 128, 32, 8, 3, 1.0),
    Tile(64, 128, 32, 4, 3, 0.8),
    Tile(64, 64, 32, 4, 4, 0.6),
    Tile(16, 64, 64, 4, 3, 0.2),
)
_HALF = (  # mma.sync, and wgmma without descriptors; on 4 warps the first spilled 0.6 KB on sm_90
    Tile(128, 128, 32, 8, 4, 1.0),
    Tile(64, 128, 32, 4, 4, 0.8),
    Tile(64, 64, 64, 4, 3, 0.6),
    Tile(16, 64, 128, 4, 3, 0.2),
)
_HALF_HIP = (  # 64 KB of LDS: two stages
    Tile(128, 128, 32, 4, 2, 1.0),
    Tile(64, 64, 64, 4, 2, 0.6),
    Tile(16, 64, 128, 4, 2, 0.2),
)
_FP32_HIP = (
    Tile(128, 64, 16, 4, 2, 1.0),
    Tile(64, 64, 32, 4, 2, 0.8),
    Tile(32, 32, 32, 4, 2, 0.5),
)
_HALF_DESC = (  # the first needs two slices not to spill, the second 8 warps
    Tile(128, 256, 64, 8, 4, 1.0, 2),
    Tile(128, 128, 64, 8, 4, 0.9, 1),
    Tile(64, 128, 64, 4, 4, 0.7, 1),
    Tile(64, 64, 64, 4, 4, 0.5, 1),
)
_HALF_DESC_SMALL = (  # sm_120: 99 KB of shared memory, and mma.sync
    Tile(128, 128, 64, 8, 2, 1.0, 2),
    Tile(64, 128, 64, 4, 3, 0.8, 2),
    Tile(64, 64, 64, 4, 3, 0.6, 1),
)
_TF32_DESC = (
    Tile(128, 128, 32, 8, 4, 1.0, 2),
    Tile(64, 128, 32, 4, 4, 0.8, 1),
    Tile(64, 64, 32, 4, 4, 0.6, 1),
)
_TF32_DESC_SMALL = (
    Tile(128, 128, 32, 8, 2, 1.0, 2),
    Tile(64, 128, 32, 4, 3, 0.8, 2),
    Tile(64, 64, 32, 4, 3, 0.6, 1),
)


def tiles(target, dtype, precision, descriptors):
    """The tiles of a target for `dtype`, widest first; `precision` is "tf32" or "ieee"."""
    if target.backend == "interpreter":
        return _INTERPRETED_DESC if descriptors else _INTERPRETED
    if dtype == torch.float64:
        return _FP64
    if target.backend == "hip":
        return _HALF_HIP if dtype.itemsize == 2 else _FP32_HIP
    if dtype == torch.float32 and precision == "ieee":
        return _FP32_FMA
    half = dtype.itemsize == 2
    if not descriptors:
        return _HALF if half else _TF32
    if target.shared_memory < 200 << 10:
        return _HALF_DESC_SMALL if half else _TF32_DESC_SMALL
    return _HALF_DESC if half else _TF32_DESC


@functools.lru_cache(maxsize=4096)
def choose_tile(target, dtype, precision, descriptors, M, N):
    """The tile with the least (waves over the SMs) * (tile area) / speed: the K loop is common to all."""

    def cost(tile):
        waves = triton.cdiv(triton.cdiv(M, tile.BLOCK_M) * triton.cdiv(N, tile.BLOCK_N), target.num_sms)
        return waves * tile.BLOCK_M * tile.BLOCK_N / tile.speed

    return min(tiles(target, dtype, precision, descriptors), key=cost)


def has_descriptor_kernel(target, dtype, precision):
    """Whether the descriptor kernel pays: TMA exists from sm_90 on, and only tensor cores outrun loads."""
    if target.backend == "interpreter":
        return True
    return target.backend == "cuda" and target.arch >= 90 and (dtype.itemsize == 2 or precision == "tf32")


def _describable(t):
    """Whether a tensor map can describe this matrix: rows of adjacent elements, 16-byte base and pitch."""
    size = t.element_size()
    adjacent = t.stride(1) == 1 and t.stride(0) >= t.shape[1]
    return adjacent and t.stride(0) * size % 16 == 0 and t.data_ptr() % 16 == 0


def linear_act_fwd(x, w, b, act, p0, p1, save_z, precision=None):
    """y = act(x @ w.T + b) for x (M, K), w (N, K), b (N,) or None, all of any strides.

    precision: of fp32 products, where not that of torch's own GEMMs. Returns y and z, the value before the activation
    (None unless save_z), both contiguous (M, N).
    """
    M, K = x.shape
    N = w.shape[0]
    y = torch.empty((M, N), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save_z else None
    target = target_of(x)
    precision = precision or matmul_precision(x.dtype)
    descriptors = has_descriptor_kernel(target, x.dtype, precision) and all(map(_describable, (x, w, y)))
    tile = choose_tile(target, x.dtype, precision, descriptors, M, N)
    num_tiles = triton.cdiv(M, tile.BLOCK_M) * triton.cdiv(N, tile.BLOCK_N)
    common = dict(
        b_ptr=b, M=M, N=N, K=K, stride_b=b.stride(0) if b is not None else 0, p0=p0, p1=p1,
        HAS_BIAS=b is not None, SAVE_Z=save_z, ACT=act, ACC=STORAGE[acc_dtype(x.dtype)],
        PRECISION=precision, FAST=is_fast(x.dtype), **tile.options(),
    )  # fmt: skip
    with launch_on(x):
        if descriptors:
            # Made on the host: they travel as kernel arguments, so that no allocator need be set globally for
            # scratch memory, and a captured graph replays them.
            block_y = [tile.BLOCK_M, tile.BLOCK_N // tile.SLICES]
            programs = min(num_tiles, target.num_sms)
            _linear_act_fwd_desc_kernel[(programs,)](
                x_desc=TensorDescriptor.from_tensor(x, [tile.BLOCK_M, tile.BLOCK_K]),
                w_desc=TensorDescriptor.from_tensor(w, [tile.BLOCK_N, tile.BLOCK_K]),
                y_desc=TensorDescriptor.from_tensor(y, block_y),
                z_desc=TensorDescriptor.from_tensor(z, block_y) if save_z else None,
                DTYPE=STORAGE[x.dtype], NUM_PROGRAMS=target.num_sms, **common,
            )  # fmt: skip
        else:
            _linear_act_fwd_kernel[(num_tiles,)](
                x_ptr=x, w_ptr=w, y_ptr=y, z_ptr=z, stride_xm=x.stride(0), stride_xk=x.stride(1),
                stride_wn=w.stride(0), stride_wk=w.stride(1), stride_ym=N, **common,
            )  # fmt: skip
    return y, z


def bwd_tile(target, dtype):
    """Tile of the backward pass: rows of 256 adjacent bytes or more, 32 values a thread. Not yet measured."""
    if target.backend == "interpreter":
        return {"BLOCK_M": 8, "BLOCK_N": 32, "num_warps": 4}
    if dtype == torch.float64:
        return {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4}
    return {"BLOCK_M": 32, "BLOCK_N": 128, "num_warps": 4}


def _dz_and_db(dy, saved, act, p0, p1, store_dz, sum_db):
    """dz (M, N) and db (N,), each None where it is not asked for."""
    M, N = dy.shape
    target = target_of(dy)
    options = bwd_tile(target, dy.dtype)
    # Eight programs an SM fill the machine; more would only add partial sums.
    blocks_m = triton.cdiv(M, options["BLOCK_M"])
    blocks_n = triton.cdiv(N, options["BLOCK_N"])
    programs_m = max(1, min(blocks_m, 8 * target.num_sms // blocks_n))
    rows = triton.cdiv(blocks_m, programs_m) * options["BLOCK_M"]
    programs_m = triton.cdiv(M, rows)
    dz = torch.empty((M, N), dtype=dy.dtype, device=dy.device) if store_dz else None
    partial = torch.empty((programs_m, N), dtype=acc_dtype(dy.dtype), device=dy.device) if sum_db else None
    with launch_on(dy):
        _linear_act_bwd_kernel[(blocks_n, programs_m)](
            dy_ptr=dy, saved_ptr=saved, dz_ptr=dz, partial_ptr=partial, M=M, N=N,
            stride_dym=dy.stride(0), stride_dyn=dy.stride(1), stride_m=N, rows_per_program=rows, p0=p0, p1=p1,
            STORE_DZ=store_dz, SUM_DB=sum_db, ACT=act, ACC=STORAGE[acc_dtype(dy.dtype)],
            FAST=is_fast(dy.dtype), **options,
        )  # fmt: skip
    return dz, partial.sum(0).to(dy.dtype) if sum_db else None


def column_sums(dz):
    """dz (M, N) summed over its rows, in a fixed order."""
    return _dz_and_db(dz, None, "none", 0.0, 0.0, False, True)[1]


def linear_act_bwd(dy, x, w, saved, act, p0, p1, need_dx, need_dw, need_db):
    """dz = dy * act'(saved); dx = dz @ w, dw = dz.T @ x, db = dz.sum(0); None where not needed.

    dy (M, N) of any strides, 0 included; saved (M, N) contiguous, as math.act_grad wants it; None for "none".
    """
    dz, db = dy, None
    needs_dz = need_dx or need_dw
    if act != "none":
        dz, db = _dz_and_db(dy, saved, act, p0, p1, needs_dz, need_db)
    elif need_db:
        _, db = _dz_and_db(dy, None, act, p0, p1, False, True)
    dx = torch.mm(dz, w) if need_dx else None
    dw = weight_gradient(dz, x, w) if need_dw else None
    return dx, dw, db
