"""Convolution: y = act(conv(x, w) + b + residual), its gradient to the input, which is the transposed convolution, and
to the weight. All tensors contiguous, x (N, D, H, W, C), y (N, oD, oH, oW, O), w (O, kD, kH, kW, C / groups).

Dense and grouped, an implicit product of matrices (conv_gemm.py); depthwise, a sum over taps (conv_depthwise.py), with
few taps of one dimension over rows in registers (conv_short.py); 1x1, the linear layer's kernel.
"""

import math

import torch
import triton
import triton.language as tl

from .conv_depthwise import _depthwise_bwd_weight_kernel, _depthwise_kernel
from .conv_gemm import _conv_bwd_weight_kernel, _conv_kernel
from .conv_short import _conv1d_short_bwd_weight_kernel, _conv1d_short_kernel
from .conv_tiles import (
    FEW_CHANNELS,
    PROGRAMS,
    SMALL_PROGRAMS,
    choose_tile,
    depth,
    depthwise_tile,
    rows_per_split,
    short_tile,
    strip_rows,
    weight_depth,
)
from .linear import column_sums, linear_act_fwd
from .norm import sum_rows
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, target_of

# Rows that are numbered in int32, a whole tile beyond the last included; their addresses are int64 always.
INT32_ROWS = (1 << 31) - 4096


def conv_precision(target, dtype):
    """ "tf32" where the user lets torch's own fp32 convolutions run in it, as torch does by default, else "ieee"."""
    tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 and target.backend == "cuda" else "ieee"


