"""What the convolution kernels share: which rows and taps meet, and the epilogue.

A tensor (N, D, H, W, C) is a matrix of N D H W rows and C columns; dimensions before the last RANK are of size 1.
Output row i and input row j of y = conv(x, w) meet in tap t where j = i stride - padding + t dilation.
"""

import triton
import triton.language as tl

from .math import act_value, narrow, widen


@triton.jit
def positions(offs, D, H, W, RANK: tl.constexpr):
    """n, d, h, w of rows offs = ((n D + d) H + h) W + w."""
    w = offs % W
    n = offs // W
    h = tl.zeros_like(w)
    d = tl.zeros_like(w)
    if RANK > 1:
        h = n % H
        n = n // H
    if RANK > 2:
        d = n % D
        n = n // D
    return n, d, h, w


@triton.jit
def advance(n, d, h, w, D, H, W, STEP: tl.constexpr, RANK: tl.constexpr):
    """The positions STEP rows on: additions and comparisons, where `positions` divides."""
    w += STEP % W
    over = w >= W
    w -= tl.where(over, W, 0)
    rest = STEP // W
    if RANK > 1:
        h += rest % H + over.to(tl.int32)
        over = h >= H
        h -= tl.where(over, H, 0)
        rest = rest // H
    if RANK > 2:
        d += rest % D + over.to(tl.int32)
        over = d >= D
        d -= tl.where(over, D, 0)
        rest = rest // D
    return n + rest + over.to(tl.int32), d, h, w


@triton.jit
def row_of(n, d, h, w, D, H, W, RANK: tl.constexpr):
    """The row of a position, int64; one outside the tensor gives some other row."""
    row = n.to(tl.int64)
    if RANK > 2:
        row = row * D + d
    if RANK > 1:
        row = row * H + h
    return row * W + w


@triton.jit
def inside(d, h, w, D, H, W, RANK: tl.constexpr):
    mask = (w >= 0) & (w < W)
    if RANK > 1:
        mask &= (h >= 0) & (h < H)
    if RANK > 2:
        mask &= (d >= 0) & (d < D)
    return mask


@triton.jit
def phase(r, K: tl.constexpr, stride, padding, dilation, step, inverse):
    """Of the input positions j = q stride + r: the taps first + u step, u < count, in which they meet outputs, and the
    output start + q - u dilation / g that they meet in tap u.

    Tap t needs j + padding - t dilation divisible by the stride. With g = gcd(stride, dilation), step = stride / g and
    inverse that of dilation / g modulo step, these are one residue class of t modulo step, or, where g does not divide
    r + padding, none.
    """
    g = stride // step
    first = (r + padding) // g * inverse % step
    count = tl.where((r + padding) % g == 0, (tl.maximum(K - first, 0) + step - 1) // step, 0)
    return first, count, (r + padding - first * dilation) // stride


@triton.jit
def tile_rows(
    start, at, N, oD, oH, oW, stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    step_d, step_h, step_w, inverse_d, inverse_h, inverse_w,
    TRANSPOSED: tl.constexpr, STRIDED: tl.constexpr, RANK: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of the result (N, oD, oH, oW) from `start` on, of phase `at` where STRIDED: which exist, where they
    lie, n and (d, h, w) that they meet in their first tap, by how much that moves from tap to tap, the first taps
    and their counts.

    The result is y, whose rows meet positions of x, or TRANSPOSED dx, whose rows meet positions of dz. STRIDED, a phase
    is the rows whose positions have one residue modulo the stride, numbered without gaps.
    """
    count_d, count_h, count_w = oD, oH, oW
    first_d, first_h, first_w = 0, 0, 0
    taps_d, taps_h, taps_w = KD, KH, KW
    if STRIDED:
        r_w = at % stride_w
        r_h = at // stride_w % stride_h
        r_d = at // stride_w // stride_h
        count_d = tl.cdiv(oD - r_d, stride_d)
        count_h = tl.cdiv(oH - r_h, stride_h)
        count_w = tl.cdiv(oW - r_w, stride_w)
        first_d, taps_d, start_d = phase(r_d, KD, stride_d, pad_d, dil_d, step_d, inverse_d)
        first_h, taps_h, start_h = phase(r_h, KH, stride_h, pad_h, dil_h, step_h, inverse_h)
        first_w, taps_w, start_w = phase(r_w, KW, stride_w, pad_w, dil_w, step_w, inverse_w)
    offs = start + tl.arange(0, BLOCK_M)
    rows = N.to(offs.dtype) * count_d * count_h * count_w
    n, d, h, w = positions(offs, count_d, count_h, count_w, RANK)
    row = offs.to(tl.int64)
    if STRIDED:
        taps_d = tl.where(start < rows, taps_d, 0)  # the smaller phases have fewer tiles
        row = row_of(n, d * stride_d + r_d, h * stride_h + r_h, w * stride_w + r_w, oD, oH, oW, RANK)
        d, h, w = d + start_d, h + start_h, w + start_w
        move_d = -(dil_d * step_d // stride_d)
        move_h = -(dil_h * step_h // stride_h)
        move_w = -(dil_w * step_w // stride_w)
    elif TRANSPOSED:
        d, h, w = d + pad_d, h + pad_h, w + pad_w
        move_d, move_h, move_w = -dil_d, -dil_h, -dil_w
    else:
        d, h, w = d * stride_d - pad_d, h * stride_h - pad_h, w * stride_w - pad_w
        move_d, move_h, move_w = dil_d, dil_h, dil_w
    return (
        offs < rows, row, n, d, h, w, move_d, move_h, move_w, first_d, first_h, first_w, taps_d, taps_h, taps_w
    )  # fmt: skip


@triton.jit
def finish(
    acc, b_ptr, residual_ptr, y_ptr, z_ptr, channel, offs, mask_n, mask, p0, p1,
    ACT: tl.constexpr, ACC: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """z = acc + b + residual, y = act(z), stored at `offs`; channel and mask_n (1, BLOCK_N)."""
    if b_ptr is not None:
        acc += widen(tl.load(b_ptr + channel, mask=mask_n, other=0.0), ACC)
    if residual_ptr is not None:
        acc += widen(tl.load(residual_ptr + offs, mask=mask, other=0.0), ACC)
    if z_ptr is not None:
        tl.store(z_ptr + offs, narrow(acc, z_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + offs, narrow(act_value(acc, ACT, p0, p1, FAST), y_ptr.dtype.element_ty), mask=mask)
