"""What the backends' rnn launchers share: the rows of packed sequences, and the gradients that sum over all rows.

R rows in all, step after step, as PackedSequence.data; B sequences; G gates of H; h has P features.
"""

import torch
from torch.nn.functional import layer_norm, pad

from .product import weight_gradient

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def offsets(batch_sizes, R, B):
    """(T + 1,) int64 on the CPU: step t's rows are offsets[t] ... offsets[t + 1] - 1."""
    if batch_sizes is None:
        return torch.arange(0, R + 1, B) if R else torch.zeros(1, dtype=torch.int64)
    return pad(batch_sizes.cumsum(0), (1, 0))


def _steps(batch_sizes, R, device):
    """(each row's step, each row's sequence, offsets), with no wait for the device."""
    off = offsets(batch_sizes, R, 0).to(device, non_blocking=True)
    steps = torch.arange(len(batch_sizes), device=device)
    step = torch.repeat_interleave(steps, off.diff(), output_size=R)
    return step, torch.arange(R, device=device) - off[step], off


def previous(out, h0, batch_sizes, reverse):
    """(R, P): each row's h_{t-1}, which is h0's where a sequence's computation starts."""
    R, B = out.shape[0], h0.shape[0]
    if batch_sizes is None:
        return torch.cat((out, h0))[B:] if reverse else torch.cat((h0, out))[:R]
    step, b, off = _steps(batch_sizes, R, out.device)
    if reverse:
        after = off[step + 1] + b
        at = torch.where(after < pad(off[2:], (0, 1), value=R)[step], after, R + b)
    else:
        at = torch.where(step == 0, R + b, off[step - 1] + b)
    return torch.cat((out, h0)).index_select(0, at)


def by_row(t, batch_sizes, R):
    """(R, P): of t (B, P) each row's sequence's."""
    if batch_sizes is None:
        return t.repeat(R // t.shape[0], 1) if R else t[:0]
    return t.index_select(0, _steps(batch_sizes, R, t.device)[1])


def backward(recurrence, matmul=torch.mm):
    """The launcher rnn_bwd over a backend's

    recurrence(dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c,
               batch_sizes, gates, cells, gh, rstd, mode, reverse, heads, eps, need_dh_new)
        -> dgx (R, G H), dgh (R, G H), dh0 (B, P), dc0 (B, H) or None, dh_new (R, P) or None

    all in the tensors' dtype. dgh: of the recurrent product, before it is normalised; None where it equals dgx, with
    neither GRU nor layer norm. dh_new: of h~, after the projection; asked for by need_dh_new.
    """

    def rnn_bwd(
        dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c,
        batch_sizes, gates, cells, gh, rstd, mode, reverse, heads, eps, need_dgx, need_dh0, need_dc0, need_dw_hh,
        need_db_hn, need_dw_hr, need_dpeephole, need_dln_weight, need_dln_cell,
    ):  # fmt: skip
        dgx, dgh, dh0, dc0, dh_new = recurrence(
            dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c,
            batch_sizes, gates, cells, gh, rstd, mode, reverse, heads, eps, need_dw_hr or need_dln_cell,
        )  # fmt: skip
        dtype, R, H = out.dtype, out.shape[0], w_hh.shape[0] // GATES[mode]
        dw_hh = db_hn = dw_hr = dpeephole = dln_weight = dln_cell = None
        if need_dw_hh:
            h = previous(out, h0, batch_sizes, reverse)
            if h_mask is not None:
                h = h * by_row(h_mask, batch_sizes, R)
            dw_hh = _recurrent_weight(dgx if dgh is None else dgh, h, w_hh, GATES[mode], heads, matmul)
        if need_db_hn or need_dln_weight:
            dscaled = dgx if dgh is None or ln_weight is not None else dgh  # of ln_weight * gh (+ b_hn)
            if mode == "gru" and ln_weight is not None:
                dscaled = _wide(dgx) * pad(gates[:, :H], (2 * H, 0), value=1)
            if need_db_hn:
                db_hn = _sum(dscaled[:, 2 * H :], dtype)
            if need_dln_weight:
                dln_weight = _sum(_wide(dscaled) * gh, dtype)
        if need_dpeephole or need_dw_hr or need_dln_cell:
            c, c_new = None, cells
            if need_dpeephole or zone_c is not None:
                c = previous(cells, c0.to(cells.dtype), batch_sizes, reverse)
            if zone_c is not None:
                i, f, g, _ = _wide(gates).chunk(4, 1)
                c_new = f * c + i * g
            if need_dpeephole:
                di, df, _, do = dgx.chunk(4, 1)
                dpeephole = torch.stack([_sum(di * c, dtype), _sum(df * c, dtype), _sum(do * c_new, dtype)])
            if need_dw_hr or need_dln_cell:
                dw_hr, dln_cell = _cell_weights(
                    dh_new, c_new, gates[:, 3 * H :], w_hr, ln_cell, eps, need_dw_hr, need_dln_cell, matmul
                )
        return (
            dgx if need_dgx else None, dh0 if need_dh0 else None, dc0 if need_dc0 else None,
            dw_hh, db_hn, dw_hr, dpeephole, dln_weight, dln_cell,
        )  # fmt: skip

    return rnn_bwd


def _wide(t):
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _sum(t, dtype):
    """Over the rows; 16 bits are added up in float32."""
    return t.sum(0, dtype=torch.promote_types(t.dtype, torch.float32)).to(dtype)


def _recurrent_weight(dgh, h, w_hh, G, heads, matmul):
    """dw_hh = dgh^T h, a head's rows by its features of h."""
    if heads == 1:
        return weight_gradient(dgh, h, w_hh, matmul)
    if h.dtype == torch.float16 and h.device.type == "cpu":
        return _recurrent_weight(dgh.float(), h.float(), w_hh, G, heads, matmul).half()
    R, H, P = h.shape[0], w_hh.shape[0] // G, h.shape[1]
    dgh = dgh.view(R, G, heads, H // heads).permute(2, 1, 3, 0).reshape(heads, G * H // heads, R)
    dw = torch.bmm(dgh, h.view(R, heads, P // heads).transpose(0, 1))
    return dw.view(heads, G, H // heads, P // heads).transpose(0, 1).reshape(w_hh.shape)


def _cell_weights(dh_new, c_new, o, w_hr, ln_cell, eps, need_dw_hr, need_dln_cell, matmul):
    """(dw_hr, dln_cell) of h~ = w_hr m, m = o tanh(u), u = LN(c~)."""
    u = c_new
    if ln_cell is not None:
        weight, bias = ln_cell.to(c_new.dtype)
        normal = layer_norm(c_new, c_new.shape[1:], eps=eps)
        u = normal * weight + bias
    t = u.tanh()
    dw_hr = dln_cell = None
    if need_dw_hr:
        dw_hr = weight_gradient(dh_new, (o * t).to(dh_new.dtype), w_hr, matmul)
    if need_dln_cell:
        du = (dh_new if w_hr is None else matmul(dh_new, w_hr)) * (o * (1 - t * t))
        dln_cell = torch.stack((_sum(du * normal, o.dtype), _sum(du, o.dtype)))
    return dw_hr, dln_cell
