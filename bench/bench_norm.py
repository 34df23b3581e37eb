"""layer_norm and rms_norm with and without a residual, and group_norm, forward and backward."""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16


def _plain(name):
    """torch's function, of the sum that precedes it where there is a residual."""
    function = getattr(T, name)

    def plain(x, w, b=None, residual=None):
        s = x if residual is None else x + residual
        shape = x.shape[-1:]
        y = function(s, shape, w) if name == "rms_norm" else function(s, shape, w, b)
        return y if residual is None else (y, s)

    return plain


def _ours(name):
    function = getattr(F, name)

    def ours(x, w, b=None, residual=None):
        arguments = (x, x.shape[-1:], w) if name == "rms_norm" else (x, x.shape[-1:], w, b)
        return function(*arguments, residual=residual)

    return ours


def _norm(name, shape, dtype, ratio, residual=False):
    rms = name == "rms_norm"

    def make(generator):
        def normal(*sizes):
            return torch.randn(sizes, generator=generator, device=DEVICE, dtype=torch.float64)

        given = [normal(*shape), 1 + 0.1 * normal(shape[1])]
        given += [] if rms else [normal(shape[1])]
        return given + ([normal(*shape)] if residual else [])

    def keyed(function):
        if residual:
            if rms:
                return lambda x, w, r: function(x, w, None, r)
            return lambda x, w, b, r: function(x, w, b, r)
        return function

    targets = (Target("ratio", ratio),)
    if GPU:
        targets += (Target("share of ceiling", 0.9),)
    elements = shape[0] * shape[1]
    passes = 8 if residual else 5  # x, y; dy, x, dx; with a residual it, s, ds
    return op_case(
        f"{name} {shape[0]}x{shape[1]}{' + residual' if residual else ''} {SHORT[dtype]}",
        "norm",
        dtype,
        make,
        keyed(_ours(name)),
        keyed(_plain(name)),
        (
            "y",
            *(("s",) if residual else ()),
            "dx",
            "dw",
            *(() if rms else ("db",)),
            *(("dr",) if residual else ()),
        ),
        targets=targets,
        bytes=passes * elements * dtype.itemsize,
        flops=12 * elements,
    )


def _group(shape, groups, dtype):
    def make(generator):
        def normal(*sizes):
            return torch.randn(sizes, generator=generator, device=DEVICE, dtype=torch.float64)

        return normal(*shape), 1 + 0.1 * normal(shape[1]), normal(shape[1])

    elements = torch.Size(shape).numel()
    return op_case(
        f"group_norm {'x'.join(map(str, shape))} {groups} groups {SHORT[dtype]}",
        "norm",
        dtype,
        make,
        lambda x, w, b: F.group_norm(x, groups, w, b),
        lambda x, w, b: T.group_norm(x, groups, w, b),
        ("y", "dx", "dw", "db"),
        targets=(Target("ratio", 0.97),),
        bytes=5 * elements * dtype.itemsize,
        flops=12 * elements,
    )


if GPU:
    CASES = [
        _norm(name, shape, dtype, 0.97, residual)
        for shape in ((8192, 4096), (16384, 8192))
        for dtype in (BF16, FP32)
        for name in ("layer_norm", "rms_norm")
        for residual in (False, True)
    ]
else:
    CASES = [
        _norm("rms_norm", (4096, 1024), FP32, 1.8),
        _norm("layer_norm", (4096, 1024), FP32, 1.1),
        _norm("layer_norm", (4096, 1024), FP32, 1.4, residual=True),
        _norm("rms_norm", (4096, 1024), FP32, 0.97, residual=True),
        _norm("rms_norm", (4096, 1024), BF16, 0.97),
        _norm("layer_norm", (4096, 1024), BF16, 0.97),
        _norm("layer_norm", (4096, 1024), BF16, 0.97, residual=True),
        _norm("layer_norm", (256, 768), FP32, 0.97),
        _norm("rms_norm", (256, 768), FP32, 0.97),
    ]
CASES += [_group((8, 64, 56, 56), 8, dtype) for dtype in (FP32, BF16)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_norm(case, row):
    row(case)
