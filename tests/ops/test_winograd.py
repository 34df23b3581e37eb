"""3x3 convolutions with fewer products, in C++: every instruction set, order and edge; what is not finite."""

import itertools

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.verify import assert_as_good

from ..harness import need

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def cpp():
    need("cpp")


@pytest.fixture
def served(monkeypatch):
    """Counts the results that the kernels gave, and those that they left to the direct product."""
    from kernelzoo.kernels.cpp import winograd

    counts = {True: 0, False: 0}

    def counting(call):
        def counted(*args, **options):
            result = call(*args, **options)
            counts[result is not None] += 1
            return result

        return counted

    for name in ("fwd", "bwd_weight"):
        monkeypatch.setattr(winograd, name, counting(getattr(winograd, name)))
    return counts


def results(function, x, w, b, dy, backend="cpp", **options):
    given = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b)]
    with kz.backend(backend):
        y = function(*given, **options)
    return y, *torch.autograd.grad(y, given, dy.to(y.dtype))


# N, C, (H, W), O, padding: one tile and less, odd sizes, several blocks and lines, channels that fill no panel, more
# tiles than are kept, more columns than a block has; padding beyond the filter's own
SIZES = [
    (2, 32, (1, 1), 32, 1),
    (1, 32, (3, 3), 48, 0),
    (3, 48, (5, 4), 32, (1, 2)),
    (2, 80, (7, 9), 96, 1),
    (2, 32, (30, 31), 32, 1),
    (1, 32, (6, 270), 32, (0, 1)),
    (1, 272, (12, 12), 288, 1),
    (2, 64, (40, 42), 64, 1),
    (1, 32, (5, 8), 32, (3, 4)),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "-".join(map(str, s)).replace(" ", ""))
def test_sizes(isa, size, served):
    N, C, shape, channels, padding = size
    dtype = torch.float64 if N == 3 else torch.float32
    g = torch.Generator().manual_seed(1)
    x, w, b = (
        torch.randn(s, generator=g, dtype=torch.float64).to(dtype)
        for s in ((N, C, *shape), (channels, C, 3, 3), (channels,))
    )
    w /= (9 * C) ** 0.5
    for function, of_x, of_w in itertools.product(("conv2d", "conv_transpose2d"), FORMATS, FORMATS):
        if "transpose" in function and (of_x == of_w or min(shape) < 3):
            continue
        weight = w.transpose(0, 1).contiguous() if "transpose" in function else w
        given = [x.contiguous(memory_format=of_x), weight.contiguous(memory_format=of_w), b]
        exact = [t.double() for t in given]
        shape_of_y = getattr(T, function)(*given, padding=padding).shape
        dy = torch.randn(shape_of_y, generator=torch.Generator().manual_seed(2)).to(dtype)
        before = served[True]
        ours = results(getattr(F, function), *given, dy, padding=padding)
        assert served[True] == before + 3
        theirs = results(getattr(T, function), *given, dy, padding=padding)
        right = results(getattr(T, function), *exact, dy, padding=padding)
        for name, a, t, e in zip(("y", "dx", "dw", "db"), ours, theirs, right, strict=True):
            assert_as_good(f"{function} {of_x} {of_w}: {name}", a, t, e)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_gradients(memory_format, served):
    g = torch.Generator().manual_seed(3)
    x, w, b = (
        torch.randn(s, generator=g, dtype=torch.float64).contiguous(memory_format=f).requires_grad_()
        for s, f in (((1, 32, 3, 4), memory_format), ((32, 32, 3, 3), memory_format), ((32,), FORMATS[0]))
    )
    with kz.backend("cpp"):
        assert torch.autograd.gradcheck(
            lambda *t: F.conv2d(*t, padding=1, act="gelu"), (x, w, b), fast_mode=True
        )
    assert served[True]
    assert not served[False]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_stays_where_it_belongs(value, memory_format, served):
    """The transforms would spread it over a tile, and overflow where the sum itself does not."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1, 32, 6, 6, generator=g).contiguous(memory_format=memory_format)
    w = torch.randn(32, 32, 3, 3, generator=g) / 17
    dy = torch.randn(1, 32, 6, 6, generator=g).contiguous(memory_format=memory_format)
    x[0, 3, 2, :2], dy[0, 5, 4, :2] = value, value
    ours = results(F.conv2d, x, w, torch.zeros(32), dy, padding=1)
    assert served[False] == 3
    theirs = results(T.conv2d, x, w, torch.zeros(32), dy, padding=1)
    for a, t in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, t, equal_nan=True)


def test_threads_change_nothing():
    g = torch.Generator().manual_seed(5)
    x, w = torch.randn(3, 64, 33, 20, generator=g), torch.randn(96, 64, 3, 3, generator=g)
    dy = torch.randn(3, 96, 33, 20, generator=g)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(F.conv2d, x, w, torch.ones(96), dy, padding=1))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("x", "w", "options", "ours"),
    [
        ((2, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, True),
        ((2, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "stride": 2}, False),
        ((2, 64, 56, 56), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, False),
        ((2, 64, 56, 56), (64, 32, 3, 3), {"padding": 1, "groups": 2}, False),
        ((1, 64, 28, 28), (64, 64, 3, 3), {"padding": 1}, False),
        ((8, 32, 56, 56), (32, 32, 3, 3), {"padding": 1}, False),
        ((8, 64, 56, 56), (60, 64, 3, 3), {"padding": 1}, False),
    ],
)
def test_auto_takes_it_where_it_wins(x, w, options, ours, served):
    with kz.trace() as calls:
        y = F.conv2d(torch.randn(x), torch.randn(w, requires_grad=True), **options)
    assert served[True] == ours
    assert [c.backend for c in calls] == ["cpp" if ours else "torch"]
    y.sum().backward()
    assert served[True] == (2 if ours else 0)  # x needs no gradient