class Geometry:
    """A convolution in numbers, as the kernels take them; `inputs` and `outputs` are x's and y's sizes."""

    def __init__(self, N, inputs, C, outputs, O, kernel, stride, padding, dilation, groups):
        lead = 0  # dimensions of size 1, which the kernels leave out
        while lead < 2 and inputs[lead] == outputs[lead] == kernel[lead] == 1 and padding[lead] == 0:
            lead += 1
        self.rank = 3 - lead
        self.N, self.inputs, self.C, self.outputs, self.O = N, inputs, C, outputs, O
        self.kernel, self.padding, self.groups = kernel, padding, groups
        self.stride = [1] * lead + list(stride[lead:])
        self.dilation = [1 if k == 1 else d for k, d in zip(kernel, dilation, strict=True)]
        self.taps = math.prod(kernel)
        self.is_depthwise = 1 < groups == C
        self.is_pointwise = groups == self.taps == max(self.stride) == 1 and max(padding) == 0
        plain = self.rank == self.stride[2] == self.dilation[2] == 1
        self.is_short = self.is_depthwise and plain and O == C and 2 <= kernel[2] <= 8  # conv_short.py
        # the taps of a row are one (conv_gemm.py)
        self.merges = groups == 1 and C < FEW_CHANNELS and kernel[2] > 1 and self.dilation[2] == 1
        self.merges &= inputs[2] * C < 1 << 31

    def arguments(self, transposed=False):
        """What the kernels of conv_gemm.py and conv_depthwise.py take; transposed: y is read and x written."""
        ends = (
            (self.outputs, self.O, self.inputs, self.C)
            if transposed
            else (self.inputs, self.C, self.outputs, self.O)
        )
        inputs, C, outputs, O = ends
        rows = self.N * math.prod(outputs)
        found = {
            "N": self.N, "D": inputs[0], "H": inputs[1], "W": inputs[2], "C": C,
            "oD": outputs[0], "oH": outputs[1], "oW": outputs[2], "O": O,
            "RANK": self.rank, "INDEX": tl.int32 if rows <= INT32_ROWS else tl.int64,
        }  # fmt: skip
        for i, axis in enumerate("dhw"):
            found |= {f"stride_{axis}": self.stride[i], f"pad_{axis}": self.padding[i]}
            found |= {f"dil_{axis}": self.dilation[i], f"K{axis.upper()}": self.kernel[i]}
        return found

    def phases(self, transposed):
        """How many, and STRIDED, step and inverse of conv_index.py's `phase`."""
        strided = transposed and max(self.stride) > 1
        found = {"STRIDED": strided}
        for axis, s, d in zip("dhw", self.stride, self.dilation, strict=True):
            step = s // math.gcd(s, d) if strided else 1
            found |= {f"step_{axis}": step, f"inverse_{axis}": pow(d * step // s, -1, step) if strided else 0}
        return math.prod(self.stride) if strided else 1, found


def _conv(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, transposed):
    """conv_fwd, or conv_bwd_input with x = dz."""
    N, *sizes, _ = x.shape
    C, O = w.shape[4] * groups, w.shape[0]
    ends = (list(size), C, sizes, O) if transposed else (sizes, C, list(size), O)
    g = Geometry(N, *ends, list(w.shape[1:4]), stride, padding, dilation, groups)
    target, precision = target_of(x), conv_precision(target_of(x), x.dtype)
    channels = C if transposed else O
    if g.is_pointwise and residual is None:
        matrix = w.view(O, C)
        matrix = matrix.t() if transposed else matrix
        y, z = linear_act_fwd(x.view(-1, x.shape[4]), matrix, b, act, p0, p1, save_z, precision)
        return y.view(N, *size, channels), z.view(N, *size, channels) if save_z else None
    y = torch.empty((N, *size, channels), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save_z else None
    common = {
        "x_ptr": x, "w_ptr": w, "b_ptr": b, "residual_ptr": residual, "y_ptr": y, "z_ptr": z, "p0": p0, "p1": p1,
        "TRANSPOSED": transposed, "ACT": act, "ACC": STORAGE[acc_dtype(x.dtype)], "FAST": is_fast(x.dtype),
    }  # fmt: skip
    with launch_on(x):
        if (
            g.is_depthwise
        ):  # the weights of a tap together: channel by channel they would be loaded one by one
            common["w_ptr"] = w.view(O, g.taps).t().contiguous()
            launch = _short if g.is_short else _depthwise
            launch(g, target, x.dtype, transposed, common)
        else:
            _dense(g, target, x.dtype, transposed, precision, common)
    return y, z


def _short(g, target, dtype, transposed, common):
    L, oL, padding, K = g.inputs[2], g.outputs[2], g.padding[2], g.kernel[2]
    if transposed:
        L, oL, padding = oL, L, K - 1 - padding
    tile = short_tile(target, dtype, g.C)
    strip = strip_rows(target, tile, g.N, oL, g.C, 64)
    strips = triton.cdiv(g.N * triton.cdiv(oL, strip), tile["BLOCK_S"])
    _conv1d_short_kernel[(strips * triton.cdiv(g.C, tile["BLOCK_N"]),)](
        N=g.N, L=L, C=g.C, oL=oL, padding=padding, strip=strip, K=K, **common, **tile
    )


def _rows(g, transposed, phases):
    """Of the result, or of its largest phase."""
    if phases == 1:
        return g.N * math.prod(g.inputs if transposed else g.outputs)
    return g.N * math.prod(triton.cdiv(n, s) for n, s in zip(g.inputs, g.stride, strict=True))


def _depthwise(g, target, dtype, transposed, common):
    count, phases = g.phases(transposed)
    channels = g.C if transposed else g.O
    tile = depthwise_tile(target, dtype, channels)
    tiles_m = triton.cdiv(_rows(g, transposed, count), tile["BLOCK_M"])
    _depthwise_kernel[(count * tiles_m * triton.cdiv(channels, tile["BLOCK_N"]),)](
        tiles_m=tiles_m,
        MULTIPLIER=g.O // g.C,
        UNROLL=4,
        **g.arguments(transposed),
        **phases,
        **common,
        **tile,
    )


def _dense(g, target, dtype, transposed, precision, common):
    count, phases = g.phases(transposed)
    group_c, group_o = g.C // g.groups, g.O // g.groups
    if transposed:
        group_c, group_o = group_o, group_c
    rows = _rows(g, transposed, count)
    tile = choose_tile(target, dtype, precision, False, rows, group_o, g.groups * count)
    merged = g.merges and not transposed
    tiles_m = triton.cdiv(rows, tile.BLOCK_M)
    # all that a thread may have: left alone, ptxas spilled 12 bytes on sm_80 to stay at 128; fp32 it made spill
    registers = {"maxnreg": 255} if merged and dtype.itemsize == 2 and target.backend == "cuda" else {}
    _conv_kernel[(count * g.groups * tiles_m * triton.cdiv(group_o, tile.BLOCK_N),)](
        groups=g.groups, group_c=group_c, group_o=group_o, tiles_m=tiles_m, MERGED=merged, PRECISION=precision,
        GROUP_M=8, BLOCK_K=depth(tile, group_c, merged), **_options(tile), **g.arguments(transposed), **phases,
        **common, **registers,
    )  # fmt: skip


def _options(tile):
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return {name: getattr(tile, name) for name in names}


def conv_fwd(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """z = conv(x, w) + b + residual, y = act(z), (N, *size, O); `padding` is that in front, and behind x stand as many
    zeros as `size` asks for. Returns y and z (None unless save_z)."""
    return _conv(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, False)


def conv_bwd_input(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """dx (N, *size, C) of the convolution, or act(dx + b + residual), which is the transposed one; z as of conv_fwd.

    Each position of dx gathers what it takes. With a stride, a tap meets only the positions of one residue modulo it:
    the residues are convolutions of stride 1 of their own, in one launch, with the taps that meet them. That is the
    forward's arithmetic; one convolution with a mask on divisibility would be stride^dimensions times as much
    (3x3 of stride 2: 9 products a position for 2.25).
    """
    return _conv(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, True)


def conv_bwd_weight(dz, x, kernel, stride, padding, dilation, groups, need_db):
    """dw (O, *kernel, C / groups) and db (O,), None unless need_db.

    The rows are split among programs, whose sums (splits, ...) are added in a fixed order.
    """
    N, *inputs, C = x.shape
    *outputs, O = dz.shape[1:]
    g = Geometry(N, inputs, C, outputs, O, list(kernel), stride, padding, dilation, groups)
    with launch_on(x):
        if g.is_short:
            dw, db = _short_bwd_weight(g, dz, x, need_db)
        elif g.is_depthwise:
            dw, db = _depthwise_bwd_weight(g, dz, x, need_db)
        else:
            dw = _dense_bwd_weight(g, dz, x)
            db = column_sums(dz.view(-1, O)) if need_db else None
    return dw.view(O, *kernel, C // groups), db


def _partial(x, *shape):
    return torch.empty(shape, dtype=acc_dtype(x.dtype), device=x.device)


def _short_bwd_weight(g, dz, x, need_db):
    target = target_of(x)
    tile = short_tile(target, x.dtype, g.C)
    strip = strip_rows(target, tile, g.N, g.outputs[2], g.C, 256)
    splits = triton.cdiv(g.N * triton.cdiv(g.outputs[2], strip), tile["BLOCK_S"])
    dw, db = _partial(x, splits, g.O * g.taps), _partial(x, splits, g.O) if need_db else None
    _conv1d_short_bwd_weight_kernel[(splits * triton.cdiv(g.C, tile["BLOCK_N"]),)](
        dz_ptr=dz, x_ptr=x, dw_ptr=dw, db_ptr=db, N=g.N, L=g.inputs[2], C=g.C, oL=g.outputs[2],
        padding=g.padding[2], strip=strip, K=g.taps, ACC=STORAGE[dw.dtype], **tile,
    )  # fmt: skip
    return sum_rows(dw, x.dtype), sum_rows(db, x.dtype) if need_db else None


def _depthwise_bwd_weight(g, dz, x, need_db):
    target = target_of(x)
    tile = depthwise_tile(target, x.dtype, g.O)
    # eight taps of two channels a source spilled 1 KB on sm_90: their loads are one by one
    block_t = min(8 if g.O == g.C else 2, triton.next_power_of_2(g.taps))
    tiles = triton.cdiv(g.O, tile["BLOCK_N"]) * triton.cdiv(g.taps, block_t)
    rows, block = g.N * math.prod(g.outputs), tile["BLOCK_M"]
    split = rows_per_split(target, rows, tiles, SMALL_PROGRAMS, block, 4 * block)
    splits = triton.cdiv(rows, split)
    dw, db = _partial(x, splits, g.O * g.taps), _partial(x, splits, g.O) if need_db else None
    _depthwise_bwd_weight_kernel[(splits * tiles,)](
        dz_ptr=dz, x_ptr=x, dw_ptr=dw, db_ptr=db, rows_per_split=split, MULTIPLIER=g.O // g.C, BLOCK_T=block_t,
        ACC=STORAGE[dw.dtype], **g.arguments(), **tile,
    )  # fmt: skip
    return sum_rows(dw, x.dtype), sum_rows(db, x.dtype) if need_db else None


def _dense_bwd_weight(g, dz, x):
    target, precision = target_of(x), conv_precision(target_of(x), x.dtype)
    group_c, group_o = g.C // g.groups, g.O // g.groups
    columns, taps = (g.C * g.kernel[2], g.taps // g.kernel[2]) if g.merges else (group_c, g.taps)
    tile = choose_tile(target, x.dtype, precision, True, group_o, columns, g.groups * taps)
    tiles = g.groups * taps * triton.cdiv(group_o, tile.BLOCK_M) * triton.cdiv(columns, tile.BLOCK_N)
    rows = g.N * math.prod(g.outputs)
    block_k = weight_depth(tile, x.dtype, g.merges)
    split = rows_per_split(target, rows, tiles, PROGRAMS, block_k, 1024)
    splits = triton.cdiv(rows, split)
    size = g.O * g.taps * group_c
    dw = _partial(x, splits, size) if splits > 1 else x.new_empty(size)
    _conv_bwd_weight_kernel[(splits * tiles,)](
        dz_ptr=dz, x_ptr=x, dw_ptr=dw, groups=g.groups, group_c=group_c, group_o=group_o, rows_per_split=split,
        MERGED=g.merges, PRECISION=precision, ACC=STORAGE[acc_dtype(x.dtype)], BLOCK_K=block_k,
        **_options(tile), **g.arguments(),
    )  # fmt: skip
    return sum_rows(dw, x.dtype) if splits > 1 else dw
