"""Attention's arguments: their errors, and the values of lengths and tables read before anything is launched."""

import itertools
import math

import torch
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from .core import ArgumentError, ArgumentTypeError
from .core.checks import same_device, same_dtype
from .core.registry import PLAIN

WHOLE = (torch.int32, torch.int64)


def tensors(function, **named):
    """The first is a tensor and so are the others, on its device; False where torch.fx gave a proxy."""
    first_name, first = None, None
    for name, t in named.items():
        if not isinstance(t, torch.Tensor):
            if hasattr(t, "__torch_function__"):
                return False
            raise ArgumentTypeError(f"{function}: {name} must be a Tensor, got {type(t).__name__}")
        if first is None:
            first_name, first = name, t
        same_device(function, name, t, first_name, first)
    return True


def dtypes(function, autocast, **named):
    """Floating, and one dtype for all unless autocast is about to give them one."""
    (first_name, first), *others = named.items()
    for name, t in others:
        if autocast is None or torch.float64 in (t.dtype, first.dtype):
            same_dtype(function, name, t, first_name, first)


def number(function, name, value, least=None):
    """A float; torch's own type for another."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise ArgumentTypeError(f"{function}: {name} must be float, not {type(value).__name__}")
    if least is not None and not value >= least:
        raise ArgumentError(f"{function}: {name} must be at least {least:g}, got {value!r}")
    return value if isinstance(value, (torch.SymFloat, torch.SymInt)) else float(value)


def probability(function, value):
    value = number(function, "dropout_p", value)
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(f"{function}: dropout probability has to be between 0 and 1, but got {value}")
    return value


def flag(function, name, value):
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{function}: {name} must be bool, not {type(value).__name__}")


def softcap_of(function, value):
    """0.0 for none."""
    if value is None:
        return 0.0
    value = number(function, "softcap", value)
    if not 0.0 <= value < math.inf:
        raise ArgumentError(f"{function}: softcap must be a positive number or None, got {value}")
    return value


def scale_of(function, scale, features):
    """scale, or 1/√E."""
    if scale is not None:
        return number(function, "scale", scale)
    return 1.0 / math.sqrt(features) if features else 1.0


def window_of(function, window, is_causal):
    """(left, right), -1 for no limit; causal is a right side of 0."""
    left = right = -1
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise ArgumentTypeError(f"{function}: window must be (left, right) or None, got {window!r}")
        sides = []
        for name, side in zip(("left", "right"), window, strict=True):
            if side is None:
                side = -1
            if isinstance(side, bool) or not isinstance(side, (int, torch.SymInt)):
                raise ArgumentTypeError(f"{function}: window's {name} side must be int or None, got {side!r}")
            if side < -1:
                raise ArgumentError(
                    f"{function}: window's {name} side is {side}; expected how many keys, or -1 for no limit"
                )
            # no tensor is so long, and positions and sides added up stay within 32 bits
            sides.append(-1 if side >= 2**30 else side)
        left, right = sides
    return left, 0 if is_causal else right


def slopes_of(function, slopes, batch, heads, like):
    """ALiBi's slopes as float32 (batch, heads)."""
    if slopes is None:
        return None
    if not isinstance(slopes, torch.Tensor):
        raise ArgumentTypeError(f"{function}: alibi_slopes must be a Tensor, got {type(slopes).__name__}")
    same_device(function, "alibi_slopes", slopes, "the query", like)
    if not slopes.is_floating_point():
        raise ArgumentTypeError(f"{function}: alibi_slopes must be floating, got {slopes.dtype}")
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ArgumentError(
            f"{function}: alibi_slopes has shape {tuple(slopes.shape)}; "
            f"expected ({heads},), one for each head, or ({batch}, {heads})"
        )
    return slopes.float().expand(batch, heads)


def whole(function, name, t, shape, like):
    """A tensor of whole numbers of this shape, where None is any size."""
    if not isinstance(t, torch.Tensor):
        raise ArgumentTypeError(f"{function}: {name} must be a Tensor, got {type(t).__name__}")
    same_device(function, name, t, "the query", like)
    if t.dtype not in WHOLE:
        raise ArgumentTypeError(f"{function}: {name} must be int32 or int64, got {t.dtype}")
    if len(shape) != t.dim() or any(n is not None and n != m for n, m in zip(shape, t.shape, strict=True)):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise ArgumentError(
            f"{function}: {name} has shape {tuple(t.shape)}; expected ({expected}{',' * (len(shape) == 1)})"
        )


def int32(t):
    """As the launchers take indices: their addresses alone go to a kernel."""
    return t.to(torch.int32).contiguous()


_known = WeakTensorKeyDictionary()


