"""F.linear(x, w, b, act=...), forward and backward, at five shapes × two dtypes."""

import pytest
import torch

import kernelzoo.functional as F
from kernelzoo.ops.activation import parse
from kernelzoo.verify import JUMPS

from . import peers
from .core import DEVICE, GPU, Target, op_case

# A transformer block's two products (768 wide, 2048 tokens), a square layer, a tall one, a small one.
SHAPES = (
    (2048, 768, 3072, "gelu"),
    (2048, 3072, 768, None),
    (512, 1024, 1024, "silu"),
    (4096, 256, 256, "tanh"),
    (64, 128, 256, "relu"),
)
# The same on a device that needs more to be full.
SHAPES_GPU = (
    (8192, 4096, 4096, "gelu"),
    (16384, 4096, 1024, None),
    (8192, 1024, 4096, "silu"),
    (32768, 512, 512, "tanh"),
    (512, 512, 512, "relu"),
)
FLOOR = Target("ratio", 0.97)
PROMISED = {
    ((2048, 768, 3072, "gelu"), torch.float32): Target("ratio", 1.12),
    ((2048, 768, 3072, "gelu"), torch.bfloat16): Target("ratio", 1.5),
}
PROMISED_GPU = (Target("ratio to bare product", 1 / 1.03), Target("ratio to eager", 1.05))


def _values(shape, generator, exact, scale):
    """Normal; or multiples of 1/8 in [-1, 1], whose products' sums are exact, so that a kink is met alike."""
    if exact:
        return torch.randint(-8, 9, shape, generator=generator, device=DEVICE).double() / 8
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64) * scale


def _case(m, k, n, act, dtype, backward):
    chosen = parse("bench", act)
    exact = chosen.name in JUMPS

    def make(generator):
        shapes = ((m, k), 1.0), ((n, k), k**-0.5), ((n,), 1.0)
        return [_values(shape, generator, exact, scale) for shape, scale in shapes]

    def eager(x, w, b):
        return chosen.formula(torch.nn.functional.linear(x, w, b))

    def ours(x, w, b):
        return F.linear(x, w, b, act=act)

    forward = m * k + n * k + n + m * n
    # dy, the saved value and w, x read; dx, dw, db written
    backward_elements = (
        2 * m * n + 2 * (m * k + n * k) + n if chosen.name != "none" else m * n + 2 * (m * k + n * k)
    )
    promised = PROMISED.get(((m, k, n, act), dtype))
    headline = GPU and (m, k, n, act) == SHAPES_GPU[0] and dtype == torch.bfloat16
    if backward:
        targets = (promised or FLOOR,)
    else:
        targets = PROMISED_GPU if headline else ()
    short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return op_case(
        f"linear {m}x{k}->{n} {chosen.name} {short}{'' if backward else ' forward'}",
        "linear",
        dtype,
        make,
        ours,
        eager,
        ("y", "dx", "dw", "db"),
        peers=peers.linear(act),
        floors=None if backward else {"bare product": lambda x, w, b: x @ w.t()},
        backward=backward,
        bytes=dtype.itemsize * (forward + (backward_elements if backward else 0)),
        flops=2 * m * n * k * (3 if backward else 1),
        targets=targets,
    )


DTYPES = (torch.bfloat16, torch.float32) if GPU else (torch.float32, torch.bfloat16)
CASES = [
    _case(*shape, dtype, backward)
    for shape in (SHAPES_GPU if GPU else SHAPES)
    for dtype in DTYPES
    for backward in (True, False)
    if backward or shape in (SHAPES[0], SHAPES_GPU[0])
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_linear(case, row):
    row(case)
