"""layer_norm and rms_norm of rows, with the sum that precedes them."""

import torch
import triton
import triton.language as tl

from .math import narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of

# Programs of the backward, each with a share of dw and db of its own: twice the SMs of the largest chips, and never
# dependent on the chip, so that the sums are the same everywhere.
PROGRAMS = 264


@triton.jit
def _load(ptr, offs, mask, ACC: tl.constexpr):
    return widen(tl.load(ptr + offs, mask=mask, other=0.0), ACC)


@triton.jit
def _norm_fwd_kernel(
    x_ptr, r_ptr, w_ptr, b_ptr, y_ptr, s_ptr, mean_ptr, rstd_ptr, M, N, eps: tl.float64,
    RMS: tl.constexpr, HAS_R: tl.constexpr, HAS_W: tl.constexpr, HAS_B: tl.constexpr, ACC: tl.constexpr,
    ONE_PASS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """s = x + r, y = (s - mean) * rstd * w + b; a program takes BLOCK_M rows, at once from registers when
    BLOCK_N >= N, else in walks of BLOCK_N columns: the sum, the squares about the mean, the result."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)[None, :].to(tl.int64)
    mask_m = offs_m < M
    start = (offs_m * N)[:, None]
    size = N.to(ACC)
    mean = tl.zeros((BLOCK_M,), ACC)
    if ONE_PASS:
        mask = mask_m[:, None] & (offs_n < N)
        x = _load(x_ptr, start + offs_n, mask, ACC)
        if HAS_R:
            x += _load(r_ptr, start + offs_n, mask, ACC)
            s = narrow(x, s_ptr.dtype.element_ty)
            tl.store(s_ptr + start + offs_n, s, mask=mask)
            x = widen(s, ACC)
        if not RMS:
            mean = tl.sum(x, axis=1) / size
        centred = tl.where(mask, x - mean[:, None], 0.0)
        squares = tl.sum(centred * centred, axis=1)
        rstd = 1.0 / tl.sqrt(squares / size + tl.full([], eps, ACC))
        y = centred * rstd[:, None]
        if HAS_W:
            y *= _load(w_ptr, offs_n, offs_n < N, ACC)
        if HAS_B:
            y += _load(b_ptr, offs_n, offs_n < N, ACC)
        tl.store(y_ptr + start + offs_n, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(0, N, BLOCK_N):
            mask = mask_m[:, None] & (offs_n + k < N)
            x = _load(x_ptr, start + offs_n + k, mask, ACC)
            if HAS_R:
                x += _load(r_ptr, start + offs_n + k, mask, ACC)
                s = narrow(x, s_ptr.dtype.element_ty)
                tl.store(s_ptr + start + offs_n + k, s, mask=mask)
                x = widen(s, ACC)
            acc += x
        if not RMS:
            mean = tl.sum(acc, axis=1) / size
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(0, N, BLOCK_N):
            mask = mask_m[:, None] & (offs_n + k < N)
            x = _load(x_ptr, start + offs_n + k, mask, ACC)
            if HAS_R:
                x += _load(r_ptr, start + offs_n + k, mask, ACC)
                x = widen(narrow(x, s_ptr.dtype.element_ty), ACC)
            centred = tl.where(mask, x - mean[:, None], 0.0)
            acc += centred * centred
        rstd = 1.0 / tl.sqrt(tl.sum(acc, axis=1) / size + tl.full([], eps, ACC))
        for k in range(0, N, BLOCK_N):
            mask_n = offs_n + k < N
            mask = mask_m[:, None] & mask_n
            x = _load(x_ptr, start + offs_n + k, mask, ACC)
            if HAS_R:
                x += _load(r_ptr, start + offs_n + k, mask, ACC)
                x = widen(narrow(x, s_ptr.dtype.element_ty), ACC)
            y = (x - mean[:, None]) * rstd[:, None]
            if HAS_W:
                y *= _load(w_ptr, offs_n + k, mask_n, ACC)
            if HAS_B:
                y += _load(b_ptr, offs_n + k, mask_n, ACC)
            tl.store(y_ptr + start + offs_n + k, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    if not RMS:
        tl.store(mean_ptr + offs_m, mean, mask=mask_m)
    tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)


@triton.jit
def _row_statistics(mean_ptr, rstd_ptr, offs_m, mask_m, RMS: tl.constexpr):
    rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
    if RMS:
        mean = tl.zeros_like(rstd)
    else:
        mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
    return mean[:, None], rstd[:, None]


@triton.jit
def _norm_bwd_kernel(
    dy_ptr, ds_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_ptr, db_ptr, M, N, rows,
    RMS: tl.constexpr, HAS_DS: tl.constexpr, HAS_W: tl.constexpr,
    NEED_DX: tl.constexpr, NEED_DW: tl.constexpr, NEED_DB: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)) + ds with g = w * dy, x_hat = (x - mean) * rstd, of `rows`
    rows, BLOCK_M at once, BLOCK_N >= N; the program's sums of dy * x_hat and dy go to its row of dw and db."""
    pid = tl.program_id(0)
    offs_n = tl.arange(0, BLOCK_N)[None, :].to(tl.int64)
    mask_n = offs_n < N
    size = N.to(ACC)
    if HAS_W:
        w = _load(w_ptr, offs_n, mask_n, ACC)
    dw = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, rows, BLOCK_M):
        offs_m = pid.to(tl.int64) * rows + step + tl.arange(0, BLOCK_M)
        mask_m = (offs_m < M) & (step + tl.arange(0, BLOCK_M) < rows)
        offs = (offs_m * N)[:, None] + offs_n
        mask = mask_m[:, None] & mask_n
        mean, rstd = _row_statistics(mean_ptr, rstd_ptr, offs_m, mask_m, RMS)
        dy = _load(dy_ptr, offs, mask, ACC)
        normal = tl.where(mask, (_load(x_ptr, offs, mask, ACC) - mean) * rstd, 0.0)
        if NEED_DW:
            dw += dy * normal
        if NEED_DB:
            db += dy
        if NEED_DX:
            if HAS_W:
                g = dy * w
            else:
                g = dy
            dx = g - normal * tl.expand_dims(tl.sum(g * normal, axis=1) / size, 1)
            if not RMS:
                dx -= tl.expand_dims(tl.sum(g, axis=1) / size, 1)
            dx *= rstd
            if HAS_DS:
                dx += _load(ds_ptr, offs, mask, ACC)
            tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
    column = pid.to(tl.int64) * N + tl.arange(0, BLOCK_N)
    if NEED_DW:
        tl.store(dw_ptr + column, tl.sum(dw, axis=0), mask=tl.arange(0, BLOCK_N) < N)
    if NEED_DB:
        tl.store(db_ptr + column, tl.sum(db, axis=0), mask=tl.arange(0, BLOCK_N) < N)


