"""The backward phases of a recurrent step, before the product dh = dgh w_hh: its start, the gates, the layer norm."""

import functools

from . import rnn_steps as place
from .arrays import BEFORE, BEFORE_ROWS, ROW, STORAGE, kernel, pointer
from .math import activations
from .rnn_steps import loops, normalise_grad


@functools.cache
def start_kernel(dtype):
    begin = loops(dtype).begin

    @kernel
    def _rnn_start_kernel(first, last, args, p0, p1):
        """The gradient of a projected h~. A unit is a row."""
        for b in range(first, last):
            begin(args, b, 0, args[place.FEATURES])

    return _rnn_start_kernel


@functools.cache
def lstm_kernel(dtype):
    f = STORAGE[dtype][1]
    tanh_of, code, cell_grad = activations(f)["tanh"], loops(dtype), normalise_grad(dtype)
    fused, normalise, settle, begin = code.fused, code.normalise, code.settle, code.begin

    @kernel
    def _rnn_lstm_bwd_kernel(first, last, args, eps, p1):
        """The gates' gradients, before their activations, and dc. A unit is as the forward's."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        gates, cells = pointer(args[place.GATES], f), pointer(args[place.CELLS], f)
        dm = pointer(args[place.DM], f)
        d, dc = pointer(args[place.D], f), pointer(args[place.DC], f)
        dc_new, t = pointer(args[place.DC_NEW], f), pointer(args[place.U], f)
        dgx, peephole = pointer(args[place.DGX], f), pointer(args[place.PEEPHOLE], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            n, row = min(tile, H - start), args[ROW] + b
            at, to, i, x = b * H + start, row * H + start, b * 4 * H + start, row * 4 * H + start
            o = i + 3 * H
            if args[place.PROJECTED] == 0:
                begin(args, b, start, n)
            c, from_ = pointer(args[place.C0], f), at
            if b < args[BEFORE_ROWS]:
                c, from_ = cells, (args[BEFORE] + b) * H + start
            c_new, at_new = cells, to
            if args[place.ZONE_C] != 0:
                c_new, at_new = pointer(args[place.C_NEW], f), at
                for j in range(n):
                    c_new[at + j] = gates[x + H + j] * c[from_ + j]
                for j in range(n):
                    c_new[at + j] += gates[x + j] * gates[x + 2 * H + j]
            rstd = f(0)
            if args[place.LN_CELL] != 0:
                affine, normal = pointer(args[place.LN_CELL], f), pointer(args[place.NORMAL], f)
                rstd = normalise(normal, at, c_new, at_new, n, eps)
                for j in range(n):
                    t[at + j] = tanh_of(normal[at + j] * affine[j] + affine[H + j], f(0), f(0))
            else:
                for j in range(n):
                    t[at + j] = tanh_of(c_new[at_new + j], f(0), f(0))
            for j in range(n):
                gate = gates[x + 3 * H + j]
                d[o + j] = dm[at + j] * t[at + j] * (gate * (f(1) - gate))
                dc_new[at + j] = dm[at + j] * gate * (f(1) - t[at + j] * t[at + j])
            if args[place.LN_CELL] != 0:
                affine, normal = pointer(args[place.LN_CELL], f), pointer(args[place.NORMAL], f)
                cell_grad(dc_new, at, normal, at, affine, 0, rstd, n)
            if args[place.PEEPHOLE] != 0:
                fused(dc_new, at, peephole, 2 * H + start, d, o, n)
            if args[place.ZONE_C] != 0:
                zone = pointer(args[place.ZONE_C], f)
                for j in range(n):
                    keep = zone[to + j]
                    dc_new[at + j] += (f(1) - keep) * dc[at + j]
                    dc[at + j] = keep * dc[at + j]
            else:
                for j in range(n):
                    dc_new[at + j] += dc[at + j]
                    dc[at + j] = f(0)
            for j in range(n):
                gate = gates[x + j]
                d[i + j] = dc_new[at + j] * gates[x + 2 * H + j] * (gate * (f(1) - gate))
            for j in range(n):
                gate = gates[x + H + j]
                d[i + H + j] = dc_new[at + j] * c[from_ + j] * (gate * (f(1) - gate))
                dc[at + j] += dc_new[at + j] * gate
            for j in range(n):
                gate = gates[x + 2 * H + j]
                d[i + 2 * H + j] = dc_new[at + j] * gates[x + j] * (f(1) - gate * gate)
            if args[place.PEEPHOLE] != 0:
                fused(dc, at, peephole, start, d, i, n)
                fused(dc, at, peephole, H + start, d, i + H, n)
            for gate in range(4):
                settle(dgx, x + gate * H, d, i + gate * H, n)

    return _rnn_lstm_bwd_kernel


@functools.cache
def gru_kernel(dtype):
    f = STORAGE[dtype][1]
    code = loops(dtype)
    save, settle, begin = code.save, code.settle, code.begin

    @kernel
    def _rnn_gru_bwd_kernel(first, last, args, p0, p1):
        """The gates' gradients, before their activations, and z's share of dh. A unit is TILE hidden units of a row."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        gates, out = pointer(args[place.GATES], f), pointer(args[place.OUT], f)
        saved_gh = pointer(args[place.SAVED_GH], f)
        d, dh = pointer(args[place.D], f), pointer(args[place.DH], f)
        dh_new, u = pointer(args[place.DH_NEW], f), pointer(args[place.U], f)
        dgx, b_hn = pointer(args[place.DGX], f), pointer(args[place.B_HN], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            size, row = min(tile, H - start), args[ROW] + b
            at, to, r, x = b * H + start, row * H + start, b * 3 * H + start, row * 3 * H + start
            z, n = r + H, r + 2 * H
            begin(args, b, start, size)
            h, from_ = pointer(args[place.H0], f), at
            if b < args[BEFORE_ROWS]:
                h, from_ = out, (args[BEFORE] + b) * H + start
            if args[place.LN_WEIGHT] != 0:  # u = gh_n + b_hn
                weight = pointer(args[place.LN_WEIGHT], f)
                for j in range(size):
                    u[at + j] = saved_gh[x + 2 * H + j] * weight[2 * H + start + j]
                if args[place.B_HN] != 0:
                    for j in range(size):
                        u[at + j] += b_hn[start + j]
            else:
                for j in range(size):
                    u[at + j] = saved_gh[to + j]
            for j in range(size):
                new = gates[x + 2 * H + j]
                d[n + j] = dh_new[at + j] * (f(1) - gates[x + H + j]) * (f(1) - new * new)
            settle(dgx, x + 2 * H, d, n, size)
            for j in range(size):
                reset = gates[x + j]
                d[r + j] = d[n + j] * u[at + j] * (reset * (f(1) - reset))
            for j in range(size):
                d[n + j] *= gates[x + j]
            for j in range(size):
                update = gates[x + H + j]
                d[z + j] = (h[from_ + j] - gates[x + 2 * H + j]) * (update * (f(1) - update))
            for j in range(size):
                d[z + j] *= dh_new[at + j]
                dh[at + j] += gates[x + H + j] * dh_new[at + j]
            settle(dgx, x, d, r, size)
            settle(dgx, x + H, d, z, size)
            if args[place.LN_WEIGHT] == 0:
                dgh = pointer(args[place.DGH], f)
                for gate in range(3):
                    save(dgh, x + gate * H, d, r + gate * H, size)

    return _rnn_gru_bwd_kernel


@functools.cache
def rnn_kernel(dtype):
    f = STORAGE[dtype][1]
    table, code = activations(f), loops(dtype)
    tanh_grad, relu_grad = table["tanh_grad"], table["relu_grad"]
    settle, begin = code.settle, code.begin

    @kernel
    def _rnn_bwd_kernel(first, last, args, p0, p1):
        """The gradient before the activation. A unit is TILE hidden units of a row."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        y, d = pointer(args[place.GATES], f), pointer(args[place.D], f)
        dh_new = pointer(args[place.DH_NEW], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            n = min(tile, H - start)
            at, to = b * H + start, (args[ROW] + b) * H + start
            begin(args, b, start, n)
            if args[place.RELU] != 0:
                for j in range(n):
                    d[at + j] = relu_grad(dh_new[at + j], y[to + j], f(0), f(0))
            else:
                for j in range(n):
                    d[at + j] = tanh_grad(dh_new[at + j], y[to + j], f(0), f(0))
            settle(pointer(args[place.DGX], f), to, d, at, n)

    return _rnn_bwd_kernel


@functools.cache
def norm_kernel(dtype):
    f = STORAGE[dtype][1]
    settle, gh_grad = loops(dtype).settle, normalise_grad(dtype)

    @kernel
    def _rnn_norm_bwd_kernel(first, last, args, p0, p1):
        """dgh of weight * x̂ becomes that of the product. A unit is a row."""
        n = args[place.COLUMNS_GH]
        d, weight = pointer(args[place.D], f), pointer(args[place.LN_WEIGHT], f)
        normal = pointer(args[place.SAVED_GH], f)
        for b in range(first, last):
            row = args[ROW] + b
            gh_grad(d, b * n, normal, row * n, weight, 0, pointer(args[place.RSTD], f)[row], n)
            settle(pointer(args[place.DGH], f), row * n, d, b * n, n)

    return _rnn_norm_bwd_kernel


KERNELS = {"lstm": lstm_kernel, "gru": gru_kernel, "rnn_tanh": rnn_kernel, "rnn_relu": rnn_kernel}
