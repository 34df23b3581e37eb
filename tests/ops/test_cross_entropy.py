"""cross_entropy and nll_loss: indices and probabilities, weights, ignored rows, smoothing, every shape."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.cross_entropy import NllLoss

from ..harness import WITHOUT_CUDA, Case, OpSuite, device_of, need

T = torch.nn.functional


def case(shape, probabilities=False, weighted=False, ignored=0, large=False, scale=3.0, **options):
    """Weights and probabilities are eighths: exact in every dtype, so that fp64 sees the same."""
    classes = shape[min(1, len(shape) - 1)]

    def make(g):
        x = torch.randn(shape, generator=g, dtype=torch.float64) * scale
        if probabilities:
            target = None
            extra = {"q": torch.randint(0, 9, shape, generator=g).double() / 8}
        else:
            target = torch.randint(classes, (shape[0], *shape[2:]) if len(shape) > 1 else (), generator=g)
            if ignored:
                target.view(-1)[:: target.numel() // ignored + 1] = -100
            extra = {}
        if weighted:
            extra["weight"] = torch.randint(1, 9, (classes,), generator=g).double() / 8
        return (x, target), extra | options

    words = [
        "x".join(map(str, shape)),
        "probabilities" if probabilities else "",
        "weighted" if weighted else "",
    ]
    words += [f"ignored{ignored}" if ignored else "", *(f"{k}-{v}" for k, v in options.items())]
    return Case("-".join(filter(None, words)), make, large)


def bound(function):
    """function with the weights and probabilities, which get no gradient, in x's dtype and on its device."""

    def call(x, target, weight=None, q=None, **options):
        weight = None if weight is None else weight.to(x)
        return function(x, target if q is None else q.to(x), weight, **options)

    return call


CASES = (
    case((7, 33)),
    case((7, 33), weighted=True, ignored=2),
    case((5, 19), reduction="none"),
    case((5, 1), reduction="sum"),
    case((9,), label_smoothing=0.2),
    case((3, 5, 2, 3), ignored=4, reduction="none"),
    case((3, 5, 4), weighted=True, label_smoothing=0.1, ignored=3),
    case((5, 70), weighted=True, label_smoothing=0.3, ignored=1),
    case((5, 70), probabilities=True),
    case((2, 70, 3), probabilities=True, weighted=True, label_smoothing=0.25, reduction="none"),
    case((4, 33), scale=60.0),
    case((67, 5021), large=True, ignored=5),
    case((7, 1031), large=True, weighted=True, label_smoothing=0.1),
    case((7, 515), large=True, probabilities=True),
    case((3, 130, 257), large=True),
)


class TestCrossEntropy(OpSuite):
    call = staticmethod(bound(F.cross_entropy))
    reference = staticmethod(bound(T.cross_entropy))
    cases = CASES


class TestNllLoss(OpSuite):
    call = staticmethod(bound(F.nll_loss))
    reference = staticmethod(bound(T.nll_loss))
    cases = (
        case((7, 33)),
        case((7, 33), weighted=True, ignored=2),
        case((9,), reduction="sum"),
        case((3, 5, 4), ignored=3, weighted=True, reduction="none"),
    )


