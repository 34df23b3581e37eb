"""Recurrent layers' formula in plain torch, a loop over steps: oracle, fallback, double backward and transform rule.

Sizes: B sequences, T steps, R rows in all, H cells, P outputs (H unless projected), G gates.
"""

import torch
from torch.nn import functional as T

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # i f g o; r z n


def steps(batch_sizes, rows, B):
    """How many rows each step has."""
    if batch_sizes is not None:
        return batch_sizes.tolist()
    return [B] * (rows // B) if B else [0]


def _normed(x, eps):
    return T.layer_norm(x, x.shape[-1:], None, None, eps)


def _recurrent_product(h, w, gates, heads):
    """h Wᵀ (n, G H), each head's cells from its own slice of h: w (G H, P / heads)."""
    if heads == 1:
        return h @ w.mT
    n, slice_ = h.size(0), w.size(1)
    w = w.view(gates, heads, -1, slice_)
    return torch.einsum("bhp,ghjp->bghj", h.view(n, heads, slice_), w).reshape(n, -1)


def _cell(mode, gx, gh, c, b_hn, peephole):
    """(h~ or, of an LSTM, the output gate, which is still to be multiplied; c~) from the gates' two sums."""
    if mode == "rnn_tanh":
        return torch.tanh(gx + gh), None
    if mode == "rnn_relu":
        return torch.relu(gx + gh), None
    if mode == "gru":
        (xr, xz, xn), (hr, hz, hn) = gx.chunk(3, -1), gh.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * (hn if b_hn is None else hn + b_hn))
        return n, z
    i, f, g, o = (gx + gh).chunk(4, -1)
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if peephole is not None:
        o = o + peephole[2] * c
    return torch.sigmoid(o), c


def _mixed(zone, old, new):
    return new if zone is None else zone * old + (1 - zone) * new


def reference(gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode,
              reverse, heads, eps):  # fmt: skip
    """(out (R, P), hn (B, P), cn (B, H) or None); arguments as the launchers'.

    16 bits are computed in float32, the cell is carried in it, and h is rounded at each step.
    """
    dtype = gx.dtype
    sizes = steps(batch_sizes, gx.size(0), h0.size(0))

    def wide(t):
        return t.float() if t is not None and t.dtype.itemsize == 2 else t

    def rows(t):
        return [None] * len(sizes) if t is None else wide(t).split(sizes)

    gx, zone_h, zone_c = rows(gx), rows(zone_h), rows(zone_c)
    w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask = map(
        wide, (w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask)
    )
    first_h, first_c = h0, wide(c0)
    active = sizes[-1] if reverse else sizes[0]
    h, c = first_h[:active], None if first_c is None else first_c[:active]
    out, ended = [None] * len(sizes), []
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        n = sizes[t]
        if n < active:
            ended.append((h[n:], None if c is None else c[n:]))
            h, c = h[:n], None if c is None else c[:n]
        elif n > active:
            h = torch.cat([h, first_h[active:n]])
            c = None if c is None else torch.cat([c, first_c[active:n]])
        active = n
        old_h, old_c = wide(h), c
        hm = old_h if h_mask is None else old_h * h_mask[:n]
        gh = _recurrent_product(hm, w_hh, GATES[mode], heads)
        if ln_weight is not None:
            gh = ln_weight * _normed(gh, eps)
        new, extra = _cell(mode, gx[t], gh, old_c, b_hn, peephole)
        if mode == "gru":
            new = (1 - extra) * new + extra * old_h
        elif mode == "lstm":
            m = extra if ln_cell is None else _normed(extra, eps) * ln_cell[0] + ln_cell[1]
            new = new * torch.tanh(m)
            new = new if w_hr is None else new @ w_hr.mT
            c = _mixed(zone_c[t], old_c, extra)
        h = out[t] = _mixed(zone_h[t], old_h, new).to(dtype)
    ended.append((h, c))
    hn, cn = zip(*reversed(ended), strict=True)
    return torch.cat(out), torch.cat(hn), None if c is None else torch.cat(cn).to(dtype)
