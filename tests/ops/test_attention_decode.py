"""Attention of new tokens to contiguous and paged caches, and bad input."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import WITHOUT_CUDA, assert_as_good, device_of, here, need
from .test_attention import SLOPES, T, composed


def paged(t, lengths, size):
    """The same cache as pages in a shuffled order, NaN where nothing is stored, and its block_table."""
    B, heads, S, D = t.shape
    columns = -(-S // size)
    order = torch.randperm(B * columns + 2, generator=torch.Generator().manual_seed(1))
    pages = torch.full((len(order), heads, size, D), torch.nan, dtype=t.dtype, device=t.device)
    table = torch.full((B, columns), -1, dtype=torch.int32)
    for b, length in enumerate(lengths.tolist()):
        for column in range(-(-length // size)):
            page = table[b, column] = order[b * columns + column]
            stored = t[b, :, column * size : min(length, (column + 1) * size)]
            pages[page, :, : stored.size(1)] = stored
    return pages, table.to(t.device)


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_decode_contiguous_and_paged(backend, dtype):
    if backend not in ("torch", "auto"):
        need(backend)
    device = device_of(backend)
    lengths = torch.tensor([2, 19, 0, 7], device=device)
    slopes = SLOPES.to(device)
    q = torch.randn(4, 4, 2, 8, device=device, dtype=dtype)
    keys, values = (torch.randn(4, 2, 21, d, device=device, dtype=dtype) for d in (8, 6))
    j, i = torch.arange(21, device=device), torch.arange(2, device=device)[:, None]
    place = j - (lengths[:, None, None] - 2 + i)
    for options in ({}, {"window": (4, 0)}, {"softcap": 1.0, "scale": 0.5}, {"alibi_slopes": slopes}):
        seen = place <= 0
        if "window" in options:
            seen &= place >= -4
        mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf)[:, None]
        if "alibi_slopes" in options:
            mask = mask - slopes[:, None, None] * place.abs()[:, None]
        rest = {n: x for n, x in options.items() if n in ("softcap", "scale")}
        exact = composed(q.double(), keys.double(), values.double(), mask.double(), enable_gqa=True, **rest)
        pages, table = paged(keys, lengths, 4)
        value_pages, _ = paged(values, lengths, 4)
        beyond = (j >= lengths[:, None])[:, None, :, None]
        with kz.backend(backend):
            y = F.attention_decode(
                q,
                keys.masked_fill(beyond, torch.nan),
                values.masked_fill(beyond, torch.nan),
                lengths,
                **options,
            )
            from_pages = F.attention_decode(q, pages, value_pages, lengths, table, **options)
        theirs = composed(*(t.float() for t in (q, keys, values)), mask, enable_gqa=True, **rest).to(dtype)
        assert_as_good("contiguous", y, theirs, exact)
        assert_as_good("paged", from_pages, theirs, exact)


def test_decode_gradient_is_the_formulas():
    q = torch.randn(1, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    cache = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    (grad,) = torch.autograd.grad(F.attention_decode(q, cache, cache, torch.tensor([4])).sum(), q)
    theirs = T.scaled_dot_product_attention(q, cache[:, :, :4], cache[:, :, :4])
    torch.testing.assert_close(grad, torch.autograd.grad(theirs.sum(), q)[0])
    with kz.backend(here()):
        with pytest.raises(kz.BackendUnavailable, match="a gradient is asked for"):
            F.attention_decode(q, cache, cache, torch.tensor([4]))
        F.attention_decode(q.detach(), cache, cache, torch.tensor([4]))


def test_bad_cache():
    q, cache = torch.zeros(2, 4, 1, 8), torch.zeros(2, 2, 16, 8)
    pages, table = torch.zeros(5, 2, 4, 8), torch.tensor([[0, 1, 2], [3, 4, 9]])
    lengths = torch.tensor([3, 16])
    for args, options, says in (
        ((q[0], cache, cache, lengths), {}, "q has shape .* expected four dimensions"),
        ((q, cache, cache[:, :, :3], lengths), {}, "expected the same but for the features"),
        ((q, cache[:1], cache[:1], lengths), {}, "k_cache has 1 sequences but q has 2"),
        ((q, cache[..., :4], cache, lengths), {}, "k_cache has 4 features a head but q has 8"),
        ((q[:, :3], cache, cache, lengths), {}, "k_cache has 2 heads, which does not divide q's 3"),
        (
            (q, cache, cache, torch.tensor([3, 17])),
            {},
            "lengths holds 17; expected 0 to 16, what the cache holds",
        ),
        ((q, cache, cache, lengths.float()), {}, "lengths must be int32 or int64"),
        ((q, cache, cache, lengths[:1]), {}, r"lengths has shape \(1,\)"),
        ((q, pages, pages, torch.tensor([3, 13]), table), {}, "lengths holds 13; expected 0 to 12"),
        ((q, pages, pages, torch.tensor([3, 9]), table), {}, "block_table points to block 9, .* 0 to 4"),
        ((q, pages, pages, torch.tensor([3, 9]), table[:1]), {}, "block_table has shape"),
        ((q, pages, pages, torch.tensor([3, 8]), table.float()), {}, "block_table must be int32 or int64"),
        ((q, cache, cache, lengths), {"softcap": -2.0}, "softcap must be"),
    ):
        with pytest.raises(RuntimeError, match=f"attention_decode: .*{says}"):
            F.attention_decode(*args, **options)
    F.attention_decode(q, pages, pages, torch.tensor([3, 8]), table)  # block 9 is not reached
