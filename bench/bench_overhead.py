"""What our layer adds to a call that computes next to nothing, and to `import torch`."""

import functools
import statistics
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F

from .core import DEVICE, GPU, Case, Problem, Rounds, Target

CALLS = 200
ADDED = Target("added us", 8.0, at_least=False)
KERNEL = ("triton" if GPU else next((n for n in ("cpp", "numba") if kz.backends()[n].available), None),)


def _linear(module):
    if module is F:
        return lambda x, w, b: F.linear(x, w, b, act="gelu")
    return lambda x, w, b: T.gelu(T.linear(x, w, b))


def _relu(module):
    return lambda x, w, b: module.relu(x)


FUNCTIONS = {"linear+gelu": _linear, "relu": _relu}


def _case(name, mode, backend):
    def build():
        grad = mode != "no grad"
        x, w, b = (torch.randn(s, device=DEVICE, requires_grad=grad) for s in ((4, 4), (4, 4), (4,)))
        dy = torch.randn(4, 4, device=DEVICE)
        given = [x] if name == "relu" else [x, w, b]

        def step(function, given=given, tensors=(x, w, b), dy=dy):
            if mode != "forward+backward":
                return lambda: (function(*tensors),)

            def run():
                y = function(*tensors)
                return y, *torch.autograd.grad(y, given, dy)

            return run

        exact = [t.detach().double().requires_grad_(grad) for t in (x, w, b)]
        theirs = FUNCTIONS[name](T)
        oracle = step(theirs, exact[: len(given)], exact, dy.double())
        return Problem({"ours": step(FUNCTIONS[name](F)), "eager": step(theirs)}, oracle, {})

    results = ("y", "dx", "dw", "db")[: (2 if name == "relu" else 4) if mode == "forward+backward" else 1]
    return Case(
        f"call {name} 4x4 {mode}, {backend}",
        "overhead",
        torch.float32,
        build,
        results,
        targets=(ADDED,) if mode != "forward+backward" else (),
        calls=CALLS,
        kept=False,
        backend=None if backend == "auto" else backend,
    )


CASES = [
    _case(name, mode, backend)
    for backend in ("auto", *(k for k in KERNEL if k))
    for name in FUNCTIONS
    for mode in ("no grad", "grad", "forward+backward")
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_overhead(case, row):
    row(case)


IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
{}
print(middle - start, time.perf_counter() - middle)
"""
IMPORTS = {
    "import kernelzoo": "import kernelzoo",
    "import kernelzoo.functional, .nn, .zoo": "import kernelzoo.functional, kernelzoo.nn, kernelzoo.zoo",
}


@pytest.mark.parametrize("name", IMPORTS)
def bench_import(name, record):
    """Seconds added to `import torch`, each time in a fresh process."""
    torch_seconds = []

    def seconds():
        command = [sys.executable, "-c", IMPORT.format(IMPORTS[name])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs, added = map(float, done.stdout.split())
        torch_seconds.append(theirs)
        return added

    seconds()  # the file system's cache
    case = Case(
        name,
        "import",
        torch.float32,
        functools.partial(Problem, {}, tuple, {}),
        (),
        targets=(Target("added s", 0.3, at_least=False),),
        kept=False,
    )
    record(
        case,
        Rounds({"ours": seconds}),
        rounds_run=7,
        note=lambda: {"import torch": statistics.median(torch_seconds)},
    )
