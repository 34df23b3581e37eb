"""Attention on CPU: blocks of queries against blocks of keys, each thread's in its own cache."""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES


def _rows(t):
    return () if t is None else (t.data_ptr(), *t.stride()[:3])


def _address(t):
    return () if t is None else (t.data_ptr(), *t.stride())


def _accumulator(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _laid_out(t, heads, columns):
    """Uninitialised (B, heads, L, columns) over (B, L, heads, columns), for t (B, *, L, *)."""
    return memory.empty((t.shape[0], t.shape[2], heads, columns), t.dtype).transpose(1, 2)


def _problem(q, k, v, o, lse, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end,
             softcap, dropout_p):  # fmt: skip
    B, H, _, D = q.shape
    if cu_q is not None:
        B = cu_q.shape[0] - 1
    return _cpu.attention_problem(
        _rows(q),
        _rows(k),
        _rows(v),
        _rows(o),
        (lse.data_ptr(), lse.stride(0), lse.stride(1), 1) if lse is not None else (),
        () if bias is None else (*_address(bias), 1 if bias.dtype == torch.bool else 2),
        _address(slopes),
        _address(key_lengths),
        _address(cu_q),
        _address(cu_k),
        _address(seed),
        (B, H, k.shape[1], max_q, max_k, D, v.shape[3], left, right, align_end),
        (scale, softcap or 0.0, dropout_p),
    )


def attention_fwd(q, k, v, *options):
    """o = dropout(softmax(s)) v and lse, the logarithm of each row's sum of exp(s): s = scale q kᵀ, capped, biased and
    masked. q (B, H, Lq, D), k (B, Hkv, Lk, D), v (B, Hkv, Lk, Dv) with contiguous columns; lse (B, H, Lq). options: as
    _problem's, from bias on."""
    o = _laid_out(q, q.shape[1], v.shape[3])
    lse = torch.empty(q.shape[:3], dtype=_accumulator(q))
    problem = _problem(q, k, v, o, lse, *options)
    _cpu.attention_fwd(problem, DTYPES[q.dtype], torch.get_num_threads())
    return o, lse


def attention_bwd(do, q, k, v, o, lse, bias, *rest):
    """dq, dk, dv and dbias, or None where not needed: p is computed again from lse, ds = p (dp - rowsum(do o)). rest:
    the forward's options but for the bias, need_dq, need_dk, need_dv, need_dbias, and whether dq, dk and dv are to be
    one tensor, head after head, in dq's place."""
    *options, need_dq, need_dk, need_dv, need_dbias, packed = rest
    if packed:
        heads = [t.shape[1] for t in (q, k, v)]
        joined = _laid_out(q, sum(heads), q.shape[3])
        dq, dk, dv = joined.split(heads, 1)
    else:
        dq, dk, dv = (
            _laid_out(t, t.shape[1], t.shape[3]) if need else None
            for t, need in ((q, need_dq), (k, need_dk), (v, need_dv))
        )
    dbias, shaped = None, ()
    if need_dbias:
        shape = [1 if stride == 0 else size for size, stride in zip(bias.shape, bias.stride(), strict=True)]
        dbias = memory.empty(shape, bias.dtype)
        shaped = (dbias.data_ptr(), *shape)
    problem = _problem(q, k, v, o, lse, bias, *options)
    dtype, threads = DTYPES[q.dtype], torch.get_num_threads()
    acc = memory.workspace((_cpu.attention_bwd_size(problem, shaped, dtype, threads),), lse.dtype)
    _cpu.attention_bwd(problem, acc.data_ptr(), _rows(do), _rows(dq), _rows(dk), _rows(dv), dtype, threads)
    return (joined, None, None, dbias) if packed else (dq, dk, dv, dbias)


def attention_decode(q, k, v, lengths, block_table, slopes, scale, left, softcap):
    """o (B, H, Lq, Dv) of the new tokens q (B, H, Lq, D), which end at lengths (B,), over the caches k (B, Hkv, S, D)
    and v, or over their pages k (blocks, Hkv, size, D) that block_table (B, blocks) lists."""
    B, H, Lq, _ = q.shape
    o = torch.empty((B, H, Lq, v.shape[3]), dtype=q.dtype)
    paged = block_table is not None
    keys = k.shape[2] * block_table.shape[1] if paged else k.shape[2]
    options = (None, slopes, None, None, None, None, Lq, keys, scale, left, 0, False, softcap, 0.0)
    problem = _problem(q, k, v, o, None, *options)
    dtype, threads = DTYPES[q.dtype], torch.get_num_threads()
    lengths = lengths.contiguous()
    table = (block_table.data_ptr(), block_table.stride(0), k.shape[2]) if paged else (0, 0, 0)
    size = _cpu.attention_decode_size(problem, lengths.data_ptr(), *table)
    acc = memory.workspace((size,), _accumulator(q))
    _cpu.attention_decode(problem, acc.data_ptr(), dtype, threads)
    return o
