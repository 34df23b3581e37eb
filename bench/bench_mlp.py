"""One training step of a 784-512-10 perceptron: forward, cross-entropy, backward, SGD."""

import copy

import pytest
import torch

from kernelzoo import nn

from .core import DEVICE, Case, Problem

BATCH = 256
IN, HIDDEN, OUT = 784, 512, 10


def _mlp(torch_nn):
    if torch_nn is nn:
        return nn.Sequential(nn.Linear(IN, HIDDEN, act="relu"), nn.Linear(HIDDEN, OUT))
    return torch_nn.Sequential(torch_nn.Linear(IN, HIDDEN), torch_nn.ReLU(), torch_nn.Linear(HIDDEN, OUT))


def _step(model, x, target, forward=None):
    """One step on a copy of the model; its first call's results are those of the initial weights."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    forward = forward(model) if forward else model

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach(), *(p.grad for p in model.parameters())

    return run


def _build(dtype):
    def build():
        torch.manual_seed(1)
        theirs = _mlp(torch.nn).to(DEVICE, dtype)
        ours = _mlp(nn).to(DEVICE, dtype)
        with torch.no_grad():
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                mine.copy_(other)
        x = torch.randn(BATCH, IN, device=DEVICE).to(dtype)
        target = torch.randint(OUT, (BATCH,), device=DEVICE)
        steps = {
            "ours": _step(ours, x, target),
            "eager": _step(theirs, x, target),
            "compile": _step(theirs, x, target, torch.compile),
        }
        return Problem(steps, _step(copy.deepcopy(theirs).double(), x.double(), target), {})

    return build


CASES = [
    Case(
        f"mlp {IN}-{HIDDEN}-{OUT} batch {BATCH} {short} training step",
        "mlp",
        dtype,
        _build(dtype),
        ("loss", "dw1", "db1", "dw2", "db2"),
        # weights read twice, their gradients written, then both read and the weights written
        bytes=dtype.itemsize * (6 * (IN * HIDDEN + HIDDEN * OUT) + 2 * BATCH * IN + 4 * BATCH * HIDDEN),
        flops=2 * BATCH * (2 * IN * HIDDEN + 3 * HIDDEN * OUT),
    )
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_mlp(case, row):
    row(case)
