"""What users do around an op: in-place writes, transforms under compile, hooks, foreign layouts, empty sizes."""

import warnings

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo import nn

from ..harness import BACKENDS, compiled_quietly, device_of, here, need

T = torch.nn.functional


@pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.vjp, torch.func.jvp], ids=lambda f: f.__name__
)
def test_transforms_inside_compile(transform):
    x = torch.randn(256, 300)

    def run(gelu):
        def f(t):
            return gelu(t).square().sum()

        if transform is torch.func.grad:
            return lambda t: transform(f)(t)
        if transform is torch.func.vjp:
            return lambda t: transform(f, t)[1](torch.ones(()))[0]
        return lambda t: transform(f, (t,), (torch.ones_like(t),))[1]

    with kz.backend(here()), compiled_quietly():
        ours = torch.compile(run(F.gelu), backend="aot_eager")(x)
    torch.testing.assert_close(ours, run(T.gelu)(x))


OPS = {
    "linear": lambda F, x: F.linear(x, x.new_ones(5, x.shape[-1]) / 9),
    "gelu": lambda F, x: F.gelu(x),
    "softmax": lambda F, x: F.softmax(x, -1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_results_may_be_written_to(backend, name):
    need(backend)
    x = torch.randn(6, 4, device=device_of(backend), requires_grad=True)
    theirs = OPS[name](T, x)
    if name == "softmax":  # which saves its result: torch refuses the backward, and so must we
        with kz.backend(backend):
            y = OPS[name](F, x)
        y += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        return
    with kz.backend(backend):
        y = OPS[name](F, x)
    y += 1
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(ours, torch.autograd.grad((theirs + 1).square().sum(), x)[0])


@pytest.mark.parametrize("act", ["gelu", "sigmoid"])
def test_saved_tensor_hooks_may_change_the_layout(act):
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((30, 20), (40, 20), (40,)))
    with kz.backend(here()):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.t().contiguous(), lambda t: t.t()):
            y = F.linear(x, w, b, act=act)
        ours = torch.autograd.grad(y.square().sum(), (x, w, b))
    theirs = torch.autograd.grad(getattr(T, act)(T.linear(x, w, b)).square().sum(), (x, w, b))
    torch.testing.assert_close(ours, theirs)


def test_mixed_dtypes_that_autocast_leaves_alone_raise_as_in_torch():
    x, w, b = torch.randn(256, 300).double(), torch.randn(400, 300).double(), torch.randn(400)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="dtype"):
        F.linear(x, w, b, act="relu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_output_features(backend):
    need(backend)
    device = device_of(backend)
    x, w, b = (torch.randn(s, device=device, requires_grad=True) for s in ((3, 4), (0, 4), (0,)))
    with kz.backend(backend):
        F.linear(x, w, b, act="relu").sum().backward()
    assert x.grad.eq(0).all()
    assert w.grad.shape == (0, 4)


def test_an_empty_batch_through_a_compiled_graph():
    layer = nn.Linear(4, 5, act="gelu")
    with kz.backend(here()), compiled_quietly():
        compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
        compiled(torch.randn(6, 4))
        y = compiled(torch.randn(0, 4, requires_grad=True))
        y.sum().backward()
    assert layer.bias.grad.eq(0).all()


def test_an_exported_model_runs_in_grad_mode():
    layer = nn.Linear(300, 400, act="gelu").bfloat16()
    x = torch.randn(300, 300, dtype=torch.bfloat16)
    with kz.backend(here()), compiled_quietly():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("layout", ["coo", "csr", "mkldnn", "nested"])
def test_other_layouts_run_the_formula(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls these layouts beta or prototypes
        x = torch.randn(300, 300)
        x = {
            "coo": x.to_sparse,
            "csr": x.to_sparse_csr,
            "mkldnn": x.to_mkldnn,
            "nested": lambda: torch.nested.nested_tensor([x, x[:5]]),
        }[layout]()
        with kz.trace() as calls:
            ours = F.relu(x)
            if layout == "nested":
                F.linear(x, torch.randn(4, 300), act="relu")
        assert ours.layout == torch.relu(x).layout
        assert "layout" in calls[0].reason


def test_arguments_that_torch_takes():
    import numpy as np

    x = torch.randn(4, 5)
    torch.testing.assert_close(F.softmax(x, np.int64(1)), T.softmax(x, 1))
    for slope in (np.float32(0.2), torch.tensor(0.2)):
        torch.testing.assert_close(F.leaky_relu(x, slope), T.leaky_relu(x, 0.2))
    F.threshold(x, 0.0, 0.0)
    assert str(F.threshold(-x.abs(), 0.0, -0.0)[0, 0].item()) == "-0.0"
    with kz.backend(here()):  # bounds beyond the dtype
        torch.testing.assert_close(F.hardtanh(x.half(), -1e5, 1e5), x.half())


def test_symbolic_trace():
    model = torch.nn.Sequential(nn.Linear(4, 5, act="relu"), nn.GELU(), nn.Softmax(-1))
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", ["softplus", "softmax"])
def test_float32_of_cuda_autocast(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(64, 64, device="cuda", dtype=torch.float16)
    with torch.autocast("cuda", torch.float16):
        if name == "softmax":
            assert F.softmax(x, -1).dtype == T.softmax(x, -1).dtype
            assert F.softmax(x, -1, dtype=torch.float16).dtype == T.softmax(x, -1, dtype=torch.float16).dtype
        else:
            assert F.softplus(x).dtype == T.softplus(x).dtype
            assert F.linear(x, x, act="softplus").dtype == T.softplus(T.linear(x, x)).dtype
