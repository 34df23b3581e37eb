"""Recurrent layers (lstm, gru, rnn) of one direction: all steps in one launch for few units, else a launch a step.

The launchers' arguments and the formula are ops/rnn.py's. A step takes a second launch where h is projected or a row
is normalised, and two where both.
"""

from typing import NamedTuple

import torch
import triton

from ..rnn import GATES, backward, offsets
from .rnn_persistent import _rnn_persistent_bwd_kernel, _rnn_persistent_fwd_kernel
from .rnn_rows import _rnn_rows_bwd_kernel, _rnn_rows_fwd_kernel
from .rnn_step import _rnn_project_kernel, _rnn_step_bwd_kernel, _rnn_step_fwd_kernel
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, matmul_precision, target_of


class Step(NamedTuple):
    """A step's rows and those of the steps around it, in the order that the layer takes them."""

    row: int
    n: int
    row_before: int
    n_before: int
    row_after: int
    n_after: int


def steps(batch_sizes, R, B, reverse):
    """The Steps in the layer's order; `n_before` and `n_after` are 0 where there is none."""
    rows = offsets(batch_sizes, R, B).tolist()
    spans = [(rows[t], rows[t + 1] - rows[t]) for t in range(len(rows) - 1)]
    spans = [(0, 0), *(reversed(spans) if reverse else spans), (0, 0)]
    return [Step(*spans[i], *spans[i - 1], *spans[i + 1]) for i in range(1, len(spans) - 1)]


def is_persistent(target, dtype, H, w_hr, backward):
    """Whether all steps go in one launch, w_hh held by each program. Not yet measured on a device.

    The widths are those that compile without spills (tests/aot): at 128 units w_hh takes 136 KB of shared memory, and
    the backward, which has dgx of four gates beside it, spills, on sm_80, sm_100 and sm_120 at 64 already; float64
    spills at 32. Few units is the point of it:
    one multiprocessor does for its sequences what all of them would do together.
    """
    if w_hr is not None:
        return False
    if target.backend == "interpreter":  # small, so that tiny shapes reach both ways
        return H <= 4
    if dtype == torch.float64:
        return False
    if backward:
        return H <= 32 or (H <= 64 and (target.backend == "hip" or target.arch == 90))
    roomy = dtype.itemsize == 2 and target.shared_memory >= 150 << 10
    return H <= 64 or (roomy and H <= 128)


def _registers(target):
    """All that a thread may have: left alone, ptxas spills to keep two programs on a multiprocessor."""
    return {"maxnreg": 255} if target.backend == "cuda" else {}


def persistent_tile(target, H, backward):
    """16 sequences a program, the least that a tensor core's product takes. Not yet measured on a device."""
    num_warps = 4 if target.backend == "hip" else 8
    tile = {
        "BLOCK_M": 16,
        "BLOCK_H": max(16, triton.next_power_of_2(H)),
        "num_warps": num_warps,
        "num_stages": 1,
    }
    return tile if backward else tile | _registers(target)  # with them the backward hoists w_hh, and spills


def step_tile(target, dtype, n, width):
    """Tile of a step's product, `width` the units of a head: narrow, because a step has few rows, and its time is
    that of reading w_hh once, by as many programs as there are. Not yet measured on a device."""
    if target.backend == "interpreter":
        return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 1}
    # 64 rows of four gates spill where operands are in registers: without tensor cores, on sm_80 and on sm_120
    tall = dtype.itemsize == 2 and (target.backend == "hip" or 90 <= target.arch < 120)
    block_m = min(max(16, triton.next_power_of_2(n)), 64 if tall else 32)
    programs = triton.cdiv(n, block_m) * triton.cdiv(width, 32)
    block_n = 32 if programs >= target.num_sms and dtype.itemsize < 8 else 16
    block_k = {2: 64, 4: 32, 8: 16}[dtype.itemsize]
    stages = 2 if target.backend == "hip" else 3
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4, "num_stages": stages}
    return tile | _registers(target)


def rows_tile(target, dtype, H):
    """A row a program, in walks of up to 1024 units. Not yet measured on a device."""
    widest = 16 if target.backend == "interpreter" else 256 if dtype.itemsize == 8 else 1024
    return {"BLOCK_M": 1, "BLOCK_N": min(triton.next_power_of_2(H), widest), "num_warps": 4} | _registers(
        target
    )


def _common(t, mode):
    return {"MODE": mode, "GATES": GATES[mode], "ACC": STORAGE[acc_dtype(t.dtype)], "FAST": is_fast(t.dtype)}


def _packed(batch_sizes, R, B, device):
    """(offsets, lengths) of a packed batch on the device, (None, None) of a dense one."""
    if batch_sizes is None:
        return None, None
    lengths = (batch_sizes[:, None] > torch.arange(B)).sum(0)
    return (t.to(device, non_blocking=True) for t in (offsets(batch_sizes, R, B), lengths))


