"""Where pooling and resampling look: tables of windows and of weights, one of each for all dimensions and backends.

Launchers take tensors of (N, C, D, H, W) and work on (B, D, H, W, L), contiguous: L channels that are adjacent in
memory and B = N samples, or L = 1 and B = N C planes.
"""

import functools
from typing import NamedTuple

import torch

# The dtypes of max-pooling's index, by what it holds.
INDEX = {"tap": torch.uint8, "flat": torch.int64}


def lanes(x, last):
    """x (N, C, D, H, W) as (B, D, H, W, L), contiguous; last: whether its channels are adjacent."""
    if last:
        return x.permute(0, 2, 3, 4, 1).contiguous()
    return x.contiguous().view(x.shape[0] * x.shape[1], *x.shape[2:], 1)


def unlaned(y, channels, last):
    """(B, D, H, W, L) as (N, C, D, H, W)."""
    return y.permute(0, 4, 1, 2, 3) if last else y.view(-1, channels, *y.shape[1:4])


class Windows(NamedTuple):
    """The windows of a pooling, int32.

    reach (OD + OH + OW, 3): of each output its start and the taps t0 ... t1 - 1 that lie inside; tap t is at
    start + t * dilation. covers (D + H + W, 2): of each input the outputs lo ... hi - 1 whose windows span it.
    kernel, dilation: sizes by which taps are numbered, (a * KH + b) * KW + c, and their distances. uniform: whether
    output o of the last dimension starts at o * stride - padding; most: the most outputs a dimension that
    cover an input.
    """

    reach: torch.Tensor
    covers: torch.Tensor
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: int
    padding: int
    uniform: bool
    most: tuple[int, ...]


def _adaptive(size, out):
    """start and end of each output's window, floor(o I / O) and ceil((o + 1) I / O)."""
    o = torch.arange(out, dtype=torch.int64)
    return o * size // out, ((o + 1) * size + out - 1) // out


