"""The losses, forward and backward: cross entropy over a vocabulary, alone and behind its linear layer, and the
elementwise ones."""

import pytest
import torch

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

T = torch.nn.functional
FLOOR = Target("ratio", 0.97)
FIRST = torch.bfloat16 if GPU else torch.float32
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _classes(rows, classes):
    generator = torch.Generator(DEVICE).manual_seed(3)
    return torch.randint(classes, (rows,), generator=generator, device=DEVICE)


def _cross_entropy(rows, classes, dtype, targets, **options):
    labels = _classes(rows, classes)
    words = "".join(f" {k} {v}" for k, v in options.items())
    n = rows * classes
    return op_case(
        f"cross_entropy {rows}x{classes}{words} {SHORT[dtype]}",
        "loss",
        dtype,
        lambda g: [torch.randn(rows, classes, generator=g, device=DEVICE, dtype=torch.float64) * 2],
        lambda x: F.cross_entropy(x, labels, **options),
        lambda x: T.cross_entropy(x, labels, **options),
        ("loss", "dx"),
        bytes=3 * n * dtype.itemsize,  # the logits twice, their gradient once
        flops=4 * n,
        targets=targets,
    )


def _linear_cross_entropy(rows, features, classes, dtype, targets):
    labels = _classes(rows, classes)

    def make(g):
        x = torch.randn(rows, features, generator=g, device=DEVICE, dtype=torch.float64)
        return [
            x,
            torch.randn(classes, features, generator=g, device=DEVICE, dtype=torch.float64) / features**0.5,
        ]

    return op_case(
        f"linear_cross_entropy {rows}x{features}->{classes} {SHORT[dtype]}",
        "loss",
        dtype,
        make,
        lambda x, w: F.linear_cross_entropy(x, w, labels),
        lambda x, w: T.cross_entropy(T.linear(x, w), labels),
        ("loss", "dx", "dw"),
        bytes=2 * (rows + classes) * features * dtype.itemsize,
        flops=6 * rows * features * classes,
        targets=targets,
    )


ELEMENTWISE = {
    "mse_loss": lambda M, x, t: M.mse_loss(x, t),
    "l1_loss": lambda M, x, t: M.l1_loss(x, t),
    "huber_loss": lambda M, x, t: M.huber_loss(x, t),
    "smooth_l1_loss": lambda M, x, t: M.smooth_l1_loss(x, t),
    "binary_cross_entropy": lambda M, x, t: M.binary_cross_entropy(x, t),
    "binary_cross_entropy_with_logits": lambda M, x, t: M.binary_cross_entropy_with_logits(x, t),
    "kl_div": lambda M, x, t: M.kl_div(x, t, reduction="batchmean"),
}
SIDE = 8192 if GPU else 4096


def _elementwise(name):
    function = ELEMENTWISE[name]
    target = torch.rand(SIDE, SIDE, generator=torch.Generator(DEVICE).manual_seed(3), device=DEVICE)
    target = target.to(FIRST)

    def theirs(x):
        return function(T, x, target.to(x.dtype))

    n = SIDE * SIDE
    return op_case(
        f"{name} {SIDE}x{SIDE} {SHORT[FIRST]}",
        "loss",
        FIRST,
        lambda g: [torch.rand(SIDE, SIDE, generator=g, device=DEVICE, dtype=torch.float64)],
        lambda x: function(F, x, target),
        theirs,
        ("loss", "dx"),
        bytes=5 * n * FIRST.itemsize,  # input and target twice, the gradient once
        flops=8 * n,
        targets=(FLOOR,),
    )


MEMORY = Target("temporary memory to eager", 0.1, at_least=False)
if GPU:
    CASES = [
        _cross_entropy(8192, 128256, FIRST, (Target("share of ceiling", 0.9),)),
        _linear_cross_entropy(8192, 4096, 128256, FIRST, (Target("ratio", 0.9), MEMORY)),
    ]
else:
    CASES = [
        _cross_entropy(1024, 50257, torch.float32, (Target("ratio", 3.0),)),
        _linear_cross_entropy(1024, 512, 32000, torch.float32, (Target("ratio", 1.03), MEMORY)),
        _cross_entropy(1024, 50257, torch.bfloat16, (FLOOR,)),
        _cross_entropy(8192, 1000, torch.float32, (FLOOR,)),
        _cross_entropy(1024, 50257, torch.float32, (FLOOR,), label_smoothing=0.1),
    ]
CASES += [_elementwise(name) for name in ELEMENTWISE]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_loss(case, row):
    row(case)
