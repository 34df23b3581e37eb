"""Scaled dot product attention: its options, dropout, memory, compilation, bad input."""

import math
import sys

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import (
    GPU,
    WITHOUT_CUDA,
    Case,
    OpSuite,
    assert_as_good,
    compiled_quietly,
    device_of,
    here,
    need,
)

T = torch.nn.functional
NAME = "scaled_dot_product_attention"


def composed(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False, window=None, softcap=None,
             alibi_slopes=None, key_lengths=None):  # fmt: skip
    """As torch documents its function, and the extras as their papers write them."""
    (L, E), S = q.shape[-2:], k.size(-2)
    if enable_gqa:
        k, v = (t.repeat_interleave(q.size(-3) // t.size(-3), -3) for t in (k, v))
    s = q @ k.transpose(-2, -1) * (1 / math.sqrt(E) if scale is None else scale)
    if softcap:
        s = torch.tanh(s / softcap) * softcap
    place = torch.arange(S, device=q.device) - torch.arange(L, device=q.device)[:, None]
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(s.dtype)[..., None, None] * place.abs()
    left, right = window or (None, None)
    if is_causal:
        right = 0
    hidden = torch.zeros(L, S, dtype=torch.bool, device=q.device)
    if right is not None:
        hidden |= place > right
    if left is not None:
        hidden |= place < -left
    if key_lengths is not None:
        hidden = hidden | (torch.arange(S, device=q.device) >= key_lengths[:, None])[:, None, None]
    s = s.masked_fill(hidden, -torch.inf)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    return torch.ops.aten._safe_softmax(s, -1) @ v


def case(name, q, k, v, mask=None, large=False, **options):
    """q, k, v: shapes; mask: None, the shape of a float mask, or ("bool", shape)."""

    def make(g):
        def normal(shape):
            return torch.randn(shape, generator=g, dtype=torch.float64)

        tensors = [normal(q), normal(k), normal(v)]
        if mask and mask[0] == "bool":
            seen = torch.rand(mask[1], generator=g) > 0.3
            seen[..., 0] = True
            tensors.append(seen)
        elif mask:
            tensors.append(normal(mask))
        return tensors, options

    return Case(name, make, large)


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


class TestAttention(OpSuite):
    call = staticmethod(F.scaled_dot_product_attention)
    reference = staticmethod(composed)
    cases = (
        case("causal-L7-E5", (2, 2, 7, 5), (2, 2, 7, 5), (2, 2, 7, 5), is_causal=True),
        case("gqa-mask-L5-S9", (1, 4, 5, 8), (1, 2, 9, 8), (1, 2, 9, 6), mask=(1, 4, 5, 9), enable_gqa=True),
        case("rank3-scale", (3, 4, 7), (3, 6, 7), (3, 6, 7), large=True, scale=0.3),
        case("bool-mask-broadcast", (2, 3, 9, 4), (2, 3, 11, 4), (2, 3, 11, 4), mask=("bool", (2, 1, 1, 11)),
             large=True),
        case("float-mask-broadcast", (2, 3, 9, 4), (2, 3, 11, 4), (2, 3, 11, 4), mask=(3, 1, 11), large=True),
        case("window-softcap", (2, 2, 19, 8), (2, 2, 17, 8), (2, 2, 17, 8), large=True, window=(3, 2), softcap=1.5),
        case("causal-window-L67-E40", (1, 2, 67, 40), (1, 2, 67, 40), (1, 2, 67, 40), large=True, is_causal=True,
             window=(20, None)),
        case("long-L150-S601-E72", (1, 4, 150, 72), (1, 2, 601, 72), (1, 2, 601, 72), large=True, enable_gqa=True),
        case("long-causal-L700-E24", (1, 2, 700, 24), (1, 2, 700, 24), (1, 2, 700, 33), large=True, is_causal=True),
    )  # fmt: skip


def qkv(device="cpu", dtype=torch.float32, shape=(2, 4, 9, 8), S=11, kv_heads=4, requires_grad=False):
    keys = (shape[0], kv_heads, S, shape[3])
    shapes = (shape, keys, keys)
    return [torch.randn(s, device=device, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch"])
def test_extras_against_their_definition(backend):
    if backend != "torch":
        need(backend)
    device = device_of(backend)
    q, k, v = qkv(device, torch.float64, shape=(2, 4, 6, 5), S=7)
    for options in (
        {"alibi_slopes": SLOPES.to(device)},
        {"alibi_slopes": torch.stack([SLOPES, 2 * SLOPES]).to(device), "softcap": 2.0, "is_causal": True},
        {"key_lengths": torch.tensor([3, 0], device=device), "window": (2, 1)},
        {"key_lengths": torch.tensor([7, 5], dtype=torch.int32, device=device), "scale": 0.2},
        {"attn_mask": torch.rand(6, 7, device=device) > 0.4, "is_causal": True},
    ):
        with kz.backend(backend):
            y = F.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(y, composed(q, k, v, **options))


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch"])
def test_split_heads(backend):
    if backend != "torch":
        need(backend)
    device, heads = device_of(backend), (4, 2, 2)
    generator = torch.Generator().manual_seed(5)
    # laid out as a projection's output: (B, L, H, D)
    x, dy = (torch.randn(2, 9, h, 8, generator=generator, dtype=torch.float64).to(device) for h in (8, 4))
    found, copied = [], []
    for split in (F.split_heads, lambda t, heads: t.split(heads, 1)):
        leaf = x.transpose(1, 2).detach().requires_grad_()
        parts, grads = split(leaf, heads), []
        for t in parts:
            t.register_hook(grads.append)  # held, so that no memory is given out twice
        with kz.backend(backend):
            y = F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
            y.backward(dy.transpose(1, 2))
        found.append(leaf.grad)
        copied.append({grad.untyped_storage().data_ptr() for grad in grads} != {leaf.grad.data_ptr()})
    assert torch.equal(*found)
    assert copied == [backend == "torch", True]


def test_split_heads_of_any_use():
    """Parts unused, used twice, in another order, of other gradients; and second derivatives."""
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    uses = (
        lambda a, b, c: a.sum() + (c * c).sum(),
        lambda a, b, c: (a * b).sum() + (b.sin() * c).sum(),
        lambda a, b, c: F.scaled_dot_product_attention(b, a, c).square().sum(),
        lambda a, b, c: F.scaled_dot_product_attention(a, b, c).square().sum() + b.exp().sum(),
    )
    with kz.backend("numba"):
        for use in uses:
            (found,) = torch.autograd.grad(use(*F.split_heads(x, (2, 2, 2))), x)
            (expected,) = torch.autograd.grad(use(*x.split((2, 2, 2), 1)), x)
            torch.testing.assert_close(found, expected)
            assert torch.autograd.gradgradcheck(
                lambda t, use=use: use(*F.split_heads(t, (2, 2, 2))), x, check_fwd_over_rev=False
            )
    halves = torch.func.grad(lambda t: F.split_heads(t, (3, 3))[1].sum())(x.detach())
    assert torch.equal(halves[:, 3:], torch.ones(2, 3, 5, 4, dtype=x.dtype))
    assert not halves[:, :3].any()


SHAPES = (
    ((3, 4), (5, 4), (5, 6)),
    ((2, 3, 4), (2, 5, 4), (2, 5, 6)),
    ((2, 2, 3, 7, 4), (2, 2, 3, 5, 4), (2, 2, 3, 5, 6)),
    ((2, 3, 7, 4), (1, 3, 5, 4), (1, 3, 5, 4)),
    ((1, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
    ((2, 3, 7, 4), (2, 1, 5, 4), (2, 1, 5, 4)),
    ((2, 3, 7, 4), (3, 5, 4), (3, 5, 4)),
    ((2, 3, 7, 4), (2, 3, 0, 4), (2, 3, 0, 4)),
    ((2, 3, 0, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
    ((2, 3, 7, 0), (2, 3, 5, 0), (2, 3, 5, 4)),
    ((0, 3, 7, 4), (0, 3, 5, 4), (0, 3, 5, 4)),
)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["torch", "auto", "kernel"])
def test_shapes_and_masks_as_torch(name, shapes):
    tensors = [torch.randn(s, requires_grad=True) for s in shapes]
    L, S = shapes[0][-2], shapes[1][-2]
    masks = [None, torch.rand(L, S) > 0.5, torch.randn(L, S), torch.randn(1, S), torch.randn(L, 1)]
    if len(shapes[0]) == 5:
        masks += [torch.randn(*lead, L, S) for lead in ((1, 1, 1), (2, 1, 1), (1, 2, 3), (2, 3), (2, 1, 3))]
    for mask in masks:
        theirs = T.scaled_dot_product_attention(*tensors, mask)
        with kz.backend(here() if name == "kernel" else name):
            ours = F.scaled_dot_product_attention(*tensors, mask)
        torch.testing.assert_close(ours, theirs)
        if ours.requires_grad and ours.numel():
            dy = torch.randn_like(theirs)
            grads = [torch.autograd.grad(y, tensors, dy) for y in (ours, theirs)]
            torch.testing.assert_close(*grads)


def test_gqa_with_unlike_heads_as_torch():
    for heads in (
        ((2, 4, 7, 4), (2, 2, 5, 4), (2, 4, 5, 4)),
        ((4, 7, 4), (2, 5, 4), (2, 5, 4)),
        ((2, 6, 7, 4), (2, 2, 5, 4), (2, 3, 5, 4)),
    ):
        q, k, v = (torch.randn(s) for s in heads)
        theirs = T.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        with kz.backend(here()):
            torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, enable_gqa=True), theirs)


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_fully_masked_rows_are_zero_as_torch(backend, kind):
    if backend != "torch":
        need(backend)
    device = device_of(backend)
    tensors = qkv(device, requires_grad=True)
    mask = torch.ones(9, 11, dtype=torch.bool, device=device)
    mask[2] = False
    if kind == "float":
        mask = torch.zeros(9, 11, device=device).masked_fill(~mask, -torch.inf).requires_grad_()
        tensors.append(mask)
    with kz.backend(backend):
        y = F.scaled_dot_product_attention(*tensors[:3], mask)
    theirs = T.scaled_dot_product_attention(*tensors[:3], mask)
    assert (y[:, :, 2] == 0).all()
    torch.testing.assert_close(y, theirs)
    dy = torch.randn_like(y)
    ours, right = (torch.autograd.grad(out, tensors, dy) for out in (y, theirs))
    assert all(g.isfinite().all() for g in ours)
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("backend", [*WITHOUT_CUDA, "torch"])
def test_nan_and_infinite_scores_as_torch(backend):
    if backend != "torch":
        need(backend)
    device = device_of(backend)
    q, k, v = qkv(device, torch.float64)
    q[0, 0, 1, 0] = torch.nan
    k[0, 1, 2, 1] = torch.inf
    v[1, 0, 3, 2] = torch.inf
    v[1, 1, 0, 1] = torch.nan
    with kz.backend(backend):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), composed(q, k, v), equal_nan=True)
    mask = torch.zeros(9, 11, dtype=torch.float64, device=device)
    mask[1, 2], mask[3, 4], mask[5, 6] = torch.inf, torch.nan, -torch.inf
    q, k, v = qkv(device, torch.float64)
    with kz.backend(backend):
        y = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(y, composed(q, k, v, mask), equal_nan=True)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_of_large_numbers_as_torch(backend, dtype):
    """As models write them; row 5 sees nothing else, and what its keys share there no float holds."""
    need(backend)
    device = device_of(backend)
    q, k, v = qkv(device, dtype, shape=(1, 2, 13, 8), S=13, kv_heads=2, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    dy = torch.randn_like(q)
    dy[:, :, 5] = 0  # p of that row comes from a sum that its log has lost, as torch's own
    for least in (-1e9, -1e30, -1e38, torch.finfo(dtype).min):
        mask = torch.zeros(13, 13, dtype=dtype, device=device).masked_fill(
            torch.ones(13, 13, device=device).triu(1) > 0, least
        )
        mask[5] = least
        results, rows = [], []
        for name, tensors, m in (
            (backend, (q, k, v), mask),
            ("torch", (q, k, v), mask),
            ("torch", exact, mask.double()),
        ):
            with kz.backend(name):
                y = F.scaled_dot_product_attention(*tensors, m)
            others = [i for i in range(13) if i != 5]
            results.append(
                (
                    y.detach()[:, :, others],
                    *torch.autograd.grad(y, tensors, dy.to(y.dtype), retain_graph=True),
                )
            )
            # the whole of what reaches row 5 is finite
            assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), tensors))
            rows.append(y[:, :, 5].detach())
        if least < -1e20:  # the scores of row 5 are all the same there
            torch.testing.assert_close(rows[2], exact[2].detach().mean(-2))
            assert_as_good(f"row of {least}", *rows)
        for ours, theirs, oracle in zip(*results, strict=True):
            assert_as_good(f"{least}", ours, theirs, oracle)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize(
    "options", [{"window": (0, 0)}, {"softcap": 2.0, "alibi_slopes": 40 * SLOPES[:2]}], ids=str
)
def test_a_row_of_one_key_has_no_gradient(backend, options):
    """As in torch to the bit: the softmax of one score is constant, also where the others' weights round to 0."""
    need(backend)
    device = device_of(backend)
    options = {n: x.to(device) if torch.is_tensor(x) else x for n, x in options.items()}
    tensors = qkv(device, shape=(1, 2, 13, 8), S=13, kv_heads=2, requires_grad=True)
    if "window" not in options:
        options["attn_mask"] = torch.eye(13, device=device).sub(1).mul(1e4)
    with kz.backend(backend):
        y = F.scaled_dot_product_attention(*tensors, **options)
    assert torch.equal(y, tensors[2])
    for gradient in torch.autograd.grad(y.square().sum(), tensors[:2]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_large_scores_as_torch(backend):
    need(backend)
    device = device_of(backend)
    for features in (8, 10):
        q, k, v = qkv(device, shape=(1, 2, 13, features), S=13, kv_heads=2)
        if (
            backend == "triton"
        ):  # exact sums: in the interpreter a BLAS rounds q k and k q each its way, by thousands
            q, k = (q * 8).round() / 8, (k * 8).round() / 8
        given = [t.requires_grad_() for t in (q * 2**20, k * 2**20, v)]
        for options in ({}, {"is_causal": True}, {"attn_mask": torch.zeros(13, 13, device=device)}):
            theirs = composed(*given, **{"attn_mask": None, **options})
            with kz.backend(backend):
                ours = F.scaled_dot_product_attention(*given, **options)
            torch.testing.assert_close(ours, theirs)
            wanted = given[2]  # p is one in each row; dq and dk are rounding times 1e6
            torch.testing.assert_close(
                torch.autograd.grad(ours.sum(), wanted), torch.autograd.grad(theirs.sum(), wanted)
            )
        with kz.backend(backend), torch.no_grad():
            decoded = F.attention_decode(given[0][:, :, -1:], given[1], v, torch.tensor([13], device=device))
        torch.testing.assert_close(decoded, composed(given[0][:, :, -1:], given[1], v))


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_indices_of_any_strides(backend):
    need(backend)
    device = device_of(backend)

    def whole(*numbers):
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    q, k, v = qkv(device, shape=(2, 2, 5, 8), S=6, kv_heads=2)
    x = torch.randn(11, 2, 8, device=device)
    pages, table = torch.randn(5, 2, 4, 8, device=device), whole(0, 2, 1, 3).view(2, 2)
    calls = (
        (lambda n: F.scaled_dot_product_attention(q, k, v, key_lengths=n), whole(2, 9, 5, 9)[::2]),
        (lambda n: F.scaled_dot_product_attention(q, k, v, key_lengths=n), whole(4).expand(2)),
        (lambda n: F.attention_varlen(x, x, x, n, n), whole(0, 3, 4, 5, 11, 11)[::2]),
        (lambda n: F.attention_decode(q[:, :, -1:], k, v, n), whole(2, 9, 5, 9)[::2]),
        (lambda n: F.attention_decode(q[:, :, -1:], k, v, n), whole(4).expand(2)),
        (lambda n: F.attention_decode(q[:, :, -1:], pages, pages, whole(8, 8), n), table.t()),
    )
    with kz.backend(backend):
        for call, index in calls:
            assert torch.equal(call(index), call(index.contiguous()))


def test_windows_beyond_every_index():
    q, k, v = qkv()
    for window in ((None, sys.maxsize), (sys.maxsize, sys.maxsize), (2**31, 2**62), (2**30, 2**30)):
        for name in ("torch", here()):
            with kz.backend(name):
                y = F.scaled_dot_product_attention(q, k, v, window=window)
            torch.testing.assert_close(y, composed(q, k, v))


def test_what_lies_beyond_the_lengths_reaches_no_gradient():
    q = torch.randn(1, 2, 1, 4, requires_grad=True)
    cache, four = torch.randn(1, 2, 6, 4), torch.tensor([4])
    cache[:, :, 4:] = torch.nan
    theirs = T.scaled_dot_product_attention(q, cache[:, :, :4], cache[:, :, :4])
    (wanted,) = torch.autograd.grad(theirs.sum(), q)
    with kz.backend("torch"):
        for y in (
            F.attention_decode(q, cache, cache, four),
            F.scaled_dot_product_attention(q, cache, cache, key_lengths=four),
        ):
            torch.testing.assert_close(y, theirs)
            torch.testing.assert_close(torch.autograd.grad(y.sum(), q)[0], wanted)


def test_out_of_memory_is_torchs_and_a_call_is_made_once(monkeypatch):
    made = []

    def fail(*args, **options):
        made.append(1)
        raise error

    monkeypatch.setattr(T, "scaled_dot_product_attention", fail)
    for error in (torch.OutOfMemoryError("no memory"), RuntimeError("of torch's own")):
        made.clear()
        with pytest.raises(type(error), match=str(error)):
            F.scaled_dot_product_attention(*qkv())
        assert len(made) == 1


def test_a_result_may_be_written_in_place():
    q, k, v = qkv(requires_grad=True)
    with kz.backend(here()):
        y = F.scaled_dot_product_attention(q, k, v)
        y2 = F.scaled_dot_product_attention(q, k, v).mul_(2)
        assert y.stride() == (9 * 4 * 8, 8, 4 * 8, 1)
    torch.testing.assert_close(y2, 2 * T.scaled_dot_product_attention(q, k, v))
    # the backward reads the output, so that torch says what was overwritten
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y2.sum().backward()
    torch.testing.assert_close(
        torch.autograd.grad(2 * y.sum(), v)[0],
        torch.autograd.grad(2 * T.scaled_dot_product_attention(q, k, v).sum(), v)[0],
    )


def test_mask_that_is_expanded_gets_each_gradient():
    q, k, v = qkv()
    leaf = torch.randn(1, 1, 9, 11).expand(2, 4, 9, 11).detach().requires_grad_()
    base = torch.randn(1, 1, 9, 11, requires_grad=True)
    for mask, wanted in ((leaf, leaf), (base.expand(2, 4, 9, 11), base)):
        with kz.backend(here()):
            ours = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, mask).square().sum(), wanted)
        theirs = torch.autograd.grad(composed(q, k, v, mask).square().sum(), wanted)
        torch.testing.assert_close(ours, theirs)


