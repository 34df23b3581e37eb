"""One environment for the whole suite: interpreter where there is no GPU, poisoned memory, fixed seeds."""

import os

# Before anything loads OpenMP: threads that spin for their next loop take the core from the suite's other process,
# which made tests in C++ twice as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch


def _hasten_interpreter():
    """Triton's interpreter without what it does in vain: two thirds of its time.

    It computes of every integer sum whether that overflows, and drops the answer unless debug is set. And it puts its
    own functions into tl at each call of a device function, which the launch has done; only what a module of triton's
    own sees is put there by such a call, to stay.
    """
    from triton.runtime.interpreter import (
        InterpretedFunction,
        InterpreterOptions,
        _patch_lang,
        interpreter_builder,
    )

    interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    patched = set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            _patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    InterpretedFunction.__call__ = call


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
    _hasten_interpreter()
THREADS = min(2, torch.get_num_threads())  # of tests/ops, which proves the kernels' division of their work
torch.set_num_threads(1)  # elsewhere two would wait for the core that the suite's other process holds


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """torch.empty and the kept workspaces hold NaN, so that what a kernel leaves unwritten shows."""
    from kernelzoo.kernels import memory

    def poisoned(name, size):
        scratch = buffer(name, size)
        scratch[:size].fill_(255)  # every floating type's NaN
        return scratch

    buffer = memory._buffer
    monkeypatch.setattr(memory, "_buffer", poisoned)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc):
    """Spread a suite of harness.py over its cases: `case`, `backend`, `dtype`, `layout` as its tests ask."""
    if metafunc.cls is not None and hasattr(metafunc.cls, "spread"):
        metafunc.cls.spread(metafunc)
