"""conv1d to conv_transpose3d: every option, odd sizes, both orders of memory, bad input."""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import parse
from kernelzoo.verify import JUMPS, assert_as_good, exact_or_normal

from ..harness import DTYPES, Case, OpSuite, here, need
from .test_linear import exact_formula

KERNELS = ("cpp", "numba")

# torch says so of its own copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def plain(function, x, w, b=None, causal=False, **options):
    """torch's own, with a causal convolution's zeros put before x."""
    if causal:
        x = T.pad(x, (options.get("dilation", 1) * (w.size(2) - 1), 0))
    return getattr(T, function)(x, w, b, **options)


def channels_innermost(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def case(function, x, w, act=None, bias=True, residual=False, last=False, large=False, **options):
    name = act if isinstance(act, str) or act is None else act[0]
    channels = w[1] * options.get("groups", 1) if "transpose" in function else w[0]

    def make(g):
        exact = name in JUMPS
        terms = torch.Size(w[1:]).numel()
        shape = plain(function, torch.empty(x, device="meta"), torch.empty(w, device="meta"), **options).shape
        tensors = [
            exact_or_normal(x, g, exact),
            exact_or_normal(w, g, exact, terms**-0.5),
            exact_or_normal((channels,), g, exact) if bias else None,
            exact_or_normal(tuple(shape), g, exact) if residual else None,
        ]
        return tensors, {"function": function, "act": act, "last": last, **options}

    sizes = "x".join(map(str, x)) + "-" + "x".join(map(str, w))
    said = [f"{key}={value}".replace(" ", "") for key, value in options.items()]
    said += [text for text, on in (("residual", residual), ("last", last), ("nobias", not bias)) if on]
    return Case("-".join([function, sizes, str(name), *said]), make, large)


class TestConv(OpSuite):
    backends = ("triton", *KERNELS)
    interpreted = 1

    @staticmethod
    def call(x, w, b, residual, function, act, last, **options):
        x = channels_innermost(x) if last else x
        return getattr(F, function)(x, w, b, act=act, residual=residual, **options)

    @staticmethod
    def reference(x, w, b, residual, function, act, last, **options):
        z = plain(function, x, w, b, **options)
        return parse("reference", act).formula(z if residual is None else z + residual)

    @staticmethod
    def oracle(x, w, b, residual, function, act, last, **options):
        z = plain(function, x, w, b, **options)
        return exact_formula(act, z if residual is None else z + residual)

    cases = (
        case("conv2d", (2, 5, 9, 8), (6, 5, 3, 2), "relu", stride=(2, 1), padding=(1, 0)),
        case("conv2d", (2, 4, 8, 7), (6, 2, 3, 2), "gelu", residual=True, last=True, groups=2, dilation=2),
        case("conv2d", (2, 6, 7, 5), (8, 6, 1, 1), "relu", bias=False, residual=True),
        case("conv2d", (1, 3, 6, 7), (4, 3, 2, 4), padding="same"),
        case("conv1d", (2, 5, 11), (7, 5, 3), "gelu", causal=True, dilation=2, stride=2),
        case("conv3d", (1, 4, 4, 5, 6), (6, 2, 2, 3, 2), "relu", groups=2, padding=1, stride=(1, 2, 1)),
        case("conv_transpose2d", (2, 4, 4, 5), (4, 3, 3, 2), "relu", residual=True, groups=2, stride=2,
             output_padding=1),
        case("conv_transpose1d", (2, 3, 9), (3, 5, 4), dilation=2, padding=3, stride=3, output_padding=2),
        case("conv_transpose3d", (1, 3, 3, 2, 3), (3, 2, 2, 3, 1), padding=(1, 0, 0), last=True),
        # whole vectors of channels, as torch's own strided gradient of one tap writes outside its memory without
        case("conv2d", (2, 16, 7, 5), (8, 16, 1, 1), "gelu", stride=(2, 3)),
        case("conv_transpose2d", (2, 8, 4, 3), (8, 16, 1, 1), bias=False, stride=(3, 2), output_padding=(2, 1)),
        # fewer products
        case("conv2d", (1, 32, 4, 3), (32, 32, 3, 3), "gelu", residual=True, last=True, padding=1),
        # a filter a channel
        case("conv1d", (2, 5, 37), (5, 1, 4), "gelu", groups=5, causal=True),
        case("conv1d", (1, 37, 13), (37, 1, 3), last=True, groups=37, causal=True, dilation=3, stride=2),
        case("conv2d", (2, 3, 9, 23), (3, 1, 3, 3), "gelu", residual=True, groups=3, padding=1, dilation=(1, 2)),
        case("conv2d", (2, 21, 7, 9), (21, 1, 3, 2), "relu", last=True, groups=21, stride=(2, 3), padding=2),
        case("conv2d", (2, 4, 7, 9), (4, 1, 5, 3), bias=False, groups=4, padding="same"),
        case("conv3d", (1, 5, 4, 5, 6), (5, 1, 2, 3, 2), groups=5, padding=(1, 2, 0), stride=(2, 1, 2)),
        case("conv_transpose2d", (1, 3, 4, 5), (3, 1, 3, 2), "relu", groups=3, stride=(2, 3), padding=1),
        case("conv2d", (2, 3, 5, 6), (6, 1, 3, 3), "relu", groups=3, padding=1),  # two filters a channel
        case("conv2d", (3, 40, 21, 19), (50, 40, 3, 3), "gelu", padding=1, large=True),
        case("conv2d", (3, 40, 21, 19), (50, 40, 3, 3), "relu", last=True, residual=True, stride=2, large=True),
        case("conv1d", (2, 11, 4099), (11, 1, 4), "gelu", groups=11, causal=True, large=True),
        case("conv1d", (2, 77, 523), (77, 1, 4), last=True, groups=77, causal=True, large=True),
        case("conv2d", (2, 19, 75, 66), (19, 1, 3, 3), groups=19, padding=1, large=True),
        case("conv2d", (2, 75, 33, 35), (75, 1, 5, 5), last=True, groups=75, padding=2, large=True),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_instruction_sets(isa, last, dtype):
    """The direct kernels of every instruction set, both orders, all tails: channels and columns 1 to 33."""
    g = torch.Generator().manual_seed(1)
    for size in (1, 3, 8, 16, 19, 33):
        shapes = (2, size, 6, size), (size, 1, 3, 3), (size,)
        x, w, b = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes)
        x = channels_innermost(x) if last else x
        arguments = [t.requires_grad_() for t in (x, w, b)]
        exact = [t.detach().double().requires_grad_() for t in arguments]
        options = {"padding": 1, "groups": size}
        results = []
        for function, given in ((F.conv2d, arguments), (T.conv2d, arguments), (T.conv2d, exact)):
            with kz.backend("cpp"):
                y = function(*given, **options)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            results.append((y, *torch.autograd.grad(y, given, dy.to(dtype).to(y.dtype))))
        for name, ours, theirs, right in zip(("y", "dx", "dw", "db"), *results, strict=True):
            assert_as_good(f"{size} channels: {name}", ours, theirs, right)


FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("of_w", FORMATS, ids=str)
@pytest.mark.parametrize("of_x", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_memory_has_torchs_order(backend, of_x, of_w, groups):
    need(backend)
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=of_x).requires_grad_()
    w = (
        torch.randn(8 if groups == 1 else 4, 4 // groups, 3, 3)
        .contiguous(memory_format=of_w)
        .requires_grad_()
    )
    with kz.backend(backend):
        y = F.conv2d(x, w, groups=groups, act="relu")
    theirs = T.conv2d(x, w, groups=groups)
    assert y.stride() == theirs.stride()
    dx, dw = torch.autograd.grad(y, (x, w), torch.randn_like(y))
    assert dw.stride() == w.stride()
    assert dx.stride() == x.stride() or of_x != of_w


def test_conv1d_of_channels_that_lie_together():
    """(N, L, C) transposed: torch has no name for this order, and it is kept."""
    x, w = torch.randn(2, 7, 4).mT.requires_grad_(), torch.randn(4, 1, 3)
    with kz.backend("cpp" if kz.backends()["cpp"].available else "numba"):
        y = F.conv1d(x, w, padding=1, groups=4)
    assert y.mT.is_contiguous()
    torch.testing.assert_close(y, T.conv1d(x, w, padding=1, groups=4))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.mT.is_contiguous()


@pytest.mark.parametrize("backend", ["triton", *KERNELS])
@pytest.mark.parametrize("groups", [1, 3])
def test_nan_and_inf_stay_where_they_come_from(backend, groups):
    """A NaN or infinity in x reaches the outputs that see it and no other; one in dy the inputs behind it."""
    need(backend)
    x = torch.randn(2, 3, 6, 7)
    x[0, 0, 0, 0], x[1, 2, 5, 6], x[1, 1, 2, 3] = torch.nan, torch.inf, -torch.inf
    w = torch.randn(3, 3 // groups, 3, 3)
    x.requires_grad_()
    w.requires_grad_()
    dy = torch.randn(2, 3, 6, 7)
    dy[1, 0, 5, 0] = torch.nan
    options = {"padding": 1, "groups": groups}
    with kz.backend(backend):
        ours = F.conv2d(x, w, **options)
        mine = torch.autograd.grad(ours, (x, w), dy)
    theirs = T.conv2d(x.double(), w.double(), **options)
    right = torch.autograd.grad(theirs, (x, w), dy.double())
    for a, b in ((ours, theirs), (mine[0], right[0])):
        torch.testing.assert_close(a, b.to(a.dtype), equal_nan=True)
    # torch multiplies its padding, 0, by what dy has there: a NaN where no product of the sum is one
    assert torch.equal(mine[1].isfinite() | ~right[1].isfinite(), torch.ones_like(w, dtype=torch.bool))


@pytest.mark.parametrize("last", [False, True])
def test_strided_filters_of_one_tap(last):
    """Rows that go on behind the last output, channels that fill no vector: compared with torch's own in float64."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(2, 5, 12, 6, generator=g), torch.randn(6, 5, 1, 1, generator=g, requires_grad=True)
    x = (channels_innermost(x) if last else x).requires_grad_()
    with kz.backend("cpp" if kz.backends()["cpp"].available else "numba"):
        y = F.conv2d(x, w, stride=(3, 2))
    exact = [t.detach().double().contiguous().requires_grad_() for t in (x, w)]
    theirs = T.conv2d(*exact, stride=(3, 2))
    dy = torch.randn(y.shape, generator=g)
    found, right = torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(theirs, exact, dy.double())
    for a, b in zip((y, *found), (theirs, *right), strict=True):
        torch.testing.assert_close(a, b.float())


@pytest.mark.parametrize("function", ["conv1d", "conv2d", "conv3d", "conv_transpose2d"])
def test_unbatched(function):
    rank = int(function[-2])
    x, w = torch.randn(4, *(6, 5, 4)[:rank]), torch.randn(4, 4, *(3, 2, 2)[:rank])
    with kz.backend(here()):
        y = getattr(F, function)(x, w, act="relu")
    torch.testing.assert_close(y, T.relu(getattr(T, function)(x, w)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_unbatched_in_groups_with_the_channels_innermost(dtype):
    """torch's own call has another gradient to w than that of the same numbers in another order."""
    x, w = torch.randn(1, 6, 5, 7).to(dtype), torch.randn(15, 2, 2, 3).to(dtype)
    last = torch.channels_last
    given = [
        t.requires_grad_() for t in (x.contiguous(memory_format=last)[0], w.contiguous(memory_format=last))
    ]
    y = F.conv2d(*given, groups=3)
    dy = torch.randn_like(y)
    exact = [t.detach().double().contiguous().requires_grad_() for t in given]
    z = T.conv2d(*exact, groups=3)
    for ours, theirs in zip(
        (y, *torch.autograd.grad(y, given, dy)),
        (z, *torch.autograd.grad(z, exact, dy.double().contiguous())),
        strict=True,
    ):
        tolerance = 1e-12 if dtype is torch.float64 else 0.1  # bf16's rounding; torch's error is 15 and more
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_empty_batch():
    x, w = torch.randn(0, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with kz.backend(here()):
        y = F.conv2d(x, w, act="gelu")
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_a_result_can_be_written_to():
    x, w = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(3, 1, 3, 3)
    for last in (False, True):
        given = channels_innermost(x) if last else x
        with kz.backend(here()):
            y = F.conv2d(given, w, groups=3, act="gelu").add_(1)
            with torch.no_grad():
                plainly = F.conv2d(given, w, groups=3, act="gelu")
            plainly.mul_(2)
        (dx,) = torch.autograd.grad(y.sum(), x)
        right = T.gelu(T.conv2d(x, w, groups=3))
        torch.testing.assert_close(plainly, 2 * right)
        torch.testing.assert_close(dx, torch.autograd.grad(right.sum(), x)[0])


def test_one_tensor_in_two_places():
    a = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    with kz.backend(here()):
        assert torch.autograd.gradcheck(lambda t: F.conv2d(t, t, padding=1, act="gelu", residual=t), a)
        assert torch.autograd.gradgradcheck(lambda t: F.conv2d(t, t, padding=1, act="gelu", residual=t), a)


@pytest.mark.parametrize(("act", "extra"), [(None, 0), ("relu", 0), ("gelu", 1)])
def test_saved_tensors(act, extra):
    """Beyond what the user holds nothing is kept for relu, z for gelu; without an activation not even the residual."""
    x, w, residual = (torch.randn(s, requires_grad=True) for s in ((2, 3, 5, 5), (4, 3, 1, 1), (2, 4, 5, 5)))
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with kz.backend(here()), hooks:
        y = F.conv2d(x, w, act=act, residual=residual)
    known = {t.data_ptr() for t in (x, w, y, residual)}
    assert len([t for t in saved if t.data_ptr() not in known]) == extra
    assert (residual.data_ptr() in {t.data_ptr() for t in saved}) == (act is not None)


def test_autocast():
    x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    residual = torch.randn(2, 4, 4, 4)
    for backend in (here(), "torch", "auto"):
        with kz.backend(backend), torch.autocast("cpu", torch.bfloat16):
            y = F.conv2d(x, w, act="relu", residual=residual)
        assert y.dtype == torch.bfloat16
        assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, w))] == [torch.float32] * 2


def test_auto_takes_what_is_fast():
    """Beside each call: whether a kernel serves it."""
    need("cpp")
    x, w = torch.randn(8, 32, 72, 72), torch.randn(32, 32, 3, 3, requires_grad=True)
    line, taps = torch.randn(2, 64, 300), torch.randn(64, 1, 4, requires_grad=True)
    rows = torch.randn(8, 32, 72, 72)
    served = [
        (False, lambda: F.conv2d(x, w)),
        (False, lambda: F.conv2d(x, w, act="relu")),
        (True, lambda: F.conv2d(x, w, padding=1, act="relu", residual=rows)),
        (False, lambda: F.conv2d(x[:2], w, padding=1, act="relu", residual=rows[:2])),
        (False, lambda: F.conv_transpose2d(x, w)),
        (True, lambda: F.conv2d(x, w[:, :1], groups=32)),
        (True, lambda: F.conv2d(x, w[:, :1].detach(), groups=32)),
        (False, lambda: F.conv2d(channels_innermost(x), w[:, :1].detach(), groups=32)),
        (False, lambda: F.conv2d(x[:1], w[:, :1], groups=32)),
        (True, lambda: F.conv1d(line, taps, groups=64)),
        (True, lambda: F.conv2d(x, w[:, :, :1, :1])),
        (False, lambda: F.conv2d(channels_innermost(x), w[:, :, :1, :1])),
    ]
    with kz.trace() as calls:
        for _, call in served:
            call()
    assert [call.backend for call in calls] == ["cpp" if kernel else "torch" for kernel, _ in served]


def test_auto_without_cpp_is_torchs(monkeypatch):
    from kernelzoo.ops import conv_rule

    monkeypatch.setattr(conv_rule, "automatic", lambda *_: "numba")
    with kz.trace() as calls:
        F.conv1d(torch.randn(2, 64, 300), torch.randn(64, 1, 4, requires_grad=True), groups=64)
    assert calls[0].backend == "torch"


def test_strings_that_are_paddings():
    x, w = torch.randn(1, 2, 7, 7), torch.randn(3, 2, 3, 3)
    with kz.backend(here()):
        torch.testing.assert_close(F.conv2d(x, w, padding="valid"), T.conv2d(x, w))
        torch.testing.assert_close(F.conv2d(x, w, padding="same"), T.conv2d(x, w, padding=1))


GOOD = {"input": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(6, 4, 3, 3), "bias": torch.zeros(6)}


@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"weight": torch.zeros(6, 5, 3, 3)}, ValueError, ("(2, 4, 8, 8)", "(6, 5, 3, 3)")),
        ({"weight": torch.zeros(6, 4, 9, 3)}, ValueError, ("(8 x 8)", "(9 x 3)")),
        ({"weight": torch.zeros(6, 4, 3)}, ValueError, ("(6, 4, 3)",)),
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.float64)}, ValueError, ("float64",)),
        ({"bias": torch.zeros(7)}, ValueError, ("bias", "6")),
        ({"groups": 3}, ValueError, ("groups=3",)),
        ({"groups": 0}, ValueError, ("groups",)),
        ({"stride": 0}, ValueError, ("stride",)),
        ({"padding": -1}, ValueError, ("negative padding",)),
        ({"padding": "causal"}, ValueError, ("causal",)),
        ({"padding": "same", "stride": 2}, ValueError, ("padding='same'", "strided")),
        ({"dilation": 0}, ValueError, ("dilation",)),
        ({"input": [1.0]}, TypeError, ("list",)),
        ({"residual": torch.zeros(2, 6, 8, 8)}, ValueError, ("(2, 6, 8, 8)", "(2, 6, 6, 6)")),
        ({"residual": torch.zeros(2, 6, 6, 6, dtype=torch.float64)}, TypeError, ("residual has dtype torch.float64",)),
        ({"residual": 1}, TypeError, ("residual must be a Tensor, got int",)),
        ({"act": "gelou"}, ValueError, ("unknown act 'gelou'",)),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)  # fmt: skip
def test_bad_input(bad, act, error, says):
    with pytest.raises(error) as caught:
        F.conv2d(**{**GOOD, "act": act, **bad})
    message = str(caught.value)
    assert message.startswith("conv2d: ")
    for text in says:
        assert text in message
    assert isinstance(caught.value, RuntimeError), "code that expects torch's type still catches it"


@pytest.mark.parametrize(
    "bad",
    [{"output_padding": 1}, {"weight": torch.zeros(5, 3, 3, 3)}, {"padding": 9}, {"groups": 3}],
    ids=lambda v: "-".join(v),
)
def test_bad_input_of_a_transposed_one(bad):
    good = {"input": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(4, 3, 3, 3)}
    for act in (None, "relu"):
        with pytest.raises(ValueError, match=r"^conv_transpose2d: "):
            F.conv_transpose2d(**{**good, "act": act, **bad})


def test_bad_causal():
    x, w = torch.zeros(1, 2, 5), torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match=r"causal=True takes padding 0.*got padding 1"):
        F.conv1d(x, w, padding=1, causal=True)
