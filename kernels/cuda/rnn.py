"""Recurrent layers of one direction in CUDA C++: csrc/cuda/rnn.cu.

The launchers' arguments and the formula are ops/rnn.py's. w_hr, ln_weight and ln_cell are None and heads is 1: these
options are left to other backends.
"""

import torch

from kernelzoo import _cuda
from kernelzoo.kernels.cuda.native import DTYPES, target
from kernelzoo.kernels.rnn import GATES, backward, offsets


def _launch(function, like, batch_sizes, **fields):
    """Tensors go by their addresses; those that `fields` does not name are absent."""
    starts = None if batch_sizes is None else offsets(batch_sizes, 0, 0).to(like.device)
    counter = torch.zeros(1, dtype=torch.int32, device=like.device)
    fields |= {"offsets": starts, "counter": counter, "mode": _cuda.RNN_MODES[fields["mode"]]}
    pointers = {name: fields.pop(name, None) for name in _cuda.RNN_POINTERS}
    addresses = {name: 0 if t is None else t.data_ptr() for name, t in pointers.items()}
    function(DTYPES[like.dtype], *target(like), **addresses, **fields)


def _acc(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def rnn_fwd(
    gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode, reverse,
    heads, eps, save,
):  # fmt: skip
    """out (R, H), hn (B, H), cn (B, H) or None, and what the backward needs, None unless `save`: gates (R, G H),
    cells (R, H), gh (R, H), rstd (never)."""
    assert heads == 1
    assert all(t is None for t in (w_hr, ln_weight, ln_cell))
    R, (B, H), G = gx.shape[0], h0.shape, GATES[mode]
    lstm, acc = mode == "lstm", _acc(gx.dtype)

    def empty(*shape, dtype=gx.dtype, when=True):
        return torch.empty(shape, dtype=dtype, device=gx.device) if when else None

    out, hn = empty(R, H), empty(B, H)
    c = c0.to(acc, copy=True) if lstm else None
    gates = empty(R, G * H, when=save and (G > 1 or zone_h is not None))
    cells = empty(R, H, dtype=acc, when=save and lstm)
    gh = empty(R, H, when=save and mode == "gru")
    _launch(
        _cuda.rnn_fwd, gx, batch_sizes, gx=gx, h0=h0, w=w_hh, b_hn=b_hn, peephole=peephole, h_mask=h_mask,
        zone_h=zone_h, zone_c=zone_c, out=out, hn=hn, c=c, gates=gates, cells=cells, gh=gh, B=B,
        T=R // B if batch_sizes is None else len(batch_sizes), H=H, mode=mode, reverse=reverse,
    )  # fmt: skip
    return out, hn, c.to(gx.dtype) if lstm else None, gates, cells, gh, None


def _recurrence(
    dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
    gates, cells, gh, rstd, mode, reverse, heads, eps, need_dh_new,
):  # fmt: skip
    assert heads == 1
    assert all(t is None for t in (w_hr, ln_weight, ln_cell))
    (R, H), B = out.shape, h0.shape[0]
    lstm, acc = mode == "lstm", _acc(out.dtype)

    def carried(t):
        if t is None:
            return torch.zeros((B, H), dtype=acc, device=out.device)
        return t.to(acc, copy=True)

    dgx = torch.empty((R, w_hh.shape[0]), dtype=out.dtype, device=out.device)
    dgh = torch.empty_like(dgx) if mode == "gru" else None
    dh0, dh, dc = torch.empty_like(h0), carried(dhn), carried(dcn) if lstm else None
    _launch(
        _cuda.rnn_bwd, out, batch_sizes, h0=h0, w=w_hh.t().contiguous(), peephole=peephole, h_mask=h_mask,
        zone_h=zone_h, zone_c=zone_c, out=out, gates=out if gates is None else gates, cells=cells, gh=gh,
        first_c=c0.to(acc) if lstm else None, dout=dout, dh=dh, dc=dc, dgx=dgx, dgh=dgx if dgh is None else dgh,
        dh0=dh0, B=B, T=R // B if batch_sizes is None else len(batch_sizes), H=H, mode=mode, reverse=reverse,
    )  # fmt: skip
    return dgx, dgh, dh0, dc.to(out.dtype) if lstm else None, None


rnn_bwd = backward(_recurrence)
