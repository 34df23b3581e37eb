"""A batch norm's result that is computed anew in the backward."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.recompute import recomputed

from ..harness import need


def gradients(x, w, b, filters, again, **more):
    """Gradients of a norm with relu and a convolution behind it."""
    leaves = [t.detach().requires_grad_() for t in (x, w, b, filters)]
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
def test_gradients_are_the_same(problem, backend, layout):
    need(backend)
    given = problem(layout)
    with kz.backend(backend):
        kept = gradients(*given, again=False)
        anew = gradients(*given, again=True)
    for a, b in zip(kept, anew, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-6, atol=1e-6
        )  # some eps: y computed anew may be rounded otherwise


def test_result_is_not_kept(problem, monkeypatch):
    need("cpp")
    from kernelzoo.ops import recompute

    made = []
    monkeypatch.setattr(recompute, "_again", lambda node, f=recompute._again: made.append(node) or f(node))
    with kz.backend("cpp"):
        gradients(*problem(torch.contiguous_format), again=True)
    assert len(made) == 1


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
