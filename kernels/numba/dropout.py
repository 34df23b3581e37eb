"""Dropout: the mask is drawn where it is used."""

import functools

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer
from .math import jit, u32
from .random import philox, u64


@functools.cache
def _kernel(dtype, has_residual):
    store_t, f, load, store = STORAGE[dtype]

    @jit
    def one(x_ptr, residual_ptr, y_ptr, i, word, least, scale):
        factor = f(0) if word < least else scale
        y = load(x_ptr[i]) * factor  # a dropped NaN or infinity gives NaN: torch multiplies with 0
        y_ptr[i] = store(load(residual_ptr[i]) + y if has_residual else y)

    @kernel
    def _dropout_kernel(first, last, args, p0, p1):
        """y = x m / (1 - p) (+ residual). A unit is a block of four elements."""
        x_ptr, residual_ptr = pointer(args[0], store_t), pointer(args[1], store_t)
        y_ptr, n = pointer(args[2], store_t), args[3]
        seed, least, scale = u64(args[4]), u32(args[5]), f(p0)
        for block in range(first, last):
            w0, w1, w2, w3 = philox(seed, u64(block))
            i = 4 * block
            one(x_ptr, residual_ptr, y_ptr, i, w0, least, scale)
            if i + 1 < n:
                one(x_ptr, residual_ptr, y_ptr, i + 1, w1, least, scale)
            if i + 2 < n:
                one(x_ptr, residual_ptr, y_ptr, i + 2, w2, least, scale)
            if i + 3 < n:
                one(x_ptr, residual_ptr, y_ptr, i + 3, w3, least, scale)

    return _dropout_kernel


def dropout_fwd(x, residual, seed, p):
    y = memory.empty_like(x)
    n = x.numel()
    least = min(round(p * 2**32), 2**32 - 1)
    residual_ptr = 0 if residual is None else residual.data_ptr()
    args = (x.data_ptr(), residual_ptr, y.data_ptr(), n, seed.item(), least)
    launch(_kernel(x.dtype, residual is not None), -(-n // 4), n, args, 1 / (1 - p))
    return y