def values(t, question, read, also=None):
    """read(), what it says of the values of t (and of another tensor); None where nothing can be read.

    On a GPU a look at values waits for the device: there each tensor is asked once for each version of it, as a
    model's layers all give the same lengths.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    both = (t,) if also is None else (t, also)
    if any(type(x) not in PLAIN or x.device.type == "meta" for x in both):
        return None
    if not t.is_cuda or any(x.is_inference() for x in both):
        return read()
    if torch.cuda.is_current_stream_capturing():
        return None
    stamp = tuple((WeakIdRef(x), x._version) for x in both)
    answers = _known.setdefault(t, {})
    if answers.get(question, (None,))[0] != stamp:
        answers[question] = (stamp, read())
    return answers[question][1]


def between(function, name, t, least, most, meaning):
    """The values of t lie in [least, most]."""

    def read():
        found = t.tolist()
        return min(found, default=least), max(found, default=least)

    found = values(t, "ends", read)
    if found is not None and (found[0] < least or found[1] > most):
        wrong = found[0] if found[0] < least else found[1]
        raise ArgumentError(f"{function}: {name} holds {wrong}; expected {least} to {most}, {meaning}")


def cumulative(function, name, t, total):
    """The longest sequence of cumulative lengths that run from 0 to total, or None where values cannot be read."""
    found = values(t, "cumulative", t.tolist)
    if found is None:
        return None
    lengths = [b - a for a, b in itertools.pairwise(found)]
    if not lengths or found[0] != 0 or found[-1] != total or min(lengths) < 0:
        shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        raise ArgumentError(
            f"{function}: {name} is [{shown}]; expected lengths added up from 0 to {total}, the number of rows"
        )
    return max(lengths)


def blocks(function, table, lengths, size, count):
    """Each block that a sequence reaches is one of the cache's."""

    def read():
        used = torch.arange(table.size(1), device=table.device) * size < lengths[:, None]
        return table[used & ((table < 0) | (table >= count))].tolist()

    if wrong := values(table, ("blocks", size, count), read, lengths):
        raise ArgumentError(
            f"{function}: block_table points to block {wrong[0]}, which a sequence reaches; "
            f"expected 0 to {count - 1}, as the cache has {count} blocks"
        )


def lengths_of_keys(function, key_lengths, batch, length, like):
    if key_lengths is None:
        return None
    whole(function, "key_lengths", key_lengths, (batch,), like)
    between(function, "key_lengths", key_lengths, 0, length, "the number of keys")
    return int32(key_lengths)


def shapes(function, q, k, v, enable_gqa):
    """Raise what is wrong with the shapes of query (..., H, L, E), key (..., Hkv, S, E), value (..., Hkv, S, Ev)."""
    if q.dim() < 2 or k.dim() < 2 or v.dim() < 2:
        raise ArgumentError(
            f"{function}: Expected query, key, and value to all be at least 2 dimensional, but got "
            f"query.dim: {q.dim()} key.dim: {k.dim()} and value.dim: {v.dim()} instead"
        )
    if q.size(-1) != k.size(-1):
        raise ArgumentError(
            f"{function}: key has {k.size(-1)} features a head but query has {q.size(-1)}; "
            f"expected key of shape (..., S, {q.size(-1)}), got {tuple(k.shape)}"
        )
    if k.size(-2) != v.size(-2):
        raise ArgumentError(
            f"{function}: value has {v.size(-2)} positions but key has {k.size(-2)}; "
            f"expected value of shape (..., {k.size(-2)}, Ev), got {tuple(v.shape)}"
        )
    if enable_gqa:
        if min(q.dim(), k.dim(), v.dim()) < 3:
            raise ArgumentError(
                f"{function}: enable_gqa needs a dimension of heads; expected shapes (..., H, L, E), got "
                f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
            )
        for name, t in (("key", k), ("value", v)):
            if t.size(-3) == 0 or q.size(-3) % t.size(-3):
                raise ArgumentError(
                    f"{function}: {name} has {t.size(-3)} heads, which does not divide query's {q.size(-3)}; "
                    f"Number of heads in key and value must divide the number of heads in query"
                )
    leads = [t.shape[: -3 if enable_gqa else -2] for t in (q, k, v)]
    try:
        torch.broadcast_shapes(*leads)
    except RuntimeError:
        hint = "; set enable_gqa=True for heads that share keys" if not enable_gqa else ""
        raise ArgumentError(
            f"{function}: the batch dimensions of query {tuple(q.shape)}, key {tuple(k.shape)} and value "
            f"{tuple(v.shape)} do not broadcast{hint}"
        ) from None


