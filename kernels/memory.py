"""What launchers share on a CPU: memory that is cheap to touch first.

Touching fresh pages costs more than most kernels' arithmetic (64 MB: a copy into them 25 ms, into huge
pages 8 ms, into warm memory 5 ms on 2 cores), so outputs ask for huge pages and scratch is kept.
"""

import ctypes
import functools
import mmap
import sys
import threading

import torch

# One whole huge page at least, whatever the alignment; below it glibc recycles memory itself.
HUGE_BYTES = 4 << 20
KEPT_BYTES = 256 << 20  # the most scratch a thread keeps between calls
PAGE = mmap.PAGESIZE


@functools.cache
def _madvise():
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


def _ask_huge_pages(t):
    """Advice only: where the kernel has no huge pages to give, the memory works as any other."""
    size = t.numel() * t.element_size()
    if size >= HUGE_BYTES and (madvise := _madvise()):
        first = -(-t.data_ptr() // PAGE) * PAGE
        madvise(first, (t.data_ptr() + size - first) // PAGE * PAGE, mmap.MADV_HUGEPAGE)
    return t


def empty(shape, dtype):
    return _ask_huge_pages(torch.empty(shape, dtype=dtype))


def empty_like(t):
    """Uninitialised, with t's strides where t is dense."""
    return _ask_huge_pages(torch.empty_like(t))


_kept = threading.local()


def workspace(shape, dtype):
    """A contiguous scratch tensor of undefined contents, this thread's until its next call; never a result."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return _buffer("workspace", size)[:size].view(dtype).view(shape)


def product_scratch(size):
    """Scratch of `size` bytes and 64 to align it: a product's own, whose operands may lie in the workspace."""
    return _buffer("product", size + 64)


def _buffer(name, size):
    """At least `size` bytes."""
    if size > KEPT_BYTES:
        return empty((size,), torch.uint8)
    buffer = getattr(_kept, name, None)
    if buffer is None or buffer.numel() < size:
        buffer = None
        setattr(_kept, name, None)  # freed before the larger one is taken
        buffer = empty((size,), torch.uint8)
        setattr(_kept, name, buffer)
    return buffer
