"""Attention in C++: every instruction set's kernels, and results that no number of threads changes."""

import pytest
import torch

import kernelzoo as kz
from kernelzoo import functional as F
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, need
from .test_cpu_limits import isa  # noqa: F401  (a fixture)


def _results(q, k, v, dy, **options):
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy)


def _inputs(dtype):
    g = torch.Generator().manual_seed(3)
    shapes = (1, 4, 203, 40), (1, 2, 203, 40), (1, 2, 203, 24), (1, 4, 203, 24)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set(isa, dtype):  # noqa: F811
    inputs = _inputs(dtype)
    for options in ({"is_causal": True}, {"window": (50, 20), "softcap": 3.0}):
        with kz.backend("cpp"):
            ours = _results(*inputs, **options)
        with kz.backend("torch"):
            theirs = _results(*inputs, **options)
            exact = _results(*(t.double() for t in inputs), **options)
        for a, b, c in zip(ours, theirs, exact, strict=True):
            assert_as_good("attention", a, b, c)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_threads_change_nothing(dtype):
    need("cpp")
    inputs, before = _inputs(dtype), torch.get_num_threads()
    q, k, v, _ = inputs
    lengths = torch.tensor([203])
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with kz.backend("cpp"):
                decoded = F.attention_decode(q[:, :, -1:], k, v, lengths)
                results.append((*_results(*inputs, is_causal=True), decoded))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