def test_mask_of_another_dtype_and_wide_heads_are_torchs():
    q, k, v = qkv(dtype=torch.bfloat16)
    mask = torch.randn(9, 11)
    theirs = T.scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(F.scaled_dot_product_attention(q, k, v, mask), theirs)
    with kz.backend(here()), pytest.raises(kz.BackendUnavailable, match="a mask of torch"):
        F.scaled_dot_product_attention(q, k, v, mask)
    wide = [torch.randn(1, 1, 3, 300) for _ in range(3)]
    torch.testing.assert_close(
        F.scaled_dot_product_attention(*wide, softcap=2.0), composed(*wide, softcap=2.0)
    )
    with kz.backend(here()), pytest.raises(kz.BackendUnavailable, match="more than 256 features"):
        F.scaled_dot_product_attention(*wide)


def test_slopes_gradient_is_the_formulas():
    q, k, v = qkv(dtype=torch.float64)
    slopes = SLOPES.double().requires_grad_()
    ours = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, alibi_slopes=slopes).sum(), slopes)
    theirs = torch.autograd.grad(composed(q, k, v, alibi_slopes=slopes).sum(), slopes)
    # float32 sums in another order
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- dropout


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_dropout_is_the_formulas_and_replayed(backend):
    need(backend)
    device = device_of(backend)
    q, k, v = qkv(device, torch.float64, shape=(2, 4, 7, 4), S=10, kv_heads=2, requires_grad=True)
    found = []
    for name in (backend, "torch"):
        torch.manual_seed(5)
        with kz.backend(name):
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4, enable_gqa=True, is_causal=True)
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    torch.testing.assert_close(*found)
    torch.manual_seed(5)
    with kz.backend(backend):
        torch.autograd.gradcheck(
            lambda *a: (
                torch.manual_seed(5),
                F.scaled_dot_product_attention(*a, dropout_p=0.4, enable_gqa=True),
            )[1],
            (q, k, v),
            fast_mode=True,
        )