def mask(function, m, q, shape, autocast):
    """Raise what is wrong with a mask; shape: the scores', (..., L, S)."""
    same_device(function, "attn_mask", m, "query", q)
    same = m.dtype in (torch.bool, q.dtype, torch.float32) or autocast is not None
    if not same or not (m.dtype == torch.bool or m.is_floating_point()):
        raise ArgumentTypeError(
            f"{function}: Expected attn_mask dtype to be bool or float or to match query dtype, but got "
            f"attn_mask.dtype: {m.dtype} and query.dtype: {q.dtype} instead"
        )
    fits = 2 <= m.dim() <= len(shape) and all(
        n in (1, size) for n, size in zip(reversed(m.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ArgumentError(
            f"{function}: attn_mask of shape {tuple(m.shape)} does not broadcast to the scores' shape "
            f"{tuple(shape)}; expected (L, S) or more dimensions, each 1 or the scores' own"
        )


def packed(function, q, k, v):
    """Shapes of (Tq, H, D), (Tk, Hkv, D), (Tk, Hkv, Dv)."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.is_nested or t.dim() != 3:
            what = "a nested tensor" if t.is_nested else f"shape {tuple(t.shape)}"
            raise ArgumentError(f"{function}: {name} has {what}; expected (tokens, heads, features)")
    if not q.is_floating_point():
        raise ArgumentTypeError(f"{function}: q has dtype {q.dtype}; expected a floating one")
    if k.shape[:2] != v.shape[:2]:
        raise ArgumentError(
            f"{function}: k has shape {tuple(k.shape)} and v {tuple(v.shape)}; expected the same tokens and heads"
        )
    _heads_and_features(function, "k", q, k, q.size(1), k.size(1))


def _heads_and_features(function, name, q, k, heads, kv_heads):
    if q.size(-1) != k.size(-1):
        raise ArgumentError(
            f"{function}: {name} has {k.size(-1)} features a head but q has {q.size(-1)}; got shapes "
            f"{tuple(k.shape)} and {tuple(q.shape)}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ArgumentError(
            f"{function}: {name} has {kv_heads} heads, which does not divide q's {heads}; "
            f"expected a number of heads that {heads} is a multiple of"
        )


def sequences(function, side, cu, most, rows):
    """The longest sequence of cumulative lengths, as given or as read."""
    name = f"cu_seqlens_{side}"
    whole(function, name, cu, (None,), rows)
    if cu.size(0) < 2:
        raise ArgumentError(
            f"{function}: {name} has {cu.size(0)} elements; expected (sequences + 1,), at least 2"
        )
    longest = cumulative(function, name, cu, rows.size(0))
    if most is None:
        return rows.size(0) if longest is None else longest
    if isinstance(most, bool) or not isinstance(most, (int, torch.SymInt)):
        raise ArgumentTypeError(f"{function}: max_seqlen_{side} must be int or None, got {most!r}")
    if longest is not None and most < longest:
        raise ArgumentError(
            f"{function}: max_seqlen_{side} is {most} but {name} holds a sequence of {longest}; expected at least that"
        )
    return most


def caches(function, q, k, v, lengths, block_table):
    """Shapes of (B, H, Lq, D), (B, Hkv, S, D), (B, Hkv, S, Dv), or pages; lengths within; blocks inside."""
    for name, t in (("q", q), ("k_cache", k), ("v_cache", v)):
        if t.is_nested or t.dim() != 4:
            what = "a nested tensor" if t.is_nested else f"shape {tuple(t.shape)}"
            raise ArgumentError(f"{function}: {name} has {what}; expected four dimensions")
    if not q.is_floating_point():
        raise ArgumentTypeError(f"{function}: q has dtype {q.dtype}; expected a floating one")
    if k.shape[:3] != v.shape[:3]:
        raise ArgumentError(
            f"{function}: k_cache has shape {tuple(k.shape)} and v_cache {tuple(v.shape)}; "
            f"expected the same but for the features"
        )
    _heads_and_features(function, "k_cache", q, k, q.size(1), k.size(1))
    B = q.size(0)
    whole(function, "lengths", lengths, (B,), q)
    if block_table is None:
        if k.size(0) != B:
            raise ArgumentError(
                f"{function}: k_cache has {k.size(0)} sequences but q has {B}; expected ({B}, Hkv, S, D), "
                f"or a block_table"
            )
    else:
        whole(function, "block_table", block_table, (B, None), q)
    cached(function, k, lengths, block_table)


def cached(function, k, lengths, block_table):
    """Lengths within the cache, blocks inside it."""
    if block_table is None:
        between(function, "lengths", lengths, 0, k.size(2), "what the cache holds of a sequence")
        return
    between(
        function, "lengths", lengths, 0, block_table.size(1) * k.size(2),
        "what the block_table's blocks hold of a sequence",
    )  # fmt: skip
    blocks(function, block_table, lengths, k.size(2), k.size(0))
