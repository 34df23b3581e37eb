"""How a tensor reaches a compiled loop: memory by address, bf16 and fp16 as 16-bit integers, work by threads.

A kernel is a C function `kernel(first, last, args, p0, p1)` that handles the units (elements, rows, blocks of
rows) first ... last - 1; args holds addresses, sizes and strides as int64. One parallel loop, compiled once,
calls them all: numba takes 0.1 s to compile such a kernel and 1 to 5 s a parallel one.
"""

import functools
import os
import threading

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .math import bits, f32, jit, u16, u32

MAX_ARGS = 8
GRAIN = 1 << 15  # elements a thread gets at least, as in torch: 10 us of work against 3 us to start them

# GNU OpenMP loses 3 % beside torch's own pool, workqueue 10 %; a layer that the user has chosen stays
if numba.config.THREADING_LAYER == "default" and numba.config.THREADING_LAYER_PRIORITY[0] == "tbb":
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


# ---- launching

_ARGS = types.UniTuple(types.int64, MAX_ARGS)
_KERNEL = types.void(types.int64, types.int64, types.CPointer(types.int64), types.float64, types.float64)
_LAUNCH = types.void(types.int64, types.int64, types.int64, _ARGS, types.float64, types.float64)


def kernel(function):
    """Compiles a kernel, now."""
    return cfunc(_KERNEL, error_model="numpy", fastmath={"contract"})(function)


