"""Fixtures of the ops' tests, and which of them are repeats."""

from collections import Counter

import pytest
import torch

from ..harness import INTERPRETED, need


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is applied
def pytest_collection_modifyitems(items):
    """Numba compiles a kernel for each dtype, in 0.18 s; float16's is bfloat16's with another load and store, which the
    first cases of a test prove: the others are slow."""
    seen = Counter()
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("backend") == "numba" and given.get("dtype") is torch.float16:
            test = item.nodeid.split("[")[0]
            seen[test] += 1
            if seen[test] > INTERPRETED:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["avx512", "avx2", "plain"])
def isa(request):
    """Each instruction set that the C++ kernels were compiled for and this CPU has."""
    need("cpp")
    from kernelzoo import _cpu

    before = _cpu.isa()
    try:
        _cpu.set_isa(request.param)
    except (RuntimeError, ValueError) as reason:
        pytest.skip(f"this CPU has no {request.param}: {reason}")
    yield
    _cpu.set_isa(before)
