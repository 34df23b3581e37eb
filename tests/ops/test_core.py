"""What every op shares: the choice of a backend, traces, autocast, subclasses, recompilation."""

import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.core import choice

from ..harness import BACKENDS, compiled_quietly, here

LARGE = (512, 1024)


def test_backends_say_what_is_here_and_why_not():
    found = kz.backends()
    assert list(found) == [*BACKENDS, "torch"]
    assert found["torch"].available
    for status in found.values():
        assert status.reason
    assert found["numba"].available, "numba is a core dependency"


@pytest.mark.parametrize("name", BACKENDS)
def test_an_explicit_backend_serves_or_says_why_not(name):
    device = "cuda" if name in ("triton", "cuda") and torch.cuda.is_available() else "cpu"
    x = torch.randn(3, 4, device=device)
    with kz.trace() as calls, kz.backend(name):
        if kz.backends()[name].available:
            F.relu(x)
            assert (calls[0].op, calls[0].backend, calls[0].reason) == ("relu", name, "asked for")
        else:
            with pytest.raises(kz.BackendUnavailable, match=f"relu: backend '{name}' was asked for, but .+"):
                F.relu(x)


def test_an_explicit_backend_refuses_what_it_has_no_kernel_for():
    with kz.backend("numba"), pytest.raises(kz.BackendUnavailable, match=r"no kernel for torch\.int64"):
        F.relu(torch.arange(4))
    with (
        kz.backend("numba"),
        pytest.raises(kz.BackendUnavailable, match=r"serves cpu tensors and the input is on meta"),
    ):
        F.relu(torch.zeros(4, device="meta"))


def test_auto_falls_back_to_the_formula():
    with kz.trace() as calls:
        F.tanh(torch.arange(1 << 17))
        assert F.relu(torch.zeros(4, device="meta")).device.type == "meta"
        F.relu(torch.zeros(2, 2))
        F.relu(torch.zeros(0, 2))
        F.tanh(torch.zeros(LARGE))
    reasons = [c.reason for c in calls]
    assert [c.backend for c in calls[:4]] == ["torch"] * 4
    assert "no kernel for torch.int64 on cpu" in reasons[0]
    assert "on meta" in reasons[1]
    assert "few elements" in reasons[2]
    assert calls[4].backend == ("cpp" if kz.backends()["cpp"].available else "numba")
    assert calls[4].shapes == (LARGE,)


def test_a_workspace_is_gone_before_it_grows(monkeypatch):
    from kernelzoo.kernels import memory

    monkeypatch.setattr(memory, "_kept", threading.local())
    memory.workspace((8,), torch.uint8)
    small = weakref.ref(memory._kept.workspace)
    gone = []

    def empty(shape, dtype):
        gone.append(small() is None)
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(memory, "empty", empty)
    assert memory.workspace((16,), torch.uint8).numel() == 16
    assert gone == [True]


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match=r"unknown backend 'numbaa'.*did you mean 'numba'"),
        kz.backend("numbaa"),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "prints"), [("numba", "numba"), ("nonsense", "unknown backend 'nonsense'")]
)
def test_environment_variable(value, prints):
    code = (
        "import torch, kernelzoo as kz, kernelzoo.functional as F\n"
        "with kz.trace() as calls: F.relu(torch.zeros(2))\n"
        "print(calls[0].backend)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "KERNELZOO_BACKEND": value},
                          capture_output=True, text=True)  # fmt: skip
    assert prints in done.stdout + done.stderr


def test_import_asks_for_little():
    late = (
        "print([m for m in ('triton', 'numba', 'lightning', 'typer', 'kernelzoo._cpu') if m in sys.modules])"
    )
    code, before = f"import sys, kernelzoo; {late}", f"import sys, torch; {late}"
    ours, torchs = (
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True).stdout
        for c in (code, before)
    )
    assert ours == torchs


def test_the_backward_runs_where_its_forward_ran():
    x = torch.randn(LARGE, requires_grad=True)
    ran = []
    launcher = kz.ops.core.registry.launcher

    def spy(backend, module, name):
        ran.append((backend, name))
        return launcher(backend, module, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kz.ops.core.registry, "launcher", spy)
        with kz.backend("numba"):
            y = F.gelu(x)
        y.sum().backward()
    assert ran == [("numba", "act_fwd"), ("numba", "act_bwd")]


