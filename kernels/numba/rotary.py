"""Rotary embedding, over any strides but the last."""

import functools

import numpy as np

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer


@functools.cache
def _kernel(dtype, has_ids, interleaved):
    store_t, f, load, store = STORAGE[dtype]

    @kernel
    def _rotary_kernel(first, last, args, p0, p1):
        """y = x turned by the angle of its position, p0 = -1 backwards. A unit is the features of one position."""
        x_ptr, y_ptr = pointer(args[0], store_t), pointer(args[1], store_t)
        cos_ptr, sin_ptr = pointer(args[2], f), pointer(args[3], f)
        ids_ptr, sizes = pointer(args[4], np.int64), pointer(args[5], np.int64)
        H, L, D, positions, half = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
        step, shift = (2, 1) if interleaved else (1, half)
        sign = f(p0)
        for unit in range(first, last):
            b, h, l = unit // (L * H), unit // L % H, unit % L
            x = b * sizes[5] + h * sizes[6] + l * sizes[7]
            y = b * sizes[8] + h * sizes[9] + l * sizes[10]
            position = l
            if has_ids:
                position = min(max(ids_ptr[b * sizes[11] + l * sizes[12]], 0), positions - 1)
            at = position * half
            for i in range(half):
                cos, sin = cos_ptr[at + i], sign * sin_ptr[at + i]
                p, q = load(x_ptr[x + step * i]), load(x_ptr[x + step * i + shift])
                y_ptr[y + step * i] = store(p * cos - q * sin)
                y_ptr[y + step * i + shift] = store(q * cos + p * sin)
            for i in range(2 * half, D):
                y_ptr[y + i] = x_ptr[x + i]

    return _rotary_kernel


def rotary(x, cos, sin, position_ids, interleaved, inverse):
    y = memory.empty_like(x)
    B, H, L, D = x.shape
    ids, strides = 0, (0, 0)
    if position_ids is not None:
        ids = position_ids.data_ptr()
        strides = (position_ids.stride(0) if position_ids.dim() == 2 else 0, position_ids.stride(-1))
    sizes = np.array(
        (H, L, D, *cos.shape, *x.stride()[:3], *y.stride()[:3], *strides),
        dtype=np.int64,
    )
    args = (x.data_ptr(), y.data_ptr(), cos.data_ptr(), sin.data_ptr(), ids, sizes.ctypes.data)
    build = _kernel(x.dtype, position_ids is not None, interleaved)
    launch(build, B * H * L, x.numel(), args, -1.0 if inverse else 1.0)
    return y
