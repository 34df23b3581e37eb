"""One step of a recurrent layer on a tile of rows and units, as every kernel of kernels/triton/rnn*.py computes it.

`rows` (BLOCK_M, 1) are rows of the packed tensors, `offs_n` (1, BLOCK_N) units, both int64; `mask` is of the tile,
`mask_n` of its units. Gates lie side by side in a row: unit j of gate g in column g H + j. Pointers are None where an
option is off.
"""

import triton
import triton.language as tl

from .math import INTERPRET, narrow, relu, relu_grad, sigmoid, sigmoid_grad, tanh, tanh_grad, widen


@triton.jit
def load(ptr, offs, mask, ACC: tl.constexpr):
    return widen(tl.load(ptr + offs, mask=mask, other=0.0), ACC)


@triton.jit
def store(ptr, offs, value, mask):
    tl.store(ptr + offs, narrow(value, ptr.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, ACC: tl.constexpr):
    if INTERPRET:  # its dot of bf16 operands multiplies their bit patterns
        a = widen(a, ACC)
        b = widen(b, ACC)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def load_before(ptr, first_ptr, offs_b, row_before, n_before, width, column, mask, ACC: tl.constexpr):
    """Each sequence's values of the step before; one that becomes active now has them in `first`. Two loads, not a
    choice between pointers: Triton's AMD backend does not take that in a loop."""
    old = load(ptr, (row_before + offs_b) * width + column, mask & (offs_b < n_before), ACC)
    return old + load(first_ptr, offs_b * width + column, mask & (offs_b >= n_before), ACC)


@triton.jit
def gates_fwd(
    gx_ptr, b_hn_ptr, peephole_ptr, ln_weight_ptr, gates_ptr, gh_ptr, gh0, gh1, gh2, gh3, c,
    rows, offs_n, mask, mask_n, H, MODE: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """lstm: (o, c~); gru: (n, z); rnn: (h~, h~). gh0 ... gh3 are the gates' recurrent sums, c the cell before."""
    if MODE == "lstm":
        x = rows * (4 * H) + offs_n
        i = load(gx_ptr, x, mask, ACC) + gh0
        f = load(gx_ptr, x + H, mask, ACC) + gh1
        if peephole_ptr is not None:
            i += load(peephole_ptr, offs_n, mask_n, ACC) * c
            f += load(peephole_ptr, offs_n + H, mask_n, ACC) * c
        i = sigmoid(i, FAST)
        f = sigmoid(f, FAST)
        g = tanh(load(gx_ptr, x + 2 * H, mask, ACC) + gh2, FAST)
        cell = f * c + i * g
        o = load(gx_ptr, x + 3 * H, mask, ACC) + gh3
        if peephole_ptr is not None:
            o += load(peephole_ptr, offs_n + 2 * H, mask_n, ACC) * cell
        o = sigmoid(o, FAST)
        if gates_ptr is not None:
            store(gates_ptr, x, i, mask)
            store(gates_ptr, x + H, f, mask)
            store(gates_ptr, x + 2 * H, g, mask)
            store(gates_ptr, x + 3 * H, o, mask)
        return o, cell
    elif MODE == "gru":
        x = rows * (3 * H) + offs_n
        r = sigmoid(load(gx_ptr, x, mask, ACC) + gh0, FAST)
        z = sigmoid(load(gx_ptr, x + H, mask, ACC) + gh1, FAST)
        if b_hn_ptr is not None:
            gh2 += load(b_hn_ptr, offs_n, mask_n, ACC)
        n = tanh(load(gx_ptr, x + 2 * H, mask, ACC) + r * gh2, FAST)
        if gates_ptr is not None:
            store(gates_ptr, x, r, mask)
            store(gates_ptr, x + H, z, mask)
            store(gates_ptr, x + 2 * H, n, mask)
            if ln_weight_ptr is None:  # with it, the normalised sums are kept instead
                store(gh_ptr, rows * H + offs_n, gh2, mask)
        return n, z
    else:
        h = load(gx_ptr, rows * H + offs_n, mask, ACC) + gh0
        h = tanh(h, FAST) if MODE == "rnn_tanh" else relu(h)
        if gates_ptr is not None:
            store(gates_ptr, rows * H + offs_n, h, mask)
        return h, h


@triton.jit
def mix(zone_ptr, offs, old, new, mask, ACC: tl.constexpr):
    """zone old + (1 - zone) new"""
    if zone_ptr is not None:
        zone = load(zone_ptr, offs, mask, ACC)
        new = zone * old + (1.0 - zone) * new
    return new


@triton.jit
def lstm_bwd(
    gates_ptr, peephole_ptr, dgx_ptr, do, dcell, c, rows, offs_n, mask, mask_n, H, ACC: tl.constexpr
):  # fmt: skip
    """From the gradients of the output gate and of c~ to those of the gates' sums, stored to dgx:
    (di, df, dg, do, dc), c the cell before."""
    x = rows * (4 * H) + offs_n
    i = load(gates_ptr, x, mask, ACC)
    f = load(gates_ptr, x + H, mask, ACC)
    g = load(gates_ptr, x + 2 * H, mask, ACC)
    do = sigmoid_grad(do, load(gates_ptr, x + 3 * H, mask, ACC))
    if peephole_ptr is not None:
        dcell += load(peephole_ptr, offs_n + 2 * H, mask_n, ACC) * do
    di = sigmoid_grad(dcell * g, i)
    df = sigmoid_grad(dcell * c, f)
    dg = tanh_grad(dcell * i, g)
    dc = dcell * f
    if peephole_ptr is not None:
        dc += load(peephole_ptr, offs_n, mask_n, ACC) * di + load(peephole_ptr, offs_n + H, mask_n, ACC) * df
    store(dgx_ptr, x, di, mask)
    store(dgx_ptr, x + H, df, mask)
    store(dgx_ptr, x + 2 * H, dg, mask)
    store(dgx_ptr, x + 3 * H, do, mask)
    return di, df, dg, do, dc


@triton.jit
def gru_bwd(
    gates_ptr, gh_ptr, b_hn_ptr, ln_weight_ptr, dgx_ptr, dh, h, rows, offs_n, mask, mask_n, H, ACC: tl.constexpr
):  # fmt: skip
    """(dr, dz, r dn, the part of dh that goes straight on), of the gates' sums; stores dgx. h: the state before."""
    x = rows * (3 * H) + offs_n
    r = load(gates_ptr, x, mask, ACC)
    z = load(gates_ptr, x + H, mask, ACC)
    n = load(gates_ptr, x + 2 * H, mask, ACC)
    if ln_weight_ptr is None:
        gh_n = load(gh_ptr, rows * H + offs_n, mask, ACC)
    else:
        gh_n = load(gh_ptr, x + 2 * H, mask, ACC) * load(ln_weight_ptr, offs_n + 2 * H, mask_n, ACC)
        if b_hn_ptr is not None:
            gh_n += load(b_hn_ptr, offs_n, mask_n, ACC)
    dn = tanh_grad(dh * (1.0 - z), n)
    dr = sigmoid_grad(dn * gh_n, r)
    dz = sigmoid_grad(dh * (h - n), z)
    store(dgx_ptr, x, dr, mask)
    store(dgx_ptr, x + H, dz, mask)
    store(dgx_ptr, x + 2 * H, dn, mask)
    return dr, dz, dn * r, dh * z


@triton.jit
def rnn_bwd(gates_ptr, dgx_ptr, dh, rows, offs_n, mask, H, MODE: tl.constexpr, ACC: tl.constexpr):
    """The gradient of the sum, stored to dgx. gates: h~, which is `out` without zoneout."""
    x = rows * H + offs_n
    h = load(gates_ptr, x, mask, ACC)
    dh = tanh_grad(dh, h) if MODE == "rnn_tanh" else relu_grad(dh, h)
    store(dgx_ptr, x, dh, mask)
    return dh
