"""The recurrence of lstm, gru and rnn: all steps in one call, each step a few phases (arrays.launch_steps).

The recurrent product is our own, of the weight as it lies: 2 rows of h by 4 of the weight at a time are as fast on a
core as MKL's product at 64 rows of 512 features (1.4 ms, MKL 1.5) and faster below (4 rows: 0.09 ms, MKL 0.2), and no
step waits for Python.

bf16 and fp16 are converted before and after, and only the products read their weights as they are: gates' kernels of
their own take a core 7 s to compile, each.
"""

import numpy as np
import torch

from .. import memory, rnn
from ..product import products
from . import rnn_bwd as bwd
from . import rnn_fwd as fwd
from . import rnn_steps as place
from .arrays import ELEMENTS, FIXED, KERNEL, PER_ROW, WIDTH, launch_steps

TILE = (
    128  # hidden units of a row that go through the gates together: what they read and write, 5 KB, is in L1
)
GATE_COST = 8  # elements that a hidden unit's gates are worth to the threads' grain: 5 exponentials
PRODUCT_COST = 1 / 8  # and a multiplication of a product


def _phase(kernel, fixed, per_row, elements, places):
    """A row of the table; places: tensors, None, sizes and flags by their place's name."""
    row = np.zeros(WIDTH, dtype=np.int64)
    row[[KERNEL, FIXED, PER_ROW, ELEMENTS]] = kernel.address, fixed, per_row, elements
    for name, value in places.items():
        row[getattr(place, name)] = value.data_ptr() if isinstance(value, torch.Tensor) else value or 0
    return row


