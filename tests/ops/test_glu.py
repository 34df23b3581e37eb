"""Gated activations: f(gate)·up, and torch's glu of one tensor's halves."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import WITHOUT_CUDA, Case, OpSuite, device_of, here, need
from .test_linear import native

T = torch.nn.functional
OURS = {
    "silu": F.swiglu,
    "gelu": F.geglu,
    "gelu_tanh": lambda gate, up: F.geglu(gate, up, "tanh"),
    "relu": F.reglu,
}
THEIRS = {
    "silu": T.silu,
    "gelu": T.gelu,
    "gelu_tanh": lambda x: T.gelu(x, approximate="tanh"),
    "relu": T.relu,
}


def case(shape, act, scale=2.0, large=False):
    def make(g):
        return [torch.randn(shape, generator=g, dtype=torch.float64) * scale for _ in range(2)], {"act": act}

    return Case(f"{act}-{'x'.join(map(str, shape)) or 'scalar'}-scale{scale:g}", make, large)


class TestGated(OpSuite):
    call = staticmethod(lambda gate, up, act: OURS[act](gate, up))
    reference = staticmethod(lambda gate, up, act: THEIRS[act](gate) * up)
    cases = (
        *(case((5, 37), act) for act in OURS),
        case((3, 4, 7), "silu"),
        case((1,), "gelu"),
        case((), "silu"),
        case((6, 1), "relu"),
        case((4, 33), "silu", scale=40.0),
        *(case((131, 1031), act, large=True) for act in OURS),
    )


class TestHalves(OpSuite):
    """gate and up are the halves of one tensor, read where they are."""

    call = staticmethod(lambda x, act: OURS[act](*x.chunk(2, -1)))
    reference = staticmethod(lambda x, act: THEIRS[act](x.chunk(2, -1)[0]) * x.chunk(2, -1)[1])
    cases = tuple(
        Case(
            f"{'x'.join(map(str, shape))}-{act}",
            lambda g, shape=shape, act=act: (
                [torch.randn(shape, generator=g, dtype=torch.float64)],
                {"act": act},
            ),
            large,
        )
        for shape, act, large in (
            ((5, 38), "silu", False),
            ((2, 3, 14), "gelu", False),
            ((67, 5000), "gelu_tanh", True),
        )
    )


def glu_case(shape, dim, large=False):
    def make(g):
        return [torch.randn(shape, generator=g, dtype=torch.float64) * 3], {"dim": dim}

    return Case(f"{'x'.join(map(str, shape))}-dim{dim}", make, large)


class TestGLU(OpSuite):
    call = staticmethod(F.glu)
    reference = staticmethod(T.glu)
    cases = (
        glu_case((7, 38), -1),
        glu_case((6, 19), 0),
        glu_case((3, 8, 5), 1),
        glu_case((2,), 0),
        glu_case((67, 3100), -1, large=True),
        glu_case((3, 210, 201), 1, large=True),
    )


EDGES = torch.tensor([0.0, -0.0, 1.0, -1.0, 90.0, -90.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])


@pytest.mark.parametrize("act", [*OURS, "sigmoid"])
@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_nan_and_infinities_as_torch(backend, act):
    need(backend)
    gate, up = (t.flatten() for t in torch.meshgrid(EDGES, EDGES, indexing="ij"))
    gate, up = (t.repeat_interleave(16).to(device_of(backend)).requires_grad_() for t in (gate, up))

    def results(f):
        y = f(gate, up)
        return y, *torch.autograd.grad(y, (gate, up), torch.ones_like(y))

    with kz.backend(backend):
        ours = results(OURS.get(act) or (lambda g, u: F.glu(torch.cat([u, g]))))
    with native():
        theirs = results(lambda g, u: THEIRS[act](g) * u if act in THEIRS else T.glu(torch.cat([u, g])))
    for name, a, b in zip(("y", "dgate", "dup"), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_rows_are_read_where_they_are(backend, monkeypatch):
    need(backend)
    x = torch.randn(3, 5, 14, device=device_of(backend))
    gate, up = x.chunk(2, -1)
    expected = T.silu(gate) * up
    with kz.backend(backend), monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("copied"))
        patch.setattr(torch.Tensor, "clone", lambda *_, **__: pytest.fail("copied"))
        y = F.swiglu(gate, up)
    torch.testing.assert_close(y, expected)


def test_bad_input():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"swiglu: up has shape \(4,\) but gate has \(3, 4\)"):
        F.swiglu(x, x[0])
    with pytest.raises(TypeError, match=r"reglu: up must be a Tensor, got float"):
        F.reglu(x, 1.0)
    with pytest.raises(ValueError, match=r"geglu: approximate must be either none or tanh, got 'erf'"):
        F.geglu(x, x, "erf")
    with pytest.raises(ValueError, match=r"swiglu: up is on meta but gate is on cpu"):
        F.swiglu(x, x.to("meta"))
    with pytest.raises(RuntimeError, match=r"must be even"):
        F.glu(torch.zeros(3))


def test_empty_and_mixed():
    assert F.swiglu(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert F.glu(torch.zeros(3, 0)).shape == (3, 0)
    assert F.swiglu(torch.zeros(200, 200, dtype=torch.bfloat16), torch.zeros(200, 200)).dtype == torch.float32


def test_gated_mlp():
    mlp = kz.nn.GatedMLP(6, 10, act="gelu_tanh", bias=True)
    assert list(mlp.state_dict()) == [
        f"{name}_proj.{part}" for name in ("gate", "up", "down") for part in ("weight", "bias")
    ]
    x = torch.randn(2, 3, 6)
    expected = mlp.down_proj(T.gelu(mlp.gate_proj(x), approximate="tanh") * mlp.up_proj(x))
    torch.testing.assert_close(mlp(x), expected)
    with pytest.raises(ValueError, match=r"GatedMLP: unknown act 'swish'; expected one of silu"):
        kz.nn.GatedMLP(6, 10, act="swish")


def test_opcheck():
    gate, up, dy = (torch.randn(6, 5) for _ in range(3))
    torch.utils.deterministic.fill_uninitialized_memory = False
    ops = torch.ops.kernelzoo
    for op, args in (
        (ops.glu_fwd, (gate, up, "silu")),
        (ops.glu_bwd, (dy, gate, up, "gelu")),
        (ops.glu_split_fwd, (torch.randn(6, 8),)),
        (ops.glu_split_bwd, (torch.randn(6, 4), torch.randn(6, 8))),
    ):
        torch.library.opcheck(op.default, (*args, here()))
