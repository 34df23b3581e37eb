"""Attention in C++: every instruction set's kernels, and results that no number of threads changes."""

import pytest
import torch

import kernelzoo as kz
from kernelzoo import functional as F
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, need


def _results(q, k, v, dy, **options):
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy)


def _inputs(dtype):
    g = torch.Generator().manual_seed(3)
    shapes = (1, 4, 203, 40), (1, 2, 203, 40), (1, 2, 203, 24), (1, 4, 203, 24)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set(isa, dtype):
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


def test_heads_and_blocks_as_tasks_are_one_result():
    """Of 32 heads a thread takes whole ones, and blocks of them where there are fewer than 8 a thread."""
    need("cpp")
    g, before, results = torch.Generator().manual_seed(4), torch.get_num_threads(), []
    inputs = [torch.randn(4, 8, 203, 16, generator=g) for _ in range(4)]
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with kz.backend("cpp"):
                results.append(_results(*inputs, is_causal=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    exact = _results(*(t.double() for t in inputs), is_causal=True)
    with kz.backend("torch"):
        theirs = _results(*inputs, is_causal=True)
    for a, b, c in zip(results[0], theirs, exact, strict=True):
        assert_as_good("attention", a, b, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_an_earlier_call_left_is_read(isa, dtype):
    """What lies in a tile beyond the keys that are seen, and is not computed, is a NaN from the call before."""
    inputs = _inputs(dtype)
    windows = ((None, 0), (0, 0), (1, 0), (0, 1), (7, 5), (33, 64), (64, None), (150, 15))
    with kz.backend("cpp"):
        for window in windows:
            for options in ({}, {"softcap": 3.0}, {"dropout_p": 0.3}):
                found = []
                for spoilt in (False, True):
                    if spoilt:
                        _results(*(torch.full_like(t, torch.nan) for t in inputs))
                    torch.manual_seed(6)
                    found.append(_results(*inputs, window=window, **options))
                for a, b in zip(*found, strict=True):
                    assert a.isfinite().all()
                    assert torch.equal(a, b)


# To (3, 4, 300, 777): whole, and broadcast along each dimension (but not along keys, where the gradient is 0 and all
# that is there to compare is rounding); those of all batches or heads go in more than one wave.
MASKS = [(1, 1, 300, 777), (1, 4, 300, 777), (3, 1, 300, 777), (3, 4, 300, 777), (3, 1, 1, 777), (1, 4, 1, 777),
         (1, 1, 1, 777)]  # fmt: skip


def _mask_grads(q, k, v, dy, mask, **options):
    inputs = [t.detach().requires_grad_() for t in (q, k, v, mask)]
    y = F.scaled_dot_product_attention(*inputs, enable_gqa=True, **options)
    return torch.autograd.grad(y, inputs, dy)


def _mask_inputs(shape, dtype):
    g = torch.Generator().manual_seed(7)
    shapes = (3, 4, 300, 24), (3, 2, 777, 24), (3, 2, 777, 100), (3, 4, 300, 100), shape
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_a_masks_gradient(shape, dtype):
    need("cpp")
    inputs = _mask_inputs(shape, dtype)
    for options in ({}, {"window": (100, 300), "softcap": 5.0})[: 2 if dtype == torch.float32 else 1]:
        with kz.backend("cpp"):
            ours = _mask_grads(*inputs, **options)
        with kz.backend("torch"):
            theirs = _mask_grads(*inputs, **options)
            exact = _mask_grads(*(t.double() for t in inputs), **options)
        for a, b, c in zip(ours, theirs, exact, strict=True):
            assert_as_good("attention", a, b, c)


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_threads_change_no_gradient_of_a_mask(shape):
    need("cpp")
    inputs, before, results = _mask_inputs(shape, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with kz.backend("cpp"):
                results.append(_mask_grads(*inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _plain_backward(**options):
    a = torch.randn(1, 3, 500, 64, requires_grad=True)
    torch.autograd.grad(F.scaled_dot_product_attention(a, a, a, **options).sum(), a)


BACKWARDS = {
    "whole": _plain_backward,
    "causal": lambda: _plain_backward(is_causal=True),
    **{
        f"mask{shape}": lambda shape=shape: _mask_grads(*_mask_inputs(shape, torch.float32))
        for shape in MASKS
    },
}


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
def test_backward_stays_within_its_scratch(backward, monkeypatch):
    """More threads than heads: any of them may take any head."""
    need("cpp")
    from kernelzoo.kernels import memory

    given, guard = [], 4096

    def workspace(shape, dtype):
        given.append((torch.full((shape[0] + 64 * guard,), 12345.0, dtype=dtype), shape[0]))
        return given[-1][0]

    monkeypatch.setattr(memory, "workspace", workspace)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        for _ in range(10):
            with kz.backend("cpp"):
                backward()
            block, size = given.pop()
            assert (block[size:] == 12345.0).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_softcap_reads_no_earlier_tile(dtype):
    """The scores that an edge's products leave out are what an earlier call left there: NaN."""
    need("cpp")

    def grads(q, k, **options):
        with kz.backend("cpp"):
            return torch.autograd.grad(
                F.scaled_dot_product_attention(q, k, k, softcap=2.0, **options).sum(), (q, k)
            )

    q, k = (torch.randn(1, 2, 300, 32, dtype=dtype, requires_grad=True) for _ in range(2))
    for window in (None, (5, 0), (13, 0), (30, 0)):
        expected = grads(q, k, is_causal=True, window=window)
        grads(q * torch.nan, k * torch.nan)
        for a, b in zip(grads(q, k, is_causal=True, window=window), expected, strict=True):
            assert torch.equal(a, b)
            assert a.isfinite().all()


def test_compiled_calls_read_nothing_outside():
    need("cpp")
    q, cache = torch.randn(1, 2, 1, 16), torch.randn(1, 2, 32, 16)
    pages, table = torch.randn(3, 2, 4, 16), torch.tensor([[0, 7]], dtype=torch.int32)
    x, cu = torch.randn(20, 2, 16), torch.tensor([0, 7, 20])
    with kz.backend("cpp"), torch.no_grad():
        compiled = torch.compile(F.attention_decode, fullgraph=True, backend="aot_eager")
        compiled(q, cache, cache, torch.tensor([32]))
        with pytest.raises(kz.ArgumentError, match="lengths holds 64; expected 0 to 32"):
            compiled(q, cache, cache, torch.tensor([64]))
        with pytest.raises(kz.ArgumentError, match="block_table points to block 7"):
            compiled(q, pages, pages, torch.tensor([8]), table)
        packed = torch.compile(F.attention_varlen, fullgraph=True, backend="aot_eager")
        packed(x, x, x, cu, cu, 13, 13)
        for wrong, longest in ((torch.tensor([0, 7, 21]), 14), (cu, 12)):
            with pytest.raises(kz.ArgumentError, match="cu_seqlens_q"):
                packed(x, x, x, wrong, cu, longest, 13)
