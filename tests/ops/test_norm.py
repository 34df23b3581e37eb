"""layer_norm and rms_norm, with and without a residual, and group_norm."""

import math

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo import nn
from kernelzoo.verify import assert_as_good

from ..harness import WITHOUT_CUDA, Case, OpSuite, device_of, here, need

BOTH = pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
ON = pytest.mark.parametrize("backend", WITHOUT_CUDA)


def normal(shape, g, scale=1.0):
    return torch.randn(shape, generator=g, dtype=torch.float64) * scale


def case(shape, dims=1, weight=True, bias=True, residual=False, large=False, offset=0.0):
    def make(g):
        sizes = shape[len(shape) - dims :]
        w = 1 + normal(sizes, g, 0.5) if weight else None
        b = normal(sizes, g) if bias else None
        return (
            normal(shape, g) + offset,
            w,
            b,
            normal(shape, g) if residual else None,
        ), {"dims": dims, "eps": 1e-3}

    parts = ["x".join(map(str, shape)), f"dims{dims}", "w" * weight, "b" * bias, "r" * residual]
    return Case("-".join(filter(None, parts)), make, large)


CASES = (
    case((5, 19)),
    case((3, 33), weight=False),
    case((3, 2, 5, 7), dims=2, bias=False),
    case((7,), weight=False, bias=False),
    case((4, 300), residual=True),
    case((3, 5), residual=True),
    case((9, 131), residual=True, weight=False, bias=False, offset=3.0),
    case((70, 16)),
    case((77, 1031), large=True),
    case((203, 768), large=True, residual=True),
    case((2, 70001), large=True),
    case((5003, 8), large=True),
)


def on(layer, rms):
    def call(x, w, b, r, dims, eps):
        shape = x.shape[x.dim() - dims :]
        arguments = (x, shape, w, eps) if rms else (x, shape, w, b, eps)
        return layer(*arguments) if r is None else layer(*arguments, residual=r)

    return staticmethod(call)


def plain(function):
    def call(x, *arguments, residual=None):
        s = x if residual is None else x + residual
        y = function(s, *arguments)
        return y if residual is None else (y, s)

    return call


def exact_layer(x, shape, w=None, b=None, eps=1e-5):
    """torch's own fp64 leaves (x - mean) rstd as x rstd - mean rstd: 7e-18 in place of 0 for a row of one."""
    dims = [*range(-len(shape), 0)]
    centred = x - x.mean(dims, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    y = y if w is None else y * w
    return y if b is None else y + b


def exact_group(x, groups, weight=None, bias=None, eps=1e-5):
    rows = x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    y = exact_layer(rows, rows.shape[2:], eps=eps).reshape(x.shape).transpose(1, -1)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).transpose(1, -1)


def exact_rms(x, shape, w=None, eps=None):
    eps = torch.finfo(torch.float64).eps if eps is None else eps
    y = x * torch.rsqrt(x.square().mean([*range(-len(shape), 0)], keepdim=True) + eps)
    return y if w is None else y * w


class TestLayerNorm(OpSuite):
    call = on(F.layer_norm, rms=False)
    reference = on(plain(T.layer_norm), rms=False)
    oracle = on(plain(exact_layer), rms=False)
    cases = CASES


class TestRMSNorm(OpSuite):
    call = on(F.rms_norm, rms=True)
    reference = on(plain(T.rms_norm), rms=True)
    oracle = on(plain(exact_rms), rms=True)
    cases = tuple(c for c in CASES if "-b" not in c.id)


def group_case(shape, groups, weight=True, bias=True, large=False):
    def make(g):
        w = 1 + normal(shape[1:2], g, 0.5) if weight else None
        b = normal(shape[1:2], g) if bias else None
        return (normal(shape, g), w, b), {"groups": groups, "eps": 1e-3}

    parts = ["x".join(map(str, shape)), f"groups{groups}", "w" * weight, "b" * bias]
    return Case("-".join(filter(None, parts)), make, large)


