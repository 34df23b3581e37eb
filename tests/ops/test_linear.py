"""linear: y = f(x Wᵀ + b), every activation, odd sizes, leading dimensions, bad input."""

import contextlib

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import DEFINITIONS, parse
from kernelzoo.verify import JUMPS, assert_as_good, exact_or_normal

from ..harness import BACKENDS, Case, OpSuite, device_of, here, need

PARAMETERS = {"leaky_relu": (0.25,), "elu": (1.5,), "celu": (2.0,), "hardtanh": (-2.0, 3.0), "softplus": (2.0, 5.0),
              "softshrink": (0.75,), "hardshrink": (0.75,), "threshold": (-0.5, 7.0)}  # fmt: skip


def exact_formula(act, x):
    """The activation in fp64. torch rounds hardsigmoid's 1/6 and celu's alpha to fp32 in the gradients."""
    act = parse("reference", act)
    if act.name == "hardsigmoid":
        return torch.nn.functional.relu6(x + 3) / 6
    if act.name == "celu":
        (alpha,) = act.params
        return torch.where(x > 0, x, alpha * torch.expm1(x / alpha))
    return act.formula(x)


@contextlib.contextmanager
def native():
    """torch without oneDNN, whose gelu(inf) is NaN where torch's own kernel gives inf."""
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def case(lead, k, n, act, bias=True, large=False):
    name = act if isinstance(act, str) or act is None else act[0]
    exact = name in JUMPS

    def make(g):
        x = exact_or_normal((*lead, k), g, exact, 1.0)
        w = exact_or_normal((n, k), g, exact, k**-0.5)
        b = exact_or_normal((n,), g, exact, 1.0) if bias else None
        return (x, w, b), {"act": act}

    size = "x".join(map(str, lead)) or "none"
    return Case(f"M{size}-K{k}-N{n}-{name}{'' if bias else '-nobias'}", make, large)


def act_of(name):
    return (name, *PARAMETERS[name]) if name in PARAMETERS else name


class TestLinear(OpSuite):
    backends = BACKENDS
    call = staticmethod(F.linear)

    @staticmethod
    def reference(x, w, b, act):
        return parse("reference", act).formula(torch.nn.functional.linear(x, w, b))

    @staticmethod
    def oracle(x, w, b, act):
        return exact_formula(act, torch.nn.functional.linear(x, w, b))

    cases = (
        *(case((5,), 12, 7, act_of(name)) for name in DEFINITIONS),
        case((37,), 64, 129, "gelu"),
        case((37,), 64, 129, "relu", bias=False),
        case((), 16, 8, "gelu"),
        case((2, 3, 4), 17, 33, "silu"),
        case((1,), 1, 1, "tanh"),
        case((33,), 31, 5, None),
        case((3,), 8, 6, None, bias=False),
        case((531,), 129, 265, "gelu", large=True),
        case((257,), 512, 300, "sigmoid", large=True),
        case((8192,), 8, 20, "mish", large=True),
    )


@pytest.mark.parametrize("backend", ["triton", "cuda", "cpp", "numba"])
def test_nan_and_inf_come_out_where_torch_puts_them(backend):
    need(backend)
    device = device_of(backend)
    x = torch.eye(6, device=device)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3], x[4, 4] = torch.nan, torch.inf, -torch.inf, 88.0, -88.0
    w = torch.ones(3, 6, device=device)
    for name in DEFINITIONS:
        act = act_of(name)
        with kz.backend(backend):
            ours = F.linear(x, w, act=act)
        with native():
            theirs = parse("reference", act).formula(torch.nn.functional.linear(x, w))
        torch.testing.assert_close(ours, theirs, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=["M0", "K0"])
def test_empty(shape):
    x = torch.randn(shape, requires_grad=True)
    w = torch.randn(5, shape[1], requires_grad=True)
    b = torch.randn(5, requires_grad=True)
    with kz.backend(here()):
        y = F.linear(x, w, b, act="gelu")
    torch.testing.assert_close(y, torch.nn.functional.gelu(torch.nn.functional.linear(x, w, b)))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape
    assert b.grad.shape == b.shape


@pytest.mark.parametrize("bias", [(1,), (), (3, 1), (3, 5)], ids=str)
def test_biases_that_torch_broadcasts(bias):
    x, w, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(bias)
    with kz.backend(here()):
        y = F.linear(x, w, b, act="gelu")
    torch.testing.assert_close(y, torch.nn.functional.gelu(torch.nn.functional.linear(x, w, b)))


