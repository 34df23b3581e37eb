"""Adam and AdamW: torch's, by its fused kernel unless told otherwise."""

import inspect

import pytest
import torch

from kernelzoo import optim

BOTH = pytest.mark.parametrize("name", ["Adam", "AdamW"])


def weights(dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    return [torch.nn.Parameter(torch.randn(n, generator=g).to(dtype)) for n in ((5, 7), (1,), (300,))]


def train(make, params, steps=20):
    optimizer = make(params)
    g = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return optimizer


@BOTH
def test_steps_are_torchs(name):
    """Against torch's own in fp64: as near as torch's own in fp32."""
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.99)}
    ours, theirs = weights(), weights()
    exact = [torch.nn.Parameter(p.detach().double()) for p in ours]
    optimizer = train(lambda p: getattr(optim, name)(p, **options), ours)
    train(lambda p: getattr(torch.optim, name)(p, **options), theirs)
    train(lambda p: getattr(torch.optim, name)(p, **options), exact)
    assert optimizer.param_groups[0]["fused"]
    for a, b, c in zip(ours, theirs, exact, strict=True):
        error, allowed = (a - c).abs().max(), (b - c).abs().max()
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * c.abs().max()


@BOTH
def test_is_torchs_class_and_takes_its_arguments(name):
    ours, theirs = getattr(optim, name), getattr(torch.optim, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    first, second = weights(), weights()
    state = train(ours, first, 3).state_dict()
    other = theirs(second)
    other.load_state_dict(state)
    again = ours(weights())
    again.load_state_dict(other.state_dict())


@BOTH
@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda p: (p, {}), True),
        (lambda p: ((t for t in p), {}), True),
        (lambda p: ([(str(i), t) for i, t in enumerate(p)], {}), True),
        (lambda p: ([{"params": p[0]}, {"params": iter(p[1:]), "lr": 1.0}], {}), True),
        (lambda p: (p, {"fused": False}), False),
        (lambda p: (p, {"foreach": True}), None),
        (lambda p: ([p[0], torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))], {}), None),
    ],
    ids=["list", "generator", "named", "groups", "fused=False", "foreach", "complex"],
)
def test_fused_where_it_can_be(name, make, fused):
    params, options = make(weights())
    optimizer = getattr(optim, name)(params, **options)
    assert [g["fused"] for g in optimizer.param_groups] == [fused] * len(optimizer.param_groups)


@BOTH
def test_errors_are_torchs(name):
    with pytest.raises(TypeError, match="should be an iterable of Tensors"):
        getattr(optim, name)(torch.zeros(3))
    with pytest.raises(ValueError, match="empty parameter list"):
        getattr(optim, name)([])
    with pytest.raises(ValueError, match="Invalid learning rate"):
        getattr(optim, name)(weights(), lr=-1.0)
