"""Rotary embedding in both layouts, partial, at given positions, over any strides."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo import nn

from ..harness import WITHOUT_CUDA, Case, OpSuite, device_of, here, need

ROWS = 40


def tables(x, dim):
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    return F.rotary_tables(ROWS, dim, 100.0, device=x.device, dtype=acc)


def positions_of(x, position_ids):
    return None if position_ids is None else torch.tensor(position_ids, device=x.device)


def call(x, dim, position_ids, interleaved):
    return F.rotary_embedding(x, *tables(x, dim), positions_of(x, position_ids), interleaved=interleaved)


def reference(x, dim, position_ids, interleaved):
    """As the models that use it write it: x·cos + rotated(x)·sin."""
    cos, sin = (t.to(x.dtype) for t in tables(x, dim))
    at = torch.arange(x.shape[-2], device=x.device) if position_ids is None else positions_of(x, position_ids)
    cos, sin = cos[at], sin[at]
    if at.dim() == 2:
        cos, sin = (t.view(t.shape[0], *(1,) * (x.dim() - 3), *t.shape[1:]) for t in (cos, sin))
    turned, rest = x[..., :dim], x[..., dim:]
    if interleaved:
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        other = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
    else:
        cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        other = torch.cat([-turned[..., dim // 2 :], turned[..., : dim // 2]], -1)
    return torch.cat([turned * cos + other * sin, rest], -1)


def case(shape, dim, position_ids=None, interleaved=False, transpose=False, large=False):
    def make(g):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        options = {"dim": dim, "position_ids": position_ids, "interleaved": interleaved}
        return [x.transpose(1, 2) if transpose else x], options

    name = f"{'x'.join(map(str, shape))}-R{dim}" + ("-pairs" if interleaved else "")
    name += ("-t" if transpose else "") + ("" if position_ids is None else "-positions")
    return Case(name, make, large)


GIVEN = ((3, 0, 39, 7, 7), (1, 2, 3, 4, 5))


class TestRotary(OpSuite):
    call = staticmethod(call)
    reference = staticmethod(reference)
    cases = (
        case((2, 3, 5, 8), 8),
        case((2, 3, 5, 8), 8, interleaved=True),
        case((2, 3, 5, 11), 6),
        case((2, 3, 5, 11), 6, interleaved=True),
        case((2, 5, 3, 10), 10, transpose=True),
        case((2, 5, 3, 10), 4, GIVEN, transpose=True, interleaved=True),
        case((2, 3, 5, 8), 8, GIVEN[0]),
        case((2, 3, 5, 8), 6, GIVEN),
        case((5, 2), 2),
        case((2, 5, 6), 6, GIVEN),
        case((2, 2, 2, 5, 6), 4, GIVEN),
        case((2, 3, 37, 128), 128, large=True),
        case((2, 37, 5, 80), 72, transpose=True, large=True),
        case((2, 3, 37, 130), 96, interleaved=True, large=True),
        case((1, 2, 3, 2600), 2590, large=True),
        case((1, 2, 3, 2600), 2590, interleaved=True, large=True),
    )


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_the_result_is_laid_out_like_the_input(backend):
    need(backend)
    x = torch.randn(2, 5, 3, 8, device=device_of(backend)).transpose(1, 2)
    packed = torch.randn(2, 5, 3, 2, 8, device=device_of(backend))[:, :, :, 1].transpose(1, 2)
    with kz.backend(backend):
        assert call(x, 8, None, False).stride() == x.stride()
        torch.testing.assert_close(call(packed, 8, None, False), reference(packed, 8, None, False))


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tables_of_another_dtype_are_not_rounded(backend, dtype):
    need(backend)
    x = torch.randn(2, 3, 5, 8, device=device_of(backend), dtype=dtype)
    exact = reference(x.double(), 8, None, False)
    with kz.backend(backend):
        y = call(x, 8, None, False)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_int32_positions_and_infinities(backend):
    need(backend)
    x = torch.randn(1, 1, 3, 4, device=device_of(backend))
    x[0, 0, 1] = torch.tensor([torch.inf, 1.0, torch.nan, -torch.inf])
    cos, sin = tables(x, 4)
    at = torch.tensor([2, 1, 0], dtype=torch.int32, device=x.device)
    with kz.backend(backend):
        y = F.rotary_embedding(x, cos, sin, at)
    with kz.backend("torch"):
        torch.testing.assert_close(y, F.rotary_embedding(x, cos, sin, at), equal_nan=True)


def test_gradients_of_the_tables():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (t.requires_grad_() for t in tables(x, 6))
    torch.autograd.gradcheck(F.rotary_embedding, (x, cos, sin), fast_mode=True)


def test_bad_input():
    x = torch.zeros(2, 3, 5, 8)
    cos, sin = tables(x, 8)
    at = torch.arange(5)

    def fails(error, match, *args):
        with pytest.raises(error, match=f"rotary_embedding: {match}"):
            F.rotary_embedding(*args)

    fails(ValueError, r"x has 5 positions but the tables have 4 rows", x, cos[:4], sin[:4])
    fails(ValueError, r"position_ids go from 0 to 40 but the tables have 40 rows", x, cos, sin, at * 10)
    fails(ValueError, r"position_ids go from -1 to 3", x, cos, sin, at - 1)
    fails(
        TypeError,
        r"position_ids has dtype torch.float32; expected whole numbers",
        x,
        cos,
        sin,
        at / torch.nan,
    )
    fails(ValueError, r"position_ids has shape \(4,\) but x has \(2, 3, 5, 8\)", x, cos, sin, at[:4])
    fails(ValueError, r"position_ids has shape \(3, 5\)", x, cos, sin, at.expand(3, 5))
    fails(ValueError, r"the tables turn 8 features but x has 6", x[..., :6], cos, sin)
    fails(ValueError, r"cos has shape \(40, 4\) and sin \(40, 3\)", x, cos, sin[:, :3])
    fails(TypeError, r"cos must be a Tensor, got NoneType", x, None, sin)
    fails(TypeError, r"x has dtype torch.int64", x.long(), cos, sin)
    fails(ValueError, r"sin is on meta but x is on cpu", x, cos, sin.to("meta"))
    with pytest.raises(ValueError, match=r"rotary_tables: dim must be an even int of at least 2, got 3"):
        F.rotary_tables(4, 3)
    with pytest.raises(ValueError, match=r"inv_freq has shape \(3,\); expected \(2,\) for dim 4"):
        F.rotary_tables(4, 4, inv_freq=[1.0, 0.5, 0.1])


def test_tables_are_those_of_the_models():
    cos, sin = F.rotary_tables(100, 16)
    inv_freq = 1.0 / (10000.0 ** (torch.arange(0, 16, 2, dtype=torch.int64).float() / 16))
    angles = torch.arange(100).float()[:, None] @ inv_freq[None]
    assert torch.equal(cos, angles.cos())
    assert torch.equal(sin, angles.sin())
    scaled = F.rotary_tables(100, 16, inv_freq=(inv_freq / 4).tolist())
    assert torch.equal(scaled[0][::4][:25], cos[:25])


def test_module_grows_and_keeps_float32():
    module = nn.RotaryEmbedding(8, max_positions=4)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(module(x), F.rotary_embedding(x, *F.rotary_tables(9, 8)))
    assert module.cos.shape[0] == 9
    at = torch.arange(50, 59)
    torch.testing.assert_close(module(x, at), F.rotary_embedding(x, *F.rotary_tables(59, 8), at))
    assert not module.state_dict()
    assert module.bfloat16().cos.dtype == torch.float32
    assert torch.equal(module.cos[:9], F.rotary_tables(9, 8)[0])
    assert module(x.bfloat16()).dtype == torch.bfloat16
    assert module.double().cos.dtype == torch.float64
    with pytest.raises(TypeError, match="whole numbers"):
        module(x, at / torch.nan)
    with pytest.raises(ValueError, match=r"RotaryEmbedding: x has shape \(2, 4\)"):
        module(x[0, 0, :2, :4])


def test_module_from_the_meta_device():
    with torch.device("meta"):
        module = nn.RotaryEmbedding(8, 16, inv_freq=[1.0, 0.5, 0.25, 0.125])
    assert module.cos.device.type == "meta"
    module = module.to_empty(device="cpu")
    assert torch.equal(module.sin, F.rotary_tables(16, 8, inv_freq=[1.0, 0.5, 0.25, 0.125])[1])


# inductor's first import scripts modules
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dim", [8, 6])
def test_compiled_with_features_that_are_not_adjacent(dim):
    k = torch.randn(2, 3, 8, 40, requires_grad=True)

    def f(k):
        return call(k.transpose(-1, -2), dim, None, False)

    with kz.backend(here()):
        y, compiled = f(k), torch.compile(f)(k)
        assert y.stride() == compiled.stride()
        torch.testing.assert_close(compiled, y)
        dy = torch.randn(2, 3, 8, 40).transpose(-1, -2)
        ours, right = (torch.autograd.grad(t, k, dy)[0] for t in (compiled, y))
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("backend", ["auto", here()])
def test_compiled_positions_outside_the_tables(backend):
    x = torch.randn(2, 3, 1024, 8)
    module = nn.RotaryEmbedding(8, 1030)
    at = torch.arange(1024)
    with kz.backend(backend):
        f = torch.compile(module, backend="aot_eager")
        torch.testing.assert_close(f(x, at), module(x, at))
        for bad in (at + 7, at - 1):
            with pytest.raises(ValueError, match=r"position_ids go from .* but the tables have 1030 rows"):
                f(x, bad)
        module.reach(1031)
        torch.testing.assert_close(f(x, at + 7), module(x, at + 7))


@pytest.mark.parametrize("change", ["build", "forward", "convert"])
def test_training_after_inference_mode(change):
    x, at = torch.randn(2, 3, 9, 8), torch.arange(9)
    module = nn.RotaryEmbedding(8, 4)
    with torch.inference_mode():
        if change == "build":
            module = nn.RotaryEmbedding(8, 16)
        elif change == "forward":
            module(x)
        else:
            module.double().float()
            module._apply(torch.clone)
    assert not module.cos.is_inference()
    x.requires_grad_()
    with kz.backend(here()):
        module(x, at).sum().backward()
    assert x.grad.shape == x.shape


def test_opcheck():
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    torch.utils.deterministic.fill_uninitialized_memory = False
    for ids in (None, torch.tensor(GIVEN)):
        for t in (x, torch.randn(2, 3, 8, 5).transpose(-1, -2)):
            args = (t, *tables(t, 6), ids, False, True, here())
            torch.library.opcheck(torch.ops.kernelzoo.rotary.default, args)
