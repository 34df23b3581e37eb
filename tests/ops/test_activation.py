"""Every activation: values and derivatives at boundaries, tails, infinities, and over the harness's cases."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import DEFINITIONS, activation, parse, rounded

from ..harness import BACKENDS, DTYPES, Case, OpSuite, assert_as_good, device_of, need
from .test_linear import act_of, exact_formula, native

SPECIAL = [
    *(sign * value for value in (0.0, 1e-30, 1e-5, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 6.0) for sign in (1, -1)),
    *(sign * value for value in (20.0, 88.0, 89.0, 1e4, torch.inf) for sign in (1, -1)),
    *(2.5, 10.0, 100.0, -104.0, torch.nan),
]


def call(x, act):
    return activation(x, parse("test", act))


def reference(x, act):
    return parse("test", act).formula(x)


def case(shape, act, scale=3.0, permute=None, large=False):
    name = act if isinstance(act, str) else act[0]

    def make(g):
        x = torch.randn(shape, generator=g, dtype=torch.float64) * scale
        return (x.permute(permute) if permute else x,), {"act": act}

    size = "x".join(map(str, shape)) + ("p" if permute else "")
    return Case(f"{name}-{size}-scale{scale:g}", make, large)


class TestActivation(OpSuite):
    backends = BACKENDS
    call = staticmethod(call)
    reference = staticmethod(reference)
    oracle = staticmethod(lambda x, act: exact_formula(act, x))
    cases = (
        *(case((7, 19), act_of(name)) for name in DEFINITIONS),
        case((1,), "gelu"),
        case((), "silu"),
        case((3, 4, 5, 6), "gelu", permute=(0, 2, 3, 1)),
        *(case((1031, 257), act_of(name), large=True) for name in DEFINITIONS),
    )


def value_and_gradient(function, x, dy):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, torch.full_like(y, dy))[0]


def as_torch(function, x, dy):
    """torch's value and gradient, and where its gradient depends on an element's place: in vector code or behind it."""
    with native():
        y, grad = (t.view(-1, 64)[:, 0] for t in value_and_gradient(function, x.repeat_interleave(64), dy))
        alone = torch.cat([value_and_gradient(function, element, dy)[1] for element in x.split(1)])
    undecided = grad.isnan() != alone.isnan()
    undecided |= ~undecided & ((grad - alone).abs() > 0.5)
    assert x[undecided].isnan().all(), "torch is at odds with itself at NaN only"
    return y, grad, alone, undecided


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("dy", [1.0, -3.5])
def test_boundaries_and_infinities_as_torch(name, backend, dtype, dy):
    """At a NaN torch's CPU gradients of eight activations differ from one element to the next: either is right."""
    need(backend)
    x = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype).to(device_of(backend))
    act = parse("test", act_of(name))
    y, grad, alone, undecided = as_torch(act.formula, x, dy)
    exact, exact_grad, *_ = as_torch(lambda t: exact_formula(act_of(name), t), x.double(), dy)
    with kz.backend(backend):
        # thrice, past a vector's width: the main loop and the tail of a kernel must agree
        ours, our_grad = value_and_gradient(lambda t: activation(t, act), x.repeat(3), dy)
    for part in range(3):
        here = slice(part * len(x), (part + 1) * len(x))
        assert_as_good("value", ours[here], y, exact)
        mine = our_grad[here].clone()
        for either in (grad, alone):
            same = (mine == either) | (mine.isnan() & either.isnan())
            mine = torch.where(undecided & same, grad, mine)
        assert_as_good("gradient", mine, grad, exact_grad)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["tiny", "left tail", "right tail"])