@pytest.mark.parametrize("name", ["torch", "auto", "kernel"])
def test_dropout_drops_a_share_and_keeps_the_mean(name):
    with kz.backend(here() if name == "kernel" else name):
        v = torch.eye(64).expand(2, 2, 64, 64)
        p = F.scaled_dot_product_attention(
            torch.zeros(2, 2, 64, 8), torch.zeros(2, 2, 64, 8), v, dropout_p=0.25
        )
        assert abs((p == 0).float().mean() - 0.25) < 0.02
        torch.testing.assert_close(p.max(), torch.tensor(1 / 64 / 0.75))
        y = F.scaled_dot_product_attention(*qkv(), dropout_p=0.5)
        assert not torch.equal(y, F.scaled_dot_product_attention(*qkv(), dropout_p=0.5))
    with kz.backend("auto"):
        for options in ({}, {"softcap": 1.0}):
            assert (F.scaled_dot_product_attention(*qkv(), dropout_p=1.0, **options) == 0).all()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_under_transforms(randomness):
    a = torch.randn(3, 2, 4, 8)

    def drop(x):
        return F.scaled_dot_product_attention(x, x, torch.eye(4).expand(2, 4, 4), dropout_p=0.5)

    zeros = torch.vmap(drop, randomness=randomness)(a) == 0
    assert zeros.any()
    assert (zeros[0] == zeros[1]).all() == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(drop)(a)
    torch.manual_seed(3)
    y, tangent = torch.func.jvp(drop, (a[0],), (torch.ones_like(a[0]),))
    torch.manual_seed(3)
    with torch.autograd.forward_ad.dual_level():
        dual = drop(torch.autograd.forward_ad.make_dual(a[0], torch.ones_like(a[0])))
        torch.testing.assert_close(tuple(torch.autograd.forward_ad.unpack_dual(dual)), (y, tangent))


