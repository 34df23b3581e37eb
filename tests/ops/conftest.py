"""Fixtures of the ops' tests, and which of them are repeats."""

from collections import defaultdict

import pytest
import torch

from ..conftest import THREADS
from ..harness import DTYPES, GPU, LAYOUTS, need

ANEW = ("numba",) if GPU else ("numba", "triton")
OTHERS = tuple(dtype for dtype in DTYPES if dtype != torch.float32)
FEW = ("test_gradcheck", "test_frozen_inputs")


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is applied
def pytest_collection_modifyitems(items):
    """Numba compiles a kernel for each dtype and many an option, in 0.6 s, and Triton's interpreter is slow. By
    default a test takes them through its cases in float32 and in turn through one other dtype, or through one of the
    layouts; those of FEW through every third case. The whole cross is slow."""
    numbers = defaultdict(dict)
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("backend") not in ANEW:
            continue
        number_of = numbers[item.nodeid.split("[")[0], given["backend"]]
        case = tuple(
            str(value) for name, value in given.items() if name not in ("backend", "dtype", "layout")
        )
        number = number_of.setdefault(case, len(number_of))
        dtype, layout = given.get("dtype"), given.get("layout")
        if (
            (dtype in OTHERS and dtype != OTHERS[number % len(OTHERS)])
            or (layout in LAYOUTS and layout != list(LAYOUTS)[number % len(LAYOUTS)])
            or (item.originalname in FEW and number % 3)
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(1)


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
