"""Batch norm with the activation and the residual sum behind it, forward and backward, and its evaluation.

The least that a training step moves, in tensors of x's size: x and y forward, dy, x and dx backward; with a residual it
as well forward, y and its gradient backward.
"""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16
RUNNING = {}  # (channels, dtype): running statistics, which a training step updates


def running(x):
    key = x.shape[1], x.dtype
    if key not in RUNNING:
        RUNNING[key] = [f(x.shape[1], dtype=x.dtype, device=x.device) for f in (torch.zeros, torch.ones)]
    return RUNNING[key]


def _batch(shape, dtype, ratio, *, last=False, act="relu", residual=False, training=True, calls=0):
    def make(generator):
        def normal(*sizes):
            return torch.randn(sizes, generator=generator, device=DEVICE, dtype=torch.float64)

        layout = torch.channels_last if last else torch.contiguous_format
        given = [
            normal(*shape).contiguous(memory_format=layout),
            1 + 0.1 * normal(shape[1]),
            normal(shape[1]),
        ]
        return given + ([normal(*shape).contiguous(memory_format=layout)] if residual else [])

    def ours(x, w, b, r=None):
        return F.batch_norm(x, *running(x), w, b, training, act=act, residual=r)

    def eager(x, w, b, r=None):
        y = T.batch_norm(x, *running(x), w, b, training)
        y = y if r is None else y + r
        return y if act is None else T.relu(y)

    targets = (Target("ratio", ratio),)
    if GPU:
        targets += (Target("share of ceiling", 0.7),)
    elements = torch.Size(shape).numel()
    passes = (8 if residual else 5) if training else 2
    parts = [
        "batch_norm" + " + residual" * residual + (f" + {act}" if act else ""),
        "x".join(map(str, shape)),
    ]
    parts += ["" if len(shape) == 2 else "channels-last" if last else "NCHW", "" if training else "evaluated"]
    return op_case(
        " ".join(filter(None, [*parts, SHORT[dtype]])),
        "batch_norm",
        dtype,
        make,
        ours,
        eager,
        ("y", "dx", "dw", "db", *(("dr",) if residual else ())),
        backward=training,
        targets=targets,
        bytes=passes * elements * dtype.itemsize,
        flops=(14 if training else 4) * elements,
        calls=calls,
    )


SHAPE = (256, 256, 56, 56) if GPU else (16, 64, 56, 56)
CASES = [_batch(SHAPE, FP32, 1.4, last=last) for last in (False, True)]
CASES += [_batch(SHAPE, FP32, 1.2, last=last, residual=True) for last in (False, True)]
CASES += [
    _batch(SHAPE, BF16, 1.05, last=True),
    _batch(SHAPE, BF16, 0.97, last=True, residual=True),
    _batch(SHAPE, FP32, 0.97, act=None),
    _batch(SHAPE, FP32, 0.97, last=True, training=False),
    _batch(SHAPE, FP32, 1.05, residual=True, training=False),
    _batch((16, 512, 7, 7), FP32, 0.97),
    _batch((64, 128), FP32, 0.97, calls=200),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_batch_norm(case, row):
    row(case)
