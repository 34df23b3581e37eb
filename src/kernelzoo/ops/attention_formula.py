"""Attention's formula in plain torch, with the whole scores: oracle, fallback, double backward and transform rule."""

import math

import torch

from .core.random import kept


def _softmax(s):
    """Over the last dimension; a row of -inf alone gives 0, and gradient 0."""
    nothing = (s == -math.inf).all(-1, keepdim=True)
    return torch.softmax(s.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)


def _wide(*tensors):
    """16 bits are computed in float32, as torch's own formula does."""
    return [t.float() if t.dtype.itemsize == 2 else t for t in tensors]


def _heads(k, v, H):
    """Each head of keys and values once for every head of queries that shares it."""
    return [t if t.size(1) == H else t.repeat_interleave(H // t.size(1), 1) for t in (k, v)]


def _scores(q, k, scale, softcap):
    s = q @ k.mT * scale
    return softcap * torch.tanh(s / softcap) if softcap else s


def _places(q, k, cu_q, cu_k, align_end):
    """For each row and column of the scores: sequence of the row, its number there, that of the column, the position
    of the row among the columns; and which of them belong together (None: all)."""
    i = torch.arange(q.size(2), device=q.device)[:, None]
    j = torch.arange(k.size(2), device=q.device)[None, :]
    if cu_q is None:
        return None, i, j, i + (k.size(2) - q.size(2) if align_end else 0), None
    at_q, at_k = (torch.searchsorted(cu[1:], x, right=True) for cu, x in ((cu_q, i), (cu_k, j)))
    offset = (cu_k.diff() - cu_q.diff())[at_q] if align_end else 0
    i, j = i - cu_q[at_q], j - cu_k[at_k]
    return at_q, i, j, i + offset, at_q == at_k


def _visible(visible, pos, j, left, right):
    for limited, seen in ((left >= 0, lambda: j >= pos - left), (right >= 0, lambda: j <= pos + right)):
        if limited:
            visible = seen() if visible is None else visible & seen()
    return visible


def _numbers(B, H, at_q, i, j, max_q, max_k):
    """The number of each element of the probabilities, by which its random word is drawn."""
    b = torch.arange(B, device=i.device)[:, None, None, None] if at_q is None else at_q
    h = torch.arange(H, device=i.device)[:, None, None]
    return ((b * H + h) * max_q + i) * (4 * ((max_k + 3) // 4)) + j


def reference(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end,
              softcap, dropout_p):  # fmt: skip
    """The formula in plain torch, with the whole scores; arguments as the launchers'."""
    dtype = q.dtype
    (B, H), k_heads = q.shape[:2], k
    within = None
    if key_lengths is not None:  # what lies beyond may be anything, and 0 times NaN is not 0
        within = (torch.arange(k.size(2), device=q.device) < key_lengths[:, None])[:, None, None, :]
        k, v = (t.masked_fill(~within.mT, 0.0) for t in (k, v))
    q, k, v = _wide(q, *_heads(k, v, H))
    s = _scores(q, k, scale, softcap)
    at_q, i, j, pos, visible = _places(q, k_heads, cu_q, cu_k, align_end)
    if slopes is not None:
        slope = slopes[:, :, None, None] if at_q is None else slopes[at_q[:, 0]].mT[None, :, :, None]
        s = s - slope.to(s.dtype) * (pos - j).abs()
    visible = _visible(visible, pos, j, left, right)
    if within is not None:
        visible = within if visible is None else visible & within
    if bias is not None and bias.dtype != torch.bool:
        s = s + bias.to(s.dtype)
    elif bias is not None:
        visible = bias if visible is None else visible & bias
    if visible is not None:
        s = s.masked_fill(~visible, -math.inf)
    p = _softmax(s)
    if dropout_p == 1.0:
        p = p * 0.0
    elif dropout_p:
        keep = kept(seed, _numbers(B, H, at_q, i, j, max_q, max_k), dropout_p)
        p = (p / (1.0 - dropout_p)).masked_fill(~keep, 0.0)
    return (p @ v).to(dtype)


def reference_decode(q, k, v, lengths, block_table, slopes, scale, left, softcap):
    """The formula in plain torch; arguments as the launcher's."""
    dtype = q.dtype
    if block_table is not None:  # (blocks, Hkv, size, D) -> (B, Hkv, max_blocks * size, D)
        table = block_table.clamp(0, k.size(0) - 1)
        k, v = (t[table].transpose(1, 2).flatten(2, 3) for t in (k, v))
    j = torch.arange(k.size(2), device=q.device)
    beyond = (j >= lengths[:, None])[:, None, :, None]
    k, v = (t.masked_fill(beyond, 0.0) for t in (k, v))  # it may be anything, and 0 times NaN is not 0
    q, k, v = _wide(q, *_heads(k, v, q.size(1)))
    s = _scores(q, k, scale, softcap)
    i = torch.arange(q.size(2), device=q.device)[:, None]
    pos = (lengths[:, None, None] - q.size(2) + i)[:, None]
    if slopes is not None:
        s = s - slopes[:, :, None, None].to(s.dtype) * (pos - j).abs()
    s = s.masked_fill(~_visible(None, pos, j, left, 0), -math.inf)
    return (_softmax(s) @ v).to(dtype)
