"""Dropout: torch's result at p 0 and 1, one mask on every backend, replayed in the backward."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops import dropout as ops
from kernelzoo.ops.core.random import kept

from ..harness import DTYPES, WITHOUT_CUDA, Case, OpSuite, compiled_quietly, device_of, here, need

T = torch.nn.functional
SEED = 0x7EDCBA9876543210


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(
        ops, "draw_seed", lambda x: torch.full((1,), SEED, dtype=torch.int64, device=x.device)
    )


def mask(x, p):
    index = torch.arange(x.numel(), device=x.device)
    return kept(torch.tensor([SEED], device=x.device), index, p).view(x.shape)


def reference(x, residual=None, p=0.5):
    y = x * (mask(x, p).to(x.dtype) / (1 - p))
    return y if residual is None else residual + y


def call(x, residual=None, p=0.5):
    return F.dropout(x, p) if residual is None else F.dropout_add(x, residual, p)


def case(shape, p, residual=False, large=False):
    def make(g):
        tensors = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2)]
        return tensors[: 1 + residual], {"p": p}

    name = f"{'x'.join(map(str, shape)) or 'scalar'}-p{p}" + ("-residual" if residual else "")
    return Case(name, make, large)


@pytest.mark.usefixtures("fixed")
class TestDropout(OpSuite):
    call = staticmethod(call)
    reference = staticmethod(reference)
    cases = (
        case((7, 19), 0.5),
        case((7, 19), 0.1, residual=True),
        case((3, 5, 67), 0.9),
        case((1,), 0.25),
        case((), 0.5),
        case((130,), 0.3, residual=True),
        case((131, 1031), 0.2, large=True),
        case((131, 1031), 0.2, residual=True, large=True),
    )

    def test_transforms(self, case):
        """They take torch's own dropout, with torch's generator and torch's rules."""
        (x, *_), options = self.build(case, torch.float64, "cpu", requires_grad=False)
        with kz.backend(here()):
            for f in (
                lambda F: torch.func.vmap(lambda t: F.dropout(t, **options), randomness="different")(x[None]),
                lambda F: torch.func.vmap(lambda t: F.dropout(t, **options), randomness="same")(x[None]),
                lambda F: torch.func.grad(lambda t: F.dropout(t, **options).sum())(x),
                lambda F: torch.func.jvp(lambda t: F.dropout(t, **options), (x,), (x,))[1],
            ):
                torch.manual_seed(4)
                ours = f(kz.functional)
                torch.manual_seed(4)
                assert torch.equal(ours, f(T))
            with pytest.raises(RuntimeError, match="randomness"):
                torch.func.vmap(lambda t: F.dropout(t, **options))(x[None])


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("p", [1e-3, 0.5, 0.999])
def test_the_same_elements_on_every_backend(backend, dtype, p):
    need(backend)
    x = torch.ones(5000, dtype=dtype, device=device_of(backend), requires_grad=True)
    with kz.backend(backend):
        y = F.dropout(x, p)
    assert torch.equal(y != 0, mask(x, p))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(dx, y)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_nan_and_infinities_as_torch(backend):
    """A dropped NaN or infinity is a NaN: torch multiplies with 0."""
    need(backend)
    edges = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1.0], device=device_of(backend))
    x = edges.repeat(200)
    with kz.backend(backend):
        y = F.dropout(x, 0.5).view(-1, 5)
    z = T.dropout(x, 0.5).view(-1, 5)
    for i in range(5):
        assert set(map(str, y[:, i].tolist())) == set(map(str, z[:, i].tolist()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0, 1, 0.0, 1.0, 0.5])
@pytest.mark.parametrize("inplace", [True, False])
def test_exactly_torchs_where_nothing_is_drawn(p, training, inplace):
    x = torch.randn(400, 400)
    mine, theirs = x.clone(), x.clone()
    torch.manual_seed(1)
    y = F.dropout(mine, p, training, inplace)
    torch.manual_seed(1)
    z = T.dropout(theirs, p, training, inplace)
    assert (y is mine) == (z is theirs)
    if p != 0.5 or not training or inplace:
        assert torch.equal(y, z)
        assert torch.equal(mine, theirs)
        assert torch.equal(F.dropout_add(x, x, p, training), x + z) or (p == 0.5 and training)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_mean_and_seed(backend):
    need(backend)
    x = torch.ones(1 << 14, device=device_of(backend))
    with kz.backend(backend):
        torch.manual_seed(5)
        first, second = F.dropout(x, 0.3), F.dropout(x, 0.3)
        torch.manual_seed(5)
        assert torch.equal(F.dropout(x, 0.3), first)
    assert not torch.equal(first, second)
    assert abs((first != 0).double().mean().item() - 0.7) < 5 * (0.21 / x.numel()) ** 0.5
    torch.testing.assert_close(first.max().item(), 1 / 0.7)


def test_compiled_draws_anew_each_call():
    x = torch.ones(1000, requires_grad=True)
    with kz.backend(here()), compiled_quietly():
        compiled = torch.compile(lambda t: F.dropout(t, 0.5), fullgraph=True, backend="aot_eager")
        first, second = compiled(x), compiled(x)
        assert not torch.equal(first, second)
        for y in (first, second):
            assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], y)


def test_bad_input():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"dropout probability has to be between 0 and 1, but got {p}"):
            F.dropout(torch.zeros(3), p)
    with pytest.raises(TypeError, match="dropout: input must be a Tensor, got int"):
        F.dropout(3)
    with pytest.raises(TypeError, match="dropout_add: residual must be a Tensor, got NoneType"):
        F.dropout_add(torch.zeros(3), None)


def test_dropout_add_broadcasts_and_promotes_as_torch():
    x = torch.randn(200, 200, dtype=torch.bfloat16)
    y = F.dropout_add(x, torch.ones(200), 0.5)
    assert y.shape == x.shape
    assert y.dtype == torch.float32


def test_opcheck():
    x, seed = torch.randn(6, 5), torch.tensor([SEED])
    torch.utils.deterministic.fill_uninitialized_memory = False
    for residual in (None, torch.randn(6, 5)):
        torch.library.opcheck(torch.ops.kernelzoo.dropout_fwd.default, (x, residual, seed, 0.5, here()))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set_draws_the_same(isa, dtype):
    need("cpp")
    from kernelzoo import _cpu
    from kernelzoo.kernels.cpp.dropout import dropout_fwd

    before = _cpu.isa()
    try:
        _cpu.set_isa(isa)
    except (RuntimeError, ValueError) as reason:
        pytest.skip(f"this CPU has no {isa}: {reason}")
    try:
        x = torch.ones(40001, dtype=dtype)
        y = dropout_fwd(x, None, torch.tensor([SEED]), 0.3)
    finally:
        _cpu.set_isa(before)
    assert torch.equal(y != 0, mask(x, 0.3))
