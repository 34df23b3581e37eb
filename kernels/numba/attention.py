"""Attention by blocks of queries x keys: torch's matrix products, and between them the online softmax, its mask and
the backward's recompute in place. The scores of one block are all that is ever held.

Heads that share keys are folded into the rows of one product, and heads go together while their block is small.
16 bits are computed in fp32.
"""

import functools
import math

import numpy as np
import torch

from .. import memory
from .arrays import STORAGE, kernel, launch, pointer, stack
from .math import EXP, activations, jit
from .random import philox, u64
from .softmax import BLOCK, _functions, add

QUERIES = 128  # of a block
KEYS = 512  # of a block: a row of scores, 2 KB, stays in the first cache through all the passes over it
SCORES = (
    1 << 18
)  # of a step, as many heads as that allows: 1 MB of fp32, and 0.3 ms of products for 30 us of calls

# The kernels' parameters by their place in an int64 and a float64 array.
S, ROWS, N, I0, J0, OFFSET, LEFT, RIGHT, ALL, BIAS, BIAS_H, BIAS_I, BIAS_J, SLOPES, SLOPES_H, HEAD, NUMBER_H, \
    NUMBER_I, NUMBER_B, SEED, THRESHOLD, MAX, SUM, ACC, FEATURES, LSE, DELTA, DP, DBIAS = range(29)  # fmt: skip
SCALE, SOFTCAP, KEEP = range(3)