def test_small_results_are_relatively_exact(name, backend, where):
    """Where all results are tiny, the rule's scale is tiny too: 1 + x - 1 would show."""
    need(backend)
    start, stop = {"tiny": (-1e-4, 1e-4), "left tail": (-60.0, -10.0), "right tail": (10.0, 60.0)}[where]
    act = parse("test", act_of(name))
    for i in range(4):  # a quarter of the range at a time
        step = (stop - start) / 4
        grid = torch.linspace(start + i * step, start + (i + 1) * step, 101).to(device_of(backend))
        x = grid.requires_grad_()
        exact = x.detach().double().requires_grad_()
        theirs, oracle = act.formula(x), exact_formula(act_of(name), exact)
        with kz.backend(backend):
            ours = activation(x, act)
        assert_as_good("value", ours, theirs, oracle)
        grads = [torch.autograd.grad(y.sum(), t)[0] for y, t in ((ours, x), (theirs, x), (oracle, exact))]
        assert_as_good("gradient", *grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_derivative_stops_inf_and_nan(backend):
    """torch selects, it does not multiply: an infinite gradient behind a closed gate gives zero."""
    need(backend)
    dy = torch.tensor([torch.inf, torch.nan], device=device_of(backend))
    for name in ("relu", "relu6", "hardtanh", "threshold", "hardshrink", "softshrink", "hardsigmoid"):
        act = parse("test", act_of(name))
        x = torch.full_like(dy, -9.0 if name not in ("hardshrink", "softshrink") else 0.1).requires_grad_()
        (theirs,) = torch.autograd.grad(act.formula(x), x, dy)
        with kz.backend(backend):
            (ours,) = torch.autograd.grad(activation(x, act), x, dy)
        torch.testing.assert_close(ours, theirs, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


def test_output_is_saved_where_it_serves():
    for name in ("relu", "relu6", "hardtanh", "sigmoid", "tanh", "leaky_relu"):
        assert parse("test", name).saves_output(torch.bfloat16)
    for act in (("leaky_relu", -0.1), ("leaky_relu", 0.0), ("hardtanh", -0.7, 0.7), "gelu", "silu", "elu"):
        assert not parse("test", act).saves_output(torch.bfloat16)
    assert parse("test", ("hardtanh", -0.7, 0.7)).saves_output(torch.float64)


UNEVEN = (
    ("hardtanh", -0.7, 0.7),
    ("softshrink", 0.1),
    ("hardshrink", 0.1),
    ("leaky_relu", -0.3),
    ("threshold", 0.1, 0.3),
    ("elu", -0.7),
    ("celu", -0.7),
    ("softplus", 0.3, 1.7),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded(dtype):
    for value in (0.1, -0.7, 1 / 3, 1.0, 1e-5, 3.0, 100.1):
        assert rounded(value, dtype) == torch.tensor(value, dtype=dtype).item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("act", UNEVEN, ids=lambda a: a[0])
def test_parameters_that_no_dtype_holds(act, backend, dtype):
    """Around a bound that is rounded on storage, the gates open and close where torch's do."""
    need(backend)
    near = [p * (1 + i / 256) for p in act[1:] for i in range(-3, 4)]
    x = torch.tensor(near, dtype=torch.float64).to(dtype).to(device_of(backend))
    exact, exact_grad = value_and_gradient(lambda t: exact_formula(act, t), x.double(), 1.0)
    act = parse("test", act)
    y, grad = value_and_gradient(act.formula, x, 1.0)
    with kz.backend(backend):
        ours, our_grad = value_and_gradient(lambda t: activation(t, act), x, 1.0)
    assert_as_good("value", ours, y, exact)
    assert_as_good("gradient", our_grad, grad, exact_grad)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: F.softshrink(x, -0.5), RuntimeError, "lambda must be"),
        (
            lambda x: F.hardtanh(x, 2, 1),
            ValueError,
            "hardtanh: min_val cannot be greater than max_val, got 2.0 > 1.0",
        ),
        (
            lambda x: F.gelu(x, approximate="no"),
            ValueError,
            "gelu: approximate argument must be either none or tanh",
        ),
        (lambda x: F.celu(x, 0), ZeroDivisionError, "celu: alpha cannot be 0"),
        (lambda x: F.elu(x, "a"), TypeError, "elu: act 'elu' takes numbers, got 'a'"),
        (lambda x: F.relu([1, 2]), TypeError, "relu: input must be a Tensor, got list"),
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error) as caught:
        call(torch.zeros(3))
    assert says in str(caught.value)
