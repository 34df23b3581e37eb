"""Gated activations on CPU: one pass over gate and up, rows of adjacent elements at any stride."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels.cpp.native import ACTS, DTYPES
from kernelzoo.kernels.gated import launchers, size


def _flat(*tensors):
    return (v for t in tensors for v in (t.data_ptr(), t.stride(0)))


def _fwd(gate, up, y, act):
    options = DTYPES[y.dtype], ACTS[act], torch.get_num_threads()
    _cpu.glu_fwd(*_flat(gate, up, y), *size(gate, up, y), *options)


def _bwd(dy, gate, up, dgate, dup, act):
    tensors = (dy, gate, up, dgate, dup)
    options = DTYPES[dy.dtype], ACTS[act], torch.get_num_threads()
    _cpu.glu_bwd(*_flat(*tensors), *size(*tensors), *options)


glu_fwd, glu_bwd, glu_split_fwd, glu_split_bwd = launchers(_fwd, _bwd)
