"""Convolution: y = act(conv(x, w) + b + residual), its gradient to the input, which is the transposed convolution, and
to the weight. All tensors contiguous, x (N, D, H, W, C), y (N, oD, oH, oW, O), w (O, kD, kH, kW, C / groups).

Dense and grouped, an implicit product of matrices (conv_gemm.py); depthwise, a sum over taps (conv_depthwise.py), of short
one-dimensional kernels over rows in registers (conv_short.py); 1x1, the linear layer's kernel.
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
)
from .linear import column_sums, linear_act_fwd
from .norm import sum_rows
from .runtime import STORAGE, acc_dtype, is_fast, launch_on, target_of


def conv_precision(target, dtype):
    """ "tf32" where the user lets torch's own fp32 convolutions run in it, as torch does by default, else "ieee"."""
    tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 and target.backend == "cuda" else "ieee"


class Geometry:
    """The numbers of a convolution as the kernels take them; `inputs` and `outputs` are x's and y's sizes."""

    def __init__(self, inputs, outputs, kernel, stride, padding, dilation):
        lead = 0  # dimensions of size 1, which the kernels leave out
        while lead < 2 and inputs[lead] == outputs[lead] == kernel[lead] == 1 and padding[lead] == 0:
            lead += 1
        self.rank = 3 - lead
        self.kernel, self.padding = list(kernel), list(padding)
        self.stride = [1] * lead + list(stride[lead:])
        self.dilation = [1 if k == 1 else d for k, d in zip(kernel, dilation, strict=True)]
        self.taps = math.prod(kernel)

    def merges(self, W, C, groups):
        """Whether the taps of a row count as one, of kW C channels."""
        few = groups == 1 and C < FEW_CHANNELS and self.kernel[2] > 1
        return few and self.dilation[2] == 1 and W * C < 1 << 31

    def is_pointwise(self, groups):
        return groups == 1 and self.taps == 1 and max(self.stride) == 1 and max(self.padding) == 0

    def is_short(self, multiplier):
        """Whether conv_short.py serves this depthwise convolution."""
        plain = self.rank == 1 and self.stride[2] == self.dilation[2] == multiplier == 1
        return plain and 2 <= self.kernel[2] <= 8

    def arguments(self):
        """RANK, and by dimension kernel, stride, padding and dilation."""
        names = {"stride": self.stride, "pad": self.padding, "dil": self.dilation}
        by_name = {f"{name}_{'dhw'[i]}": v[i] for name, v in names.items() for i in range(3)}
        return {"RANK": self.rank} | dict(zip(("KD", "KH", "KW"), self.kernel, strict=True)) | by_name

    def phases(self, transposed):
        """STRIDED, and step and inverse by dimension (conv_index.py)."""
        strided = transposed and max(self.stride) > 1
        found = {"STRIDED": strided}
        for name, s, d in zip("dhw", self.stride, self.dilation, strict=True):
            step = s // math.gcd(s, d) if strided else 1
            found |= {f"step_{name}": step, f"inverse_{name}": pow(d * step // s, -1, step) if strided else 0}
        return found


def _sizes(N, inputs, C, outputs, O):
    """The arguments that are sizes."""
    names = ("N", "D", "H", "W", "C", "oD", "oH", "oW", "O")
    index = tl.int32 if N * math.prod(outputs) < (1 << 31) - 4096 else tl.int64
    return dict(zip(names, (N, *inputs, C, *outputs, O), strict=True)) | {"INDEX": index}


def _depthwise(channels, w, groups):
    return 1 < groups == channels and w.shape[4] == 1


def _conv(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, transposed):
    """conv_fwd, or conv_bwd_input with x = dz."""
    N, *inputs, C = x.shape
    O = w.shape[4] * groups if transposed else w.shape[0]
    target, precision = target_of(x), conv_precision(target_of(x), x.dtype)
    g = Geometry(inputs, size, w.shape[1:4], stride, padding, dilation)
    if g.is_pointwise(groups) and residual is None:
        matrix = w.view(w.shape[0], w.shape[4])
        y, z = linear_act_fwd(
            x.view(-1, C), matrix.t() if transposed else matrix, b, act, p0, p1, save_z, precision
        )
        return y.view(N, *size, O), z.view(N, *size, O) if save_z else None
    y = torch.empty((N, *size, O), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save_z else None
    common = dict(
        x_ptr=x, w_ptr=w, b_ptr=b, residual_ptr=residual, y_ptr=y, z_ptr=z, p0=p0, p1=p1, TRANSPOSED=transposed,
        ACT=act, ACC=STORAGE[acc_dtype(x.dtype)], FAST=is_fast(x.dtype),
    )  # fmt: skip
    depthwise = _depthwise(O if transposed else C, w, groups)
    multiplier = w.shape[0] // groups
    if depthwise and g.is_short(multiplier):
        tile = short_tile(target, x.dtype, C)
        L, oL, K, padding = inputs[2], size[2], g.kernel[2], g.padding[2]
        strip = strip_rows(target, tile, N, oL, C, 64)
        programs = triton.cdiv(N * triton.cdiv(oL, strip), tile["BLOCK_S"]) * triton.cdiv(C, tile["BLOCK_N"])
        with launch_on(x):
            _conv1d_short_kernel[(programs,)](
                N=N, L=L, C=C, oL=oL, padding=K - 1 - padding if transposed else padding, strip=strip, K=K,
                **common, **tile,
            )  # fmt: skip
        return y, z
    phases = g.phases(transposed)
    common |= _sizes(N, inputs, C, size, O) | g.arguments() | phases
    stride = g.stride if phases["STRIDED"] else [1, 1, 1]
    rows = N * math.prod(triton.cdiv(n, s) for n, s in zip(size, stride, strict=True))  # of the largest phase
    copies = math.prod(stride)
    if depthwise:
        tile = depthwise_tile(target, x.dtype, O)
        tiles_m = triton.cdiv(rows, tile["BLOCK_M"])
        with launch_on(x):
            _depthwise_kernel[(tiles_m * triton.cdiv(O, tile["BLOCK_N"]) * copies,)](
                tiles_m=tiles_m, MULTIPLIER=multiplier, UNROLL=4, **common, **tile
            )
        return y, z
    group_c, group_o = C // groups, O // groups
    tile = choose_tile(target, x.dtype, precision, False, rows, group_o, groups * copies)
    merged = not transposed and g.merges(inputs[2], C, groups)
    options = _options(tile) | {"GROUP_M": 8, "BLOCK_K": depth(tile, group_c, merged)}
    tiles_m = triton.cdiv(rows, tile.BLOCK_M)
    with launch_on(x):
        _conv_kernel[(tiles_m * triton.cdiv(group_o, tile.BLOCK_N) * groups * copies,)](
            groups=groups, group_c=group_c, group_o=group_o, tiles_m=tiles_m, MERGED=merged, PRECISION=precision,
            **common, **options,
        )  # fmt: skip
    return y, z


def _options(tile):
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
    return {name: getattr(tile, name) for name in names}


def conv_fwd(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """z = conv(x, w) + b + residual, y = act(z), (N, *size, O); `padding` is that in front, behind x stands what zeros
    `size` asks for. Returns y and z (None unless save_z)."""
    return _conv(x, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, False)


def conv_bwd_input(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z):
    """dx (N, *size, C) of the convolution, or act(dx + b + residual), which is the transposed one; z as of conv_fwd.

    Each position of dx gathers what it takes. With a stride, a tap meets only the positions of one residue modulo it:
    the residues are convolutions of stride 1 of their own, in one launch, with the taps that meet them. That is the
    forward's arithmetic; one convolution with a mask on divisibility would be as much as stride^dimensions times
    (3x3 of stride 2: 9 products a position for 2.25).
    """
    return _conv(dz, w, b, residual, size, stride, padding, dilation, groups, act, p0, p1, save_z, True)


def conv_bwd_weight(dz, x, kernel, stride, padding, dilation, groups, need_db):
    """dw (O, *kernel, C / groups) and db (O,), None unless need_db.

    The rows are split among programs, whose sums (splits, ...) are added in a fixed order.
    """
    N, *inputs, C = x.shape
    *outputs, O = dz.shape[1:]
    g = Geometry(inputs, outputs, kernel, stride, padding, dilation)
    target, acc = target_of(x), acc_dtype(x.dtype)
    rows, group_c, group_o = N * math.prod(outputs), C // groups, O // groups
    shape = (O, *kernel, group_c)

    def empty(*shape, dtype=acc):
        return torch.empty(shape, dtype=dtype, device=x.device)

    common = dict(dz_ptr=dz, x_ptr=x, ACC=STORAGE[acc])
    if 1 < groups == C:
        if g.is_short(group_o):
            tile = short_tile(target, x.dtype, C)
            tiles_n = triton.cdiv(C, tile["BLOCK_N"])
            strip = strip_rows(target, tile, N, outputs[2], C, 256)
            splits = triton.cdiv(N * triton.cdiv(outputs[2], strip), tile["BLOCK_S"])
        else:
            tile = depthwise_tile(target, x.dtype, O)
            # eight taps of two channels a source spilled 1 KB on sm_90: their loads are one by one
            block_t = min(8 if group_o == 1 else 2, triton.next_power_of_2(g.taps))
            tiles_n = triton.cdiv(O, tile["BLOCK_N"]) * triton.cdiv(g.taps, block_t)
            block = tile["BLOCK_M"]
            split = rows_per_split(target, rows, tiles_n, SMALL_PROGRAMS, block, 4 * block)
            splits = triton.cdiv(rows, split)
        dw, db = empty(splits, O * g.taps), empty(splits, O) if need_db else None
        common |= tile | {"dw_ptr": dw, "db_ptr": db}
        with launch_on(x):
            if g.is_short(group_o):
                _conv1d_short_bwd_weight_kernel[(tiles_n * splits,)](
                    N=N, L=inputs[2], C=C, oL=outputs[2], padding=padding[2], strip=strip, K=kernel[2], **common
                )
            else:
                _depthwise_bwd_weight_kernel[(tiles_n * splits,)](
                    rows_per_split=split, MULTIPLIER=group_o, BLOCK_T=block_t, **_sizes(N, inputs, C, outputs, O),
                    **g.arguments(), **common,
                )  # fmt: skip
        return sum_rows(dw, x.dtype).view(shape), sum_rows(db, x.dtype) if need_db else None

    precision = conv_precision(target, x.dtype)
    merged = g.merges(inputs[2], C, groups)
    columns, taps = (C * kernel[2], g.taps // kernel[2]) if merged else (group_c, g.taps)
    tile = choose_tile(target, x.dtype, precision, True, group_o, columns, groups * taps)
    count = groups * taps * triton.cdiv(group_o, tile.BLOCK_M) * triton.cdiv(columns, tile.BLOCK_N)
    split = rows_per_split(target, rows, count, PROGRAMS, tile.BLOCK_K, 1024)
    splits = triton.cdiv(rows, split)
    dw = empty(*shape, dtype=x.dtype) if splits == 1 else empty(splits, math.prod(shape))
    with launch_on(x):
        _conv_bwd_weight_kernel[(count * splits,)](
            dw_ptr=dw, groups=groups, group_c=group_c, group_o=group_o, rows_per_split=split, MERGED=merged,
            PRECISION=precision, **_sizes(N, inputs, C, outputs, O), **g.arguments(), **common, **_options(tile),
        )  # fmt: skip
    if splits > 1:
        dw = sum_rows(dw, x.dtype).view(shape)
    return dw, column_sums(dz.view(rows, O)) if need_db else None
