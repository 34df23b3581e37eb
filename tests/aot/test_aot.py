"""Every Triton kernel at every tile that a launcher can choose, compiled for six targets: no spills, shared
memory within the chip's, and tensor cores, bulk copies and wide loads where they are meant to be."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernelzoo.kernels.triton import activation, linear, softmax
from kernelzoo.kernels.triton.runtime import INTERPRETER

from . import cases, ops

ROOT = Path(__file__).parents[2]


class Workers:
    """Compiles cases in processes of their own (worker.py)."""

    def __init__(self, count):
        self._pool = ThreadPoolExecutor(count)
        self._of_thread = threading.local()
        self._processes = []
        self._futures = {}

    def submit(self, case):
        line = json.dumps(case)
        if line not in self._futures:
            self._futures[line] = self._pool.submit(self._compile, line)
        return self._futures[line]

    def _compile(self, line):
        process = getattr(self._of_thread, "process", None)
        if process is None:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            command = [sys.executable, "-m", "tests.aot.worker"]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._of_thread.process = process
            self._processes.append(process)
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with {process.wait()} at {line}")
        return json.loads(answer)

    def close(self):
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.stdin.close()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="session")
def workers(request):
    """Two workers that compile ahead of the tests, or one where pytest-xdist has already spread them."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    workers = Workers(2 if alone else 1)
    if alone:
        for item in request.session.items:
            if item.fspath == __file__ and "case" in getattr(getattr(item, "callspec", None), "params", ()):
                workers.submit(item.callspec.params["case"])
    yield workers
    workers.close()


def compile_or_fail(workers, case):
    result = workers.submit(case).result()
    assert "error" not in result, result["error"]
    return result


def is_representative(case):
    """The default suite's share, in bf16: one GEMM tile a target, and every kernel on sm_90."""
    if case["dtype"] != "bfloat16":
        return False
    if case["op"] == "linear_act_fwd":
        tile = cases.tile_of(case)
        return (tile.BLOCK_M, tile.BLOCK_N) == (64, 64)
    if case["target"] != "sm_90":
        return False
    return case.get("shape") in (None, (4096, 1024, 1), (64, 100000, 1))


def params(all_cases):
    return [
        pytest.param(c, id=cases.case_id(c), marks=() if is_representative(c) else pytest.mark.slow)
        for c in all_cases
    ]


LINEAR = list(cases.linear_cases())
ELEMENTWISE = list(cases.elementwise_cases())
TENSOR_CORE = ("wgmma", "mma.sync", "tcgen05", "mfma")


def tensor_core_of(case):
    """The instruction that the case's dot must become; None for fp32 FMA."""
    target, tall = case["target"], cases.tile_of(case).BLOCK_M >= 64
    if target.startswith("gfx"):
        return "mfma"
    if case["dtype"] == "float64":  # sm_100 and sm_120 have little of it, and Triton makes FMA there
        return "mma.sync" if target in ("sm_80", "sm_90") else None
    if case["dtype"] == "float32" and case["precision"] == "ieee":
        return None
    if tall and target in ("sm_90", "sm_100"):
        return {"sm_90": "wgmma", "sm_100": "tcgen05"}[target]
    return "mma.sync"


def assert_fits(case, result):
    assert result["spills"] == 0, f"{result['spills']} bytes spilled at {result['registers']} registers"
    if case["target"].startswith("gfx"):
        assert 0 < result["registers"] <= 512
    else:  # all of a program's warps must be resident on one SM
        assert 0 < result["registers"] * 32 * result["num_warps"] <= 65536
    assert result["shared"] <= cases.TARGETS[case["target"]].shared_limit


@pytest.mark.parametrize("case", params(LINEAR))
def test_linear_act_fwd(case, workers):
    result = compile_or_fail(workers, case)
    assert_fits(case, result)
    wanted = tensor_core_of(case)
    used = [name for name in TENSOR_CORE if result[name]]
    assert used == ([wanted] if wanted else [])
    assert bool(result["tma_load"]) == bool(result["tma_store"]) == case["descriptors"]


@pytest.mark.parametrize("case", params(ELEMENTWISE))
def test_elementwise(case, workers):
    result = compile_or_fail(workers, case)
    assert_fits(case, result)
    _, n, inner = case.get("shape", (1, 4096, 1))
    if (n if inner == 1 else inner) % 16 == 0:
        assert result["load_16_bytes"], "no load takes 16 bytes"


def op_modules():
    return [importlib.import_module(f"tests.aot.ops.{m.name}") for m in pkgutil.iter_modules(ops.__path__)]


def op_cases():
    for module in op_modules():
        for case in module.cases():
            name = "-".join(str(v) for k, v in case.items() if k not in ("tensor_core", "wide", "default"))
            yield pytest.param(case, id=name, marks=() if case.get("default") else pytest.mark.slow)


@pytest.mark.parametrize("case", list(op_cases()))
def test_op(case, workers):
    result = compile_or_fail(workers, case)
    assert_fits(case, result)
    used = [name for name in TENSOR_CORE if result[name]]
    assert bool(used) == bool(case.get("tensor_core")), f"tensor-core instructions: {used}"
    if case.get("wide"):
        assert result["load_16_bytes"], "no load takes 16 bytes"


@pytest.mark.parametrize("module", op_modules(), ids=lambda m: m.__name__.split(".")[-1])
def test_every_kernel_of_an_op_has_cases(module):
    kernels = importlib.import_module(f"kernelzoo.kernels.triton.{module.__name__.split('.')[-1]}")
    names = {name for name in vars(kernels) if name.startswith("_") and name.endswith("_kernel")}
    assert {case["kernel"] for case in module.cases()} == names
    assert {case["kernel"] for case in module.cases() if case.get("default")} == names


def test_every_kernel_is_compiled(workers):
    launched = {
        compile_or_fail(workers, case)["kernel"] for case in LINEAR + ELEMENTWISE if is_representative(case)
    }
    names = {*vars(linear), *vars(activation), *vars(softmax)}
    assert launched == {name for name in names if name.startswith("_") and name.endswith("_kernel")}


def test_every_tile_is_compiled():
    lists = [v for v in vars(linear).values() if isinstance(v, tuple) and v and isinstance(v[0], linear.Tile)]
    tiles = {tile for tiles in lists for tile in tiles}
    for descriptors in (False, True):
        tiles -= {*linear.tiles(INTERPRETER, torch.float32, "ieee", descriptors)}
    assert {cases.tile_of(case) for case in LINEAR} == tiles


@pytest.mark.slow
def test_spills_are_seen(workers):
    """128 x 128 accumulators cannot fit 64 threads: what `spills == 0` above rests on."""
    case = next(c for c in LINEAR if c["target"] == "sm_80" and c["dtype"] == "bfloat16")
    assert compile_or_fail(workers, case | {"num_warps": 2})["spills"] > 0