# ---- memory, compile, autocast


@pytest.mark.parametrize("backend", [b for b in WITHOUT_CUDA if not (b == "triton" and not GPU)])
def test_memory_grows_with_the_sequence_only(backend):
    need(backend)
    from torch.profiler import ProfilerActivity, profile

    L = 2048
    q, k, v = (torch.randn(1, 2, L, 16, device=device_of(backend), requires_grad=True) for _ in range(3))
    with kz.backend(backend), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y.sum(), (q, k, v))
    largest = max(e.self_cpu_memory_usage for e in profiler.events())
    assert largest < 2 * L * L * 4 / 4, f"{largest} bytes at once; the scores are {2 * L * L * 4}"


def test_compiles_with_every_option():
    q, k, v = qkv(dtype=torch.float64, requires_grad=True)
    lengths, slopes = torch.tensor([5, 11]), SLOPES

    def function(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, window=(4, 0), softcap=2.0, alibi_slopes=slopes, key_lengths=lengths
        )

    def dropped(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    def sequences(q, k, v):
        cu = torch.tensor([0, 4, 9], dtype=torch.int32)
        return F.attention_varlen(q[0].mT, q[1].mT, q[0].mT, cu, cu, 5, 5, is_causal=True)

    with kz.backend(here()), compiled_quietly():
        for f in (function, sequences):
            wrapped = (lambda q, k, v, f=f: f(q[:, :, :, :8], k, v)) if f is function else f
            if f is sequences:
                q2 = torch.randn(2, 9, 8, 4, dtype=torch.float64, requires_grad=True)
                given = (q2, k, v)
                wanted = (q2,)
            else:
                given = wanted = (q, k, v)
            eager = wrapped(*given)
            ours = torch.compile(wrapped, fullgraph=True, backend="aot_eager")(*given)
            torch.testing.assert_close(ours, eager)
            torch.testing.assert_close(
                torch.autograd.grad(ours.sum(), wanted), torch.autograd.grad(eager.sum(), wanted)
            )
        found = []
        for f in (torch.compile(dropped, fullgraph=True, backend="aot_eager"), dropped):
            torch.manual_seed(8)
            y = f(q, k, v)
            found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
        torch.testing.assert_close(*found)
        cache = torch.randn(2, 4, 16, 8, dtype=torch.float64)
        decode = torch.compile(
            lambda q, c, n: F.attention_decode(q, c, c, n), fullgraph=True, backend="aot_eager"
        )
        with torch.no_grad():
            n = torch.tensor([9, 16])
            torch.testing.assert_close(decode(q, cache, n), F.attention_decode(q, cache, cache, n))


def test_autocast_as_torch():
    q, k, v = qkv()
    exact = composed(*(t.bfloat16().double() for t in (q, k, v)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = T.scaled_dot_product_attention(q, k, v)
        for name in ("auto", "torch", here()):
            with kz.backend(name):
                y = F.scaled_dot_product_attention(q, k, v)
                assert y.dtype == theirs.dtype == torch.bfloat16
                assert_as_good(name, y, theirs, exact)
                assert F.scaled_dot_product_attention(q, k, v, alibi_slopes=SLOPES).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_proxies_and_nested_tensors_are_torchs():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = qkv(S=9)
    traced = torch.fx.symbolic_trace(Model())
    torch.testing.assert_close(traced(q, k, v), T.scaled_dot_product_attention(q, k, v, is_causal=True))
    nested = torch.nested.nested_tensor(
        [torch.randn(n, 2, 8) for n in (3, 5)], layout=torch.jagged
    ).transpose(1, 2)
    ours, theirs = (f.scaled_dot_product_attention(nested, nested, nested) for f in (F, T))
    assert ours.is_nested
    torch.testing.assert_close(ours.transpose(1, 2).values(), theirs.transpose(1, 2).values())
    with pytest.raises(kz.ArgumentError, match="nested"):
        F.scaled_dot_product_attention(nested, nested, nested, softcap=1.0)


# ---- bad input

q4, k4 = torch.zeros(2, 4, 7, 8), torch.zeros(2, 4, 5, 8)
BAD = (
    ((q4, k4, torch.zeros(2, 4, 6, 8)), {}, ValueError, "value has 6 positions but key has 5"),
    ((q4, torch.zeros(2, 4, 5, 9), k4), {}, ValueError, "key has 9 features a head but query has 8"),
    ((torch.zeros(8), torch.zeros(8), torch.zeros(8)), {}, RuntimeError, "at least 2 dimensional"),
    ((q4, k4[:, :2], k4[:, :2]), {}, ValueError, "do not broadcast; set enable_gqa=True"),
    ((q4, k4[:, :3], k4[:, :3]), {"enable_gqa": True}, ValueError, "key has 3 heads, which does not divide"),
    ((q4[0, 0], k4[0, 0], k4[0, 0]), {"enable_gqa": True}, ValueError, "needs a dimension of heads"),
    ((q4, k4.double(), k4), {}, TypeError, "key has dtype torch.float64 but query has torch.float32"),
    (([1], k4, k4), {}, TypeError, "query must be a Tensor, got list"),
    ((q4, k4, k4, torch.ones(6, 5) > 0), {}, ValueError, r"attn_mask of shape \(6, 5\) does not broadcast"),
    ((q4, k4, k4, torch.ones(5)), {}, ValueError, "does not broadcast"),
    ((q4, k4, k4, torch.ones(3, 2, 4, 7, 5)), {}, ValueError, "does not broadcast"),
    ((q4, k4, k4, torch.ones(7, 5, dtype=torch.int32)), {}, TypeError, "Expected attn_mask dtype to be bool or"),
    ((q4, k4, k4, torch.ones(7, 5).double()), {}, TypeError, "Expected attn_mask dtype to be bool or float"),
    ((q4, k4, k4), {"dropout_p": 1.5}, RuntimeError, "dropout probability has to be between 0 and 1, but got 1.5"),
    ((q4, k4, k4), {"dropout_p": -0.5}, ValueError, "dropout probability has to be between"),
    ((q4, k4, k4), {"scale": "x"}, TypeError, "scale must be float, not str"),
    ((q4, k4, k4), {"is_causal": 1}, TypeError, "is_causal must be bool, not int"),
    ((q4, k4, k4), {"window": 3}, TypeError, r"window must be \(left, right\) or None, got 3"),
    ((q4, k4, k4), {"window": (1.5, 0)}, TypeError, "window's left side must be int or None"),
    ((q4, k4, k4), {"window": (0, -2)}, ValueError, "window's right side is -2"),
    ((q4, k4, k4), {"softcap": -1.0}, ValueError, "softcap must be a positive number"),
    ((q4, k4, k4), {"softcap": math.nan}, ValueError, "softcap must be a positive number"),
    ((q4, k4, k4), {"alibi_slopes": torch.ones(3)}, ValueError, r"alibi_slopes has shape \(3,\); expected \(4,\)"),
    ((q4, k4, k4), {"alibi_slopes": [1.0]}, TypeError, "alibi_slopes must be a Tensor"),
    ((q4, k4, k4), {"alibi_slopes": torch.ones(4, dtype=torch.int64)}, TypeError, "alibi_slopes must be floating"),
    ((q4, k4, k4), {"key_lengths": torch.tensor([5])}, ValueError, r"key_lengths has shape \(1,\); expected \(2,\)"),
    ((q4, k4, k4), {"key_lengths": torch.tensor([5, 6])}, ValueError, "key_lengths holds 6; expected 0 to 5"),
    ((q4, k4, k4), {"key_lengths": torch.tensor([-1, 2])}, ValueError, "key_lengths holds -1"),
    ((q4, k4, k4), {"key_lengths": torch.tensor([1.0, 2.0])}, TypeError, "key_lengths must be int32 or int64"),
)  # fmt: skip


@pytest.mark.parametrize(("args", "options", "error", "says"), BAD, ids=[b[3][:40] for b in BAD])
@pytest.mark.parametrize("name", ["auto", "kernel"])
def test_bad_input(name, args, options, error, says):
    with kz.backend(here() if name == "kernel" else name), pytest.raises(error, match=f"{NAME}: .*{says}"):
        F.scaled_dot_product_attention(*args, **options)
