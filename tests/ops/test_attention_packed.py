"""Attention over sequences that stand one after another: a loop over them, dropout, bad input."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import WITHOUT_CUDA, device_of, need
from .test_attention import composed


def packed(device="cpu", dtype=torch.float64, features=(5, 5)):
    cu_q = torch.tensor([0, 3, 3, 9, 10], dtype=torch.int32, device=device)
    cu_k = torch.tensor([0, 5, 8, 14, 20], device=device)
    q = torch.randn(10, 4, features[0], device=device, dtype=dtype, requires_grad=True)
    k = torch.randn(20, 2, features[0], device=device, dtype=dtype, requires_grad=True)
    v = torch.randn(20, 2, features[1], device=device, dtype=dtype, requires_grad=True)
    return q, k, v, cu_q, cu_k


def one_by_one(q, k, v, cu_q, cu_k, is_causal=False, window=(None, None), slopes=None, **options):
    """A loop over the sequences: the places are aligned at the end by a mask of them."""
    found = []
    for b in range(len(cu_q) - 1):
        one, keys, values = (
            t[cu[b] : cu[b + 1]].transpose(0, 1)[None] for t, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        )
        L, S = one.size(2), keys.size(2)
        place = torch.arange(S, device=q.device) - torch.arange(L, device=q.device)[:, None] - (S - L)
        left, right = window
        seen = torch.ones_like(place, dtype=torch.bool)
        seen &= place >= -left if left is not None else True
        seen &= place <= (0 if is_causal else 10**6 if right is None else right)
        mask = torch.zeros(1, 4, L, S, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
        if slopes is not None:
            mask = mask - slopes[b][:, None, None].to(q.dtype) * place.abs()
        found.append(composed(one, keys, values, mask, enable_gqa=True, **options)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch", "auto"])
def test_varlen_is_a_loop_over_sequences(backend):
    if backend not in ("torch", "auto"):
        need(backend)
    device = device_of(backend)
    q, k, v, cu_q, cu_k = packed(device)
    slopes = torch.rand(4, 4, device=device)
    for given, options in (
        ({}, {}),
        ({"is_causal": True}, {"is_causal": True}),
        ({"window": (2, 1), "softcap": 2.0}, {"window": (2, 1), "softcap": 2.0}),
        ({"alibi_slopes": slopes, "is_causal": True, "scale": 0.3},
         {"slopes": slopes, "is_causal": True, "scale": 0.3}),
    ):  # fmt: skip
        with kz.backend(backend):
            y = F.attention_varlen(q, k, v, cu_q, cu_k, **given)
            assert torch.equal(y, F.attention_varlen(q, k, v, cu_q, cu_k, 6, 6, **given))
        theirs = one_by_one(q, k, v, cu_q, cu_k, **options)
        torch.testing.assert_close(y, theirs)
        dy = torch.randn_like(y)
        grads = [torch.autograd.grad(out, (q, k, v), dy) for out in (y, theirs)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_varlen_dropout_is_the_formulas(backend):
    need(backend)
    q, k, v, cu_q, cu_k = packed(device_of(backend))
    found = []
    for name in (backend, "torch"):
        torch.manual_seed(6)
        with kz.backend(name):
            y = F.attention_varlen(q, k, v, cu_q, cu_k, dropout_p=0.3, is_causal=True)
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    torch.testing.assert_close(*found)


def test_bad_packed_input():
    q, k, v, cu_q, cu_k = (t.detach() for t in packed())
    for args, options, says in (
        (
            (q[None], k, v, cu_q, cu_k),
            {},
            r"q has shape \(1, 10, 4, 5\); expected \(tokens, heads, features\)",
        ),
        ((q, k, v[:5], cu_q, cu_k), {}, "expected the same tokens and heads"),
        ((q, k[:, :, :4], v, cu_q, cu_k), {}, "k has 4 features a head but q has 5"),
        ((q[:, :3], k, v, cu_q, cu_k), {}, "k has 2 heads, which does not divide q's 3"),
        ((q, k, v, cu_q[:-1], cu_k), {}, "expected lengths added up from 0 to 10"),
        ((q, k, v, cu_q, cu_k + 1), {}, "expected lengths added up from 0 to 20"),
        ((q, k, v, torch.tensor([0, 5, 3, 9, 10]), cu_k), {}, "expected lengths added up"),
        ((q, k, v, cu_q.float(), cu_k), {}, "cu_seqlens_q must be int32 or int64"),
        ((q, k, v, torch.tensor([0, 10]), cu_k), {}, "holds 1 sequences and cu_seqlens_k 4"),
        ((q, k, v, cu_q, cu_k, 5, 6), {}, "max_seqlen_q is 5 but cu_seqlens_q holds a sequence of 6"),
        ((q, k, v, cu_q, cu_k), {"dropout_p": 2.0}, "dropout probability"),
        ((q, k, v, cu_q, cu_k), {"alibi_slopes": torch.ones(2)}, "alibi_slopes has shape"),
    ):
        with pytest.raises(RuntimeError, match=f"attention_varlen: .*{says}"):
            F.attention_varlen(*args, **options)
