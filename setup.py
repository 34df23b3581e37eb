"""Packages and native modules; everything else is in pyproject.toml.

`kernelzoo._cpu` is built from csrc/cpu by the C++ compiler, `kernelzoo._cuda` from csrc/cuda by nvcc.
Both are plain pybind11: no torch header, so one build serves every torch version. Neither is required:
what happened to each, and why, is written to kernelzoo/_native.json, which `kernelzoo env` shows.

KERNELZOO_CUDA=auto|0|1   build `_cuda` where nvcc is found (default) | never | or fail the install
CXX, CUDA_HOME, MAX_JOBS  the C++ compiler, the CUDA toolkit, how many compilers run at once
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
# Objects live here whatever temporary folder pip builds in, so that a rebuild compiles what changed.
OBJECTS = ROOT / "build" / "native"
JOBS = max(1, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xfatbin", "-compress-all"]
# sm_90a: plain sm_90 has no wgmma. The newest also ships PTX, for chips that come after it.
CUDA_ARCHS = {
    "sm_80": "-gencode=arch=compute_80,code=sm_80",
    "sm_90a": "-gencode=arch=compute_90a,code=sm_90a",
    "sm_100": "-gencode=arch=compute_100,code=[sm_100,compute_100]",
}


class NotBuilt(Exception):
    """A native module cannot be built here; the text is the reason shown to the user."""


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(" ".join(command), done.stdout, done.stderr, sep="\n", file=sys.stderr)
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        raise NotBuilt(f"{Path(command[0]).name} failed: {reason}")
    return done.stdout


def version(compiler: str) -> str:
    """'g++ 12.2.0', 'nvcc 13.0'."""
    text = run([compiler, "--version"])
    number = re.search(r"release (\d[\d.]*)", text) or re.search(r"(\d+\.\d[\d.]*)", text)
    return f"{Path(compiler).name} {number[1] if number else ''}".strip()


def find_cxx() -> str:
    if os.name != "posix":
        raise NotBuilt("only Linux and macOS are supported; Numba serves instead")
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if not found:
        raise NotBuilt("no C++ compiler found (looked for $CXX, g++, c++, clang++)")
    return found


def find_nvcc() -> str:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", "")] + [f"{home}/bin" for home in homes if home]
    if os.environ.get("CUDA_HOME"):
        places.insert(0, f"{os.environ['CUDA_HOME']}/bin")
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    if not found:
        raise NotBuilt("nvcc not found (looked on PATH, in $CUDA_HOME and /usr/local/cuda)")
    return found


def python_includes() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise NotBuilt("pybind11 is not installed") from None
    # -isystem keeps both out of the dependency files: an isolated build's pybind11 moves every time.
    return ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]


def compile_object(compiler: str, flags: list[str], source: Path) -> Path:
    """The object of one source, compiled unless a newer one of the same command is there."""
    isolated = re.sub(r"\S*pip-build-env-[^/]*", "", " ".join([version(compiler), *flags, str(source)]))
    digest = hashlib.sha256(isolated.encode()).hexdigest()[:12]
    obj = OBJECTS / f"{source.parent.name}-{source.name}-{digest}.o"
    deps = obj.with_suffix(".d")
    if obj.exists() and deps.exists():
        names = deps.read_text().replace("\\\n", " ").partition(": ")[2]
        used = [Path(name.replace("\\ ", " ")) for name in re.split(r"(?<!\\)\s+", names.strip())]
        if all(path.exists() and path.stat().st_mtime < obj.stat().st_mtime for path in used):
            return obj
    OBJECTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OBJECTS) as scratch:
        new_obj, new_deps = Path(scratch, "o.o"), Path(scratch, "o.d")
        started = time.time()
        run([compiler, *flags, "-MMD", "-MF", str(new_deps), "-c", str(source), "-o", str(new_obj)])
        os.utime(new_obj, (started, started))  # a source edited meanwhile is newer than this
        new_deps.replace(deps)
        new_obj.replace(obj)
    return obj


def link(command: list[str], objects: list[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch, target.name)
        run([*command, *map(str, objects), "-o", str(made)])
        made.replace(target)  # a process that has the old module loaded keeps it


def openmp(cxx: str) -> list[str]:
    """The flags that make `cxx` use OpenMP, or none where it has no OpenMP."""
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch, "probe.cpp")
        probe.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        try:
            run([cxx, "-fopenmp", "-fPIC", "-shared", str(probe), "-o", str(probe.with_suffix(".so"))])
        except NotBuilt:
            return []
    return ["-fopenmp"]


def isas(cxx: str) -> dict[str, list[str]]:
    """The instruction sets that a file in csrc/cpu/isa is compiled for, once each, and the flags of each."""
    macros = run([cxx, "-dM", "-E", "-x", "c++", os.devnull])
    if "__x86_64__" not in macros or "__clang__" in macros:  # as in isa.h
        return {"plain": []}
    # beside the others plain code serves processors of before AVX2: -O1 takes the compiler half as long
    return {"plain": ["-O1"], "avx2": [], "avx512": []}


SHARED = ["-shared"] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])


def build_cpu(target: Path) -> str:
    sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    if not sources:
        raise NotBuilt("csrc/cpu holds no source")
    cxx, includes = find_cxx(), python_includes()
    omp, sets = openmp(cxx), isas(cxx)
    flags = [*CXX_FLAGS, *omp, *includes]
    jobs = [(cxx, flags, source) for source in sources] + [
        (cxx, [*flags, *more, f"-DKERNELZOO_ISA={isa}", f"-DKERNELZOO_ISA_{isa}"], source)
        for source in sorted((ROOT / "csrc" / "cpu" / "isa").glob("*.cpp"))
        for isa, more in sets.items()
    ]
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda job: compile_object(*job), jobs))
    link([cxx, *SHARED, *omp], objects, target)
    return f"built with {version(cxx)}, {'OpenMP' if omp else 'no OpenMP: one thread'}"


def build_cuda(target: Path) -> str:
    if os.environ.get("KERNELZOO_CUDA", "auto") == "0":
        raise NotBuilt("KERNELZOO_CUDA=0")
    kernels = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    bindings = sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))
    if not kernels or not bindings:
        raise NotBuilt("csrc/cuda holds no source")
    nvcc, cxx, includes = find_nvcc(), find_cxx(), python_includes()
    known = run([nvcc, "--list-gpu-code"]).split()
    archs = [arch for arch in CUDA_ARCHS if arch.removesuffix("a") in known]
    if not archs:
        raise NotBuilt(f"{version(nvcc)} knows none of {', '.join(CUDA_ARCHS)}")
    gencode = [CUDA_ARCHS[arch] for arch in archs]
    threads = f"--threads={max(1, min(len(archs), JOBS // len(kernels)))}"
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(
            pool.map(
                lambda job: compile_object(*job),
                [(nvcc, [*NVCC_FLAGS, *gencode, threads], source) for source in kernels]
                + [(cxx, [*CXX_FLAGS, *includes], source) for source in bindings],
            )
        )
    # The static runtime: the module loads on a machine with no CUDA at all.
    link([nvcc, "-shared", "-cudart", "static", "-ccbin", cxx, *gencode], objects, target)
    return f"built with {version(nvcc)} for {', '.join(archs)}"


BUILDERS = {"_cpu": build_cpu, "_cuda": build_cuda}


class BuildNative(build_ext):
    """Builds what this machine can, and records the rest with its reason."""

    def _folder(self) -> Path:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        return ROOT / "src" / "kernelzoo" if in_place else Path(self.build_lib).resolve() / "kernelzoo"

    def _target(self, name: str) -> Path:
        return self._folder() / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"

    def run(self) -> None:
        record = {}
        for name, build in BUILDERS.items():
            try:
                record[name] = build(self._target(name))
            except (NotBuilt, OSError) as reason:
                if name == "_cuda" and os.environ.get("KERNELZOO_CUDA") == "1":
                    raise CompileError(f"KERNELZOO_CUDA=1, but kernelzoo._cuda: {reason}") from None
                self._target(name).unlink(missing_ok=True)  # an older build must not pass for this one
                record[name] = f"not built: {reason}"
            print(f"kernelzoo.{name}: {record[name]}")
        self._folder().mkdir(parents=True, exist_ok=True)
        (self._folder() / "_native.json").write_text(json.dumps(record, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        made = [self._folder() / "_native.json", *map(self._target, BUILDERS)]
        return [str(path) for path in made if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    packages=sorted(
        {"kernelzoo", "kernelzoo.kernels"}
        | set(find_packages("src"))
        | {f"kernelzoo.kernels.{name}" for name in find_packages("kernels")}
    ),
    ext_modules=[Extension(f"kernelzoo.{name}", sources=[]) for name in BUILDERS],
    cmdclass={"build_ext": BuildNative},
)
