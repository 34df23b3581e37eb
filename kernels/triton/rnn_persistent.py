"""Recurrent layers of few units in one launch: a program takes some sequences through all steps, state in registers.

The recurrent weight is dense here: with several heads, what lies off the diagonal blocks is loaded as 0. Without a
projection. Step t's rows start at offsets[t], or at t B where offsets_ptr is None.
"""

import triton
import triton.language as tl

from .math import narrow, tanh, tanh_grad, widen
from .rnn_cell import dot, gates_fwd, gru_bwd, load, lstm_bwd, mix, rnn_bwd, store


@triton.jit
def _steps_of(lengths_ptr, T, BLOCK_M: tl.constexpr):
    """Steps that the program's first sequence has, which is its longest."""
    if lengths_ptr is not None:
        T = tl.load(lengths_ptr + tl.program_id(0).to(tl.int64) * BLOCK_M)
    return T


@triton.jit
def _step(offsets_ptr, lengths_ptr, offs_b, mask_b, t, B):
    """(rows, which of them exist) of step t."""
    if offsets_ptr is None:
        rows = tl.full([], t, tl.int64) * B + offs_b
    else:
        rows = tl.load(offsets_ptr + t) + offs_b
        mask_b = mask_b & (t < tl.load(lengths_ptr + offs_b, mask=mask_b, other=0))
    return rows, mask_b