@functools.cache
def _score_functions(f, bias):
    """bias: None, or the dtype of the mask, of which bool is no sum."""
    tanh = activations(f)["tanh"]
    _, _, load, _ = STORAGE.get(bias, STORAGE[torch.float32])
    boolean, given = bias == torch.bool, bias is not None
    store_t = np.uint8 if boolean else STORAGE[bias][0] if given else np.uint8

    @jit
    def scores(s, row, t, params, floats):
        """A row of q k^T becomes the scores: scaled, capped, biased, -inf where invisible; t: tanh(s / c)."""
        n, j0 = params[N], params[J0]
        i = params[I0] + row % params[ROWS]
        h = params[HEAD] + row // params[ROWS]
        pos = i + params[OFFSET]
        scale, softcap = f(floats[SCALE]), f(floats[SOFTCAP])
        for j in range(n):
            s[row * n + j] *= scale
        if softcap > f(0):
            for j in range(n):
                t[j] = tanh(s[row * n + j] / softcap, f(0), f(0))
            for j in range(n):
                s[row * n + j] = softcap * t[j]
        if params[SLOPES] != 0:
            slope = f(pointer(params[SLOPES], np.float32)[h * params[SLOPES_H]])
            for j in range(n):
                s[row * n + j] -= slope * f(abs(pos - j0 - j))
        if given:
            b = pointer(params[BIAS], store_t)
            at, step = h * params[BIAS_H] + i * params[BIAS_I] + j0 * params[BIAS_J], params[BIAS_J]
            if boolean:
                for j in range(n):
                    s[row * n + j] = s[row * n + j] if b[at + j * step] != 0 else f(-np.inf)
            elif step == 1:
                for j in range(n):
                    s[row * n + j] += f(load(b[at + j]))
            else:
                for j in range(n):
                    s[row * n + j] += f(load(b[at + j * step]))
        if params[LEFT] >= 0:
            for j in range(min(n, pos - params[LEFT] - j0)):
                s[row * n + j] = f(-np.inf)
        if params[RIGHT] >= 0:
            for j in range(max(0, pos + params[RIGHT] + 1 - j0), n):
                s[row * n + j] = f(-np.inf)

    @jit
    def drop(p, row, params, floats):
        """Each weight divided by 1 - dropout_p, or 0, by its number's word."""
        n, j0 = params[N], params[J0]
        i = params[I0] + row % params[ROWS]
        h = params[HEAD] + row // params[ROWS]
        first = (params[NUMBER_B] + h * params[NUMBER_H] + i * params[NUMBER_I] + j0) // 4
        seed, limit, up = u64(params[SEED]), params[THRESHOLD], f(floats[KEEP])
        for j in range(0, n, 4):
            words = philox(seed, u64(first + j // 4))
            for lane in range(min(4, n - j)):
                word = (
                    words[0] if lane == 0 else words[1] if lane == 1 else words[2] if lane == 2 else words[3]
                )
                x = p[row * n + j + lane]
                p[row * n + j + lane] = x * up if np.int64(word) >= limit else f(0)

    @jit
    def is_whole(row, params):
        """Whether all keys that the row sees are in the tile."""
        pos, j0 = params[I0] + row % params[ROWS] + params[OFFSET], params[J0]
        after = params[RIGHT] >= 0 and pos + params[RIGHT] < j0 + params[N]
        before = params[LEFT] >= 0 and pos - params[LEFT] >= j0
        return (j0 == 0 or before) and (j0 + params[N] >= params[ALL] or after)

    return scores, drop, is_whole


@functools.cache
def _fwd_kernel(acc_dtype, bias):
    _, f, _, _ = STORAGE[acc_dtype]
    exp = EXP[f]
    whole, to_key, from_key, flush = _functions(f)
    lowest = whole(to_key(f(-np.inf)))
    scores, drop, _ = _score_functions(f, bias)

    @kernel
    def _attention_fwd_kernel(first, last, args, p0, p1):
        """p = exp(s - m), with the sum and the accumulator rescaled to the new maximum m. A unit is a row."""
        params, floats = pointer(args[0], np.int64), pointer(args[1], np.float64)
        s, acc = pointer(params[S], f), pointer(params[ACC], f)
        m, total = pointer(params[MAX], f), pointer(params[SUM], f)
        n, D = params[N], params[FEATURES]
        t = stack(512, f)
        for row in range(first, last):
            scores(s, row, t, params, floats)
            key = lowest
            for j in range(row * n, row * n + n):
                key = max(key, to_key(s[j]))
            before, highest = m[row], from_key(key)
            highest = before if before > highest else highest
            m[row] = highest
            shift = f(0) if highest == f(-np.inf) else highest
            for j in range(row * n, row * n + n):
                s[j] = flush(exp(s[j] - shift))
            summed = f(0)
            for start in range(row * n, row * n + n, BLOCK):
                part = f(0)
                for j in range(start, min(start + BLOCK, row * n + n)):
                    part = add(part, s[j])
                summed += part
            if params[THRESHOLD] >= 0:
                drop(s, row, params, floats)
            if before == f(-np.inf):  # the first block that the row sees
                total[row] = summed
                for d in range(row * D, row * D + D):
                    acc[d] = f(0)
            else:
                alpha = exp(before - shift)
                total[row] = total[row] * alpha + summed
                for d in range(row * D, row * D + D):
                    acc[d] *= alpha

    return _attention_fwd_kernel


@functools.cache
def _end_kernel(acc_dtype):
    _, f, _, _ = STORAGE[acc_dtype]

    @kernel
    def _attention_end_kernel(first, last, args, p0, p1):
        """o = acc / sum, lse = m + ln sum; 0 and -inf for a row that sees nothing. A unit is a row."""
        params = pointer(args[0], np.int64)
        acc, lse = pointer(params[ACC], f), pointer(params[LSE], f)
        m, total = pointer(params[MAX], f), pointer(params[SUM], f)
        D = params[FEATURES]
        for row in range(first, last):
            nothing = m[row] == f(-np.inf) and total[row] == f(0)
            inverse = f(0) if nothing else f(1) / total[row]
            for d in range(row * D, row * D + D):
                acc[d] = acc[d] * inverse
            lse[row] = f(-np.inf) if nothing else m[row] + f(math.log(total[row]))

    return _attention_end_kernel


@functools.cache
def _bwd_kernel(acc_dtype, bias):
    _, f, _, _ = STORAGE[acc_dtype]
    exp = EXP[f]
    _, _, _, flush = _functions(f)
    scores, drop, is_whole = _score_functions(f, bias)

    @kernel
    def _attention_bwd_kernel(first, last, args, p0, p1):
        """p = exp(s - lse), dropped in place of s; ds = p (dropped dp - delta), times what s was scaled by, in place
        of dp. A unit is a row."""
        params, floats = pointer(args[0], np.int64), pointer(args[1], np.float64)
        s, dp = pointer(params[S], f), pointer(params[DP], f)
        lse, delta = pointer(params[LSE], f), pointer(params[DELTA], f)
        n = params[N]
        scale, softcap = f(floats[SCALE]), f(floats[SOFTCAP])
        t = stack(512, f)
        for row in range(first, last):
            scores(s, row, t, params, floats)
            if lse[row] == f(-np.inf):  # the row sees nothing
                for j in range(row * n, row * n + n):
                    s[j] = f(0)
                    dp[j] = f(0)
            else:
                for j in range(row * n, row * n + n):
                    s[j] = flush(exp(s[j] - lse[row]))
                if params[THRESHOLD] >= 0:
                    drop(dp, row, params, floats)
                residual = f(0)
                if is_whole(row, params):
                    # lse's rounding has moved the sum of p off 1 by |lse| eps / 2. And where one key has nearly all
                    # the weight dp - delta is rounding and nothing else, of which sum p (dp - delta) is the mean: less
                    # it, ds is 0 for a key alone, as in torch's softmax.
                    summed, weights = f(0), f(0)
                    for j in range(row * n, row * n + n):
                        summed = add(summed, s[j] * (dp[j] - delta[row]))
                        weights = add(weights, s[j])
                    if weights > f(0):
                        residual = summed / weights
                        for j in range(row * n, row * n + n):
                            s[j] /= weights
                for j in range(row * n, row * n + n):
                    dp[j] = flush(s[j] * ((dp[j] - delta[row]) - residual))
                if params[THRESHOLD] >= 0:
                    drop(s, row, params, floats)
            if params[DBIAS] != 0:
                db = pointer(params[DBIAS], f)
                for j in range(row * n, row * n + n):
                    db[j] = dp[j]
            if softcap > f(0):
                for j in range(n):
                    dp[row * n + j] *= f(1) - t[j] * t[j]
            for j in range(row * n, row * n + n):
                dp[j] *= scale

    return _attention_bwd_kernel


NAMES = {"s": S, "m": MAX, "total": SUM, "acc": ACC, "lse": LSE, "delta": DELTA, "dp": DP, "db": DBIAS}


class _Call:
    """What the kernels of one call share: their parameters, the tiles, the sequences."""

    def __init__(self, q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right,
                 align_end, softcap, dropout_p):  # fmt: skip
        self.q, self.k, self.v, self.bias, self.slopes = q, k, v, bias, slopes
        self.H, self.kv_heads, self.group = q.size(1), k.size(1), q.size(1) // k.size(1)
        self.left, self.right, self.align_end = left, right, align_end
        self.acc = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.bias_dtype = None if bias is None else bias.dtype
        self.lengths = None if key_lengths is None else key_lengths.tolist()
        self.cu = None if cu_q is None else (cu_q.tolist(), cu_k.tolist())
        self.n = min(KEYS, max_k)
        self.m = max(8, min(QUERIES, max_q, SCORES // (self.group * self.n)))
        self.heads = max(
            1, min(self.kv_heads, SCORES // (self.group * self.m * self.n))
        )  # of keys, in one step
        self.floats = np.array([scale, softcap, 1 / (1 - dropout_p)])
        self.params = np.zeros(29, dtype=np.int64)
        row = 4 * -(-max_k // 4)
        self.params[[NUMBER_H, NUMBER_I, THRESHOLD, FEATURES]] = max_q * row, row, -1, v.size(3)
        self.params[[LEFT, RIGHT]] = left, right
        if dropout_p:
            self.params[[SEED, THRESHOLD]] = int(seed), min(round(dropout_p * 2**32), 2**32 - 1)
        self.args = (self.params.ctypes.data, self.floats.ctypes.data)

    def sequences(self):
        """(batch index of the tensors, rows of queries, rows of keys), after setting what a sequence's blocks share."""
        count = self.q.size(0) if self.cu is None else len(self.cu[0]) - 1
        for b in range(count):
            if self.cu is None:
                at, rows_q, rows_k = b, slice(0, self.q.size(2)), slice(0, self.k.size(2))
            else:
                at, (rows_q, rows_k) = 0, (slice(cu[b], cu[b + 1]) for cu in self.cu)
            Lq, Lk = rows_q.stop - rows_q.start, rows_k.stop - rows_k.start
            p = self.params
            p[OFFSET] = Lk - Lq if self.align_end else 0
            p[NUMBER_B] = b * self.H * p[NUMBER_H]
            if self.bias is not None:
                strides = self.bias.stride()
                p[BIAS] = self.bias.data_ptr() + b * strides[0] * self.bias.element_size()
                p[BIAS_H : BIAS_J + 1] = strides[1:]
            if self.slopes is not None:
                p[SLOPES] = self.slopes.data_ptr() + b * self.slopes.stride(0) * 4
                p[SLOPES_H] = self.slopes.stride(1)
            self.b, self.Lk = b, Lk if self.lengths is None else min(self.lengths[b], Lk)
            p[ALL] = self.Lk
            if Lq:
                yield at, rows_q, rows_k

    def chunks(self):
        """(heads of queries, heads of keys) that go together."""
        for first in range(0, self.kv_heads, self.heads):
            kv = slice(first, min(first + self.heads, self.kv_heads))
            yield slice(kv.start * self.group, kv.stop * self.group), kv

    def query_blocks(self, heads, Lq):
        for i0 in range(0, Lq, self.m):
            m = min(self.m, Lq - i0)
            self.params[[HEAD, ROWS, I0]] = heads.start, m, i0
            yield i0, m

    def key_blocks(self, i0, m):
        """The blocks of keys that some query of the block sees."""
        pos = i0 + int(self.params[OFFSET])
        first = max(0, pos - self.left) // 4 * 4 if self.left >= 0 else 0  # dropout's words come by four
        last = min(self.Lk, pos + m + self.right) if self.right >= 0 else self.Lk
        for j0 in range(first, last, self.n):
            yield j0, min(self.n, last - j0)

    def run(self, build, rows, j0=0, n=1, **tensors):
        self.params[[J0, N]] = j0, n
        for name, t in tensors.items():
            self.params[NAMES[name]] = 0 if t is None else t.data_ptr()
        launch(build, rows, rows * max(n, int(self.params[FEATURES])), self.args)

    def scratch(self, *columns):
        """A flat tensor for each number of columns, with room for a step's rows."""
        most = self.heads * self.group * self.m
        flat = memory.workspace((most * sum(columns),), self.acc)
        return flat.split([most * c for c in columns])

    def wide(self, t):
        return t if t.dtype == self.acc else t.to(self.acc)


def _forward(call, o, lse):
    """Fills o and, where it is given, lse."""
    D, Dv = call.q.size(3), call.v.size(3)
    fwd, end = _fwd_kernel(call.acc, call.bias_dtype), _end_kernel(call.acc)
    flat = call.scratch(D, call.n, Dv, 1, 1, 1)
    for at, rows_q, rows_k in call.sequences():
        for heads, kv in call.chunks():
            k, v = call.wide(call.k[at, kv, rows_k]), call.wide(call.v[at, kv, rows_k])
            q_rows, o_rows = call.q[at, heads, rows_q], o[at, heads, rows_q]
            for i0, m in call.query_blocks(heads, rows_q.stop - rows_q.start):
                queries = slice(i0, i0 + m)
                rows = (heads.stop - heads.start) * m
                q, s, acc, high, total, ln = (
                    t[: rows * c] for t, c in zip(flat, (D, call.n, Dv, 1, 1, 1), strict=True)
                )
                q.view(-1, m, D).copy_(q_rows[:, queries])
                acc.zero_()
                total.zero_()
                high.fill_(-math.inf)
                q, product = q.view(k.size(0), -1, D), acc.view(k.size(0), -1, Dv)
                for j0, n in call.key_blocks(i0, m):
                    p = s[: rows * n].view(k.size(0), -1, n)
                    torch.bmm(q, k[:, j0 : j0 + n].mT, out=p)
                    call.run(fwd, rows, j0, n, s=p, acc=acc, m=high, total=total)
                    product.baddbmm_(p, v[:, j0 : j0 + n])
                call.run(end, rows, acc=acc, m=high, total=total, lse=ln)
                o_rows[:, queries].copy_(acc.view(-1, m, Dv))
                if lse is not None:
                    lse[at, heads, rows_q][:, queries].copy_(ln.view(-1, m))


def attention_fwd(q, k, v, *options):
    B, H, Lq, _ = q.shape
    call = _Call(q, k, v, *options)
    o = memory.empty((B, Lq, H, v.size(3)), q.dtype).transpose(1, 2)
    lse = torch.empty((B, H, Lq), dtype=call.acc)
    _forward(call, o, lse)
    return o, lse


def _zeros(t, heads):
    return torch.zeros((t.size(0), t.size(2), heads, t.size(3)), dtype=t.dtype).transpose(1, 2)


def attention_bwd(do, q, k, v, o, lse, bias, *rest):
    *options, need_dq, need_dk, need_dv, need_dbias, packed = rest
    call = _Call(q, k, v, bias, *options)
    if packed:
        heads = [t.size(1) for t in (q, k, v)]
        joined = _zeros(q, sum(heads))
        dq, dk, dv = joined.split(heads, 1)
    else:
        dq, dk, dv = (
            _zeros(t, t.size(1)) if need else None for t, need in ((q, need_dq), (k, need_dk), (v, need_dv))
        )
    dbias = None
    if need_dbias:
        shape = [1 if step == 0 else size for size, step in zip(bias.shape, bias.stride(), strict=True)]
        dbias = torch.zeros(shape, dtype=call.acc)
    delta = (do.to(call.acc) * o).sum(-1)
    D, Dv = q.size(3), v.size(3)
    bwd = _bwd_kernel(call.acc, call.bias_dtype)
    columns = (D, Dv, D, call.n, call.n, call.n if need_dbias else 0, 1, 1)
    flat = call.scratch(*columns)
    for at, rows_q, rows_k in call.sequences():
        for heads, kv in call.chunks():
            k_rows, v_rows = call.wide(k[at, kv, rows_k]), call.wide(v[at, kv, rows_k])
            count = k_rows.size(0)
            sum_dk, sum_dv = torch.zeros_like(k_rows), torch.zeros_like(v_rows)
            for i0, m in call.query_blocks(heads, rows_q.stop - rows_q.start):
                queries = slice(rows_q.start + i0, rows_q.start + i0 + m)
                rows = (heads.stop - heads.start) * m
                qs, dos, dqs, s, dp, db, ln, sums = (
                    t[: rows * c] for t, c in zip(flat, columns, strict=True)
                )
                for block, t in ((qs, q), (dos, do), (ln, lse), (sums, delta)):
                    whole = t[at, heads, queries]
                    block.view(whole.shape).copy_(whole)
                dqs.zero_()
                qs, dos, dqs = qs.view(count, -1, D), dos.view(count, -1, Dv), dqs.view(count, -1, D)
                for j0, n in call.key_blocks(i0, m):
                    keys = slice(j0, j0 + n)
                    p, dp_block = (t[: rows * n].view(count, -1, n) for t in (s, dp))
                    db_block = db[: rows * n] if need_dbias else None
                    torch.bmm(qs, k_rows[:, keys].mT, out=p)
                    torch.bmm(dos, v_rows[:, keys].mT, out=dp_block)
                    call.run(bwd, rows, j0, n, s=p, dp=dp_block, db=db_block, lse=ln, delta=sums)
                    if need_dv:
                        sum_dv[:, keys].baddbmm_(p.mT, dos)
                    if need_dk:
                        sum_dk[:, keys].baddbmm_(dp_block.mT, qs)
                    if need_dq:
                        dqs.baddbmm_(dp_block, k_rows[:, keys])
                    if need_dbias:
                        of = (slice(call.b, call.b + 1), heads, slice(i0, i0 + m), keys)
                        part = dbias[
                            tuple(
                                x if size > 1 else slice(0, 1)
                                for x, size in zip(of, dbias.shape, strict=True)
                            )
                        ]
                        part.add_(db_block.view(1, -1, m, n).sum_to_size(part.shape))
                if need_dq:
                    dq[at, heads, queries].copy_(dqs.view(-1, m, D))
            if need_dk:
                dk[at, kv, rows_k].copy_(sum_dk)
            if need_dv:
                dv[at, kv, rows_k].copy_(sum_dv)
    dbias = None if dbias is None else dbias.to(bias.dtype)
    return (joined, None, None, dbias) if packed else (dq, dk, dv, dbias)


def attention_decode(q, k, v, lengths, block_table, slopes, scale, left, softcap):
    """Each sequence as one of its own, its pages gathered first."""
    B, H, Lq, _ = q.shape
    o = memory.empty((B, H, Lq, v.size(3)), q.dtype)
    for b, length in enumerate(lengths.tolist()):
        if block_table is None:
            keys, values = k[b : b + 1, :, :length], v[b : b + 1, :, :length]
        else:
            pages = block_table[b, : -(-length // k.size(2))]
            keys, values = (t[pages].transpose(0, 1).flatten(1, 2)[None, :, :length] for t in (k, v))
        if length == 0:
            o[b].zero_()
            continue
        mine = None if slopes is None else slopes[b : b + 1]
        options = (None, mine, None, None, None, None, Lq, length, scale, left, 0, True, softcap, 0.0)
        _forward(_Call(q[b : b + 1], keys, values, *options), o[b : b + 1], None)
    return o