class TestGroupNorm(OpSuite):
    call = staticmethod(lambda x, w, b, groups, eps: F.group_norm(x, groups, w, b, eps))
    reference = staticmethod(lambda x, w, b, groups, eps: T.group_norm(x, groups, w, b, eps))
    oracle = staticmethod(lambda x, w, b, groups, eps: exact_group(x, groups, w, b, eps))
    cases = (
        group_case((2, 6, 5, 3), 3),
        group_case((3, 6), 2),
        group_case((2, 4, 7), 4, bias=False),
        group_case((2, 4, 2, 3, 3), 1, bias=False),
        group_case((1, 5, 150), 5, weight=False, bias=False),
        group_case((3, 48, 23, 21), 6, large=True),
        group_case((65, 6, 33), 2, large=True),
        group_case((1, 4, 90001), 2, large=True),
    )


def results(function, tensors, arguments, options):
    y = function(*arguments, **options)
    y = y if isinstance(y, tuple) else (y,)
    g = torch.Generator().manual_seed(5)
    dy = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in y]
    return [*y, *torch.autograd.grad(y, tensors, dy)]


@ON
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1e2, 1e4])
@pytest.mark.parametrize("width", [127, 129, 1000, 1023])
def test_large_mean(backend, name, dtype, offset, width):
    """A variance by E[x²] - E[x]² would have lost all its digits, a tail added element by element some."""
    need(backend)
    device = device_of(backend)
    interpreted = device == "cpu" and backend == "triton"
    if interpreted and width != 127:
        pytest.skip("slow in the interpreter")
    g = torch.Generator().manual_seed(3)
    samples, groups = (2, 4) if interpreted else (5, 16)
    shape, last = ((37, width), (width,)) if name != "group_norm" else ((samples, groups, width), groups)
    x = (normal(shape, g) + offset).to(dtype).to(device)
    w = normal(last if name != "group_norm" else (groups,), g).to(dtype).to(device)
    found = []
    for function, cast in ((getattr(F, name), 0), (getattr(T, name), 0), (getattr(T, name), torch.float64)):
        a, b = ((t.to(cast) if cast else t).detach().requires_grad_() for t in (x, w))
        with kz.backend(backend):
            found.append(results(function, (a, b), (a, last, b), {}))
    for i, (ours, theirs, right) in enumerate(zip(*found, strict=True)):
        assert_as_good(f"{i}", ours, theirs, right)


@ON
@BOTH
def test_mixed_dtypes(backend, name):
    """A 16-bit input with float32 weights, as under autocast, and with a float32 residual."""
    need(backend)
    device = device_of(backend)
    for dtype in (torch.bfloat16, torch.float16):
        for kinds in ((dtype, None), (dtype, dtype), (dtype, torch.float32), (torch.float32, dtype)):
            g = torch.Generator().manual_seed(1)
            x, r = (None if t is None else normal((6, 40), g).to(t).to(device) for t in kinds)
            w = normal((40,), g).float().to(device)
            given = [t for t in (x, w, r) if t is not None]
            shape = (40,)
            theirs = plain(getattr(T, name))
            found = []
            for function, cast in ((getattr(F, name), None), (theirs, None), (theirs, torch.float64)):
                a = [t.to(cast or t.dtype).detach().requires_grad_() for t in given]
                options = {"residual": a[2]} if r is not None else {}
                if function is theirs and name == "rms_norm" and cast is None:

                    def function(x, shape, w, residual=None):  # torch's warns that it has no fused kernel
                        s = x if residual is None else x + residual
                        y = T.rms_norm(s.float(), shape, w).to(s.dtype)
                        return y if residual is None else (y, s)

                with kz.backend(backend):
                    found.append(results(function, a, (a[0], shape, a[1]), options))
            for i, (one, other, right) in enumerate(zip(*found, strict=True)):
                assert_as_good(f"{kinds} {i}", one, other, right)