def rnn_fwd(
    gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode, reverse,
    heads, eps, save,
):  # fmt: skip
    """out (R, P), hn (B, P), cn (B, H) or None, and what the backward needs, None unless `save`: gates (R, G H),
    cells (R, H), gh (R, H or G H), rstd (R)."""
    R, (B, P), G = gx.shape[0], h0.shape, GATES[mode]
    H = gx.shape[1] // G
    acc = acc_dtype(gx.dtype)

    def empty(*shape, dtype=gx.dtype, when=True):
        return torch.empty(shape, dtype=dtype, device=gx.device) if when else None

    lstm, normal = mode == "lstm", ln_weight is not None
    out, hn, cn = empty(R, P), empty(B, P), None
    gates = empty(R, G * H, when=save and (G > 1 or zone_h is not None))
    cells = empty(R, H, dtype=acc, when=save and lstm)
    gh = empty(R, G * H if normal else H, when=save and (normal or mode == "gru"))
    rstd = empty(R, dtype=acc, when=save and normal)
    target = target_of(gx)
    shared = dict(
        gx_ptr=gx, h0_ptr=h0, b_hn_ptr=b_hn, peephole_ptr=peephole, zone_h_ptr=zone_h, zone_c_ptr=zone_c,
        out_ptr=out, hn_ptr=hn, gates_ptr=gates, cells_ptr=cells, gh_ptr=gh, H=H, **_common(gx, mode),
    )  # fmt: skip
    if is_persistent(target, gx.dtype, H, w_hr, False):
        cn = empty(B, H, when=lstm)
        starts, lengths = _packed(batch_sizes, R, B, gx.device)
        options = persistent_tile(target, H, False)
        with launch_on(gx):
            _rnn_persistent_fwd_kernel[(triton.cdiv(B, options["BLOCK_M"]),)](
                c0_ptr=c0, w_ptr=w_hh, ln_weight_ptr=ln_weight, ln_cell_ptr=ln_cell, h_mask_ptr=h_mask,
                offsets_ptr=starts, lengths_ptr=lengths, cn_ptr=cn, rstd_ptr=rstd, B=B, T=R // B, HEADS=heads,
                eps=eps, REVERSE=reverse, PRECISION=matmul_precision(gx.dtype), **shared, **options,
            )  # fmt: skip
        return out, hn, cn, gates, cells, gh, rstd

    c = c0.to(acc, copy=True) if lstm else None
    m = empty(B, H, when=w_hr is not None)
    by_rows = normal or ln_cell is not None
    sums = empty(B, G * H, dtype=acc, when=by_rows)
    shared |= {"c_ptr": c, "m_ptr": m, "P": P}
    mixed = reverse and batch_sizes is not None
    precision = matmul_precision(gx.dtype)
    with launch_on(gx):
        for step in steps(batch_sizes, R, B, reverse):
            now = step._asdict()
            del now["row_after"]
            options = step_tile(target, gx.dtype, step.n, H // heads)
            grid = (
                heads * triton.cdiv(H // heads, options["BLOCK_N"]),
                triton.cdiv(step.n, options["BLOCK_M"]),
            )
            _rnn_step_fwd_kernel[grid](
                before_ptr=out if mixed or step.n_before else h0, w_ptr=w_hh, h_mask_ptr=h_mask, sums_ptr=sums,
                HEADS=heads, PRECISION=precision, MIXED=mixed, **now, **shared, **options,
            )  # fmt: skip
            if by_rows:
                options = rows_tile(target, out.dtype, H)
                _rnn_rows_fwd_kernel[(triton.cdiv(step.n, options["BLOCK_M"]),)](
                    sums_ptr=sums, ln_weight_ptr=ln_weight, ln_cell_ptr=ln_cell, rstd_ptr=rstd, eps=eps, **now,
                    **shared, **options,
                )  # fmt: skip
            if w_hr is not None:
                _project(m, 0, w_hr, out, step.row, step, target, precision, h0, zone_h, hn)
    return out, hn, c.to(gx.dtype) if lstm else None, gates, cells, gh, rstd


def _project(a, a_row, w, y, y_row, step, target, precision, h0=None, zone_h=None, hn=None):
    """Rows y_row ... of y are those from a_row on of a @ w.T, of the step's n rows; see the kernel."""
    N, K = w.shape
    options = step_tile(target, a.dtype, step.n, N)
    _rnn_project_kernel[(triton.cdiv(N, options["BLOCK_N"]), triton.cdiv(step.n, options["BLOCK_M"]))](
        a_ptr=a, w_ptr=w, y_ptr=y, h0_ptr=h0, zone_h_ptr=zone_h, hn_ptr=hn, a_row=a_row, y_row=y_row, n=step.n,
        row_before=step.row_before, n_before=step.n_before, n_after=step.n_after, N=N, K=K,
        stride_wn=w.stride(0), stride_wk=w.stride(1), ACC=STORAGE[acc_dtype(a.dtype)], PRECISION=precision,
        **options,
    )  # fmt: skip


def _recurrence(
    dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
    gates, cells, gh, rstd, mode, reverse, heads, eps, need_dh_new,
):  # fmt: skip
    (R, P), B, G = out.shape, h0.shape[0], GATES[mode]
    H = w_hh.shape[0] // G
    dtype, acc = out.dtype, acc_dtype(out.dtype)

    def empty(*shape, dtype=dtype, when=True):
        return torch.empty(shape, dtype=dtype, device=out.device) if when else None

    lstm = mode == "lstm"
    dgx, dh0 = empty(R, G * H), empty(B, P)
    dgh = empty(R, G * H, when=mode == "gru" or ln_weight is not None)
    target, precision = target_of(out), matmul_precision(dtype)
    shared = dict(
        out_ptr=out, h0_ptr=h0, gates_ptr=out if gates is None else gates, cells_ptr=cells, gh_ptr=gh,
        b_hn_ptr=b_hn, peephole_ptr=peephole, zone_c_ptr=zone_c, dgx_ptr=dgx, H=H, **_common(out, mode),
    )  # fmt: skip
    if is_persistent(target, dtype, H, w_hr, True):
        dc0 = empty(B, H, when=lstm)
        dh_new = empty(R, H, when=need_dh_new)
        starts, lengths = _packed(batch_sizes, R, B, out.device)
        options = persistent_tile(target, H, True)
        with launch_on(out):
            _rnn_persistent_bwd_kernel[(triton.cdiv(B, options["BLOCK_M"]),)](
                dout_ptr=dout, dhn_ptr=dhn, dcn_ptr=dcn, c0_ptr=c0, w_ptr=w_hh, ln_weight_ptr=ln_weight,
                ln_cell_ptr=ln_cell, h_mask_ptr=h_mask, zone_h_ptr=zone_h, offsets_ptr=starts,
                lengths_ptr=lengths, rstd_ptr=rstd, dgh_ptr=dgh, dh0_ptr=dh0, dc0_ptr=dc0, dh_new_ptr=dh_new,
                B=B, T=R // B, HEADS=heads, eps=eps, REVERSE=reverse, PRECISION=precision, **shared, **options,
            )  # fmt: skip
        return dgx, dgh, dh0, dc0, dh_new

    def carried(t, width):
        if t is None:
            return torch.zeros((B, width), dtype=acc, device=out.device)
        return t.to(acc, copy=True)

    dh = carried(dhn, P)
    dc = carried(dcn, H) if lstm else None
    by_rows = w_hr is not None or ln_weight is not None or ln_cell is not None
    dh_new = empty(R, P, when=by_rows and (need_dh_new or w_hr is not None))
    dm = empty(B, H, dtype=acc, when=by_rows and (w_hr is not None or dh_new is None))
    cell = empty(B, H, dtype=acc, when=ln_cell is not None)
    first_c = c0.to(acc) if lstm else None
    shared |= {
        "c0_ptr": first_c,
        "dh_ptr": dh,
        "dc_ptr": dc,
        "dgh_ptr": dgx if dgh is None else dgh,
        "P": P,
    }
    order = steps(batch_sizes, R, B, reverse)[::-1]
    first = order[-1]
    order.append(Step(0, 0, 0, 0, first.row, first.n))  # dh0
    with launch_on(out):
        for step in order:
            now = step._asdict()
            rows = max(step.n, step.n_after)
            options = step_tile(target, dtype, rows, P // heads)
            grid = (
                heads * triton.cdiv(P // heads, options["BLOCK_N"]),
                triton.cdiv(rows, options["BLOCK_M"]),
            )
            _rnn_step_bwd_kernel[grid](
                dout_ptr=dout, w_ptr=w_hh, h_mask_ptr=h_mask, zone_h_ptr=zone_h, dh0_ptr=dh0, HEADS=heads,
                dm_ptr=(dm if dh_new is None else dh_new) if by_rows else None,
                y_row=0 if dh_new is None else step.row, PRECISION=precision, **now, **shared, **options,
            )  # fmt: skip
            if by_rows and step.n:
                if w_hr is not None:
                    _project(dh_new, step.row, w_hr.t(), dm, 0, step, target, precision)
                options = rows_tile(target, out.dtype, H)
                del now["row_after"], now["n_after"]
                _rnn_rows_bwd_kernel[(triton.cdiv(step.n, options["BLOCK_M"]),)](
                    dm_ptr=dh_new if dm is None else dm, ln_weight_ptr=ln_weight, ln_cell_ptr=ln_cell,
                    rstd_ptr=rstd, cell_ptr=cell, y_row=step.row if dm is None else 0, eps=eps, **now, **shared,
                    **options,
                )  # fmt: skip
    return dgx, dgh, dh0, dc.to(dtype) if lstm else None, dh_new


rnn_bwd = backward(_recurrence)
