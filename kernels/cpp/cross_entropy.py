"""Cross entropy on CPU: rows of classes side by side."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.class_loss import ClassLoss, acc_dtype
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.cpp.product import products


def _address(t):
    return 0 if t is None else t.data_ptr()


def _arguments(x, target, weight, ignore_index):
    """The addresses of x, the class indices (negative where ignored) or the probabilities, and the weights; and the
    tensors behind them, rows first."""
    x = x.transpose(1, 2).contiguous()
    if target.is_floating_point():
        kept = x, None, target.transpose(1, 2).contiguous(), weight
    else:
        kept = x, target.masked_fill(target == ignore_index, -1), None, weight
    return [_address(t) for t in kept], kept


class _Rows(ClassLoss):
    products = products

    def rows_fwd(self, x, target, weight, ignore_index, smoothing):
        outer, C, inner = x.shape
        addresses, _kept = _arguments(x, target, weight, ignore_index)
        loss, counts = (x.new_empty((outer, inner), dtype=acc_dtype(x.dtype)) for _ in range(2))
        stats = x.new_empty((3, outer, inner), dtype=acc_dtype(x.dtype))
        results = loss.data_ptr(), counts.data_ptr(), stats.data_ptr()
        size = outer * inner, C, smoothing, DTYPES[x.dtype], torch.get_num_threads()
        _cpu.cross_entropy_fwd(*addresses, *results, *size)
        return loss, counts, stats

    def rows_bwd(self, x, target, weight, stats, g, ignore_index, smoothing, out):
        outer, C, inner = x.shape
        addresses, kept = _arguments(x, target, weight, ignore_index)
        g = g.contiguous()
        dx = out if inner == 1 else memory.empty_like(kept[0])
        size = outer * inner, C, smoothing, DTYPES[x.dtype], torch.get_num_threads()
        grad = g.data_ptr(), int(g.dim() > 0), dx.data_ptr()
        _cpu.cross_entropy_bwd(*addresses, stats.data_ptr(), *grad, *size)
        if inner > 1:
            out.copy_(dx.transpose(1, 2))

    def rows_both(self, z, target, weight, g, ignore_index, smoothing):
        addresses, _kept = _arguments(z.unsqueeze(2), target, weight, ignore_index)
        loss, counts = (z.new_empty(z.shape[0], dtype=acc_dtype(z.dtype)) for _ in range(2))
        size = *z.shape, smoothing, DTYPES[z.dtype], torch.get_num_threads()
        results = loss.data_ptr(), counts.data_ptr(), z.data_ptr()
        _cpu.cross_entropy_both(*addresses, g.data_ptr(), int(g.dim() > 0), *results, *size)
        return loss, counts


_rows = _Rows()
cross_entropy_fwd = _rows.cross_entropy_fwd
cross_entropy_bwd = _rows.cross_entropy_bwd
nll_loss_fwd = _rows.nll_loss_fwd
nll_loss_bwd = _rows.nll_loss_bwd
linear_cross_entropy_fwd = _rows.linear_cross_entropy_fwd
linear_cross_entropy_bwd = _rows.linear_cross_entropy_bwd
