"""Which backend serves a call: what is here, what the user asked for, and a record of what ran."""

import contextlib
import difflib
import functools
import importlib
import importlib.resources
import json
import os
from typing import NamedTuple

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)
KERNELS = ("triton", "cuda", "cpp", "numba")
NAMES = (*KERNELS, "torch", "auto")
ORDER = {"cpu": ("cpp", "numba"), "cuda": ("triton", "cuda")}  # the order in which "auto" looks for a kernel
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


# Bytes from which glibc takes every allocation fresh from the system: its dynamic mmap threshold goes no higher.
FRESH = 32 << 20


class BackendUnavailable(RuntimeError):
    """An explicitly chosen backend cannot serve this call; the message says why."""


class Status(NamedTuple):
    available: bool
    reason: str


class Call(NamedTuple):
    """One line of `kz.trace()`: which op ran on which backend, and why."""

    op: str
    backend: str
    reason: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype


class _State:
    """Process-wide, as torch.backends' flags are: torch.compile guards on it and recompiles when it changes."""

    chosen = "auto"
    calls: list[Call] | None = None


state = _State()


def _checked(name, source):
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {', '.join(NAMES)}{hint}")
    return name


state.chosen = _checked(os.environ.get("KERNELZOO_BACKEND", "auto") or "auto", "KERNELZOO_BACKEND")


@contextlib.contextmanager
def backend(name):
    """Run the block's ops on one backend: "triton", "cuda", "cpp", "numba", "torch" (the formula) or "auto".

    A backend named here is a demand: a call it cannot serve raises `BackendUnavailable`. The choice holds
    for the whole process while the block runs, and a backward pass runs where its forward ran. The
    environment variable KERNELZOO_BACKEND sets the default.
    """
    _checked(name, "kz.backend")
    before, state.chosen = state.chosen, name
    try:
        yield
    finally:
        state.chosen = before


@contextlib.contextmanager
def trace():
    """Yield a list that receives a `Call` for every op called in the block (not for compiled code).

    >>> with kz.trace() as calls:
    ...     model(x)
    >>> calls[0].backend, calls[0].reason
    """
    before, state.calls = state.calls, []
    try:
        yield state.calls
    finally:
        state.calls = before


def backends():
    """Each backend's `Status(available, reason)`: what is here, what is not, and why not."""
    found = {}
    for name in KERNELS:
        reason = missing(name)
        found[name] = Status(reason is None, reason or f"serves {' and '.join(_devices(name))} tensors")
    found["torch"] = Status(True, "the formula, on any device")
    return found


def _fixed(function):
    """Cached, and a constant to torch.compile: what is installed does not change while a process runs."""
    cached = functools.cache(function)

    def constant(*args):
        return cached(*args)

    constant._dynamo_marked_constant = (
        True  # torch.compiler.assume_constant_result, whose import takes a second
    )
    return constant


def below(size, limit):
    """size < limit, for rules on sizes; in a compiled graph only where no guard on the size is needed."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(size < limit)
    return size < limit


@functools.cache
def _interpreting():
    from triton import knobs

    return knobs.runtime.interpret


@functools.cache
def missing(name):
    """Why a backend is not here, or None where it is."""
    try:
        if name == "triton":
            importlib.import_module("triton")
            if torch.cuda.is_available() or _interpreting():
                return None
            return "no CUDA or ROCm device (TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly)"
        if name == "cuda":
            importlib.import_module("kernelzoo._cuda")
            if torch.cuda.is_available() and torch.version.cuda:
                return None
            return "no CUDA device was found (the module is built)"
        importlib.import_module("kernelzoo._cpu" if name == "cpp" else "numba")
    except ImportError as error:
        recorded = _native_record(name)
        if recorded.startswith("not built"):
            return recorded
        return f"cannot be imported: {error}" + (f" (it was {recorded})" if recorded else "")
    return None


def _native_record(name):
    """What setup.py wrote of a native module, or "": "built with ...", "not built: ..."."""
    record = importlib.resources.files("kernelzoo") / "_native.json"
    module = {"cpp": "_cpu", "cuda": "_cuda"}.get(name)
    return json.loads(record.read_text()).get(module, "") if record.is_file() else ""


def _devices(name):
    if name == "triton":
        return ("cuda", "cpu") if _interpreting() else ("cuda",)
    return ("cuda",) if name == "cuda" else ("cpu",)


@_fixed
def cannot_serve(name, module, device_type, dtype):
    """Why a backend has no kernel of this op for this device and dtype, or None where it has."""
    if reason := missing(name):
        return reason
    if device_type not in _devices(name):
        return f"it serves {' and '.join(_devices(name))} tensors and the input is on {device_type}"
    if dtype not in DTYPES:
        return f"there is no kernel for {dtype}"
    try:
        importlib.import_module(f"kernelzoo.kernels.{name}.{module}")
    except ImportError as error:
        return f"its {module} kernels cannot be imported: {error}"
    return None


@_fixed
def automatic(module, device_type, dtype):
    """The kernel backend that "auto" takes where a kernel is wanted at all, or None."""
    for name in ORDER.get(device_type, ()):
        if cannot_serve(name, module, device_type, dtype) is None:
            return name
    return None


@_fixed
def has_amx():
    """Whether this CPU multiplies bfloat16 matrices in hardware tiles."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


@functools.cache
def has_avx512():
    """Whether torch runs its AVX-512 kernels on this CPU."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def leaves_to_torch(x, elements):
    """Whether "auto" surely leaves a call on x to torch, which then checks the arguments itself: x lies on a CPU and
    has fewer elements. A layer_norm that ends here costs the host 0.2 us more than torch's, not 5."""
    if torch.compiler.is_compiling() or state.chosen != "auto" or state.calls is not None:
        return False
    return type(x) in PLAIN and x.is_cpu and x.numel() < elements


def choose(op, tensors, args, ruled=False):
    """(backend, reason) of a call of a KernelFunction: the user's demand, or what `op.rule(*args)` says; ruled: it has
    been asked, and wants a kernel."""
    chosen = state.chosen
    if chosen == "torch":
        return "torch", "asked for"
    tensor = tensors[0]
    for t in tensors:
        if below(t.numel(), 1):
            return "torch", "nothing to compute: a tensor is empty"
    unserved = op.unserved(*args)
    if unserved is None and not op.mixed and len({t.dtype for t in tensors if t.is_floating_point()}) > 1:
        unserved = "dtypes differ"  # autocast leaves float64 as it is
    if chosen != "auto":
        reason = unserved or cannot_serve(chosen, op.module, tensor.device.type, tensor.dtype)
        if reason := reason or op.unserved_by(chosen, *args):
            raise BackendUnavailable(f"{op.label(*args)}: backend {chosen!r} was asked for, but {reason}")
        return chosen, "asked for"
    name = automatic(op.module, tensor.device.type, tensor.dtype)
    if name is None:
        return "torch", f"no kernel for {tensor.dtype} on {tensor.device.type}"
    if reason := unserved or op.unserved_by(name, *args) or (None if ruled else op.rule(*args)):
        return "torch", reason
    return name, f"first of {', '.join(ORDER[tensor.device.type])} that is here"
