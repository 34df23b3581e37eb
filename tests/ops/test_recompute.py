"""A batch norm's result that is computed anew in the backward."""

import weakref

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.recompute import can_recompute, recomputed

from ..harness import need


def gradients(x, w, b, filters, again, residual=None, **more):
    """Gradients of a norm with relu and a convolution behind it."""
    given = (x, w, b, filters, *(() if residual is None else (residual,)))
    leaves = [t.detach().requires_grad_() for t in given]
    more["residual"] = None if residual is None else leaves[4]
    y = F.batch_norm(leaves[0], None, None, *leaves[1:3], training=True, act="relu", **more)
    with recomputed(y) if again else torch.enable_grad():
        z = torch.nn.functional.conv2d(y, leaves[3])
    g = torch.Generator().manual_seed(2)
    return torch.autograd.grad(z, leaves, torch.randn(z.shape, generator=g).to(z))


@pytest.fixture
def problem():
    def make(layout, dtype=torch.float32):
        x = torch.randn(3, 5, 9, 7, dtype=dtype).contiguous(memory_format=layout)
        return (
            x,
            torch.rand(5, dtype=dtype) + 0.5,
            torch.randn(5, dtype=dtype),
            torch.randn(4, 5, 3, 3, dtype=dtype),
        )

    return make


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels-last"]
)
@pytest.mark.parametrize("backend", ["cpp", "numba"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_gradients_are_the_same(problem, backend, layout, residual):
    need(backend)
    given = problem(layout)
    more = {"residual": torch.randn_like(given[0])} if residual else {}
    with kz.backend(backend):
        kept = gradients(*given, again=False, **more)
        anew = gradients(*given, again=True, keep_residual=residual, **more)
    for a, b in zip(kept, anew, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-6, atol=1e-6
        )  # some eps: y computed anew may be rounded otherwise


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_result_is_not_kept(problem, residual):
    need("cpp")
    x, w, b, filters = problem(torch.contiguous_format)
    x.requires_grad_()
    more = {"residual": torch.randn_like(x), "keep_residual": True} if residual else {}
    with kz.backend("cpp"):
        y = F.batch_norm(x, None, None, w, b, training=True, act="relu", **more)
    assert can_recompute(y)
    with recomputed(y):
        z = torch.nn.functional.conv2d(y, filters)
    gone = weakref.ref(y)
    del y
    assert gone() is None
    z.sum().backward()


@pytest.mark.parametrize("why", ["torch's call", "residual"])
def test_anything_else_is_left_alone(problem, why, monkeypatch):
    need("cpp")
    from kernelzoo.ops import recompute

    monkeypatch.setattr(recompute, "_again", None)
    given = problem(torch.contiguous_format)
    more = {"residual": torch.ones_like(given[0])} if why == "residual" else {}
    with kz.backend("torch" if why == "torch's call" else "cpp"):
        first = gradients(*given, again=False, **more)
        second = gradients(*given, again=True, **more)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
