"""Pooling and interpolation, forward and backward, in both layouts.

The floor: x is read, y written, dy read, dx written, once each; max-pooling adds its index, a byte an output written
and read. 16x64x112x112 to 56x56 in fp32: 51.4 + 12.8 + 12.8 + 51.4 MB, and 2 x 3.2 of index.
"""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16


def _case(said, name, shape, args, dtype, last, ratio):
    def make(generator):
        x = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64)
        return [x.contiguous(memory_format=torch.channels_last) if last else x]

    out = getattr(T, name)(torch.empty(1, 1, *shape[2:]), *args).numel() * shape[0] * shape[1]
    elements = torch.Size(shape).numel()
    targets = (Target("ratio", ratio),)
    if GPU:
        targets += (Target("share of ceiling", 0.8),)
    return op_case(
        f"{said} {'x'.join(map(str, shape))} {'NHWC' if last else 'NCHW'} {SHORT[dtype]}",
        "pool",
        dtype,
        make,
        lambda x: getattr(F, name)(x, *args),
        lambda x: getattr(T, name)(x, *args),
        ("y", "dx"),
        targets=targets,
        bytes=2 * (elements + out) * dtype.itemsize,
        flops=2 * max(elements, out),
    )


ROWS = (
    ("max-pool 3x3 s2 p1", "max_pool2d", (16, 64, 112, 112), (3, 2, 1), 2.0),
    ("max-pool 2x2", "max_pool2d", (16, 64, 112, 112), (2,), 0.97),
    ("avg-pool 3x3 s2 p1", "avg_pool2d", (16, 64, 112, 112), (3, 2, 1), 0.97),
    ("avg-pool 2x2", "avg_pool2d", (16, 64, 112, 112), (2,), 0.97),
    ("adaptive avg to 1", "adaptive_avg_pool2d", (16, 256, 56, 56), (1,), 0.97),
    ("bilinear x2", "interpolate", (8, 64, 56, 56), (None, 2, "bilinear"), 0.97),
    ("nearest x2", "interpolate", (8, 64, 56, 56), (None, 2, "nearest"), 0.97),
)

CASES = [
    _case(said, name, shape, args, FP32, last, ratio)
    for said, name, shape, args, ratio in ROWS
    for last in (False, True)
]
CASES += [_case(*ROWS[i][:4], BF16, True, 0.97) for i in (0, 5)]
CASES += [
    _case("max-pool 3x3 s2 p1", "max_pool2d", (16, 256, 14, 14), (3, 2, 1), FP32, last, 0.97)
    for last in (False, True)
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_pool(case, row):
    row(case)
