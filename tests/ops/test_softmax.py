"""softmax and log_softmax over any dimension."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import BACKENDS, Case, OpSuite, device_of, need


def case(shape, dim, scale=3.0, large=False):
    def make(g):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * scale,), {"dim": dim}

    return Case(f"{'x'.join(map(str, shape)) or 'scalar'}-dim{dim}-scale{scale:g}", make, large)


CASES = (
    case((7, 19), -1),
    case((7, 19), 0),
    case((3, 5, 7), 1),
    case((1,), 0),
    case((), 0),
    case((5, 1), 1),
    case((4, 33), -1, scale=60.0),
    case((129, 1031), -1, large=True),
    case((3, 1031, 65), 1, large=True),
    case((2, 70001), -1, large=True),
    case((70001, 2), 0, large=True),
)


def exact_log(x, dim):
    """By torch.sum, which adds pairwise: torch's fp64 log_softmax errs by 72 eps over 70001."""
    shifted = x - x.amax(dim, keepdim=True).detach()
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def exact(x, dim):
    e = (x - x.amax(dim, keepdim=True).detach()).exp()
    return e / e.sum(dim, keepdim=True)


def other_dim(rank, options):
    """Along the softmax itself a repeated gradient gives zero."""
    return (options["dim"] + 1) % rank if rank > 1 else None


class TestSoftmax(OpSuite):
    backends = BACKENDS
    expanded_dim = staticmethod(other_dim)
    call = staticmethod(F.softmax)
    reference = staticmethod(torch.nn.functional.softmax)
    oracle = staticmethod(exact)
    cases = CASES


class TestLogSoftmax(OpSuite):
    backends = BACKENDS
    expanded_dim = staticmethod(other_dim)
    call = staticmethod(F.log_softmax)
    reference = staticmethod(torch.nn.functional.log_softmax)
    oracle = staticmethod(exact_log)
    cases = CASES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1])
def test_infinite_rows_as_torch(backend, name, dim):
    need(backend)
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[1.0, 2.0, -inf, 3.0], [-inf] * 4, [inf, 1.0, 2.0, 3.0], [nan, 1.0, 2.0, 3.0],
                      [1e30, -1e30, 0.0, 1.0]], device=device_of(backend))  # fmt: skip
    x = (x if dim == 1 else x.T.contiguous()).requires_grad_()
    theirs = getattr(torch.nn.functional, name)(x, dim)
    with kz.backend(backend):
        ours = getattr(F, name)(x, dim)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    dy = torch.randn_like(theirs)
    grads = [torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*grads, equal_nan=True)


def test_dtype_converts_first():
    x = torch.randn(300, 300, dtype=torch.bfloat16)
    y = F.softmax(x, -1, dtype=torch.float32)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, torch.nn.functional.softmax(x, -1, dtype=torch.float32))


def test_no_dim_warns_as_torch_does():
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as ours:
        y = F.softmax(x)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        torch.testing.assert_close(y, torch.nn.functional.softmax(x))
    assert ours[0].filename == __file__


def test_bad_input():
    x = torch.randn(3, 4)
    with pytest.raises(IndexError, match=r"softmax: Dimension out of range.*\[-2, 1\], but got 2"):
        F.softmax(x, 2)
    with pytest.raises(TypeError, match="log_softmax: dim must be an int"):
        F.log_softmax(x, "x")
    with pytest.raises(TypeError, match="softmax: input must be a Tensor, got int"):
        F.softmax(3, 0)
