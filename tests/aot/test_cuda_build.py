"""CUDA C++ with no GPU: what the compiler made of the kernels, read from the built module's machine code.

The module under test is the one that is installed, so what is read is what runs; `test_compiles_anew`
compiles the sources of the checkout as they stand.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
ARCHS = {"sm_80": "compute_80", "sm_90a": "compute_90a", "sm_100": "compute_100"}
# 64 registers leave 4 blocks of 256 threads a multiprocessor: with 64 bytes a thread in flight, 64 KB, twice
# what an H200's bandwidth times its latency asks for. Rows of softmax hold more, in blocks of 128.
# A block of rnn has a multiprocessor to itself.
MOST_REGISTERS = {"act": 64, "bias_act": 64, "softmax": 128, "rnn": 255}
MOST_REGISTERS_FP64 = 128


@functools.cache
def cuobjdump():
    found = shutil.which("cuobjdump")
    if not found and (spec := importlib.util.find_spec("triton")):
        carried = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(carried) if carried.exists() else None
    if not found:
        pytest.skip("cuobjdump not found: neither the CUDA toolkit's nor triton's")
    return found


def dump(binary, *options):
    return subprocess.run(
        [cuobjdump(), *options, str(binary)], capture_output=True, text=True, check=True
    ).stdout


def kernel_name(mangled):
    """('bias_act_bwd', 'bf16', 8) from a mangled kernel, or None; a width of 1 is not in the name."""
    found = re.search(r"_([a-z_]+)_kernelI(13__nv_bfloat16|6__half|f|d)(?:Li(\d+))?", mangled)
    if not found:
        return None
    dtype = {"13__nv_bfloat16": "bf16", "6__half": "fp16", "f": "fp32", "d": "fp64"}[found[2]]
    return re.sub(r"^.*?(act_|bias_|softmax_|sum_|rnn_)", r"\1", found[1]), dtype, int(found[3] or 1)


def resources(binary):
    """[(arch, kernel, registers, stack bytes)]"""
    found, arch = [], None
    text = dump(binary, "--dump-resource-usage")
    for part in re.split(r"(?=arch = )|(?= Function )", text):
        if match := re.match(r"arch = (\w+)", part):
            arch = match[1]
        elif match := re.match(r" Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part):
            found.append((arch, kernel_name(match[1]), int(match[2]), int(match[3]) + int(match[4])))
    return found


def check_resources(binary, archs):
    found = resources(binary)
    assert {arch for arch, *_ in found} == set(archs)
    assert all(kernel for _, kernel, *_ in found)
    spilled = [row for row in found if row[3]]
    assert not spilled, f"kernels with a stack frame (spills): {spilled}"
    heavy = []
    for row in found:
        op, dtype, _ = row[1]
        most = MOST_REGISTERS.get(op.rpartition("_")[0], 128)
        if dtype == "fp64":
            most = max(most, MOST_REGISTERS_FP64)
        if row[2] > most:
            heavy.append((*row, most))
    assert not heavy, f"(arch, kernel, registers, stack, allowed): {heavy}"


def check_vector_accesses(binary, arch, ops):
    """Kernels of more than one element a thread load and store 16 bytes at a time; rnn's are products, in 16 bits on
    tensor cores."""
    seen = set()
    for body in dump(binary, "--dump-sass", "-arch", arch).split("Function : ")[1:]:
        kernel = kernel_name(body.partition("\n")[0])
        if kernel and kernel[0].startswith("rnn_"):
            seen.add(kernel[0])
            assert "LDG.E.128" in body, f"{arch} {kernel}: no 16-byte load"
            assert ("HMMA" in body) == (kernel[1] in ("bf16", "fp16")), f"{arch} {kernel}: tensor cores"
        elif kernel and kernel[2] > 1:
            seen.add(kernel[0])
            assert "LDG.E.128" in body, f"{arch} {kernel}: no 16-byte load"
            assert "STG.E.128" in body, f"{arch} {kernel}: no 16-byte store"
    assert seen == ops


OPS = {
    "activation": {"act_fwd", "act_bwd"},
    "linear": {"bias_act_fwd", "bias_act_bwd"},
    "softmax": {"softmax_rows_fwd", "softmax_rows_bwd"},
    "rnn": {"rnn_fwd", "rnn_bwd"},
}


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.find_spec("kernelzoo._cuda")
    if spec is None:
        pytest.skip("kernelzoo._cuda was not built (`kernelzoo env` says why)")
    return spec.origin


def test_resources_of_the_module(module):
    check_resources(module, ARCHS)


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=() if a == "sm_90a" else pytest.mark.slow) for a in ARCHS]
)
def test_vector_accesses_of_the_module(module, arch):
    check_vector_accesses(module, arch, set().union(*OPS.values()))


def test_codes_of_the_module(module):
    from kernelzoo import _cuda

    listed = re.findall(r"^  X\((\w+), \w+\)", (SOURCES / "math.cuh").read_text(), re.MULTILINE)
    assert listed == sorted(_cuda.ACTS, key=_cuda.ACTS.get)
    assert len(_cuda.DTYPES) == 4


@pytest.mark.slow
def test_compiles_anew(tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which(
        "nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    )
    if not nvcc:
        pytest.skip("nvcc not found")

    def build(op, arch):
        out = tmp_path / f"{op}-{arch}.fatbin"
        subprocess.run(
            [
                *(nvcc, "-std=c++17", "-O3", "-fatbin", f"-gencode=arch={ARCHS[arch]},code={arch}"),
                *("-Werror", "all-warnings", "-o", str(out), str(SOURCES / f"{op}.cu")),
            ],
            check=True,
        )
        return op, arch, out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = list(pool.map(lambda job: build(*job), [(op, arch) for op in OPS for arch in ARCHS]))
    for op, arch, fatbin in built:
        check_resources(fatbin, [arch])
        check_vector_accesses(fatbin, arch, OPS[op])