@functools.lru_cache(maxsize=256)
def windows(size, out, kernel, stride, padding, dilation, device):
    """size, out, and (empty for adaptive pooling) kernel, stride, padding, dilation: three each."""
    reach, covers, sizes, most = [], [], [], []
    for i in range(3):
        d = dilation[i] if kernel else 1
        if kernel:
            start = torch.arange(out[i], dtype=torch.int64) * stride[i] - padding[i]
            length = torch.full_like(start, kernel[i])
        else:
            start, end = _adaptive(size[i], out[i])
            length = end - start
        first = ((d - 1 - start) // d).clamp(min=0)
        last = torch.minimum(length, (size[i] - start + d - 1) // d)
        reach.append(torch.stack([start, first, last], 1))
        position = torch.arange(size[i], dtype=torch.int64)
        hi = torch.searchsorted(start, position, right=True)
        lo = torch.minimum(torch.searchsorted(start + (length - 1) * d, position), hi)
        covers.append(torch.stack([lo, hi], 1))
        sizes.append(int(length.max()))
        most.append(max(1, int((hi - lo).max())))
    tables = (torch.cat(t).to(device, torch.int32) for t in (reach, covers))
    return Windows(
        *tables,
        tuple(sizes),
        tuple(dilation) if kernel else (1, 1, 1),
        stride[2] if kernel else 1,
        padding[2] if kernel else 0,
        bool(kernel),
        tuple(most),
    )


class Weights(NamedTuple):
    """A separable linear map: y[o] = Σ_c weights[at[o] + c] x[min(first[o] + c, I - 1)] / divisors[o] a dimension, its
    taps c < count[o].

    table (OD + OH + OW, 3), int32: first, count, at. weights, divisors (OD + OH + OW; None: all 1): of the dtype of
    the arithmetic. most: the largest counts.
    """

    table: torch.Tensor
    weights: torch.Tensor
    divisors: torch.Tensor | None
    most: tuple[int, int, int]


def _averaged(mode, size, out, kernel, stride, padding, divisor):
    """first, last (of windows inside the input) and the divisors of one dimension."""
    if mode == "adaptive":
        start, end = _adaptive(size, out)
    else:
        start = torch.arange(out, dtype=torch.int64) * stride - padding
        end = (start + kernel).clamp(max=size + padding)
    first, last = start.clamp(0, size), end.clamp(0, size)
    if mode == "adaptive" or divisor == 0:  # by what lies inside
        return first, last, (last - first).clamp(min=1)
    return first, last, end - start if divisor == -1 else torch.ones_like(first)


def _nearest(mode, size, out, scale):
    """The position of each output, in float32 as torch computes it (ATen/native/UpSample.h)."""
    o = torch.arange(out, dtype=torch.int64)
    ratio = torch.tensor(1.0 / scale if scale > 0 else size / out, dtype=torch.float32)
    if mode == "nearest":
        position = o.float() * ratio
    else:  # a double times a float, of which floorf takes a float
        position = ((o.double() + 0.5) * ratio.double()).float()
    return position.floor().long().clamp(max=size - 1)


def _linear(mode, size, out, scale, dtype):
    """i0, i1 and the weight of i1 of each output, in the arithmetic's dtype as torch computes them (same header)."""
    o = torch.arange(out, dtype=torch.int64)
    if out == size:
        return o, o, torch.zeros(out, dtype=dtype)
    if mode == "corners":
        ratio = torch.tensor(size - 1, dtype=dtype) / (out - 1) if out > 1 else torch.zeros((), dtype=dtype)
        position = ratio * o
    else:
        ratio = torch.tensor(1.0 / scale, dtype=dtype) if scale > 0 else torch.tensor(size, dtype=dtype) / out
        position = (ratio * (o + torch.tensor(0.5, dtype=dtype)) - 0.5).clamp(min=0)
    i0 = position.float().floor().long().clamp(max=size - 1)
    return i0, (i0 + 1).clamp(max=size - 1), (position - i0).clamp(0, 1)


@functools.lru_cache(maxsize=256)
def weights(mode, size, out, shape, divisor, scales, transposed, dtype, device):
    """The map from `size` to `out`, three sizes each, or its transpose from `out` to `size`.

    mode: "avg" (shape: kernel, stride and padding, nine; divisor: -1 the window with its padding, 0 without, else
    itself), "adaptive" (averages), "nearest", "nearest-exact", "linear", "corners" (linear, align_corners). scales: the
    factors asked for, or zeros. dtype: of the arithmetic.
    """
    table, values, divisors, most, at = [], [], [], [], 0
    for i in range(3):
        ones = torch.ones(1, dtype=dtype)
        by = torch.ones(out[i], dtype=dtype)
        if mode in ("avg", "adaptive"):
            first, last, by = _averaged(mode, size[i], out[i], *(shape[i::3] or (0, 0, 0)), divisor)
            if divisor > 0 or divisor < -1:
                by = by * (divisor if i == 0 else 1)
            lo = torch.searchsorted(last, torch.arange(size[i]), right=True)
            hi = torch.searchsorted(first, torch.arange(size[i]), right=True)
        elif mode in ("nearest", "nearest-exact"):
            first = _nearest(mode, size[i], out[i], scales[i])
            last = first + 1
            lo = torch.searchsorted(first, torch.arange(size[i]))
            hi = torch.searchsorted(first, torch.arange(size[i]), right=True)
        else:
            first, second, w = _linear(mode, size[i], out[i], scales[i], dtype)
            last = first + (1 if out[i] == size[i] else 2)
            lo = torch.searchsorted(second, torch.arange(size[i]))
            hi = torch.searchsorted(first, torch.arange(size[i]), right=True)
        if not transposed:
            begin, count = first, last - first
            if mode in ("linear", "corners"):
                value = torch.stack([1 - w, w], 1).flatten()
                start = 2 * torch.arange(out[i])
            else:
                value, start = ones.expand(max(1, int(count.max()))), torch.zeros(out[i], dtype=torch.int64)
            divisors.append(by.to(dtype))
        else:
            begin, count = torch.minimum(lo, hi), (hi - lo).clamp(min=0)
            if mode in ("linear", "corners"):
                start = count.cumsum(0) - count
                source = torch.repeat_interleave(torch.arange(size[i]), count)
                o = torch.arange(int(count.sum())) - start[source] + begin[source]
                value = (1 - w[o]) * (first[o] == source) + w[o] * (second[o] == source)
            elif mode in ("avg", "adaptive"):
                value, start = 1 / by.double(), begin
            else:
                value, start = ones.expand(max(1, int(count.max()))), torch.zeros(size[i], dtype=torch.int64)
        table.append(torch.stack([begin, count, start + at], 1))
        values.append(value.to(dtype))
        most.append(max(1, int(count.max())))
        at += len(value)
    divide = not transposed and mode in ("avg", "adaptive")
    return Weights(
        torch.cat(table).to(device, torch.int32),
        torch.cat(values).to(device),
        torch.cat(divisors).to(device) if divide else None,
        tuple(most),
    )
