"""What launchers share: on a CPU, memory that is cheap to touch first; torch's matrix products.

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
    if size > KEPT_BYTES:
        return empty(shape, dtype)
    buffer = getattr(_kept, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = _kept.buffer = None  # freed before the larger one is taken
        buffer = _kept.buffer = empty((size,), torch.uint8)
    return buffer[:size].view(dtype).view(shape)


@functools.cache
def onednn_wins():
    """On 2 AMD EPYC cores oneDNN's fp32 product reaches 210 GFLOP/s, MKL's 149 (2048x768x3072)."""
    if not torch.backends.mkldnn.is_available() or not sys.platform.startswith("linux"):
        return False
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return "AuthenticAMD" in cpuinfo.read()
    except OSError:
        return False


# Below it a call's fixed cost of 30 us outweighs the gain (64x64x128: 47 us against 21).
ONEDNN_FLOPS = 1 << 25


# The longest sum that oneDNN makes without AVX-512, where its error is 1.4 to 1.8 times MKL's; at 768 it is 2.5 to 3.8
# times (512 rows to 1024, five seeds), which the rule of proof does not let pass.
LONGEST_SUM = 384


@functools.cache
def _is_avx2():
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _through_onednn(a, b):
    # weight gradients (both operands transposed) run no faster there
    if a.dtype != torch.float32 or not onednn_wins() or (a.shape[1] > LONGEST_SUM and _is_avx2()):
        return False
    flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    return flops >= ONEDNN_FLOPS and a.is_contiguous() and (b.is_contiguous() or b.t().is_contiguous())


# Without AVX-512 oneDNN reads a weight by its columns at half the speed where its rows are thousands of elements apart:
# 2048x384 @ 384x1536 takes 23.7 ms, with the copy 20.4.
COPIED_ROWS = 1024


def matmul(a, b):
    """a (M, K) @ b (K, N) by the fastest of torch's products."""
    if a.dtype == torch.float16:
        # 512x768x3072 takes torch's fp16 product 65 ms (the weight gradient 403), this detour 15
        return torch.mm(a.float(), b.float()).half()
    if _through_onednn(a, b):
        w = b.t()
        if not w.is_contiguous() and a.shape[0] >= COPIED_ROWS and _is_avx2():
            w = w.contiguous()
        return torch.ops.mkldnn._linear_pointwise(a, w, None, "none", [], "")
    return torch.mm(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))


def biased_product(x, w, b):
    """z = x wᵀ + b, and the bias that is still to be added (None where there is none).

    In bf16 and fp16 the product takes the bias before it rounds: rounded twice, a z near 0 can change sign, and
    with it the derivative.
    """
    if b is None or x.dtype == torch.float64:
        return matmul(x, w.t()), b
    if x.dtype == torch.float32:
        if _through_onednn(x, w.t()):
            return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], ""), None
        return matmul(x, w.t()), b
    if x.dtype == torch.float16:
        return matmul(x.float(), w.float().t()).add_(b).half(), None
    return torch.addmm(b, x, w.t(), out=empty((x.shape[0], w.shape[0]), x.dtype)), None


def weight_gradient(dz, x, w, matmul=torch.mm):
    """dw = dzᵀ x for z = x wᵀ, laid out as torch's own gradient: as w where that is contiguous or transposed.

    It is more than layout: summed over 8192 rows to 20x8, MKL's dzᵀ x is 10 times less exact than its xᵀ dz.
    """
    return matmul(dz.t(), x) if w.is_contiguous() else matmul(x.t(), dz).t()
