"""Cross entropy on CPU: rows of classes side by side."""

import functools
import math

import numpy as np
import torch

from .. import memory
from ..class_loss import ClassLoss, acc_dtype
from .arrays import STORAGE, kernel, launch, pointer
from .math import EXP
from .softmax import BLOCK, _functions, add

f64 = np.float64


@functools.cache
def _fwd_kernel(probabilities, weighted, smooth, dtype):
    store_t, f, load, _ = STORAGE[dtype]
    exp = EXP[f]
    whole, to_key, from_key, _ = _functions(f)
    lowest = whole(to_key(f(-np.inf)))

    @kernel
    def _cross_entropy_fwd_kernel(first, last, args, smoothing, total):
        """loss = (1 - ε) Σ w q (lse - x) + ε/C Σ w (lse - x), q one-hot for indices. A unit is a row of n classes."""
        x_ptr, q_ptr, t_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[1], np.int64),
        )
        w_ptr, loss_ptr, counts_ptr, stats_ptr = (
            pointer(args[2], f),
            pointer(args[3], f),
            pointer(args[4], f),
            pointer(args[5], f),
        )
        n, rows = args[6], args[7]
        for row in range(first, last):
            begin, end = row * n, row * n + n
            key = lowest
            for i in range(begin, end):
                key = max(key, to_key(load(x_ptr[i])))
            highest = from_key(key)
            total_exp, total_q, total_qx, total_x = f64(0), f64(0), f64(0), f64(0)
            for start in range(begin, end, BLOCK):
                part, part_q, part_qx, part_x = f(0), f(0), f(0), f(0)
                stop = min(start + BLOCK, end)
                for i in range(start, stop):
                    part = add(part, exp(load(x_ptr[i]) - highest))
                total_exp += part
                if smooth:
                    for i in range(start, stop):
                        shifted = load(x_ptr[i]) - highest
                        part_x = add(part_x, w_ptr[i - begin] * shifted if weighted else shifted)
                    total_x += part_x
                if probabilities:
                    for i in range(start, stop):
                        q = w_ptr[i - begin] * load(q_ptr[i]) if weighted else load(q_ptr[i])
                        part_q = add(part_q, q)
                        part_qx = add(part_qx, q * (load(x_ptr[i]) - highest))
                    total_q += part_q
                    total_qx += part_qx
            log_sum = math.log(total_exp)
            value, count = f64(0), f64(1)
            if probabilities:
                value = (1.0 - smoothing) * (total_q * log_sum - total_qx)
            else:
                target = t_ptr[row]
                if target < 0:
                    count = f64(0)
                else:
                    count = f64(w_ptr[target]) if weighted else f64(1)
                    shifted = f64(load(x_ptr[begin + target]) - highest)
                    value = (1.0 - smoothing) * count * (log_sum - shifted)
            if smooth and (probabilities or t_ptr[row] >= 0):
                value += smoothing / n * (total * log_sum - total_x)
            loss_ptr[row] = f(value)
            counts_ptr[row] = f(count)
            stats_ptr[row] = highest
            stats_ptr[rows + row] = f(log_sum)
            stats_ptr[2 * rows + row] = f(total_q)

    return _cross_entropy_fwd_kernel