def test_weight_of_one_dimension():
    x, w = torch.randn(3, 4), torch.randn(4)
    with kz.backend(here()):
        torch.testing.assert_close(F.linear(x, w, act="relu"), torch.relu(torch.nn.functional.linear(x, w)))


def test_no_outputs():
    x, w = torch.randn(3, 4), torch.randn(0, 4)
    with kz.backend(here()):
        assert F.linear(x, w, act="relu").shape == (3, 0)


def test_one_tensor_in_two_places():
    """x as input and weight: both gradients must arrive, once each, in the first and second order."""
    a = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    with kz.backend(here()):
        assert torch.autograd.gradcheck(lambda t: F.linear(t, t, act="gelu"), a)
        assert torch.autograd.gradgradcheck(lambda t: F.linear(t, t, act="gelu"), a)


@pytest.mark.parametrize(("act", "extra"), [("relu", 0), ("sigmoid", 0), ("tanh", 0), ("relu6", 0), ("hardtanh", 0),
                                            ("leaky_relu", 0), ("gelu", 1), ("silu", 1), (None, 0)])  # fmt: skip
def test_saved_tensors(act, extra):
    """Beyond input, weight, bias and the output itself, nothing is kept for relu and its kin; z for gelu's."""
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((8, 16), (32, 16), (32,)))
    saved = []
    with (
        kz.backend(here()),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = F.linear(x, w, b, act=act)
    known = {t.data_ptr() for t in (x, w, b, y)}
    assert len([t for t in saved if t.data_ptr() not in known]) == extra


GOOD = {"input": torch.zeros(2, 768), "weight": torch.zeros(1024, 768), "bias": torch.zeros(1024)}


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"weight": torch.zeros(1024, 512)}, ValueError, "weight has 512 columns but input has 768 features; "
         "expected weight of shape (N, 768), got (1024, 512)"),
        ({"bias": torch.zeros(7)}, ValueError, "bias has 7 elements but weight has 1024 rows"),
        ({"input": torch.tensor(1.0)}, ValueError, "input has no dimensions"),
        ({"weight": torch.zeros(2, 3, 768)}, ValueError, "weight has 3 dimensions"),
        ({"weight": torch.zeros(1024, 768, dtype=torch.float64)}, TypeError, "weight has dtype torch.float64"),
        ({"weight": torch.zeros(1024, 768, device="meta")}, ValueError, "weight is on meta but input is on cpu"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"act": "gelou"}, ValueError, "unknown act 'gelou'; expected one of relu, "),
        ({"act": ("relu", 3)}, ValueError, "act 'relu' takes 0 parameters"),
        ({"act": ("elu", "x")}, TypeError, "act 'elu' takes numbers, got 'x'"),
        ({"act": 5}, TypeError, "act must be None, a name, or (name, parameter, ...), got 5"),
        ({"act": ("softshrink", -1)}, ValueError, "lambda must be greater or equal to 0"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_bad_input(bad, error, says):
    with pytest.raises(error) as caught:
        F.linear(**{**GOOD, **bad})
    assert says in str(caught.value)
    assert str(caught.value).startswith("linear: ")
    assert isinstance(caught.value, RuntimeError), "code that expects torch's type still catches it"


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_a_long_sum_is_as_good_as_torchs(backend):
    """Whichever library makes the product: one may add up its 768 terms one after the other."""
    need(backend)
    g = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(s, generator=g) for s in ((512, 768), (1024, 768), (1024,)))
    w /= 768**0.5
    with kz.backend(backend):
        ours = F.linear(x, w, b, act="tanh")
    exact = torch.tanh(T.linear(x.double(), w.double(), b.double()))
    assert_as_good("linear", ours, torch.tanh(T.linear(x, w, b)), exact)


@pytest.mark.parametrize("act", [None, "relu"])
def test_rule_knows_what_autocast_will_make_of_it(act, monkeypatch):
    """Asked before the arguments are cast, it answers for the dtype that they get."""
    module = kz.ops.linear
    monkeypatch.setattr(module, "product_wins", lambda dtype: dtype == torch.bfloat16)
    given = torch.randn(64, 128), torch.randn(256, 128), None, parse("linear", act)
    assert module.LinearAct.rule(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.LinearAct.rule(*given) is None
