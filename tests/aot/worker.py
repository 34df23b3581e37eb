"""Compiles kernels for devices that are not here: a JSON case a line in, a JSON result a line out.

The launchers themselves are called, on tensors without storage, and Triton's driver is a stub that names the
wanted target: the tile, arguments, specialisation and options are those of a real launch. A process of its
own, because kernels imported under TRITON_INTERPRET cannot be compiled.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernelzoo.kernels.triton import activation, linear, softmax

from .cases import TARGETS, tile_of

PTXAS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "ptxas-blackwell")
INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async",
    "mma.sync": r"\bmma\.sync\.aligned",
    "mma.sync.f64": r"\bmma\.sync\.aligned\S*\.f64",
    "tcgen05": r"\btcgen05\.mma",
    "tma_load": r"\bcp\.async\.bulk\.tensor\S*\.shared::\w+\.global",
    "tma_store": r"\bcp\.async\.bulk\.tensor\S*\.global\.shared",
    "mfma": r"\bv_mfma_",
    "load_16_bytes": r"\bld\.global\S*\.v(4\.b32|2\.b64)|\b(global|buffer)_load_dwordx4",
}


def run_launcher(case):
    """Call the case's launcher on tensors without storage."""
    dtype = getattr(torch, case["dtype"])
    target = TARGETS[case["target"]].target
    act = case.get("act", "none")
    for module in (linear, softmax):
        module.target_of = lambda x: target

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    op = case["op"]
    if op == "linear_act_fwd":
        linear.choose_tile = lambda *key: tile_of(case)
        linear.matmul_precision = lambda dtype: case["precision"]
        linear._describable = lambda t: case["descriptors"]
        linear.linear_act_fwd(
            empty(4096, 4096), empty(4096, 4096), empty(4096), act, 0.5, 2.0, case["save_z"]
        )
    elif op == "linear_act_bwd":
        dy, x, w = empty(4096, 4096), empty(4096, 64), empty(4096, 64)
        linear.linear_act_bwd(dy, x, w, dy, act, 0.5, 2.0, True, False, True)
    elif op == "act_fwd":
        activation.act_fwd(empty(1 << 20), act, 0.5, 2.0)
    elif op == "act_bwd":
        activation.act_bwd(empty(1 << 20), empty(1 << 20), act, 0.5, 2.0)
    elif op == "softmax_fwd":
        softmax.softmax_fwd(empty(*case["shape"]), case["log"])
    elif op == "softmax_bwd":
        softmax.softmax_bwd(empty(*case["shape"]), empty(*case["shape"]), case["log"])
    else:
        raise ValueError(f"unknown op {op}")


def compile_case(case):
    """The one kernel that the case's launcher launches, compiled for the case's target."""
    target = TARGETS[case["target"]]
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget(target.target.backend, target.arch, target.warp_size),
        get_current_device=lambda: case["target"],
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)
    compiled = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        if case.get("kernel") in (None, self.fn.__name__):
            compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compile_only
    try:
        if "module" in case:
            module = importlib.import_module(f"tests.aot.ops.{case['module']}")
            module.launch(case, target.target)
        else:
            run_launcher(case)
    finally:
        JITFunction.run = run
    assert compiled, f"the launcher launched no {case.get('kernel')}"
    return compiled[0]


def ptxas_report(ptx):
    """Registers a thread, and bytes spilled, of a PTX module."""
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-v", f"--gpu-name={arch}", file.name, "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    return {
        "registers": int(re.search(r"Used (\d+) registers", report).group(1)),
        "spills": int(stores) + int(loads),
    }


def amdgcn_report(text):
    """As ptxas_report; a spilled scalar register goes to a vector register, so only scratch memory counts."""

    def number(key):
        return int(re.search(rf"\.{key}:\s*(\d+)", text).group(1))

    return {"registers": number("vgpr_count"), "spills": number("private_segment_fixed_size")}


def report(case):
    kernel = compile_case(case)
    if "ptx" in kernel.asm:
        text = kernel.asm["ptx"]
        result = ptxas_report(text)
    else:
        text = kernel.asm["amdgcn"]
        result = amdgcn_report(text)
    counts = {name: len(re.findall(pattern, text)) for name, pattern in INSTRUCTIONS.items()}
    metadata = kernel.metadata
    facts = {"kernel": metadata.name, "shared": metadata.shared, "num_warps": metadata.num_warps}
    return facts | result | counts


for line in sys.stdin:
    try:
        result = report(json.loads(line))
    except Exception as error:  # the test that asked reports it
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result), flush=True)
