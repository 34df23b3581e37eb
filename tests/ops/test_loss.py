"""The elementwise losses: every formula, reduction and derivative."""

import functools

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import WITHOUT_CUDA, Case, OpSuite, compiled_quietly, device_of, need

T = torch.nn.functional
# Inputs of any size become what the loss takes: probabilities, or log-probabilities.
LOSSES = {
    "mse": lambda M, x, t, **o: M.mse_loss(x, t, **o),
    "l1": lambda M, x, t, **o: M.l1_loss(x, t, **o),
    "huber": lambda M, x, t, **o: M.huber_loss(x, t, delta=0.7, **o),
    "smooth_l1": lambda M, x, t, **o: M.smooth_l1_loss(x, t, beta=0.3, **o),
    "bce": lambda M, x, t, **o: M.binary_cross_entropy(torch.sigmoid(x), torch.sigmoid(t), **o),
    "bce_logits": lambda M, x, t, **o: M.binary_cross_entropy_with_logits(x, t, **o),
    "kl": lambda M, x, t, **o: M.kl_div(x, torch.exp(t), **o),
    "kl_log": lambda M, x, t, **o: M.kl_div(x, t, log_target=True, **o),
}


def case(kind, shape, reduction, large=False):
    def make(g):
        x, t = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
        return (x, t), {"kind": kind, "reduction": reduction}

    return Case(f"{kind}-{'x'.join(map(str, shape)) or 'scalar'}-{reduction}", make, large)


def loss(namespace, x, t, kind, reduction):
    return LOSSES[kind](namespace, x, t, reduction=reduction)


# as torch's kl_div gives them: its mean's, and torch.func.vmap's
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")
@pytest.mark.filterwarnings("ignore:There is a performance drop .* batching rule for aten..kl_div")
class TestLoss(OpSuite):
    call = staticmethod(functools.partial(loss, F))
    reference = staticmethod(functools.partial(loss, T))
    cases = (
        *(case(kind, (5, 7), "mean") for kind in LOSSES),
        *(case(kind, (3, 11), "none") for kind in LOSSES),
        *(case(kind, (67, 1031), "sum", large=True) for kind in LOSSES),
        case("mse", (), "mean"),
        case("kl", (4, 9), "batchmean"),
        case("kl_log", (), "batchmean"),
    )


EDGES = (0.0, 1.0, 0.3, 0.7, -1.0, 5.0, -100.0, 100.0, 1e-30, torch.inf, -torch.inf, torch.nan)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("kind", LOSSES)
def test_edges_as_torch(backend, kind):
    need(backend)
    values = EDGES
    functions = {
        "bce": (lambda M, x, t: M.binary_cross_entropy(x, t, reduction="none")),
        "kl": (lambda M, x, t: M.kl_div(x, t, reduction="none")),
    }
    if kind == "bce":
        values = (0.0, 1.0, 0.3, 0.7, 1e-30, 1e-7)
    x, t = torch.cartesian_prod(*(torch.tensor(values, device=device_of(backend)),) * 2).unbind(1)
    x, t = (a.contiguous().requires_grad_() for a in (x, t))
    function = functions.get(kind) or (lambda M, x, t: LOSSES[kind](M, x, t, reduction="none"))
    with kz.backend(backend):
        ours = function(F, x, t)
    theirs = function(T, x, t)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    dy = torch.linspace(0.5, 2.0, len(x), device=x.device)
    grads = [torch.autograd.grad(y, (x, t), dy) for y in (ours, theirs)]
    torch.testing.assert_close(*grads, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_many_elements(backend):
    """fp32 sums of 2^22 elements keep fp64's accuracy; the result does not depend on the threads."""
    need(backend)
    x, t = torch.rand(1 << 22), torch.rand(1 << 22)
    threads = torch.get_num_threads()
    with kz.backend(backend):
        y = F.mse_loss(x, t)
        torch.set_num_threads(1)
        alone = F.mse_loss(x, t)
        torch.set_num_threads(threads)
    assert torch.equal(y, alone)
    torch.testing.assert_close(y.double(), T.mse_loss(x.double(), t.double()), rtol=1e-7, atol=0)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_probabilities_out_of_range(backend):
    need(backend)
    p = torch.rand(40)
    for position, name in ((0, "input"), (1, "target")):
        for bad in (1.5, -0.1, torch.nan):
            given = [p.clone(), p.clone()]
            given[position][3] = bad
            with (
                kz.backend(backend),
                pytest.raises(RuntimeError, match=f"all elements of {name} should be between"),
            ):
                F.binary_cross_entropy(*given)


def test_weights_and_broadcasting_are_torchs():
    x, t, w = (torch.rand(4, 3) for _ in range(3))
    for name, options in (
        ("binary_cross_entropy", {"weight": w}),
        ("binary_cross_entropy_with_logits", {"weight": w[:1]}),
        ("binary_cross_entropy_with_logits", {"pos_weight": w[0]}),
    ):
        ours, theirs = (getattr(M, name)(x, t, **options) for M in (F, T))
        torch.testing.assert_close(ours, theirs)
    with pytest.warns(UserWarning, match="Using a target size") as caught:
        y = F.mse_loss(x, t[:1])
    assert caught[0].filename == __file__
    torch.testing.assert_close(y, (x - t[:1]).square().mean())


def test_kl_div_warns_as_torch():
    x, t = torch.rand(4, 3), torch.rand(4, 3)
    with pytest.warns(UserWarning, match="'mean' divides the total loss by both the batch size") as caught:
        F.kl_div(x, t)
    assert caught[0].filename == __file__
    with compiled_quietly(), pytest.warns(UserWarning, match="'mean' divides the total loss"):
        y = torch.compile(F.kl_div, fullgraph=True, backend="eager")(x, t)
    torch.testing.assert_close(y, (torch.xlogy(t, t) - t * x).mean())


def test_autocast_gives_float32():
    x, t = (torch.randn(8, 9, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    with kz.backend("numba"), torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.mse_loss(x, t)
    assert y.dtype == torch.float32
    assert torch.autograd.grad(y, x)[0].dtype == torch.bfloat16


def test_bad_input():
    x = torch.rand(4, 3)
    with pytest.raises(
        ValueError, match=r"binary_cross_entropy: Using a target size.*got float32 of shape \(4, 3\)"
    ):
        F.binary_cross_entropy(x, x[:2])
    with pytest.raises(RuntimeError, match=r"huber_loss: .*non-positive"):
        F.huber_loss(x, x, delta=-1.0)
    with pytest.raises(RuntimeError, match=r"smooth_l1_loss: .*negative"):
        F.smooth_l1_loss(x, x, beta=-1.0)
    with pytest.raises(ValueError, match="mse_loss: x is not a valid value for reduction"):
        F.mse_loss(x, x, reduction="x")
    with pytest.raises(TypeError, match="mse_loss"):
        F.mse_loss(3, x)
