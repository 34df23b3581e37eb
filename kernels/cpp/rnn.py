"""Recurrent layers on CPU: a whole sequence a call, the recurrent weights of a thread's cells in its own cache."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory, rnn
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.cpp.product import products

MODES = {"lstm": 0, "gru": 1, "rnn_tanh": 2, "rnn_relu": 3}


def _accumulator(t):
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _problem(h0, w_hh, batch_sizes, rows, mode, reverse, heads, eps, **tensors):
    B, P = h0.shape
    H = w_hh.shape[0] // rnn.GATES[mode]
    T = len(batch_sizes) if batch_sizes is not None else rows // B
    problem = _cpu.Rnn(MODES[mode], B, T, rows, H, P, heads, reverse, eps)
    for name, t in {"h0": h0, "w_hh": w_hh, "batch_sizes": batch_sizes, **tensors}.items():
        if t is not None:
            setattr(problem, name, t.data_ptr())
    return problem


def _run(kernel, problem, dtype, backward):
    code = DTYPES[dtype]
    workspace = memory.workspace((_cpu.rnn_size(problem, code, backward),), torch.uint8)
    problem.workspace = workspace.data_ptr()
    kernel(problem, code, torch.get_num_threads())


def rnn_fwd(gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode,
            reverse, heads, eps, save):  # fmt: skip
    """One layer and direction over the rows of gx (R, G H), the projected inputs, as PackedSequence's data lies.

    out (R, P), hn (B, P), cn (B, H) or None; with save also what the backward needs: the gates (R, G H; of an RNN h~
    (R, P), where there is zoneout), the cells (R, H) of an LSTM, gh (R, G H) normalised, with layer norm, or the GRU's
    gh_n + b_hn (R, H), and rstd (R).
    """
    (R, GH), P, G = gx.shape, h0.shape[1], rnn.GATES[mode]
    H, lstm, gru, dtype = GH // G, mode == "lstm", mode == "gru", gx.dtype
    out, hn = memory.empty((R, P), dtype), torch.empty_like(h0)
    cn = torch.empty_like(c0) if lstm else None
    gates = cells = gh = rstd = None
    if save:
        if G > 1 or zone_h is not None:
            gates = memory.empty((R, GH), dtype)
        if lstm:
            cells = memory.empty((R, H), _accumulator(gx))
        if ln_weight is not None:
            gh, rstd = memory.empty((R, GH), dtype), torch.empty(R, dtype=_accumulator(gx))
        elif gru:
            gh = memory.empty((R, H), dtype)
    if R == 0:
        hn.copy_(h0)
        if lstm:
            cn.copy_(c0)
        return out, hn, cn, gates, cells, gh, rstd
    problem = _problem(
        h0, w_hh, batch_sizes, R, mode, reverse, heads, eps, gx=gx, c0=c0, b_hn=b_hn, w_hr=w_hr, peephole=peephole,
        ln_weight=ln_weight, ln_cell=ln_cell, h_mask=h_mask, zone_h=zone_h, zone_c=zone_c, out=out, hn=hn, cn=cn,
        gates=gates, cells=cells, gh=gh, rstd=rstd,
    )  # fmt: skip
    _run(_cpu.rnn_fwd, problem, dtype, False)
    return out, hn, cn, gates, cells, gh, rstd


def _recurrence(dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c,
                batch_sizes, gates, cells, gh, rstd, mode, reverse, heads, eps, need_dh_new):  # fmt: skip
    (R, P), GH, dtype = out.shape, w_hh.shape[0], out.dtype
    lstm, gru = mode == "lstm", mode == "gru"
    dgx = memory.empty((R, GH), dtype)
    dgh = memory.empty((R, GH), dtype) if gru or ln_weight is not None else None
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0) if lstm else None
    dh_new = memory.empty((R, P), dtype) if need_dh_new else None
    if R == 0:
        for given, to in ((dhn, dh0), (dcn, dc0)):
            if to is not None:
                to.zero_() if given is None else to.copy_(given)
        return dgx, dgh, dh0, dc0, dh_new
    problem = _problem(
        h0, w_hh, batch_sizes, R, mode, reverse, heads, eps, dout=dout, dhn=dhn, dcn=dcn, out=out, c0=c0, b_hn=b_hn,
        w_hr=w_hr, peephole=peephole, ln_weight=ln_weight, ln_cell=ln_cell, h_mask=h_mask, zone_h=zone_h,
        zone_c=zone_c, gates=gates, cells=cells, gh=gh, rstd=rstd, dgx=dgx, dgh=dgh, dh0=dh0, dc0=dc0, dh_new=dh_new,
    )  # fmt: skip
    _run(_cpu.rnn_bwd, problem, dtype, True)
    return dgx, dgh, dh0, dc0, dh_new


rnn_bwd = rnn.backward(_recurrence, products.matmul)
