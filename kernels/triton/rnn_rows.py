"""A step of a layer-normalised recurrent layer once its recurrent product is there: what needs whole rows."""

import triton
import triton.language as tl

from .math import tanh, tanh_grad
from .rnn_cell import gates_fwd, gru_bwd, load, load_before, lstm_bwd, mix, rnn_bwd, store

STEP = ["row", "n", "row_before", "n_before", "n_after", "y_row"]


@triton.jit
def _statistics(
    ptr, start, mask_b, size, eps, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Mean and 1/sqrt(var + eps) of the first `size` values from `start` on, in two walks."""
    offs_n = tl.arange(0, BLOCK_N)[None, :].to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(0, size, BLOCK_N):
        acc += tl.load(ptr + start + k + offs_n, mask=mask_b & (k + offs_n < size), other=0.0)
    mean = tl.expand_dims(tl.sum(acc, axis=1) / tl.full([], size, ACC), 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(0, size, BLOCK_N):
        mask = mask_b & (k + offs_n < size)
        x = tl.where(mask, tl.load(ptr + start + k + offs_n, mask=mask, other=0.0) - mean, 0.0)
        acc += x * x
    var = tl.expand_dims(tl.sum(acc, axis=1) / tl.full([], size, ACC), 1)
    return mean, 1.0 / tl.sqrt(var + tl.full([], eps, ACC))


@triton.jit
def _gate_sum(
    sums_ptr, ln_weight_ptr, gh_ptr, start, rows, column, mask, mask_n, mean, rstd, width, ACC: tl.constexpr
):
    """The recurrent sum of one gate, normalised with ln_weight_ptr; gh_ptr keeps it before the weight."""
    gh = tl.load(sums_ptr + start + column, mask=mask, other=0.0)
    if ln_weight_ptr is not None:
        gh = (gh - mean) * rstd
        if gh_ptr is not None:
            store(gh_ptr, rows * width + column, gh, mask)
        gh *= load(ln_weight_ptr, column, mask_n, ACC)
    return gh


@triton.jit(do_not_specialize=STEP)
def _rnn_rows_fwd_kernel(
    gx_ptr, sums_ptr, h0_ptr, c_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, ln_cell_ptr, zone_h_ptr, zone_c_ptr,
    out_ptr, hn_ptr, gates_ptr, cells_ptr, gh_ptr, rstd_ptr, m_ptr,
    row, n, row_before, n_before, n_after, H, P, eps: tl.float64,
    MODE: tl.constexpr, GATES: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """From the recurrent sums (n, G H) to h; a program takes BLOCK_M rows in walks of BLOCK_N units.

    Where the cell is normalised, c~ and o wait for its statistics in the sums' own place.
    """
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs = tl.arange(0, BLOCK_N)[None, :].to(tl.int64)
    mask_b = offs_b < n
    rows = row + offs_b
    size = GATES * H
    start = offs_b * size
    mean = tl.zeros((BLOCK_M, 1), ACC)
    rstd = mean
    if ln_weight_ptr is not None:
        mean, rstd = _statistics(sums_ptr, start, mask_b, size, eps, ACC, BLOCK_M, BLOCK_N)
        if rstd_ptr is not None:
            tl.store(rstd_ptr + rows, rstd, mask=mask_b)
    for k in range(0, H, BLOCK_N):
        offs_n = k + offs
        mask_n = offs_n < H
        mask = mask_b & mask_n
        gh0 = _gate_sum(
            sums_ptr, ln_weight_ptr, gh_ptr, start, rows, offs_n, mask, mask_n, mean, rstd, size, ACC
        )
        gh1 = gh0
        gh2 = gh0
        gh3 = gh0
        if GATES > 1:
            gh1 = _gate_sum(
                sums_ptr, ln_weight_ptr, gh_ptr, start, rows, offs_n + H, mask, mask_n, mean, rstd, size, ACC
            )
            gh2 = _gate_sum(
                sums_ptr,
                ln_weight_ptr,
                gh_ptr,
                start,
                rows,
                offs_n + 2 * H,
                mask,
                mask_n,
                mean,
                rstd,
                size,
                ACC,
            )
        if GATES > 3:
            gh3 = _gate_sum(
                sums_ptr,
                ln_weight_ptr,
                gh_ptr,
                start,
                rows,
                offs_n + 3 * H,
                mask,
                mask_n,
                mean,
                rstd,
                size,
                ACC,
            )
        c = gh0
        if MODE == "lstm":
            c = tl.load(c_ptr + offs_b * H + offs_n, mask=mask, other=0.0)
        a, b = gates_fwd(
            gx_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, gates_ptr, gh_ptr, gh0, gh1, gh2, gh3, c,
            rows, offs_n, mask, mask_n, H, MODE, ACC, FAST,
        )  # fmt: skip
        h = a
        if MODE == "lstm":
            c = mix(zone_c_ptr, rows * H + offs_n, c, b, mask, ACC)
            tl.store(c_ptr + offs_b * H + offs_n, c, mask=mask)
            if cells_ptr is not None:
                tl.store(cells_ptr + rows * H + offs_n, c, mask=mask)
            if ln_cell_ptr is None:
                h = a * tanh(b, FAST)
            else:
                tl.debug_barrier()  # all threads have read the sums in whose place these go
                tl.store(sums_ptr + start + offs_n, b, mask=mask)
                tl.store(sums_ptr + start + offs_n + H, a, mask=mask)
        if ln_cell_ptr is None:
            if m_ptr is not None:
                store(m_ptr, offs_b * H + offs_n, h, mask)
            else:
                if MODE == "gru" or zone_h_ptr is not None:
                    old = load_before(out_ptr, h0_ptr, offs_b, row_before, n_before, P, offs_n, mask, ACC)
                    if MODE == "gru":
                        h = h + b * (old - h)
                    h = mix(zone_h_ptr, rows * H + offs_n, old, h, mask, ACC)
                store(out_ptr, rows * H + offs_n, h, mask)
                store(hn_ptr, offs_b * H + offs_n, h, mask & (offs_b >= n_after))
    if ln_cell_ptr is not None:
        tl.debug_barrier()  # what other threads of the program stored
        mean, rstd = _statistics(sums_ptr, start, mask_b, H, eps, ACC, BLOCK_M, BLOCK_N)
        for k in range(0, H, BLOCK_N):
            offs_n = k + offs
            mask_n = offs_n < H
            mask = mask_b & mask_n
            cell = (tl.load(sums_ptr + start + offs_n, mask=mask, other=0.0) - mean) * rstd
            cell = cell * load(ln_cell_ptr, offs_n, mask_n, ACC) + load(ln_cell_ptr, offs_n + H, mask_n, ACC)
            h = tl.load(sums_ptr + start + offs_n + H, mask=mask, other=0.0) * tanh(cell, FAST)
            if m_ptr is not None:
                store(m_ptr, offs_b * H + offs_n, h, mask)
            else:
                if zone_h_ptr is not None:
                    h = mix(
                        zone_h_ptr,
                        rows * H + offs_n,
                        load_before(out_ptr, h0_ptr, offs_b, row_before, n_before, P, offs_n, mask, ACC),
                        h,
                        mask,
                        ACC,
                    )
                store(out_ptr, rows * H + offs_n, h, mask)
                store(hn_ptr, offs_b * H + offs_n, h, mask & (offs_b >= n_after))


@triton.jit
def _normalised_grad(dgh_ptr, ln_weight_ptr, gh_ptr, offs, column, mask, mask_n, ACC: tl.constexpr):
    """(w dy, x_hat) of LN's input: dgh holds dy."""
    g = load(dgh_ptr, offs, mask, ACC) * load(ln_weight_ptr, column, mask_n, ACC)
    return g, load(gh_ptr, offs, mask, ACC)


@triton.jit(do_not_specialize=STEP)
def _rnn_rows_bwd_kernel(
    dm_ptr, out_ptr, h0_ptr, c0_ptr, gates_ptr, cells_ptr, gh_ptr, rstd_ptr, b_hn_ptr, peephole_ptr,
    ln_weight_ptr, ln_cell_ptr, zone_c_ptr, dh_ptr, dc_ptr, dgx_ptr, dgh_ptr, cell_ptr,
    row, n, row_before, n_before, y_row, H, P, eps: tl.float64,
    MODE: tl.constexpr, GATES: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dgx and dgh of a step, from dm (from row y_row on, H), the gradient of m (lstm) or of h~; a program takes BLOCK_M
    whole rows. cell (B, H) is scratch for c~.
    """
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs = tl.arange(0, BLOCK_N)[None, :].to(tl.int64)
    mask_b = offs_b < n
    rows = row + offs_b
    mean = tl.zeros((BLOCK_M, 1), ACC)
    rstd = mean
    g_mean = mean
    gx_mean = mean
    if ln_cell_ptr is not None:
        for k in range(0, H, BLOCK_N):
            offs_n = k + offs
            mask = mask_b & (offs_n < H)
            x = rows * (4 * H) + offs_n
            cell = load(gates_ptr, x + H, mask, ACC) * load_before(
                cells_ptr, c0_ptr, offs_b, row_before, n_before, H, offs_n, mask, ACC
            )
            cell += load(gates_ptr, x, mask, ACC) * load(gates_ptr, x + 2 * H, mask, ACC)
            tl.store(cell_ptr + offs_b * H + offs_n, cell, mask=mask)
        tl.debug_barrier()
        mean, rstd = _statistics(cell_ptr, offs_b * H, mask_b, H, eps, ACC, BLOCK_M, BLOCK_N)
        g_acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        gx_acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(0, H, BLOCK_N):
            offs_n = k + offs
            mask_n = offs_n < H
            mask = mask_b & mask_n
            offs_c = offs_b * H + offs_n
            normal = (tl.load(cell_ptr + offs_c, mask=mask, other=0.0) - mean) * rstd
            weight = load(ln_cell_ptr, offs_n, mask_n, ACC)
            squashed = tanh(normal * weight + load(ln_cell_ptr, offs_n + H, mask_n, ACC), FAST)
            dm = load(dm_ptr, (y_row + offs_b) * H + offs_n, mask, ACC)
            dy = tanh_grad(dm * load(gates_ptr, rows * (4 * H) + 3 * H + offs_n, mask, ACC), squashed)
            g_acc += dy * weight
            gx_acc += tl.where(mask, dy * weight * normal, 0.0)
        g_mean = tl.expand_dims(tl.sum(g_acc, axis=1) / tl.full([], H, ACC), 1)
        gx_mean = tl.expand_dims(tl.sum(gx_acc, axis=1) / tl.full([], H, ACC), 1)

    for k in range(0, H, BLOCK_N):
        offs_n = k + offs
        mask_n = offs_n < H
        mask = mask_b & mask_n
        offs_c = offs_b * H + offs_n
        dm = load(dm_ptr, (y_row + offs_b) * H + offs_n, mask, ACC)
        x = rows * (GATES * H) + offs_n
        if MODE == "lstm":
            c = load_before(cells_ptr, c0_ptr, offs_b, row_before, n_before, H, offs_n, mask, ACC)
            cell = load(gates_ptr, x + H, mask, ACC) * c
            cell += load(gates_ptr, x, mask, ACC) * load(gates_ptr, x + 2 * H, mask, ACC)
            dcell = tl.load(dc_ptr + offs_c, mask=mask, other=0.0)
            on = tl.zeros((BLOCK_M, BLOCK_N), ACC)
            if zone_c_ptr is not None:
                on = load(zone_c_ptr, rows * H + offs_n, mask, ACC) * dcell
                dcell -= on
            o = load(gates_ptr, x + 3 * H, mask, ACC)
            if ln_cell_ptr is None:
                squashed = tanh(cell, FAST)
                dcell += tanh_grad(dm * o, squashed)
            else:
                normal = (cell - mean) * rstd
                weight = load(ln_cell_ptr, offs_n, mask_n, ACC)
                squashed = tanh(normal * weight + load(ln_cell_ptr, offs_n + H, mask_n, ACC), FAST)
                dcell += rstd * (tanh_grad(dm * o, squashed) * weight - g_mean - normal * gx_mean)
            di, df, dg, do, dc = lstm_bwd(
                gates_ptr, peephole_ptr, dgx_ptr, dm * squashed, dcell, c, rows, offs_n, mask, mask_n, H, ACC
            )
            tl.store(dc_ptr + offs_c, dc + on, mask=mask)
            if ln_weight_ptr is not None:
                store(dgh_ptr, x, di, mask)
                store(dgh_ptr, x + H, df, mask)
                store(dgh_ptr, x + 2 * H, dg, mask)
                store(dgh_ptr, x + 3 * H, do, mask)
        elif MODE == "gru":
            h = load_before(out_ptr, h0_ptr, offs_b, row_before, n_before, P, offs_n, mask, ACC)
            dr, dz, dn, straight = gru_bwd(
                gates_ptr, gh_ptr, b_hn_ptr, ln_weight_ptr, dgx_ptr, dm, h, rows, offs_n, mask, mask_n, H, ACC
            )
            store(dgh_ptr, x, dr, mask)
            store(dgh_ptr, x + H, dz, mask)
            store(dgh_ptr, x + 2 * H, dn, mask)
            on = tl.load(dh_ptr + offs_c, mask=mask, other=0.0)
            tl.store(dh_ptr + offs_c, on + straight, mask=mask)
        else:
            d = rnn_bwd(gates_ptr, dgx_ptr, dm, rows, offs_n, mask, H, MODE, ACC)
            store(dgh_ptr, x, d, mask)

    if ln_weight_ptr is not None:
        tl.debug_barrier()
        size = GATES * H
        g_acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        gx_acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(0, size, BLOCK_N):
            column = k + offs
            mask_n = column < size
            g, normal = _normalised_grad(
                dgh_ptr, ln_weight_ptr, gh_ptr, rows * size + column, column, mask_b & mask_n, mask_n, ACC
            )
            g_acc += g
            gx_acc += g * normal
        g_mean = tl.expand_dims(tl.sum(g_acc, axis=1) / tl.full([], size, ACC), 1)
        gx_mean = tl.expand_dims(tl.sum(gx_acc, axis=1) / tl.full([], size, ACC), 1)
        rstd = tl.load(rstd_ptr + rows, mask=mask_b, other=0.0)
        tl.debug_barrier()
        for k in range(0, size, BLOCK_N):
            column = k + offs
            mask_n = column < size
            mask = mask_b & mask_n
            x = rows * size + column
            g, normal = _normalised_grad(dgh_ptr, ln_weight_ptr, gh_ptr, x, column, mask, mask_n, ACC)
            store(dgh_ptr, x, rstd * (g - g_mean - normal * gx_mean), mask)
