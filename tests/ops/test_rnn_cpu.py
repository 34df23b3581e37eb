"""The C++ recurrent kernels beyond what one machine's suite meets: other instruction sets, teams, odd sizes."""

import pytest
import torch

import kernelzoo as kz
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, need
from .test_cpu_limits import isa  # noqa: F401  (a fixture)
from .test_rnn import MODES, call, case, formula

ODD = (
    *(case(mode, T=3, B=7, H=37, features=9) for mode in MODES),
    case("lstm", "proj", "heads", "peephole", "norm", "zone", "h_mask", sizes=[9, 9, 4, 1], H=68),
    case("gru", "norm", "heads", "zone", "reverse", sizes=[9, 9, 4, 1], H=42),
    case("rnn_tanh", "heads", "h_mask", "reverse", sizes=[7, 2], H=150),
    case("lstm", T=1, B=1, H=1, features=1),
    case("gru", T=2, B=1, H=1, features=1),
)


def inputs(one, dtype):
    """The case's tensors of the dtype, and the names of its options."""
    tensors, options = one.make(torch.Generator().manual_seed(1))
    return [t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors], options


def results(function, tensors, options):
    tensors = [
        t.detach().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors
    ]
    wanted = [t for t in tensors if torch.is_tensor(t) and t.requires_grad]
    y = function(*tensors, **options)
    g = torch.Generator().manual_seed(2)
    dy = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in y]
    return *y, *torch.autograd.grad(y, wanted, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("one", ODD, ids=lambda c: c.id)
def test_every_instruction_set(isa, one, dtype):  # noqa: F811
    tensors, options = inputs(one, dtype)
    wide = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]
    with kz.backend("cpp"):
        ours = results(call, tensors, options)
    theirs, exact = results(formula, tensors, options), results(formula, wide, options)
    for k, three in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_as_good(f"result {k}", *three)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "one",
    [
        case("lstm", T=9, B=7, H=160, features=9),
        case("gru", "norm", "reverse", sizes=[9] * 5 + [4] * 3, H=160),
        case("rnn_tanh", T=9, B=16, H=208, features=9),
        case("lstm", "proj", "heads", "norm", "zone", sizes=[9] * 5 + [4] * 3, H=160),
    ],
    ids=lambda c: c.id,
)
def test_no_team_changes_the_result(one, dtype):
    """Not even one of more threads than there are cores, which must not hang either."""
    need("cpp")
    tensors, options = inputs(one, dtype)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with kz.backend("cpp"), torch.no_grad():
                y = call(*tensors, **options)
            with kz.backend("cpp"):
                found.append((*y, *results(call, tensors, options)[len(y) : len(y) + 1]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one_team, another in zip(found[0][:-1], other[:-1], strict=True):
            assert torch.equal(one_team, another)
