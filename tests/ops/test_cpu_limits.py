"""What one machine's suite would not meet by itself: other instruction sets, more than 2^31 elements."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import DEFINITIONS, activation, parse
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, need
from .test_linear import act_of, exact_formula


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set(isa, dtype):
    def results(function, x):
        x = x.detach().requires_grad_()
        y = function(x)
        return y, *torch.autograd.grad(y, x, torch.ones_like(y))

    x = (torch.randn(1037) * 4).to(dtype)
    with kz.backend("cpp"):
        for name in DEFINITIONS:
            act = act_of(name)
            parsed = parse("test", act)
            ours = results(lambda t, act=parsed: activation(t, act), x)
            theirs = results(parsed.formula, x)
            exact = results(lambda t, act=act: exact_formula(act, t), x.double())
            for what, *three in zip(("value", "gradient"), ours, theirs, exact, strict=True):
                assert_as_good(f"{name} {what}", *three)
        for dim in (0, 1):
            rows = x[:1020].reshape(20, 51)
            ours = results(lambda t, dim=dim: F.softmax(t, dim), rows)
            theirs = results(lambda t, dim=dim: torch.softmax(t, dim), rows)
            exact = results(lambda t, dim=dim: torch.softmax(t, dim), rows.double())
            assert_as_good("softmax", ours[0], theirs[0], exact[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_more_than_2_31_elements(backend, monkeypatch):
    """8.6 GB: bfloat16, forward."""
    need(backend)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    size = (1 << 31) + 33
    x = torch.ones(size, dtype=torch.bfloat16)
    x[-40:] = torch.arange(-20, 20)
    with kz.backend(backend):
        y = F.relu(x)
    assert torch.equal(y[-40:], torch.relu(x[-40:]))
    assert y[0] == 1
    assert y[1 << 30] == 1
    assert y[-41] == 1
