"""What a result's file says of the machine and the code: commit, versions, clocks."""

import os
import subprocess
import time
from pathlib import Path

import torch

from kernelzoo import env

ROOT = Path(__file__).resolve().parents[1]
GPU_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit():
    """The commit, with "+changes" where the tree differs; COMMIT says it where there is no repository."""
    found = _output("git", "rev-parse", "HEAD")
    if not found:
        return os.environ.get("COMMIT", "unknown")
    return found + ("+changes" if _output("git", "status", "--porcelain") else "")


def clocks():
    """The clocks as they are right now."""
    found = {}
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            found["cpu MHz"] = [float(line.split(":")[1]) for line in cpuinfo if line.startswith("cpu MHz")]
    except OSError:
        pass
    if torch.cuda.is_available() and (
        said := _output("nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader")
    ):
        found["gpu"] = dict(zip(GPU_QUERY.split(","), said.splitlines()[0].split(", "), strict=False))
    return found


def describe(before):
    return {
        **env.facts(),
        "commit": commit(),
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "clocks before": before,
        "clocks after": clocks(),
    }


def cpu(facts):
    """One model name stands for several instruction sets, and they for different figures."""
    model, sort = facts["cpu"], facts["cpu"]["torch_capability"]
    return f"{model['model']}, {sort}, {model['cores']} cores"


def name():
    """A folder's name for this device: nvidia-h200, amd-epyc-avx512-2-cores."""
    facts = env.facts()
    if facts["gpus"]:
        text = facts["gpus"][0]["name"]
    else:
        text = cpu(facts).replace(",", "")
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