@ON
@BOTH
def test_one_gradient_of_two(backend, name):
    """Only y or only s is used: the other's gradient never comes."""
    need(backend)
    device = device_of(backend)
    x, r = (torch.randn(4, 24, device=device, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w = torch.randn(24, device=device, dtype=torch.float64, requires_grad=True)
    for which in (0, 1):
        found = []
        for function in (getattr(F, name), plain(getattr(T, name))):
            with kz.backend(backend):
                y = function(x, (24,), w, residual=r)[which]
            found.append(torch.autograd.grad(y.square().sum(), (x, w, r), allow_unused=True))
        for ours, theirs in zip(*found, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


@ON
@BOTH
def test_infinite_rows_as_torch(backend, name):
    need(backend)
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[1.0, 2.0, -inf, 3.0], [nan, 1.0, 2.0, 3.0], [0.0] * 4, [5.0] * 4, [1e-30, 0, 0, 0],
                      [1.0, 2.0, 3.0, 4.0]], device=device_of(backend), requires_grad=True)  # fmt: skip
    w = torch.tensor([1.0, -2.0, 0.0, 3.0], device=x.device, requires_grad=True)
    for eps in (1e-5, 0.0):
        found = []
        for function in (getattr(F, name), getattr(T, name)):
            with kz.backend(backend):
                found.append(results(function, (x, w), (x, (4,), w), {"eps": eps}))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@ON
def test_same_bits_on_any_number_of_threads(backend):
    need(backend)
    if backend not in ("cpp", "numba"):
        pytest.skip(f"{backend} has no threads of the host's")
    x, r = (torch.randn(300, 257, requires_grad=True) for _ in range(2))
    image = torch.randn(6, 8, 41, 40, requires_grad=True)
    w, b = (torch.randn(257, requires_grad=True) for _ in range(2))
    v = torch.randn(8, requires_grad=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with kz.backend(backend):
                found.append(
                    results(F.layer_norm, (x, r, w, b), (x, (257,), w, b), {"residual": r})
                    + results(F.rms_norm, (x, w), (x, (257,), w), {})
                    + results(F.group_norm, (image, v), (image, 4, v, v), {})
                )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_past_the_caches(name, dtype):
    """Large results are streamed past the caches; a few of their rows alone are not."""
    rows = 4224 * 4 // dtype.itemsize
    x, r, dy = (torch.randn(rows, 1024).to(dtype) for _ in range(3))
    some = torch.tensor([0, 1, rows // 2, rows - 1])
    found = []
    for given in ((x, r, dy), tuple(t[some] for t in (x, r, dy))):
        a, b = (t.requires_grad_() for t in given[:2])
        with kz.backend(here()):
            y, s = getattr(F, name)(a, (1024,), residual=b)
            found.append((y, s, torch.autograd.grad(y, a, given[2])[0]))
    for large, small in zip(*found, strict=True):
        assert torch.equal(large[some], small)


@ON
def test_group_norm_channels_last(backend):
    need(backend)
    x = torch.randn(2, 6, 5, 4, device=device_of(backend)).to(memory_format=torch.channels_last)
    x.requires_grad_()
    with kz.backend(backend):
        ours = results(F.group_norm, (x,), (x, 3), {})
    theirs = results(T.group_norm, (x,), (x, 3), {})
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert ours[0].stride() == theirs[0].stride()


@BOTH
def test_saved_for_backward(name):
    """s, the weights and a number or two a row: never the normalised rows."""
    x, r = (torch.randn(64, 512, requires_grad=True) for _ in range(2))
    w = torch.randn(512, requires_grad=True)
    sizes = []

    def pack(t):
        sizes.append((t.data_ptr(), t.numel()))
        return t

    with kz.backend(here()), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _, s = getattr(F, name)(x, (512,), w, residual=r)
    assert sorted(n for _, n in sizes) == sorted([s.numel(), 512, *[64] * (2 - (name == "rms_norm"))])
    assert s.data_ptr() in [pointer for pointer, _ in sizes]


@BOTH
def test_empty_and_zero_size(name):
    for shape, normalised in (((0, 6), (6,)), ((3, 0), (0,)), ((2, 0, 3), (0, 3))):
        x = torch.randn(shape, requires_grad=True)
        r = torch.randn(shape, requires_grad=True)
        w = torch.randn(normalised, requires_grad=True)
        ours = results(getattr(F, name), (x, w, r), (x, normalised, w), {"residual": r})
        theirs = results(plain(getattr(T, name)), (x, w, r), (x, normalised, w), {"residual": r})
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [8, 700])
def test_modules_with_a_residual(size):
    for layer in (nn.LayerNorm(size), nn.LayerNorm(size, bias=False), nn.RMSNorm(size, eps=1e-5)):
        x, r = torch.randn(400, size), torch.randn(400, size)
        y, s = layer(x, r)
        torch.testing.assert_close(s, x + r)
        torch.testing.assert_close(y, type(layer).__bases__[0].forward(layer, x + r))
        assert layer(x).shape == x.shape


def test_cpu_autocast_as_torch():
    x = torch.randn(600, 512, dtype=torch.bfloat16)
    for ours, theirs in (
        (nn.LayerNorm(512), torch.nn.LayerNorm(512)),
        (nn.GroupNorm(4, 512), torch.nn.GroupNorm(4, 512)),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for dtype in (torch.bfloat16, torch.float32):
                y = ours(x.to(dtype))
                assert y.dtype == dtype
                torch.testing.assert_close(y, theirs(x.to(dtype)))


@BOTH
def test_fx_traces(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return getattr(F, name)(x, (8,))

    x = torch.randn(3, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(Module())(x), getattr(T, name)(x, (8,)))


@BOTH
def test_bad_input(name):
    x, f = torch.randn(4, 6), getattr(F, name)
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=rf"{name}: Given normalized_shape=\[5\].*of size \[4, 6\]"):
            f(x, (5,))
    with pytest.raises(ValueError, match=f"{name}: Expected weight to be of same shape"):
        f(x, (6,), torch.randn(5))
    with pytest.raises(ValueError, match=f"{name}: Expected normalized_shape to be at least 1-dimensional"):
        f(x, ())
    with pytest.raises(TypeError, match=f"{name}: normalized_shape must be a tuple of ints, got int"):
        f(x, 6)
    with pytest.raises(TypeError, match=f"{name}: normalized_shape must be a tuple of ints"):
        f(x, ("six",))
    with pytest.raises(TypeError, match=f"{name}: input must be a Tensor, got list"):
        f([1.0], (1,))
    with pytest.raises(TypeError, match=f"{name}: weight must be a Tensor, got str"):
        f(x, (6,), "w")
    with pytest.raises(TypeError, match=f"{name}: eps must be a number, got str"):
        f(x, (6,), eps="small")
    with pytest.raises(ValueError, match=rf"{name}: residual has shape \(1, 6\) but input has \(4, 6\)"):
        f(x, (6,), residual=torch.randn(1, 6))
    with pytest.raises(ValueError, match=f"{name}: weight is on meta but input is on cpu"):
        f(x, (6,), torch.randn(6, device="meta"))


def test_bad_input_of_group_norm():
    x = torch.randn(2, 6, 5)
    with pytest.raises(ValueError, match=r"group_norm: Expected number of channels.*num_groups=4"):
        F.group_norm(x, 4)
    with pytest.raises(ValueError, match="group_norm: Expected weight to be a vector of size"):
        F.group_norm(x, 2, torch.randn(5))
    with pytest.raises(ValueError, match="group_norm: Expected num groups to be greater than 0, got 0"):
        F.group_norm(x, 0)
    with pytest.raises(TypeError, match="group_norm: num_groups must be an int, got float"):
        F.group_norm(x, 2.0)
    with pytest.raises(ValueError, match="group_norm: Expected at least 2 dimensions"):
        F.group_norm(torch.randn(6), 2)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        F.group_norm(torch.randn(1, 2), 2)