@triton.jit
def _load_w(w_ptr, gate, offs_n, offs_k, H, HEADS: tl.constexpr):
    """W[n, k] of a gate, n a cell and k a feature of h; in the given orientation of the two."""
    mask = (offs_n < H) & (offs_k < H)
    offs = (gate * H + offs_n) * H + offs_k
    if HEADS > 1:
        slice_ = H // HEADS
        head_k = offs_k // slice_
        mask = mask & (offs_n // slice_ == head_k)
        offs = (gate * H + offs_n) * slice_ + offs_k - head_k * slice_
    return tl.load(w_ptr + offs, mask=mask, other=0.0)


@triton.jit
def _row_sum(x, mask):
    return tl.expand_dims(tl.sum(tl.where(mask, x, 0.0), axis=1), 1)


@triton.jit
def _normalise(gh, mean, rstd, ln_weight_ptr, gh_ptr, offs, column, mask, mask_n, ACC: tl.constexpr):
    gh = (gh - mean) * rstd
    if gh_ptr is not None:
        store(gh_ptr, offs + column, gh, mask)
    return gh * load(ln_weight_ptr, column, mask_n, ACC)


@triton.jit
def _rnn_persistent_fwd_kernel(
    gx_ptr, h0_ptr, c0_ptr, w_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, ln_cell_ptr, h_mask_ptr, zone_h_ptr,
    zone_c_ptr, offsets_ptr, lengths_ptr, out_ptr, hn_ptr, cn_ptr, gates_ptr, cells_ptr, gh_ptr, rstd_ptr,
    B, T, H, eps: tl.float64,
    HEADS: tl.constexpr, MODE: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """h_t, c_t of BLOCK_M sequences for all t; BLOCK_H >= H; w_hh is loaded once and kept."""
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_n = tl.arange(0, BLOCK_H)[None, :].to(tl.int64)
    offs_k = tl.arange(0, BLOCK_H)[:, None].to(tl.int64)
    mask_b = offs_b < B
    mask_n = offs_n < H
    seen = mask_b & mask_n
    offs_h = offs_b * H + offs_n
    size = tl.full([], H, ACC)
    h = load(h0_ptr, offs_h, seen, ACC)
    c = h
    if MODE == "lstm":
        c = load(c0_ptr, offs_h, seen, ACC)
    if h_mask_ptr is not None:
        h_mask = load(h_mask_ptr, offs_h, seen, ACC)
    w0 = _load_w(w_ptr, 0, offs_n, offs_k, H, HEADS)
    if GATES > 1:
        w1 = _load_w(w_ptr, 1, offs_n, offs_k, H, HEADS)
        w2 = _load_w(w_ptr, 2, offs_n, offs_k, H, HEADS)
    if GATES > 3:
        w3 = _load_w(w_ptr, 3, offs_n, offs_k, H, HEADS)
    steps = _steps_of(lengths_ptr, T, BLOCK_M)
    for i in range(steps):
        t = steps - 1 - i if REVERSE else i
        rows, active = _step(offsets_ptr, lengths_ptr, offs_b, mask_b, t, B)
        mask = active & mask_n
        hm = h * h_mask if h_mask_ptr is not None else h
        hm = narrow(hm, DTYPE)
        zero = tl.zeros((BLOCK_M, BLOCK_H), ACC)
        gh1 = zero
        gh2 = zero
        gh3 = zero
        gh0 = dot(hm, w0, zero, PRECISION, ACC)
        if GATES > 1:
            gh1 = dot(hm, w1, zero, PRECISION, ACC)
            gh2 = dot(hm, w2, zero, PRECISION, ACC)
        if GATES > 3:
            gh3 = dot(hm, w3, zero, PRECISION, ACC)
        if ln_weight_ptr is not None:
            total = GATES * size
            mean = _row_sum(gh0 + gh1 + gh2 + gh3, mask_n) / total
            d0 = gh0 - mean
            squares = d0 * d0
            if GATES > 1:
                squares += (gh1 - mean) * (gh1 - mean) + (gh2 - mean) * (gh2 - mean)
            if GATES > 3:
                squares += (gh3 - mean) * (gh3 - mean)
            rstd = 1.0 / tl.sqrt(_row_sum(squares, mask_n) / total + tl.full([], eps, ACC))
            if rstd_ptr is not None:
                tl.store(rstd_ptr + rows, rstd, mask=active)
            offs = rows * (GATES * H)
            gh0 = _normalise(gh0, mean, rstd, ln_weight_ptr, gh_ptr, offs, offs_n, mask, mask_n, ACC)
            if GATES > 1:
                gh1 = _normalise(gh1, mean, rstd, ln_weight_ptr, gh_ptr, offs, offs_n + H, mask, mask_n, ACC)
                gh2 = _normalise(
                    gh2, mean, rstd, ln_weight_ptr, gh_ptr, offs, offs_n + 2 * H, mask, mask_n, ACC
                )
            if GATES > 3:
                gh3 = _normalise(
                    gh3, mean, rstd, ln_weight_ptr, gh_ptr, offs, offs_n + 3 * H, mask, mask_n, ACC
                )
        a, b = gates_fwd(
            gx_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, gates_ptr, gh_ptr, gh0, gh1, gh2, gh3, c,
            rows, offs_n, mask, mask_n, H, MODE, ACC, FAST,
        )  # fmt: skip
        offs = rows * H + offs_n
        new = a
        if MODE == "lstm":
            cell = b
            if ln_cell_ptr is not None:
                mean = _row_sum(cell, mask_n) / size
                d = cell - mean
                rstd = 1.0 / tl.sqrt(_row_sum(d * d, mask_n) / size + tl.full([], eps, ACC))
                cell = d * rstd * load(ln_cell_ptr, offs_n, mask_n, ACC)
                cell += load(ln_cell_ptr, offs_n + H, mask_n, ACC)
            new = a * tanh(cell, FAST)
            c = tl.where(active, mix(zone_c_ptr, offs, c, b, mask, ACC), c)
            if cells_ptr is not None:
                tl.store(cells_ptr + offs, c, mask=mask)
        elif MODE == "gru":
            new = a + b * (h - a)
        new = narrow(mix(zone_h_ptr, offs, h, new, mask, ACC), DTYPE)
        tl.store(out_ptr + offs, new, mask=mask)
        # a unit beyond H stays 0: what reaches the product must be finite
        h = tl.where(mask, widen(new, ACC), h)
    store(hn_ptr, offs_h, h, seen)
    if MODE == "lstm":
        store(cn_ptr, offs_h, c, seen)


@triton.jit
def _normalised_grad(d, ln_weight_ptr, gh_ptr, offs, column, mask, mask_n, ACC: tl.constexpr):
    """(w dy, x_hat) of LN's input."""
    return d * load(ln_weight_ptr, column, mask_n, ACC), load(gh_ptr, offs + column, mask, ACC)


@triton.jit
def _rnn_persistent_bwd_kernel(
    dout_ptr, dhn_ptr, dcn_ptr, out_ptr, h0_ptr, c0_ptr, w_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, ln_cell_ptr,
    h_mask_ptr, zone_h_ptr, zone_c_ptr, offsets_ptr, lengths_ptr, gates_ptr, cells_ptr, gh_ptr, rstd_ptr,
    dgx_ptr, dgh_ptr, dh0_ptr, dc0_ptr, dh_new_ptr,
    B, T, H, eps: tl.float64,
    HEADS: tl.constexpr, MODE: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """dgx, dgh of all steps of BLOCK_M sequences, and dh0, dc0, which the loop carries in registers."""
    DTYPE: tl.constexpr = dgx_ptr.dtype.element_ty
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_n = tl.arange(0, BLOCK_H)[None, :].to(tl.int64)  # features of h, and units in the products' results
    offs_k = tl.arange(0, BLOCK_H)[:, None].to(tl.int64)  # units
    mask_b = offs_b < B
    mask_n = offs_n < H
    seen = mask_b & mask_n
    offs_h = offs_b * H + offs_n
    size = tl.full([], H, ACC)
    zero = tl.zeros((BLOCK_M, BLOCK_H), ACC)
    dh = zero
    dc = zero
    if dhn_ptr is not None:
        dh = load(dhn_ptr, offs_h, seen, ACC)
    if dcn_ptr is not None:
        dc = load(dcn_ptr, offs_h, seen, ACC)
    if h_mask_ptr is not None:
        h_mask = load(h_mask_ptr, offs_h, seen, ACC)
    w0 = _load_w(w_ptr, 0, offs_k, offs_n, H, HEADS)
    if GATES > 1:
        w1 = _load_w(w_ptr, 1, offs_k, offs_n, H, HEADS)
        w2 = _load_w(w_ptr, 2, offs_k, offs_n, H, HEADS)
    if GATES > 3:
        w3 = _load_w(w_ptr, 3, offs_k, offs_n, H, HEADS)
    steps = _steps_of(lengths_ptr, T, BLOCK_M)
    for i in range(steps):
        t = i if REVERSE else steps - 1 - i
        rows, active = _step(offsets_ptr, lengths_ptr, offs_b, mask_b, t, B)
        mask = active & mask_n
        offs = rows * H + offs_n
        x = rows * (GATES * H) + offs_n
        # the step before, in the layer's direction: none where the sequence starts
        if REVERSE:
            rows_before, has_before = _step(offsets_ptr, lengths_ptr, offs_b, mask_b, t + 1, B)
            has_before = has_before & (t + 1 < steps)
        else:
            rows_before, has_before = _step(offsets_ptr, lengths_ptr, offs_b, mask_b, max(t - 1, 0), B)
            has_before = has_before & (t > 0)
        before = rows_before * H + offs_n
        mask_before = has_before & mask_n
        mask_first = active & (has_before == 0) & mask_n

        d = dh
        if dout_ptr is not None:
            d += load(dout_ptr, offs, mask, ACC)
        on = zero
        if zone_h_ptr is not None:
            on = load(zone_h_ptr, offs, mask, ACC) * d
            d -= on
        if dh_new_ptr is not None:
            store(dh_new_ptr, offs, d, mask)
        d0 = zero
        d1 = zero
        d2 = zero
        d3 = zero
        if MODE == "lstm":
            c = load(cells_ptr, before, mask_before, ACC) + load(c0_ptr, offs_h, mask_first, ACC)
            if zone_c_ptr is None:
                cell = load(cells_ptr, offs, mask, ACC)
            else:
                cell = load(gates_ptr, x + H, mask, ACC) * c
                cell += load(gates_ptr, x, mask, ACC) * load(gates_ptr, x + 2 * H, mask, ACC)
            dcell = dc
            on_c = zero
            if zone_c_ptr is not None:
                on_c = load(zone_c_ptr, offs, mask, ACC) * dc
                dcell -= on_c
            o = load(gates_ptr, x + 3 * H, mask, ACC)
            if ln_cell_ptr is None:
                squashed = tanh(cell, FAST)
                dcell += tanh_grad(d * o, squashed)
            else:
                normal = cell - _row_sum(cell, mask_n) / size
                rstd = 1.0 / tl.sqrt(_row_sum(normal * normal, mask_n) / size + tl.full([], eps, ACC))
                normal *= rstd
                weight = load(ln_cell_ptr, offs_n, mask_n, ACC)
                squashed = tanh(normal * weight + load(ln_cell_ptr, offs_n + H, mask_n, ACC), FAST)
                g = tanh_grad(d * o, squashed) * weight
                dcell += rstd * (
                    g - _row_sum(g, mask_n) / size - normal * (_row_sum(g * normal, mask_n) / size)
                )
            d0, d1, d2, d3, dc_before = lstm_bwd(
                gates_ptr, peephole_ptr, dgx_ptr, d * squashed, dcell, c, rows, offs_n, mask, mask_n, H, ACC
            )
            dc = tl.where(active, dc_before + on_c, dc)
        elif MODE == "gru":
            h = load(out_ptr, before, mask_before, ACC) + load(h0_ptr, offs_h, mask_first, ACC)
            d0, d1, d2, straight = gru_bwd(
                gates_ptr, gh_ptr, b_hn_ptr, ln_weight_ptr, dgx_ptr, d, h, rows, offs_n, mask, mask_n, H, ACC
            )
            on += straight
        else:
            d0 = rnn_bwd(gates_ptr, dgx_ptr, d, rows, offs_n, mask, H, MODE, ACC)
        if ln_weight_ptr is not None:
            total = GATES * size
            start = rows * (GATES * H)
            d0, n0 = _normalised_grad(d0, ln_weight_ptr, gh_ptr, start, offs_n, mask, mask_n, ACC)
            g_sum = d0
            gx_sum = d0 * n0
            if GATES > 1:
                d1, n1 = _normalised_grad(d1, ln_weight_ptr, gh_ptr, start, offs_n + H, mask, mask_n, ACC)
                d2, n2 = _normalised_grad(d2, ln_weight_ptr, gh_ptr, start, offs_n + 2 * H, mask, mask_n, ACC)
                g_sum += d1 + d2
                gx_sum += d1 * n1 + d2 * n2
            if GATES > 3:
                d3, n3 = _normalised_grad(d3, ln_weight_ptr, gh_ptr, start, offs_n + 3 * H, mask, mask_n, ACC)
                g_sum += d3
                gx_sum += d3 * n3
            g_mean = _row_sum(g_sum, mask_n) / total
            gx_mean = _row_sum(gx_sum, mask_n) / total
            rstd = tl.load(rstd_ptr + rows, mask=active, other=0.0)
            d0 = rstd * (d0 - g_mean - n0 * gx_mean)
            if GATES > 1:
                d1 = rstd * (d1 - g_mean - n1 * gx_mean)
                d2 = rstd * (d2 - g_mean - n2 * gx_mean)
            if GATES > 3:
                d3 = rstd * (d3 - g_mean - n3 * gx_mean)
        if dgh_ptr is not None:
            store(dgh_ptr, x, d0, mask)
            if GATES > 1:
                store(dgh_ptr, x + H, d1, mask)
                store(dgh_ptr, x + 2 * H, d2, mask)
            if GATES > 3:
                store(dgh_ptr, x + 3 * H, d3, mask)
        # units beyond H meet rows of w that are loaded as 0
        acc = dot(narrow(d0, DTYPE), w0, zero, PRECISION, ACC)
        if GATES > 1:
            acc = dot(narrow(d1, DTYPE), w1, acc, PRECISION, ACC)
            acc = dot(narrow(d2, DTYPE), w2, acc, PRECISION, ACC)
        if GATES > 3:
            acc = dot(narrow(d3, DTYPE), w3, acc, PRECISION, ACC)
        if h_mask_ptr is not None:
            acc *= h_mask
        dh = tl.where(mask, acc + on, dh)
    if dh0_ptr is not None:
        store(dh0_ptr, offs_h, dh, seen)
    if dc0_ptr is not None:
        store(dc0_ptr, offs_h, dc, seen)
