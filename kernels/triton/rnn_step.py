"""Recurrent layers a step at a time: the recurrent product, gates and states of a step in one launch.

h goes from step to step through `out`, the cell through one buffer that each program updates in its own place.
A step has `n` rows from row `row` on; `before` and `after` are the steps around it in the layer's own direction.
"""

import triton
import triton.language as tl

from .math import narrow, tanh, tanh_grad, widen
from .rnn_cell import dot, gates_fwd, gru_bwd, load, load_before, lstm_bwd, mix, rnn_bwd, store

STEP = [
    "row",
    "n",
    "row_before",
    "n_before",
    "row_after",
    "n_after",
    "a_row",
    "y_row",
]  # change with every step


@triton.jit
def _units(pid_n, width, BLOCK_N: tl.constexpr):
    """Head, first column of the head, and columns within it of tile pid_n: a tile lies in one head, `width` wide."""
    tiles = tl.cdiv(width, BLOCK_N)
    head = (pid_n // tiles).to(tl.int64)
    return head, head * width, (pid_n % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit(do_not_specialize=STEP)
def _rnn_step_fwd_kernel(
    gx_ptr, before_ptr, h0_ptr, c_ptr, w_ptr, b_hn_ptr, peephole_ptr, h_mask_ptr, zone_h_ptr, zone_c_ptr,
    out_ptr, hn_ptr, gates_ptr, cells_ptr, gh_ptr, m_ptr, sums_ptr,
    row, n, row_before, n_before, n_after, H, P, HEADS,
    MODE: tl.constexpr, GATES: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    MIXED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gh = (h h_mask) w_hhT, and the cell of rnn_cell.py; a program takes all gates of BLOCK_M rows, BLOCK_N units.

    before_ptr: `out`, or h0 where it has the rows of all; MIXED: of some.
    With sums_ptr gh (n, G H) is all it stores; with m_ptr h is still to be projected, and m (n, H) stored instead.
    """
    pid_m = tl.program_id(1)
    slice_ = P // HEADS
    width = H // HEADS
    head, first_n, in_head = _units(tl.program_id(0), width, BLOCK_N)
    offs_n = first_n + in_head
    mask_n = in_head < width
    offs_b = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    mask_b = offs_b < n
    mask = mask_b & mask_n
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)

    start = (row_before + offs_b) * P
    w_ptrs = w_ptr + offs_n * slice_ + offs_k[:, None]  # (BLOCK_K, BLOCK_N) of the first gate
    step_g = tl.full([], H, tl.int64) * slice_
    gh0 = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    gh1 = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    gh2 = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    gh3 = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(0, slice_, BLOCK_K):
        offs_h = head * slice_ + k + offs_k[None, :]
        mask_k = k + offs_k < slice_
        mask_h = mask_b & mask_k[None, :]
        if MIXED:
            known = offs_b < n_before
            first = tl.load(h0_ptr + offs_b * P + offs_h, mask=mask_h & (offs_b >= n_before), other=0.0)
            h = tl.load(before_ptr + start + offs_h, mask=mask_h & known, other=0.0)
            h = tl.where(known, h, first)
        else:
            h = tl.load(before_ptr + start + offs_h, mask=mask_h, other=0.0)
        if h_mask_ptr is not None:
            h_mask = load(h_mask_ptr, offs_b * P + offs_h, mask_h, ACC)
            h = narrow(widen(h, ACC) * h_mask, out_ptr.dtype.element_ty)
        mask_w = mask_k[:, None] & mask_n
        gh0 = dot(h, tl.load(w_ptrs + k, mask=mask_w, other=0.0), gh0, PRECISION, ACC)
        if GATES > 1:
            gh1 = dot(h, tl.load(w_ptrs + step_g + k, mask=mask_w, other=0.0), gh1, PRECISION, ACC)
            gh2 = dot(h, tl.load(w_ptrs + 2 * step_g + k, mask=mask_w, other=0.0), gh2, PRECISION, ACC)
        if GATES > 3:
            gh3 = dot(h, tl.load(w_ptrs + 3 * step_g + k, mask=mask_w, other=0.0), gh3, PRECISION, ACC)

    if sums_ptr is not None:
        offs = offs_b * (GATES * H) + offs_n
        store(sums_ptr, offs, gh0, mask)
        if GATES > 1:
            store(sums_ptr, offs + H, gh1, mask)
            store(sums_ptr, offs + 2 * H, gh2, mask)
        if GATES > 3:
            store(sums_ptr, offs + 3 * H, gh3, mask)
        return

    rows = row + offs_b
    offs_c = offs_b * H + offs_n
    c = gh0
    if MODE == "lstm":
        c = tl.load(c_ptr + offs_c, mask=mask, other=0.0)
    a, b = gates_fwd(
        gx_ptr, b_hn_ptr, peephole_ptr, None, gates_ptr, gh_ptr, gh0, gh1, gh2, gh3, c,
        rows, offs_n, mask, mask_n, H, MODE, ACC, FAST,
    )  # fmt: skip
    if MODE == "lstm":
        h = a * tanh(b, FAST)
        c = mix(zone_c_ptr, rows * H + offs_n, c, b, mask, ACC)
        tl.store(c_ptr + offs_c, c, mask=mask)
        if cells_ptr is not None:
            tl.store(cells_ptr + rows * H + offs_n, c, mask=mask)
        if m_ptr is not None:
            store(m_ptr, offs_c, h, mask)
            return
    else:
        h = a
    if MODE == "gru" or zone_h_ptr is not None:
        old = load_before(out_ptr, h0_ptr, offs_b, row_before, n_before, P, offs_n, mask, ACC)
        if MODE == "gru":
            h = h + b * (old - h)
        h = mix(zone_h_ptr, rows * H + offs_n, old, h, mask, ACC)
    store(out_ptr, rows * H + offs_n, h, mask)
    store(hn_ptr, offs_c, h, mask & (offs_b >= n_after))


@triton.jit(do_not_specialize=STEP)
def _rnn_project_kernel(
    a_ptr, w_ptr, y_ptr, h0_ptr, zone_h_ptr, hn_ptr,
    a_row, y_row, n, row_before, n_before, n_after, N, K, stride_wn, stride_wk,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = a wT, a (n, K), y (n, N): h~ = m w_hrT, with zoneout and hn, and dm = dh~ w_hr."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    mask_n = offs_n < N
    mask_b = offs_b < n
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(0, K, BLOCK_K):
        mask_k = k + offs_k < K
        a = tl.load(
            a_ptr + (a_row + offs_b) * K + k + offs_k[None, :], mask=mask_b & mask_k[None, :], other=0.0
        )
        w = tl.load(
            w_ptr + offs_n * stride_wn + (k + offs_k)[:, None] * stride_wk,
            mask=mask_k[:, None] & mask_n,
            other=0.0,
        )
        acc = dot(a, w, acc, PRECISION, ACC)
    mask = mask_b & mask_n
    offs = (y_row + offs_b) * N + offs_n
    if zone_h_ptr is not None:
        old = load_before(y_ptr, h0_ptr, offs_b, row_before, n_before, N, offs_n, mask, ACC)
        acc = mix(zone_h_ptr, offs, old, acc, mask, ACC)
    store(y_ptr, offs, acc, mask)
    if hn_ptr is not None:
        store(hn_ptr, offs_b * N + offs_n, acc, mask & (offs_b >= n_after))


@triton.jit(do_not_specialize=STEP)
def _rnn_step_bwd_kernel(
    dout_ptr, w_ptr, out_ptr, h0_ptr, c0_ptr, gates_ptr, cells_ptr, gh_ptr, b_hn_ptr, peephole_ptr, h_mask_ptr,
    zone_h_ptr, zone_c_ptr, dh_ptr, dc_ptr, dgx_ptr, dgh_ptr, dm_ptr, dh0_ptr,
    row, n, row_before, n_before, row_after, n_after, y_row, H, P, HEADS,
    MODE: tl.constexpr, GATES: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dh = dout + dh_ptr + h_mask (dgh of the step after) w_hh, and the cell's gradient: dgx and dgh of this step.

    dh_ptr (B, P) and dc_ptr (B, H) hold what goes straight from step to step. A row that has no step here has ended:
    its dh is dh0's. With dm_ptr the gradient of h~ is all that is stored, in its rows from y_row on.
    """
    slice_ = P // HEADS
    width = H // HEADS
    head, first_n, in_head = _units(tl.program_id(0), slice_, BLOCK_N)
    offs_n = first_n + in_head  # of P
    mask_n = in_head < slice_
    offs_b = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    tiles_k = tl.cdiv(width, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for i in range(tl.where(n_after > 0, GATES * tiles_k, 0)):
        in_gate = (i % tiles_k) * BLOCK_K + offs_k
        column = (i // tiles_k).to(tl.int64) * H + head * width + in_gate  # of G H
        mask_k = in_gate < width
        dgh = tl.load(
            dgh_ptr + (row_after + offs_b) * (GATES * H) + column[None, :],
            mask=(offs_b < n_after) & mask_k[None, :],
            other=0.0,
        )
        w = tl.load(w_ptr + column[:, None] * slice_ + in_head, mask=mask_k[:, None] & mask_n, other=0.0)
        acc = dot(dgh, w, acc, PRECISION, ACC)

    seen = (offs_b < max(n, n_after)) & mask_n
    offs_h = offs_b * P + offs_n
    if h_mask_ptr is not None:
        acc *= load(h_mask_ptr, offs_h, seen, ACC)
    dh = acc + tl.load(dh_ptr + offs_h, mask=seen, other=0.0)
    if dh0_ptr is not None:
        store(dh0_ptr, offs_h, dh, seen & (offs_b >= n))
    mask = (offs_b < n) & mask_n
    rows = row + offs_b
    if dout_ptr is not None:
        dh += load(dout_ptr, rows * P + offs_n, mask, ACC)
    on = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if zone_h_ptr is not None:
        zone = load(zone_h_ptr, rows * P + offs_n, mask, ACC)
        on = zone * dh
        dh -= on
    if dm_ptr is not None:
        store(dm_ptr, (y_row + offs_b) * P + offs_n, dh, mask)
        tl.store(dh_ptr + offs_h, on, mask=mask)
        return

    if MODE == "lstm":
        c = load_before(cells_ptr, c0_ptr, offs_b, row_before, n_before, H, offs_n, mask, ACC)
        offs = rows * (4 * H) + offs_n
        if zone_c_ptr is None:
            cell = tl.load(cells_ptr + rows * H + offs_n, mask=mask, other=0.0)
        else:
            cell = load(gates_ptr, offs + H, mask, ACC) * c
            cell += load(gates_ptr, offs, mask, ACC) * load(gates_ptr, offs + 2 * H, mask, ACC)
        dcell = tl.load(dc_ptr + offs_h, mask=mask, other=0.0)
        on_c = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        if zone_c_ptr is not None:
            on_c = load(zone_c_ptr, rows * H + offs_n, mask, ACC) * dcell
            dcell -= on_c
        squashed = tanh(cell, FAST)
        dcell += tanh_grad(dh * load(gates_ptr, offs + 3 * H, mask, ACC), squashed)
        _, _, _, _, dc = lstm_bwd(
            gates_ptr, peephole_ptr, dgx_ptr, dh * squashed, dcell, c, rows, offs_n, mask, mask_n, H, ACC
        )
        tl.store(dc_ptr + offs_h, dc + on_c, mask=mask)
    elif MODE == "gru":
        h = load_before(out_ptr, h0_ptr, offs_b, row_before, n_before, P, offs_n, mask, ACC)
        dr, dz, dn, straight = gru_bwd(
            gates_ptr, gh_ptr, b_hn_ptr, None, dgx_ptr, dh, h, rows, offs_n, mask, mask_n, H, ACC
        )
        offs = rows * (3 * H) + offs_n
        store(dgh_ptr, offs, dr, mask)
        store(dgh_ptr, offs + H, dz, mask)
        store(dgh_ptr, offs + 2 * H, dn, mask)
        on += straight
    else:
        rnn_bwd(gates_ptr, dgx_ptr, dh, rows, offs_n, mask, H, MODE, ACC)
    tl.store(dh_ptr + offs_h, on, mask=mask)