@triton.jit
def _norm_bwd_dx_kernel(
    dy_ptr, ds_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, M, N,
    RMS: tl.constexpr, HAS_DS: tl.constexpr, HAS_W: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx of one row too wide for registers, in two walks of BLOCK_N columns."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    size = N.to(ACC)
    rstd = tl.load(rstd_ptr + row)
    mean = rstd * 0.0 if RMS else tl.load(mean_ptr + row)
    g_acc = tl.zeros((BLOCK_N,), ACC)
    gx_acc = tl.zeros((BLOCK_N,), ACC)
    for k in range(0, N, BLOCK_N):
        mask = offs_n + k < N
        g = _load(dy_ptr, row * N + offs_n + k, mask, ACC)
        if HAS_W:
            g *= _load(w_ptr, offs_n + k, mask, ACC)
        x = _load(x_ptr, row * N + offs_n + k, mask, ACC)
        g_acc += g
        gx_acc += tl.where(mask, g * ((x - mean) * rstd), 0.0)
    gx_mean = tl.sum(gx_acc, axis=0) / size
    g_mean = gx_mean * 0.0 if RMS else tl.sum(g_acc, axis=0) / size
    for k in range(0, N, BLOCK_N):
        mask = offs_n + k < N
        offs = row * N + offs_n + k
        g = _load(dy_ptr, offs, mask, ACC)
        if HAS_W:
            g *= _load(w_ptr, offs_n + k, mask, ACC)
        dx = g - (_load(x_ptr, offs, mask, ACC) - mean) * rstd * gx_mean
        if not RMS:
            dx -= g_mean
        dx *= rstd
        if HAS_DS:
            dx += _load(ds_ptr, offs, mask, ACC)
        tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _norm_bwd_dw_kernel(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, dw_ptr, db_ptr, M, N, rows,
    RMS: tl.constexpr, NEED_DW: tl.constexpr, NEED_DB: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sums of dy * x_hat and of dy over `rows` rows, of BLOCK_N columns of rows too wide for registers."""
    pid_n, pid_m = tl.program_id(0), tl.program_id(1)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dw = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    db = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, rows, BLOCK_M):
        offs_m = pid_m.to(tl.int64) * rows + step + tl.arange(0, BLOCK_M)
        mask_m = (offs_m < M) & (step + tl.arange(0, BLOCK_M) < rows)
        offs = (offs_m * N)[:, None] + offs_n[None, :]
        mask = mask_m[:, None] & (offs_n < N)[None, :]
        dy = _load(dy_ptr, offs, mask, ACC)
        if NEED_DW:
            mean, rstd = _row_statistics(mean_ptr, rstd_ptr, offs_m, mask_m, RMS)
            dw += tl.where(mask, dy * ((_load(x_ptr, offs, mask, ACC) - mean) * rstd), 0.0)
        if NEED_DB:
            db += dy
    column = pid_m.to(tl.int64) * N + offs_n
    if NEED_DW:
        tl.store(dw_ptr + column, tl.sum(dw, axis=0), mask=offs_n < N)
    if NEED_DB:
        tl.store(db_ptr + column, tl.sum(db, axis=0), mask=offs_n < N)


@triton.jit
def _norm_sum_kernel(
    partial_ptr, out_ptr, rows, N, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out = the sum over the rows of partial (rows, N); a program takes BLOCK_N columns."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, rows, BLOCK_M):
        offs_m = step + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (offs_m < rows)[:, None] & (offs_n < N)[None, :]
        acc += tl.load(partial_ptr + (offs_m * N)[:, None] + offs_n[None, :], mask=mask, other=0.0)
    out = narrow(tl.sum(acc, axis=0), out_ptr.dtype.element_ty)
    tl.store(out_ptr + offs_n, out, mask=offs_n < N)


def tile(target, dtype, N, backward):
    """Tile for rows of N. Not yet measured on a device.

    A row that fits is read once: forward up to 64 KB of registers, backward, with dw and db beside dy, x and w, up to
    8192 columns in 16 bits, 4096 in fp32 (8192 spill 112 bytes on sm_90), 2048 in fp64. Short rows share a program
    up to 2048 elements.
    """
    widest, shared = (16384 // dtype.itemsize if backward else 65536 // max(dtype.itemsize, 4)), 2048
    if target.backend == "interpreter":  # small, so that tiny shapes reach every branch
        widest, shared = 128, 64
    block_n = triton.next_power_of_2(N)
    one_pass = block_n <= widest
    if not one_pass:
        block_n = widest // 4
    block_m = max(1, shared // block_n) if one_pass else 1
    a_warp = (
        256 if dtype.itemsize == 8 or (backward and dtype.itemsize == 4) else 512
    )  # 512: 8 bytes spill on sm_80
    num_warps = min(max(block_m * block_n // a_warp, 4), 16)
    return one_pass, {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": num_warps}


def norm_fwd(x, residual, w, b, eps, rms):
    """y = (s - mean) * rstd * w + b, s = x + residual or x: y, s (with a residual), mean (not of rms), rstd.

    x, residual (M, N) contiguous; either may be 16 bits where the other is float32, and w, b (N,) float32 where y is
    16 bits.
    """
    if residual is not None and residual.dtype.itemsize > x.dtype.itemsize:
        x, residual = residual, x
    M, N = x.shape
    y = torch.empty_like(x)
    s = None if residual is None else torch.empty_like(x)
    acc = acc_dtype(x.dtype)
    mean = None if rms else torch.empty(M, dtype=acc, device=x.device)
    rstd = torch.empty(M, dtype=acc, device=x.device)
    one_pass, options = tile(target_of(x), x.dtype, N, False)
    with launch_on(x):
        _norm_fwd_kernel[(triton.cdiv(M, options["BLOCK_M"]),)](
            x_ptr=x, r_ptr=residual, w_ptr=w, b_ptr=b, y_ptr=y, s_ptr=s, mean_ptr=mean, rstd_ptr=rstd,
            M=M, N=N, eps=eps, RMS=rms, HAS_R=residual is not None, HAS_W=w is not None, HAS_B=b is not None,
            ACC=STORAGE[acc], ONE_PASS=one_pass, **options,
        )  # fmt: skip
    return y, s, mean, rstd


def sum_rows(partial, dtype):
    """partial (rows, N) summed over the rows, in `dtype`."""
    rows, N = partial.shape
    out = torch.empty(N, dtype=dtype, device=partial.device)
    block_m = min(32, triton.next_power_of_2(rows))
    block_n = 8 if target_of(partial).backend == "interpreter" else 1024 // block_m
    with launch_on(partial):
        _norm_sum_kernel[(triton.cdiv(N, block_n),)](
            partial_ptr=partial, out_ptr=out, rows=rows, N=N, ACC=STORAGE[partial.dtype], BLOCK_M=block_m,
            BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    return out


def norm_bwd(dy, ds, x, w, mean, rstd, need_dx, need_dw, need_db):
    """dx, dw = sum(dy * x_hat), db = sum(dy), or None where not needed."""
    M, N = x.shape
    target = target_of(x)
    one_pass, options = tile(target, x.dtype, N, True)
    programs = 4 if target.backend == "interpreter" else PROGRAMS
    rows = triton.cdiv(triton.cdiv(M, programs), options["BLOCK_M"]) * options["BLOCK_M"]
    programs = triton.cdiv(M, rows)
    dx = torch.empty_like(x) if need_dx else None
    dw, db = (
        torch.empty((programs, N), dtype=rstd.dtype, device=x.device) if need else None
        for need in (need_dw, need_db)
    )
    ACC = STORAGE[rstd.dtype]
    rms, has_w, has_ds = mean is None, w is not None, ds is not None
    with launch_on(x):
        if one_pass:
            _norm_bwd_kernel[(programs,)](
                dy_ptr=dy, ds_ptr=ds, x_ptr=x, w_ptr=w, mean_ptr=mean, rstd_ptr=rstd, dx_ptr=dx, dw_ptr=dw,
                db_ptr=db, M=M, N=N, rows=rows, RMS=rms, HAS_DS=has_ds, HAS_W=has_w, NEED_DX=need_dx,
                NEED_DW=need_dw, NEED_DB=need_db, ACC=ACC, **options,
            )  # fmt: skip
        else:
            if need_dx:
                _norm_bwd_dx_kernel[(M,)](
                    dy_ptr=dy, ds_ptr=ds, x_ptr=x, w_ptr=w, mean_ptr=mean, rstd_ptr=rstd, dx_ptr=dx, M=M, N=N,
                    RMS=rms, HAS_DS=has_ds, HAS_W=has_w, ACC=ACC, BLOCK_N=options["BLOCK_N"],
                    num_warps=options["num_warps"],
                )  # fmt: skip
            if need_dw or need_db:
                block_n = min(options["BLOCK_N"], 128)
                _norm_bwd_dw_kernel[(triton.cdiv(N, block_n), programs)](
                    dy_ptr=dy, x_ptr=x, mean_ptr=mean, rstd_ptr=rstd, dw_ptr=dw, db_ptr=db, M=M, N=N, rows=rows,
                    RMS=rms, NEED_DW=need_dw, NEED_DB=need_db, ACC=ACC, BLOCK_M=8, BLOCK_N=block_n, num_warps=4,
                )  # fmt: skip
    affine = x.dtype if w is None else w.dtype
    dw, db = (None if t is None else sum_rows(t, affine) for t in (dw, db))
    return dx, dw, db
