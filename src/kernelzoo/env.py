"""`kernelzoo env`: what is here, what is not, and why not. Needs the core dependencies alone."""

import importlib.metadata
import importlib.resources
import json
import os
import platform

import torch

from .ops.core import backends

PACKAGES = ("kernelzoo", "torch", "triton", "numba", "numpy")
ISA = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")


def facts():
    """Everything `report` prints, as plain data (for the benchmark's JSON too)."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "native": _native(),
        "cpu": _cpu(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "backends": {name: list(status) for name, status in backends().items()},
        "threads": {"torch": torch.get_num_threads(), **_numba_threads()},
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("KERNELZOO_")
            or name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TRITON_INTERPRET")
        },
    }


def report(ceilings=False):
    """The facts as text; with `ceilings`, copy bandwidth and matrix-product rates too (some seconds)."""
    found = facts()
    cpu = found["cpu"]
    isa = f"{' '.join(cpu['isa']) or 'none of those we look for'} (torch uses {cpu['torch_capability']})"
    sections = {
        "versions": found["versions"] | {"platform": found["platform"]},
        "native modules": found["native"],
        "CPU": {"model": cpu["model"], "cores": cpu["cores"], "instructions": isa},
        "GPUs": {
            str(i): f"{gpu['name']}, sm_{gpu['capability']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, "
            f"{gpu['multiprocessors']} multiprocessors"
            for i, gpu in enumerate(found["gpus"])
        }
        or {"none": f"torch {torch.__version__} sees no CUDA or ROCm device"},
        "backends": {
            name: f"{'yes' if here else 'no'}: {reason}" for name, (here, reason) in found["backends"].items()
        },
        "threads": found["threads"],
        "variables": found["variables"] or {"none": "no KERNELZOO_* variable is set"},
    }
    if ceilings:
        from .ceilings import lines, measure

        for device in ("cpu", "cuda")[: 1 + bool(found["gpus"])]:
            rates = (line.split(": ") for line in lines(measure(device)))
            sections[f"ceilings, {device}"] = dict(rates)
    width = max(len(name) for section in sections.values() for name in section)
    return "\n".join(
        f"{title}\n" + "\n".join(f"  {name:{width}}  {value}" for name, value in section.items())
        for title, section in sections.items()
    )


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native():
    record = importlib.resources.files("kernelzoo") / "_native.json"
    if not record.is_file():
        return {"_cpu": "not built: setup.py has not run", "_cuda": "not built: setup.py has not run"}
    return json.loads(record.read_text())


def _cpu():
    """The model and what its instructions are, from /proc/cpuinfo where there is one."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            for line in cpuinfo:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    model = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = set(value.split())
                    break
    except OSError:
        pass
    return {
        "model": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [name for name in ISA if name in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu(index):
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def _numba_threads():
    try:
        import numba
    except ImportError:
        return {}
    return {"numba": numba.config.NUMBA_NUM_THREADS, "numba layer": numba.config.THREADING_LAYER}