def _product(x, w, y, groups=1, heads=1, segments=1, stride=0, mask=None, added=False):
    """y = x wᵀ of a step's rows; w (columns, K), or of `heads` heads; the columns of y are in `groups` groups."""
    columns, K = w.shape
    group = columns // groups
    places = {
        "X": x, "W": w, "Y": y, "MASK": mask, "ADDED": added, "LDX": x.shape[1], "LDY": y.shape[1],
        "SEGMENTS": segments, "LENGTH": K // segments, "STRIDE": stride, "HEADS": heads,
        "HEAD_X": (x.shape[1] if segments == 1 else stride) // heads, "GROUP": group,
    }  # fmt: skip
    units = groups * -(-group // place.COLUMNS)
    return _phase(place.product_kernel(w.dtype), units, 0, int(columns * K * PRODUCT_COST), places)


NARROW = (torch.bfloat16, torch.float16)


def _wide(t):
    return t.float() if isinstance(t, torch.Tensor) and t.dtype in NARROW else t


def _narrow(t, dtype):
    return None if t is None else t.to(dtype)


def _tiles(H, ln_cell):
    tile = H if ln_cell is not None else min(TILE, H)
    return tile, -(-H // tile)


def rnn_fwd(
    gx, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes, mode, reverse,
    heads, eps, save,
):  # fmt: skip
    stored = gx.dtype
    gx, h0, c0, b_hn, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c = map(
        _wide, (gx, h0, c0, b_hn, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c)
    )
    dtype = gx.dtype
    (R, GH), (B, P), G = gx.shape, h0.shape, rnn.GATES[mode]
    H = GH // G
    lstm, gru = mode == "lstm", mode == "gru"
    out = memory.empty((R, P), dtype)
    gates = memory.empty((R, GH), dtype) if save and (lstm or gru or zone_h is not None) else None
    cells = memory.empty((R, H), dtype) if save and lstm else None
    rstd = torch.empty(R, dtype=dtype) if save and ln_weight is not None else None
    gh = None
    if save and (gru or ln_weight is not None):
        gh = memory.empty((R, GH if ln_weight is not None else H), dtype)

    def scratch(*shape):
        return torch.empty(shape, dtype=dtype)

    h = h0.clone()
    masked = h if h_mask is None else h * h_mask
    c = c0.clone() if lstm else None
    product, u = scratch(B, GH), scratch(B, GH) if ln_weight is not None else scratch(B, H)
    m = product if not (lstm or gru) else scratch(B, H)
    h_new = m if w_hr is None else scratch(B, P)
    c_new = scratch(B, H) if lstm else None
    tile, tiles = _tiles(H, ln_cell)
    places = {
        "HIDDEN": H, "FEATURES": P, "COLUMNS_GH": GH, "TILE": tile, "GX": gx, "GH": product, "STATE": h,
        "MASKED": masked, "CELL": c, "H_NEW": m, "C_NEW": c_new, "U": u, "B_HN": b_hn, "PEEPHOLE": peephole,
        "LN_WEIGHT": ln_weight, "LN_CELL": ln_cell, "H_MASK": h_mask, "ZONE_H": zone_h, "ZONE_C": zone_c,
        "OUT": out, "GATES": gates, "CELLS": cells, "SAVED_GH": gh, "RSTD": rstd,
        "PROJECTED": w_hr is not None, "RELU": mode == "rnn_relu",
    }  # fmt: skip
    groups = 1 if heads == 1 else G * heads
    phases = [_product(masked, w_hh, product, groups, heads)]
    if ln_weight is not None:
        phases.append(_phase(fwd.norm_kernel(dtype), 0, 1, GH, places))
    phases.append(_phase(fwd.KERNELS[mode](dtype), 0, tiles, GATE_COST * H, places))
    if w_hr is not None:
        phases.append(_product(m, w_hr, h_new))
        phases.append(_phase(fwd.end_kernel(dtype), 0, 1, P, {**places, "H_NEW": h_new}))
    launch_steps(np.stack(phases), rnn.offsets(batch_sizes, R, B), reverse, reverse, eps)
    out, h, c, gates, gh = (_narrow(t, stored) for t in (out, h, c, gates, gh))
    return out, h, c, gates, cells, gh, rstd


def _recurrence(
    dout, dhn, dcn, out, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
    gates, cells, gh, rstd, mode, reverse, heads, eps, need_dh_new,
):  # fmt: skip
    stored = out.dtype
    dout, dhn, dcn, out, h0, c0, b_hn, peephole = map(_wide, (dout, dhn, dcn, out, h0, c0, b_hn, peephole))
    ln_weight, ln_cell, h_mask, zone_h, zone_c, gates, gh = map(
        _wide, (ln_weight, ln_cell, h_mask, zone_h, zone_c, gates, gh)
    )
    dtype = out.dtype
    (R, P), B, G = out.shape, h0.shape[0], rnn.GATES[mode]
    GH = w_hh.shape[0]
    H = GH // G
    lstm, gru = mode == "lstm", mode == "gru"
    dgx = memory.empty((R, GH), dtype)
    dgh = memory.empty((R, GH), dtype) if gru or ln_weight is not None else None
    saved_dh_new = memory.empty((R, P), dtype) if need_dh_new else None

    def scratch(*shape):
        return torch.empty(shape, dtype=dtype)

    def state(t, columns):
        return torch.zeros(B, columns, dtype=dtype) if t is None else t.clone()

    dh, dc = state(dhn, P), state(dcn, H) if lstm else None
    dh_new, d = scratch(B, P), scratch(B, GH)
    dm = dh_new if w_hr is None else scratch(B, H)
    u, c_new, dc_new, normal = (scratch(B, H) for _ in range(4))
    tile, tiles = _tiles(H, ln_cell)
    places = {
        "HIDDEN": H, "FEATURES": P, "COLUMNS_GH": GH, "TILE": tile, "C_NEW": c_new, "U": u, "NORMAL": normal,
        "B_HN": b_hn, "PEEPHOLE": peephole, "LN_WEIGHT": ln_weight, "LN_CELL": ln_cell, "ZONE_H": zone_h,
        "ZONE_C": zone_c, "OUT": out, "GATES": out if gates is None else gates, "CELLS": cells,
        "SAVED_GH": gh, "RSTD": rstd, "PROJECTED": w_hr is not None, "RELU": mode == "rnn_relu", "H0": h0,
        "C0": c0, "DOUT": dout, "DH": dh, "DH_NEW": dh_new, "SAVED_DH_NEW": saved_dh_new, "DM": dm,
        "DC": dc, "DC_NEW": dc_new, "D": d, "DGX": dgx, "DGH": dgh,
    }  # fmt: skip
    phases = []
    if w_hr is not None:
        w_rh = w_hr.t().contiguous()
        phases.append(_phase(bwd.start_kernel(dtype), 0, 1, P, places))
        phases.append(_product(dh_new, w_rh, dm))
    phases.append(_phase(bwd.KERNELS[mode](dtype), 0, tiles, GATE_COST * H, places))
    if ln_weight is not None:
        phases.append(_phase(bwd.norm_kernel(dtype), 0, 1, GH, places))
    # of each feature of h the weights that read it, in a row
    w = w_hh.view(G, heads, H // heads, P // heads).permute(1, 3, 0, 2).contiguous().view(P, GH // heads)
    segments = 1 if heads == 1 else G
    phases.append(_product(d, w, dh, heads, heads, segments, H, h_mask, added=True))
    launch_steps(np.stack(phases), rnn.offsets(batch_sizes, R, B), not reverse, reverse, eps)
    return tuple(_narrow(t, stored) for t in (dgx, dgh, dh, dc, saved_dh_new))


rnn_bwd = rnn.backward(_recurrence, products.matmul)
