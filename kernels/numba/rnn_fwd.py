"""The forward phases of a recurrent step, after its product gh = h w_hhᵀ: its layer norm, the gates, the end."""

import functools

from . import rnn_steps as place
from .arrays import ROW, STORAGE, kernel, pointer
from .math import activations
from .rnn_steps import loops


@functools.cache
def norm_kernel(dtype):
    f = STORAGE[dtype][1]
    code = loops(dtype)
    normalise, save = code.normalise, code.save

    @kernel
    def _rnn_norm_kernel(first, last, args, eps, p1):
        """gh = weight * (gh - mean) * rstd. A unit is a row."""
        n = args[place.COLUMNS_GH]
        gh, u = pointer(args[place.GH], f), pointer(args[place.U], f)
        weight = pointer(args[place.LN_WEIGHT], f)
        for b in range(first, last):
            rstd = normalise(u, b * n, gh, b * n, n, eps)
            for j in range(n):
                gh[b * n + j] = weight[j] * u[b * n + j]
            if args[place.SAVED_GH] != 0:
                row = args[ROW] + b
                save(pointer(args[place.SAVED_GH], f), row * n, u, b * n, n)
                pointer(args[place.RSTD], f)[row] = rstd

    return _rnn_norm_kernel


@functools.cache
def lstm_kernel(dtype):
    f = STORAGE[dtype][1]
    tanh_of, code = activations(f)["tanh"], loops(dtype)
    sigmoid, tanh, save, fused, normalise, finish = (
        code.sigmoid, code.tanh, code.save, code.fused, code.normalise, code.finish
    )  # fmt: skip

    @kernel
    def _rnn_lstm_fwd_kernel(first, last, args, eps, p1):
        """c~ = f c + i g, h~ = o tanh(LN(c~)). A unit is TILE hidden units of a row, all of them for the norm."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        gx, gh = pointer(args[place.GX], f), pointer(args[place.GH], f)
        m = pointer(args[place.H_NEW], f)
        c, c_new = pointer(args[place.CELL], f), pointer(args[place.C_NEW], f)
        u, peephole = pointer(args[place.U], f), pointer(args[place.PEEPHOLE], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            n, row = min(tile, H - start), args[ROW] + b
            at, to, i, x = b * H + start, row * H + start, b * 4 * H + start, row * 4 * H + start
            o = i + 3 * H
            if args[place.PEEPHOLE] != 0:
                fused(gh, i, peephole, start, c, at, n)
                fused(gh, i + H, peephole, H + start, c, at, n)
            sigmoid(gh, i, gx, x, n)
            sigmoid(gh, i + H, gx, x + H, n)
            tanh(gh, i + 2 * H, gx, x + 2 * H, n)
            for j in range(n):
                c_new[at + j] = gh[i + H + j] * c[at + j] + gh[i + j] * gh[i + 2 * H + j]
            if args[place.PEEPHOLE] != 0:
                fused(gh, o, peephole, 2 * H + start, c_new, at, n)
            sigmoid(gh, o, gx, x + 3 * H, n)
            if args[place.LN_CELL] != 0:
                affine = pointer(args[place.LN_CELL], f)
                normalise(u, at, c_new, at, n, eps)
                for j in range(n):
                    u[at + j] = u[at + j] * affine[j] + affine[H + j]
                for j in range(n):
                    m[at + j] = gh[o + j] * tanh_of(u[at + j], f(0), f(0))
            else:
                for j in range(n):
                    m[at + j] = gh[o + j] * tanh_of(c_new[at + j], f(0), f(0))
            if args[place.GATES] != 0:
                gates = pointer(args[place.GATES], f)
                for gate in range(4):
                    save(gates, x + gate * H, gh, i + gate * H, n)
            if args[place.ZONE_C] != 0:
                zone = pointer(args[place.ZONE_C], f)
                for j in range(n):
                    keep = zone[to + j]
                    c[at + j] = keep * c[at + j] + (f(1) - keep) * c_new[at + j]
            else:
                for j in range(n):
                    c[at + j] = c_new[at + j]
            if args[place.CELLS] != 0:
                cells = pointer(args[place.CELLS], f)
                for j in range(n):
                    cells[to + j] = c[at + j]
            if args[place.PROJECTED] == 0:
                finish(args, b, start, n)

    return _rnn_lstm_fwd_kernel


@functools.cache
def gru_kernel(dtype):
    f = STORAGE[dtype][1]
    tanh_of, code = activations(f)["tanh"], loops(dtype)
    sigmoid, save, finish = code.sigmoid, code.save, code.finish

    @kernel
    def _rnn_gru_fwd_kernel(first, last, args, p0, p1):
        """h~ = (1 - z) n + z h, n = tanh(gx_n + r (gh_n + b_hn)). A unit is TILE hidden units of a row."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        gx, gh = pointer(args[place.GX], f), pointer(args[place.GH], f)
        b_hn = pointer(args[place.B_HN], f)
        h, h_new = pointer(args[place.STATE], f), pointer(args[place.H_NEW], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            size, row = min(tile, H - start), args[ROW] + b
            at, to, r, x = b * H + start, row * H + start, b * 3 * H + start, row * 3 * H + start
            z, n = r + H, r + 2 * H
            sigmoid(gh, r, gx, x, size)
            sigmoid(gh, z, gx, x + H, size)
            if args[place.B_HN] != 0:
                for j in range(size):
                    gh[n + j] += b_hn[start + j]
            if args[place.GATES] != 0 and args[place.LN_WEIGHT] == 0:
                save(pointer(args[place.SAVED_GH], f), to, gh, n, size)
            for j in range(size):
                gh[n + j] = tanh_of(gx[x + 2 * H + j] + gh[r + j] * gh[n + j], f(0), f(0))
            for j in range(size):
                h_new[at + j] = (f(1) - gh[z + j]) * gh[n + j] + gh[z + j] * h[at + j]
            if args[place.GATES] != 0:
                gates = pointer(args[place.GATES], f)
                for gate in range(3):
                    save(gates, x + gate * H, gh, r + gate * H, size)
            finish(args, b, start, size)

    return _rnn_gru_fwd_kernel


@functools.cache
def rnn_kernel(dtype):
    f = STORAGE[dtype][1]
    code = loops(dtype)
    tanh, relu, save, finish = code.tanh, code.relu, code.save, code.finish

    @kernel
    def _rnn_fwd_kernel(first, last, args, p0, p1):
        """h~ = tanh or relu (gx + gh). A unit is TILE hidden units of a row."""
        H, tile = args[place.HIDDEN], args[place.TILE]
        tiles = (H + tile - 1) // tile
        gx, h_new = pointer(args[place.GX], f), pointer(args[place.H_NEW], f)
        for unit in range(first, last):
            b, start = unit // tiles, unit % tiles * tile
            n = min(tile, H - start)
            at, to = b * H + start, (args[ROW] + b) * H + start
            if args[place.RELU] != 0:
                relu(h_new, at, gx, to, n)
            else:
                tanh(h_new, at, gx, to, n)
            if args[place.GATES] != 0:
                save(pointer(args[place.GATES], f), to, h_new, at, n)
            finish(args, b, start, n)

    return _rnn_fwd_kernel


@functools.cache
def end_kernel(dtype):
    finish = loops(dtype).finish

    @kernel
    def _rnn_end_kernel(first, last, args, p0, p1):
        """h from a projected h~. A unit is a row."""
        for b in range(first, last):
            finish(args, b, 0, args[place.FEATURES])

    return _rnn_end_kernel


KERNELS = {"lstm": lstm_kernel, "gru": gru_kernel, "rnn_tanh": rnn_kernel, "rnn_relu": rnn_kernel}