@functools.cache
def _bwd_kernel(probabilities, weighted, smooth, dtype):
    store_t, f, load, store = STORAGE[dtype]
    exp = EXP[f]
    *_, flush = _functions(f)

    @kernel
    def _cross_entropy_bwd_kernel(first, last, args, smoothing, total):
        """dx = a exp(x - max - log Σ) - w (q (1 - ε) + ε/C) g, a = g Σ w q'. dx may be x. A unit is a row."""
        x_ptr, q_ptr, t_ptr = (
            pointer(args[0], store_t),
            pointer(args[1], store_t),
            pointer(args[1], np.int64),
        )
        w_ptr, stats_ptr, g_ptr = pointer(args[2], f), pointer(args[3], f), pointer(args[4], f)
        dx_ptr = pointer(args[5], store_t)
        n, rows = args[6], args[7]
        for row in range(first, last):
            begin, end = row * n, row * n + n
            highest, log_sum = stats_ptr[row], stats_ptr[rows + row]
            uniform = g_ptr[row] * (smoothing / n) if smooth else f64(0)
            one_hot = g_ptr[row] * (1.0 - smoothing)
            target = np.int64(-1)
            if probabilities:
                scale = one_hot * stats_ptr[2 * rows + row]
            else:
                target = t_ptr[row]
                if target < 0:  # torch's is 0 times the probabilities
                    nothing = store(log_sum - log_sum)
                    for i in range(begin, end):
                        dx_ptr[i] = nothing
                    continue
                one_hot *= w_ptr[target] if weighted else f(1)
                scale = one_hot
            scale = f(scale + uniform * total)
            f_uniform, f_one_hot = f(uniform), f(one_hot)
            picked = f(0)
            if not probabilities:
                picked = exp((load(x_ptr[begin + target]) - highest) - log_sum) * scale - f_one_hot
                if smooth:
                    picked -= w_ptr[target] * f_uniform if weighted else f_uniform
            for i in range(begin, end):
                dx = exp((load(x_ptr[i]) - highest) - log_sum) * scale
                if probabilities or smooth:
                    taken = f_uniform
                    if probabilities:
                        taken += load(q_ptr[i]) * f_one_hot
                    dx -= w_ptr[i - begin] * taken if weighted else taken
                dx_ptr[i] = store(flush(dx))
            if not probabilities:
                dx_ptr[begin + target] = store(picked)

    return _cross_entropy_bwd_kernel


def _arguments(x, target, weight, ignore_index):
    """x, the class indices (negative where ignored) or probabilities, and the weights, rows first."""
    x = x.transpose(1, 2).contiguous()
    if target.is_floating_point():
        return x, target.transpose(1, 2).contiguous(), weight
    return x, target.masked_fill(target == ignore_index, -1), weight


class _Rows(ClassLoss):
    def rows_fwd(self, x, target, weight, ignore_index, smoothing):
        outer, C, inner = x.shape
        kept = _arguments(x, target, weight, ignore_index)
        loss, counts = (x.new_empty((outer, inner), dtype=acc_dtype(x.dtype)) for _ in range(2))
        stats = x.new_empty((3, outer, inner), dtype=acc_dtype(x.dtype))
        rows = outer * inner
        _launch(_fwd_kernel, kept, (loss, counts, stats), rows, C, smoothing)
        return loss, counts, stats

    def rows_bwd(self, x, target, weight, stats, g, ignore_index, smoothing, out):
        outer, C, inner = x.shape
        kept = _arguments(x, target, weight, ignore_index)
        rows = outer * inner
        g = g.expand(outer, inner).contiguous() if g.dim() == 0 else g.contiguous()
        dx = out if inner == 1 else memory.empty_like(kept[0])
        _launch(_bwd_kernel, kept, (stats, g, dx), rows, C, smoothing)
        if inner > 1:
            out.copy_(dx.transpose(1, 2))


def _launch(build, kept, others, rows, C, smoothing):
    x, target, weight = kept
    compiled = build(target.is_floating_point(), weight is not None, smoothing > 0, x.dtype)
    addresses = (0 if t is None else t.data_ptr() for t in (*kept, *others))
    total = float(C) if weight is None else weight.sum(dtype=torch.float64).item()
    launch(compiled, rows, x.numel(), (*addresses, C, rows), smoothing, total)


_rows = _Rows()
cross_entropy_fwd = _rows.cross_entropy_fwd
cross_entropy_bwd = _rows.cross_entropy_bwd
nll_loss_fwd = _rows.nll_loss_fwd
nll_loss_bwd = _rows.nll_loss_bwd
linear_cross_entropy_fwd = _rows.linear_cross_entropy_fwd
linear_cross_entropy_bwd = _rows.linear_cross_entropy_bwd