AUTOCAST = {
    "linear": lambda F, x: F.linear(x, x),
    "relu": lambda F, x: F.relu(x),
    "gelu": lambda F, x: F.gelu(x),
    "softplus": lambda F, x: F.softplus(x),
    "softmax": lambda F, x: F.softmax(x, -1),
    "log_softmax": lambda F, x: F.log_softmax(x, -1),
    "mish": lambda F, x: F.mish(x),
}


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_casts_as_torch_does(name, dtype, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(LARGE, dtype=dtype, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = AUTOCAST[name](F, x), AUTOCAST[name](torch.nn.functional, x)
    assert ours.dtype == theirs.dtype
    (grad,) = torch.autograd.grad(ours.float().sum(), x)
    assert grad.dtype == x.dtype


def test_autocast_takes_mixed_dtypes():
    x, w, b = torch.randn(300, 300, dtype=torch.bfloat16), torch.randn(300, 300), torch.randn(300)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x, w, b, act="gelu").dtype == torch.bfloat16


class Tagged(torch.Tensor):
    pass


def test_tensor_subclasses_run_the_formula():
    x = torch.randn(LARGE).as_subclass(Tagged)
    with kz.trace() as calls:
        y = F.gelu(x)
    assert isinstance(y, Tagged)
    assert calls[0].reason == "Tagged is a tensor subclass"


def test_compiled_code_follows_the_chosen_backend():
    x = torch.randn(LARGE)
    ran = []
    with compiled_quietly(), pytest.MonkeyPatch.context() as patch:
        launcher = kz.ops.core.registry.launcher
        patch.setattr(kz.ops.core.registry, "launcher", lambda b, m, n: ran.append(b) or launcher(b, m, n))
        compiled = torch.compile(lambda t: F.tanh(t), fullgraph=True, backend="aot_eager")
        compiled(x)
        with kz.backend("numba"):
            compiled(x)
        with kz.backend("torch"):
            compiled(x)
    assert ran == [choice.automatic("activation", "cpu", torch.float32), "numba"]


def test_export_stays_free_of_the_backend():
    layer = kz.nn.Linear(300, 300, act="gelu")
    with compiled_quietly():
        program = torch.export.export(
            layer, (torch.randn(300, 300),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    (node,) = [n for n in program.graph.nodes if "linear_act_fwd" in str(n.target)]
    assert node.args[-1] == "auto"
    x = torch.randn(700, 300)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_opcheck():
    backend = here()
    ops = torch.ops.kernelzoo
    x, w, b = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    z, dy = torch.randn(6, 4), torch.randn(6, 4)
    torch.utils.deterministic.fill_uninitialized_memory = False
    for op, args in (
        (ops.linear_act_fwd, (x, w, b, "gelu", 0.0, 0.0, True)),
        (ops.linear_act_fwd, (x.mT.contiguous().mT, w, None, "relu", 0.0, 0.0, False)),
        (ops.linear_act_bwd, (dy, x, w, z, "gelu", 0.0, 0.0, True, True, True)),
        (ops.linear_act_bwd, (dy, x, w, None, "none", 0.0, 0.0, False, True, False)),
        (ops.linear_act_bwd, (dy, x, w.mT.contiguous().mT, z, "silu", 0.0, 0.0, True, True, False)),
        (ops.act_fwd, (x, "elu", 1.0, 0.0)),
        (ops.act_fwd, (x.mT, "elu", 1.0, 0.0)),
        (ops.act_bwd, (dy, z, "silu", 0.0, 0.0)),
        (ops.softmax_fwd, (torch.randn(2, 5, 3), False)),
        (ops.softmax_bwd, (torch.randn(2, 5, 3), torch.randn(2, 5, 3), True)),
    ):
        torch.library.opcheck(op.default, (*args, backend))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x.clone(), 0.5, inplace=True),
        lambda x: F.embedding(torch.tensor([1]), x, sparse=True),
        lambda x: F.mse_loss(x, x, weight=torch.ones_like(x)),
        lambda x: F.swiglu(x, x.bfloat16()),
    ],
    ids=["dropout", "embedding", "mse_loss", "swiglu"],
)
def test_what_no_kernel_takes_is_said(call):
    x = torch.randn(4, 6)
    with kz.backend(here()), pytest.raises(kz.BackendUnavailable):
        call(x)
    with kz.trace() as calls:
        call(x)
    assert calls[0].backend == "torch"