def both(backend, x, *args, **options):
    """(loss, gradient) of ours and of torch's."""
    found = []
    for function in (F.cross_entropy, T.cross_entropy):
        with kz.backend(backend if function is F.cross_entropy else "auto"):
            y = function(x, *args, **options)
            found.append((y, torch.autograd.grad(y.sum(), x)[0]))
    return found


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}], ids=str)
def test_infinities_and_nan_as_torch(backend, options):
    need(backend)
    inf, nan = torch.inf, torch.nan
    rows = [[1.0, 2.0, -inf, 3.0], [-inf] * 4, [inf, 1.0, 2.0, 3.0], [nan, 1.0, 2.0, 3.0], [1e30, -1e30, 0.0, 1.0],
            [-inf, -inf, 1.0, 2.0]]  # fmt: skip
    for row in rows:
        x = torch.tensor([row, [0.5, 1.0, 2.0, 3.0]], device=device_of(backend)).requires_grad_()
        for target in ([0, 1], [2, 1], [-100, 3]):
            ours, theirs = both(backend, x, torch.tensor(target, device=x.device), **options)
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}], ids=str)
def test_all_ignored(backend, options):
    """The mean is NaN, the gradient 0."""
    need(backend)
    x = torch.randn(3, 5, device=device_of(backend)).requires_grad_()
    ours, theirs = both(backend, x, torch.full((3,), -1, device=x.device), ignore_index=-1, **options)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert not ours[1].any()


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_weigh_nothing(backend, smoothing):
    """A mean over a weight of 0 is NaN, whatever smoothing adds to the sum."""
    need(backend)
    x = torch.tensor([[1.0, 2.0, 3.0, 0.0]], device=device_of(backend)).requires_grad_()
    target, weight = x.new_zeros(1, dtype=torch.int64), x.new_tensor([0.0, 1.0, 1.0, 1.0])
    for reduction in ("mean", "sum", "none"):
        ours, theirs = both(backend, x, target, weight, label_smoothing=smoothing, reduction=reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_float64_under_autocast(backend):
    """Autocast leaves float64 as it is: kernels would read float32 probabilities or weights as float64's."""
    need(backend)
    x = torch.randn(4, 8, device=device_of(backend)).requires_grad_()
    q, target = x.detach().softmax(1), torch.randint(8, (4,), device=x.device)
    with torch.autocast(x.device.type):
        for logits, given in ((x.double(), q), (x, q.double())):
            with kz.backend(backend), pytest.raises(kz.BackendUnavailable, match="no kernel takes"):
                F.cross_entropy(logits, given)
            torch.testing.assert_close(*both("auto", logits, given))
        for logits, weight in ((x.double(), q[0]), (x, q[0].double())):
            with (
                kz.backend(backend),
                pytest.raises(RuntimeError, match=r"cross_entropy: .*expected scalar type"),
            ):
                F.cross_entropy(logits, target, weight)


def test_auto_rule_of_nll_loss():
    x = torch.empty(2048, 8192)
    assert NllLoss.rule(x) == "one element a row is read"
    x.requires_grad_()
    assert NllLoss.rule(x) is None
    with torch.no_grad():
        assert NllLoss.rule(x) == "one element a row is read"
    assert NllLoss.rule(x[:4]) == "few logits for its cost on a CPU"


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_offset_does_not_cancel(backend):
    """Logits around 1000 lose no more than torch's."""
    need(backend)
    x = (torch.randn(6, 40, device=device_of(backend)) + 1000).requires_grad_()
    target = torch.randint(40, (6,), device=x.device)
    for options in ({}, {"label_smoothing": 0.1}):
        (y, dx), (theirs, their_dx) = both(backend, x, target, **options)
        # float32 sums in another order
        torch.testing.assert_close(y, theirs, rtol=2e-6, atol=0)
        torch.testing.assert_close(dx, their_dx, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_target_out_of_range(backend, name):
    need(backend)
    if device_of(backend) == "cuda":
        pytest.skip("on a GPU the kernel asserts, as torch's: the process could not go on")
    x = torch.randn(4, 5)
    for target, said in (([1, 7, 2, 3], 7), ([1, 2, -3, 4], -3), ([1, -100, 5, 2], 5)):
        with kz.backend(backend), pytest.raises(IndexError, match=rf"Target {said} is out of bounds\."):
            getattr(F, name)(x, torch.tensor(target))


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_autocast_reads_16_bits(backend):
    """torch computes it in float32 under autocast: so do we, from the 16-bit logits themselves."""
    need(backend)
    device = device_of(backend)
    x = torch.randn(6, 33, dtype=torch.bfloat16, device=device).requires_grad_()
    target = torch.randint(33, (6,), device=device)
    weight = torch.rand(33, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        (y, dx), (theirs, their_dx) = both(backend, x, target, weight)
    assert y.dtype == theirs.dtype == torch.float32
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(y, theirs)
    torch.testing.assert_close(dx, their_dx)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_backward_twice(backend):
    need(backend)
    x = torch.randn(6, 33, device=device_of(backend)).requires_grad_()
    with kz.backend(backend):
        y = F.cross_entropy(x, torch.randint(33, (6,), device=x.device))
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_byte_targets_and_deprecated_arguments():
    x = torch.randn(6, 33)
    target = torch.randint(33, (6,))
    with kz.backend("numba"):
        assert torch.equal(F.cross_entropy(x, target.to(torch.uint8)), F.cross_entropy(x, target))
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            y = F.cross_entropy(x, target, None, False)
    torch.testing.assert_close(y, T.cross_entropy(x, target, reduction="sum"))


def test_bad_input():
    x = torch.randn(4, 5)
    target = torch.tensor([0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=r"cross_entropy: .*batch_size.*got float32 of shape \(4, 5\).*expected input"
    ):
        F.cross_entropy(x, target[:3])
    with pytest.raises(RuntimeError, match="cross_entropy: weight tensor should be defined"):
        F.cross_entropy(x, target, torch.rand(4))
    with pytest.raises(RuntimeError, match=r"cross_entropy: label_smoothing must be between 0.0 and 1.0"):
        F.cross_entropy(x, target, label_smoothing=2.0)
    with pytest.raises(ValueError, match="cross_entropy: x is not a valid value for reduction"):
        F.cross_entropy(x, target, reduction="x")
    with pytest.raises(RuntimeError, match=r"nll_loss: .*Long or Byte"):
        F.nll_loss(x, target.int())
    with pytest.raises(TypeError, match="cross_entropy: "):
        F.cross_entropy(3, target)


def test_target_with_gradient_runs_the_formula():
    x, q = torch.randn(4, 5, requires_grad=True), torch.rand(4, 5, requires_grad=True)
    grads = [torch.autograd.grad(f(x, q), (x, q)) for f in (F.cross_entropy, T.cross_entropy)]
    torch.testing.assert_close(*grads)
