"""csrc/cuda/rnn.cu with no GPU: its kernels run on the host, every thread a fiber, against the formula.

The persistent way (all blocks meet once a step) and the way of a launch a step, tensor-core tiles by the fragments'
layout, ragged rows and columns, and every option. What it cannot show is what only a device has: memory order, L1.
"""

import importlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import kernelzoo
from kernelzoo.ops.rnn_formula import GATES, reference
from kernelzoo.verify import assert_as_good

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
HOST = Path(__file__).parent / "host"
LAUNCHERS = ("kernelzoo._cuda", "kernelzoo.kernels.cuda.native", "kernelzoo.kernels.cuda.rnn")
INPUTS = ("gx", "h0", "c0", "w_hh", "b_hn", "w_hr", "peephole", "ln_weight", "ln_cell")


def cuda_headers():
    for home in (Path("/usr/local/cuda"), *(Path(p).parents[1] for p in (shutil.which("nvcc"),) if p)):
        if (home / "include" / "cuda_runtime.h").exists():
            return home / "include"
    pytest.skip("CUDA's headers not found")


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    """(kernels/cuda/rnn.py over the host module, the host module)"""
    pybind11 = pytest.importorskip("pybind11")
    cxx = shutil.which("g++")
    if not cxx or not sys.platform.startswith("linux"):
        pytest.skip("g++ on Linux not found")
    target = tmp_path_factory.mktemp("host") / "_cuda.so"
    includes = (SOURCES, HOST, cuda_headers(), sysconfig.get_path("include"), pybind11.get_include())
    command = [cxx, "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-attributes"]
    command += [f"-I{path}" for path in includes] + ["-o", str(target)]
    subprocess.run([*command, str(HOST / "rnn.cpp"), str(SOURCES / "bind_rnn.cpp")], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHERS:
            patch.delitem(sys.modules, name, raising=False)
        patch.setitem(sys.modules, "kernelzoo._cuda", module)
        patch.setattr(kernelzoo, "_cuda", module, raising=False)
        native = importlib.import_module("kernelzoo.kernels.cuda.native")
        patch.setattr(native, "target", lambda t: (0, 0))
        yield importlib.import_module("kernelzoo.kernels.cuda.rnn"), module
        for name in LAUNCHERS:
            sys.modules.pop(name, None)


def arguments(mode, H, B, T, options, dtype):
    """(the formula's tensors by name, batch_sizes)"""
    g = torch.Generator().manual_seed(3)
    lstm, G = mode == "lstm", GATES[mode]
    sizes = None
    if "packed" in options:
        sizes = torch.tensor([max(1, B - t * B // T) for t in range(T)])
    R = T * B if sizes is None else int(sizes.sum())

    def normal(*shape, when=True, scale=1.0):
        return (torch.randn(shape, generator=g) * scale).to(dtype) if when else None

    def mask(*shape, when=True):
        return (torch.rand(shape, generator=g) < 0.6).to(dtype) if when else None

    full = "full" in options
    tensors = {
        "gx": normal(R, G * H), "h0": normal(B, H), "c0": normal(B, H, when=lstm),
        "w_hh": normal(G * H, H, scale=H**-0.5), "b_hn": normal(H, when=mode == "gru"), "w_hr": None,
        "peephole": normal(3, H, when=full and lstm, scale=0.3), "ln_weight": None, "ln_cell": None,
        "h_mask": mask(B, H, when=full), "zone_h": mask(R, H, when=full), "zone_c": mask(R, H, when=full and lstm),
    }  # fmt: skip
    return tensors, sizes


def by_formula(tensors, sizes, options, grads, dtype):
    """Results and gradients by name, of the formula in `dtype`."""
    given = {k: None if t is None else t.to(dtype).requires_grad_(k in INPUTS) for k, t in tensors.items()}
    results = dict(zip(("out", "hn", "cn"), reference(*given.values(), sizes, *options), strict=True))
    wanted = {k: given[k] for k in INPUTS if given[k] is not None}
    outputs = [t for t in results.values() if t is not None]
    found = torch.autograd.grad(
        outputs, list(wanted.values()), [grads[i].to(dtype) for i in range(len(outputs))]
    )
    return {k: t.detach() for k, t in results.items() if t is not None} | {
        f"d{k}": t for k, t in zip(wanted, found, strict=True)
    }


def check(launchers, mode, H, B, T, options, dtype):
    rnn, _ = launchers
    tensors, sizes = arguments(mode, H, B, T, options, dtype)
    settings = (mode, "reverse" in options, 1, 1e-5)
    g = torch.Generator().manual_seed(4)
    R = tensors["gx"].shape[0]
    grads = [torch.randn(rows, H, generator=g).to(dtype) for rows in (R, B, B)]
    out, hn, cn, gates, cells, gh, rstd = rnn.rnn_fwd(*tensors.values(), sizes, *settings, True)
    found = rnn.rnn_bwd(
        grads[0], grads[1], None if cn is None else grads[2], out, *list(tensors.values())[1:], sizes, gates, cells,
        gh, rstd, *settings, *(tensors[k] is not None for k in INPUTS),
    )  # fmt: skip
    ours = {"out": out, "hn": hn, "cn": cn} | {f"d{k}": t for k, t in zip(INPUTS, found, strict=True)}
    plain, exact = (by_formula(tensors, sizes, settings, grads, d) for d in (dtype, torch.float64))
    for name, oracle in exact.items():
        assert_as_good(name, ours[name], plain[name], oracle)
    again = rnn.rnn_fwd(*tensors.values(), sizes, *settings, False)
    assert torch.equal(out, again[0])
    assert again[3] is None


CASES = (
    ("lstm", 40, 5, 3, "full+packed", torch.bfloat16),
    ("gru", 13, 18, 3, "full+reverse", torch.float32),
    ("rnn_tanh", 7, 2, 1, "", torch.float64),
    ("lstm", 24, 35, 2, "", torch.float16),  # two tiles of rows a product
    ("lstm", 21, 3, 3, "reverse+packed", torch.bfloat16),  # rows of odd pitch: no 16-byte loads
    ("gru", 48, 33, 4, "packed+reverse", torch.bfloat16),
    ("gru", 9, 4, 3, "packed", torch.float64),
    ("rnn_relu", 72, 17, 2, "full", torch.float32),
    ("rnn_tanh", 64, 40, 3, "full+packed+reverse", torch.float16),
    ("lstm", 33, 17, 3, "full+packed", torch.float32),
    ("lstm", 16, 1, 5, "full", torch.float64),
)
IDS = ["-".join([m, f"H{H}", f"B{B}", f"T{T}", o or "plain", str(d)[6:]]) for m, H, B, T, o, d in CASES]


def some_default(cases, many):
    return [
        pytest.param(*case, id=name, marks=() if i < many else pytest.mark.slow)
        for i, (case, name) in enumerate(zip(cases, IDS, strict=True))
    ]


@pytest.mark.parametrize(("mode", "H", "B", "T", "options", "dtype"), some_default(CASES, 3))
def test_persistent(mode, H, B, T, options, dtype, launchers):
    launchers[1].set_device(3, 200 << 10, True)
    launchers[1].launches()
    check(launchers, mode, H, B, T, options.split("+"), dtype)
    assert launchers[1].launches() == ["cooperative"] * 3  # forward twice, backward


@pytest.mark.parametrize(("mode", "H", "B", "T", "options", "dtype"), some_default(CASES, 1))
def test_step_by_step(mode, H, B, T, options, dtype, launchers):
    """As where the weight does not fit the blocks' shared memory."""
    launchers[1].set_device(3, 48 << 10, False)
    launchers[1].launches()
    check(launchers, mode, H, B, T, options.split("+"), dtype)
    assert launchers[1].launches() == ["step"] * (3 * T + 1)  # the backward's last gives dh0
