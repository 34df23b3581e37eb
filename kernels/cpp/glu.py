"""Gated activations on CPU: one pass over gate and up, rows of adjacent elements at any stride."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import ACTS, DTYPES


def _size(*tensors):
    """(M, N) of these tensors' rows: one long row where all are contiguous."""
    M, N = tensors[0].shape
    return (1, M * N) if all(t.stride(0) == N or M == 1 for t in tensors) else (M, N)


def _flat(*tensors):
    return (v for t in tensors for v in (t.data_ptr(), t.stride(0)))


def _fwd(gate, up, y, act):
    options = DTYPES[y.dtype], ACTS[act], torch.get_num_threads()
    _cpu.glu_fwd(*_flat(gate, up, y), *_size(gate, up, y), *options)


def _bwd(dy, gate, up, dgate, dup, act):
    tensors = (dy, gate, up, dgate, dup)
    options = DTYPES[dy.dtype], ACTS[act], torch.get_num_threads()
    _cpu.glu_bwd(*_flat(*tensors), *_size(*tensors), *options)


def glu_fwd(gate, up, act):
    """y = act(gate) * up. gate, up (M, N) of adjacent columns; y contiguous."""
    y = memory.empty(gate.shape, gate.dtype)
    _fwd(gate, up, y, act)
    return y


def glu_bwd(dy, gate, up, act):
    """dgate = dy * up * act'(gate), dup = dy * act(gate), contiguous. dy, gate, up (M, N) of adjacent columns."""
    dgate, dup = (memory.empty(gate.shape, gate.dtype) for _ in range(2))
    _bwd(dy, gate, up, dgate, dup, act)
    return dgate, dup


def glu_split_fwd(x):
    """y = a * sigmoid(b), the halves a, b of each row of x (M, 2 N); y (M, N) contiguous."""
    up, gate = x.chunk(2, 1)
    return glu_fwd(gate, up, "sigmoid")


def glu_split_bwd(dy, x):
    """dx (M, 2 N), contiguous, from dy (M, N)."""
    dx = memory.empty(x.shape, x.dtype)
    up, gate = x.chunk(2, 1)
    dup, dgate = dx.chunk(2, 1)
    _bwd(dy, gate, up, dgate, dup, "sigmoid")
    return dx
