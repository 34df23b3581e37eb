"""The wheel, built and imported in an environment that holds nothing else of ours; with a compiler and without."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRIAL = """
import torch, kernelzoo as kz, kernelzoo.functional as F
from kernelzoo import nn, zoo
status = kz.backends()
print("cpp", status["cpp"].available, status["cpp"].reason)
x = torch.randn(600, 1000)
with kz.trace() as calls:
    y = F.tanh(x)
assert (y - x.tanh()).abs().max() < 1e-6
print("ran on", calls[0].backend)
zoo.create("mlp", in_features=4, out_features=2)(torch.randn(3, 4))
"""

pytestmark = pytest.mark.slow


def run(command, **environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(folder, **environment):
    """A wheel from a copy of the sources, and the Python of a fresh environment that holds it.

    What the package depends on is seen through a path file; this checkout's own install is not.
    """
    source = folder / "source"
    kept = ("src", "kernels", "csrc", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
    for name in kept:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    for built in (*source.rglob("*.so"), *source.rglob("_native.json")):
        built.unlink()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source], **environment)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", folder / "env"])
    python = folder / "env" / "bin" / "python"
    run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel])
    (site,) = (folder / "env").rglob("site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return wheel, python


def test_wheel_without_a_compiler(tmp_path):
    wheel, python = install(tmp_path, KERNELZOO_CUDA="0", CXX="/no/such/compiler")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("kernels/triton/linear.py", "kernels/numba/math.py", "kernels/memory.py", "ops/linear.py"):
        assert f"kernelzoo/{name}" in names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "bench/"))]
    said = run([python, "-P", "-c", TRIAL])
    assert "cpp False not built: " in said
    assert "ran on numba" in said
    assert "not built" in run([python, "-P", "-m", "kernelzoo", "env"])


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler")
def test_wheel_with_a_compiler(tmp_path):
    _, python = install(tmp_path, KERNELZOO_CUDA="0")
    said = run([python, "-P", "-c", TRIAL])
    assert "cpp True" in said
    assert "ran on cpp" in said
