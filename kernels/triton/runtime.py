"""What the launchers share: the device they launch on, and the dtypes in Triton's terms."""

import functools
from typing import NamedTuple

import torch
import triton.language as tl

from .math import INTERPRET


class Target(NamedTuple):
    """What tile choice may depend on."""

    backend: str  # "cuda", "hip" or "interpreter"
    arch: int  # 10 * major + minor on CUDA, else 0
    num_sms: int
    shared_memory: int  # bytes that one program may use


INTERPRETER = Target("interpreter", 0, 4, 1 << 16)

STORAGE = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@functools.cache
def _device_target(index):
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target("hip", 0, properties.multi_processor_count, 1 << 16)
    arch = 10 * properties.major + properties.minor
    return Target("cuda", arch, properties.multi_processor_count, properties.shared_memory_per_block_optin)


def target_of(x):
    """The Target that kernels on x run on."""
    return INTERPRETER if INTERPRET.value else _device_target(x.device.index)


def warps_of_128(target):
    """Warps of 128 threads: AMD's have 64."""
    return 2 if target.backend == "hip" else 4


def launch_on(x):
    """A context in which launches go to x's device."""
    if not INTERPRET.value:
        return torch.cuda.device_of(x)
    import numpy

    # The interpreter computes in NumPy, which warns where a device gives inf or NaN in silence.
    return numpy.errstate(all="ignore")


def acc_dtype(dtype):
    """The dtype that the arithmetic on tensors of `dtype` runs in: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_fast(dtype):
    """Whether `dtype` is too coarse to show the error of the hardware's exp (math.exp)."""
    return dtype.itemsize == 2


def matmul_precision(dtype):
    """ "tf32" where the user lets torch's own fp32 GEMMs run in it, else "ieee"."""
    # Not allow_tf32: reading that raises when the newer setting was written.
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"