@intrinsic
def pointer(typingctx, address, dtype):
    """The memory at an address, indexed in elements of dtype with no bounds and no negative indices."""
    result = types.CPointer(dtype.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(types.int64, types.NumberClass(dtype.dtype)), codegen


@intrinsic(prefer_literal=True)
def stack(typingctx, size, dtype):
    """Scratch of a literal size; not inside a loop, as it is freed only when the kernel ends."""
    result = types.CPointer(dtype.dtype)
    length = size.literal_value

    def codegen(context, builder, signature, args):
        return cgutils.alloca_once(builder, context.get_data_type(dtype.dtype), size=length)

    return result(size, types.NumberClass(dtype.dtype)), codegen


@intrinsic
def _call(typingctx, address, first, last, args, p0, p1):
    """Calls the kernel at an address."""

    def codegen(context, builder, signature, values):
        address, first, last, args, p0, p1 = values
        c_types = [context.get_value_type(t) for t in _KERNEL.args]
        function = builder.inttoptr(address, ir.FunctionType(ir.VoidType(), c_types).as_pointer())
        args_ptr = builder.bitcast(cgutils.alloca_once_value(builder, args), c_types[2])
        builder.call(function, [first, last, args_ptr, p0, p1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, _ARGS, types.float64, types.float64), codegen


@functools.cache
def _serial():
    @njit(_LAUNCH, nogil=True)
    def serial(kernel, tasks, n, args, p0, p1):
        _call(kernel, 0, n, args, p0, p1)

    return serial


@functools.cache
def _parallel():
    @njit(_LAUNCH, nogil=True, parallel=True)
    def parallel(kernel, tasks, n, args, p0, p1):
        before = numba.get_num_threads()
        numba.set_num_threads(tasks)
        for task in prange(tasks):
            _call(kernel, task * n // tasks, (task + 1) * n // tasks, args, p0, p1)
        numba.set_num_threads(before)

    return parallel


# A step's phase is a row of a table of WIDTH int64: its kernel; its units, FIXED + PER_ROW n in a step of n rows, and
# elements, ELEMENTS n; what its kernel, which gets the row for its args, is told of the step: the first row and the
# rows, and the same of the step that is computed before it. Behind them come the kernel's own, from ARGS on.
KERNEL, FIXED, PER_ROW, ELEMENTS, ROW, ROWS, BEFORE, BEFORE_ROWS, ARGS = range(9)
WIDTH = 48


@intrinsic
def _call_at(typingctx, address, first, last, args, p0):
    """Calls the kernel at an address with args at another."""

    def codegen(context, builder, signature, values):
        address, first, last, args, p0 = values
        c_types = [context.get_value_type(t) for t in _KERNEL.args]
        function = builder.inttoptr(address, ir.FunctionType(ir.VoidType(), c_types).as_pointer())
        builder.call(function, [first, last, builder.inttoptr(args, c_types[2]), p0, p0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.float64), codegen


@functools.cache
def _steps(parallel):
    integers = (types.int64,) * 6

    @njit(types.void(*integers, types.float64, types.int64), nogil=True, parallel=parallel)
    def steps(table, phases, offsets, T, down, reverse, p0, threads):
        before = numba.get_num_threads()
        if parallel:
            numba.set_num_threads(threads)
        off = pointer(offsets, np.int64)
        for s in range(T):
            t = T - 1 - s if down else s
            n = off[t + 1] - off[t]
            earlier = t + 1 if reverse else t - 1
            for p in range(phases):
                row = table + p * WIDTH * 8
                phase = pointer(row, np.int64)
                phase[ROW], phase[ROWS] = off[t], n
                phase[BEFORE] = phase[BEFORE_ROWS] = 0
                if 0 <= earlier < T:
                    phase[BEFORE], phase[BEFORE_ROWS] = off[earlier], off[earlier + 1] - off[earlier]
                units, kernel = phase[FIXED] + phase[PER_ROW] * n, phase[KERNEL]
                tasks = min(threads, units, n * phase[ELEMENTS] // GRAIN)
                if tasks <= 1:
                    _call_at(kernel, 0, units, row, p0)
                else:
                    for task in prange(tasks):
                        _call_at(kernel, task * units // tasks, (task + 1) * units // tasks, row, p0)
        if parallel:
            numba.set_num_threads(before)

    return steps


_one_at_a_time = threading.Lock()
_forked = False


def _after_fork():
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def launch(kernel, n, elements, args, p0=0.0, p1=0.0):
    """Runs the kernel's units 0 ... n - 1, together `elements` elements, on torch's number of threads."""
    tasks = min(n, elements // GRAIN)
    if tasks > 1:
        tasks = min(tasks, torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    args = tuple(args) + (0,) * (MAX_ARGS - len(args))
    if tasks <= 1 or _forked:  # GNU OpenMP ends a forked process that uses it
        _serial()(kernel.address, 1, n, args, p0, p1)
        return
    _in_parallel(_parallel(), kernel.address, tasks, n, args, p0, p1)


def _in_parallel(function, *args):
    if numba.threading_layer() == "workqueue":  # ends the process when two threads launch
        with _one_at_a_time:
            function(*args)
    else:
        function(*args)


def launch_steps(table, offsets, down, reverse, p0=0.0):
    """Runs the table's phases, one after the other, for each step t in turn, downwards or upwards.

    table: int64 (phases, WIDTH). offsets: int64 (T + 1,), the steps' first rows. reverse: whether step t + 1 rather
    than t - 1 is BEFORE step t. A step costs no call from Python.
    """
    T = len(offsets) - 1
    most = int(offsets.diff().max()) * int(table[:, ELEMENTS].max()) // GRAIN if T else 0
    threads = min(most, torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    args = (table.ctypes.data, len(table), offsets.data_ptr(), T, down, reverse, p0, max(1, threads))
    if threads <= 1 or _forked:
        _steps(False)(*args[:-1], 1)
    else:
        _in_parallel(_steps(True), *args)


# ---- storage: how a dtype is read into, and written from, the type it is computed in


@jit
def _same(x):
    return x


@jit
def _bf16_load(u):
    return bits(u32(u32(u) << u32(16)), f32)


@jit
def _bf16_store(x):
    u = bits(x, u32)
    rounded = (u + u32(0x7FFF) + ((u >> u32(16)) & u32(1))) >> u32(16)  # to nearest even
    return u16(u32(0x7FC0) if x != x else rounded)


@jit
def _fp16_load(u):
    magnitude = u32(u32(u) & u32(0x7FFF))
    # exponent and mantissa moved into place, then rescaled by the biases' difference: denormals too are exact
    scaled = bits(u32(magnitude << u32(13)), f32) * f32(2.0**112)
    special = bits(u32((magnitude << u32(13)) | u32(0x7F800000)), f32)
    x = special if magnitude >= u32(0x7C00) else scaled
    return -x if u >= u16(0x8000) else x


@jit
def _fp16_store(x):
    u = bits(x, u32)
    magnitude = u32(u & u32(0x7FFFFFFF))
    sign = u32((u >> u32(16)) & u32(0x8000))
    # below 2**-14 the sum's last bit is worth 2**-24, fp16's denormal step: the addition rounds as it should
    denormal = u32(bits(bits(magnitude, f32) + f32(0.5), u32) - u32(0x3F000000))
    normal = u32((magnitude - u32(0x38000000) + u32(0xFFF) + ((magnitude >> u32(13)) & u32(1))) >> u32(13))
    h = denormal if magnitude < u32(0x38800000) else normal
    h = u32(0x7C00) if magnitude >= u32(0x477FF000) else h  # 65520 and above round to infinity
    h = u32(0x7E00) if magnitude > u32(0x7F800000) else h
    return u16(h | sign)


# dtype: type in memory, type computed in, load, store
STORAGE = {
    torch.float64: (np.float64, np.float64, _same, _same),
    torch.float32: (f32, f32, _same, _same),
    torch.bfloat16: (u16, f32, _bf16_load, _bf16_store),
    torch.float16: (u16, f32, _fp16_load, _fp16_store),
}
