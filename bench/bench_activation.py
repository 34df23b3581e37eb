"""Every activation standalone, and softmax over the last and the first dimension, forward and backward."""

import pytest
import torch

import kernelzoo.functional as F
from kernelzoo.ops.activation import DEFINITIONS, activation, parse

from . import peers
from .core import DEVICE, GPU, Target, op_case

FLOOR = Target("ratio", 0.97)
SHAPE = (8192, 8192) if GPU else (4096, 4096)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Every activation in the first dtype, these in the second as well.
FIRST, SECOND = (torch.bfloat16, torch.float32) if GPU else (torch.float32, torch.bfloat16)
TWICE = ("gelu", "silu", "relu", "tanh")


def _normal(generator):
    return [torch.randn(SHAPE, generator=generator, device=DEVICE, dtype=torch.float64) * 2]


def _traffic(dtype):
    """x and y, then dy, the saved tensor and dx; one operation an element each way, to have a place in the
    roofline."""
    n = SHAPE[0] * SHAPE[1]
    return {"bytes": 5 * n * dtype.itemsize, "flops": 2 * n}


def _activation(name, dtype):
    chosen = parse("bench", name)
    targets = (Target("ratio", 2.0),) if name == "gelu" and dtype == torch.float32 and not GPU else (FLOOR,)
    if GPU:
        targets += (Target("share of ceiling", 0.92),)
    return op_case(
        f"{name} {SHAPE[0]}x{SHAPE[1]} {SHORT[dtype]}",
        "activation",
        dtype,
        _normal,
        lambda x: activation(x, chosen),
        chosen.formula,
        ("y", "dx"),
        peers=peers.activation(name),
        targets=targets,
        **_traffic(dtype),
    )


def _softmax(log, dim, dtype):
    name = "log_softmax" if log else "softmax"
    theirs = getattr(torch.nn.functional, name)
    return op_case(
        f"{name} {SHAPE[0]}x{SHAPE[1]} over {dim} {SHORT[dtype]}",
        "softmax",
        dtype,
        _normal,
        lambda x: getattr(F, name)(x, dim),
        lambda x: theirs(x, dim),
        ("y", "dx"),
        peers=peers.softmax(log) if dim == 1 else None,
        targets=(FLOOR,),
        **_traffic(dtype),
    )


ORDER = sorted(DEFINITIONS, key=lambda name: name not in TWICE)  # the common ones before time runs out
CASES = [
    *(_activation(name, FIRST) for name in ORDER if name in TWICE),
    *(_softmax(log, 1, FIRST) for log in (False, True)),
    *(_activation(name, SECOND) for name in TWICE),
    _softmax(False, 1, SECOND),
    _softmax(False, 0, FIRST),
    *(_activation(name, FIRST) for name in ORDER if name not in TWICE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_activation(case, row):
    row(case)
