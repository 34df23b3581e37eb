"""Attention: O = dropout(softmax(scale Q Kᵀ, capped, biased, masked)) V, with memory that grows with the sequence only.

The scores are never held whole. The forward goes over blocks of keys with a running maximum and sum (T. Dao et al.,
FlashAttention, arXiv:2205.14135; M. Milakov and N. Gimelshein, arXiv:1805.02867) and saves each row's log of
the sum, L; the backward computes P = exp(S - L) again: with Δ = Σ dO O over features,
dV = Pᵀ dO, dS = P (dO Vᵀ - Δ), dQ = scale dS K, dK = scale dSᵀ Q, and dbias = dS.
"""

import math

import torch
from torch.nn import functional as T

from . import attention_checks as check
from .attention_formula import reference
from .core import ArgumentError, KernelFunction, autocast_dtype, below, choice, define, draw_seed
from .core.function import transform
from .core.registry import PLAIN

MAX_FEATURES = 256  # of a head, in the kernels


def too_wide(q, v):
    """Why no kernel takes these heads, or None."""
    if q.size(3) > MAX_FEATURES or v.size(3) > MAX_FEATURES:
        return f"heads of more than {MAX_FEATURES} features have no kernel"
    return None


def dense(t):
    """t as the launchers take it: any strides but the last."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _like_heads(t, B, H, L, D):
    """A new tensor of shape (B, H, L, D), laid out as (B, L, H, D), whose heads join without a copy."""
    return t.new_empty(B, L, H, D).transpose(1, 2)


def _prepare_fwd(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, *rest):
    if cu_q is not None and q.is_cpu:  # a compiled call looks at no values before it runs
        for side, cu, most, t in (("q", cu_q, max_q, q), ("k", cu_k, max_k, k)):
            check.sequences("attention_varlen", side, cu, most, t[0].transpose(0, 1))
    rest = (slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, *rest)
    if bias is not None:
        bias = bias.expand(q.size(0), q.size(1), q.size(2), k.size(2))
    return dense(q), dense(k), dense(v), bias, *rest


def _prepare_bwd(do, q, k, v, o, lse, bias, *rest):
    if bias is not None:
        bias = bias.expand(q.size(0), q.size(1), q.size(2), k.size(2))
    return dense(do), dense(q), dense(k), dense(v), dense(o), lse.contiguous(), bias, *rest


def _fake_fwd(q, k, v, *_):
    B, H, Lq, _ = q.shape
    acc = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _like_heads(q, B, H, Lq, v.shape[3]), q.new_empty(B, H, Lq, dtype=acc)


def _fake_bwd(do, q, k, v, o, lse, bias, *rest):
    *need, need_dbias, packed = rest[-5:]
    if packed:
        B, H, L, D = q.shape
        grads = _like_heads(q, B, H + 2 * k.shape[1], L, D), None, None
    else:
        grads = [
            _like_heads(t, *t.shape) if wanted else None for t, wanted in zip((q, k, v), need, strict=True)
        ]
    return (*grads, bias.new_empty(bias.shape) if need_dbias else None)


_OPTIONS = (
    "Tensor? slopes, Tensor? key_lengths, Tensor? cu_q, Tensor? cu_k, Tensor? seed, SymInt max_q, SymInt max_k, "
    "float scale, SymInt left, SymInt right, bool align_end, float softcap, float dropout_p"
)
# bias: here as given, with sizes of 1 where it is broadcast; the launchers get the view of the scores' shape
attention_fwd = define(
    f"attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? bias, {_OPTIONS}) -> (Tensor, Tensor)",
    "attention",
    fake=_fake_fwd,
    prepare=_prepare_fwd,
)
attention_bwd = define(
    f"attention_bwd(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? bias, {_OPTIONS}, "
    "bool need_dq, bool need_dk, bool need_dv, bool need_dbias, bool packed) -> (Tensor, Tensor, Tensor, Tensor)",
    "attention",
    fake=_fake_bwd,
    prepare=_prepare_bwd,
)


# ---- heads that one product gave together


def _joined(parts):
    """The tensor whose heads (dimension 1) are the parts' in order, where they lie so in memory, else None."""
    first, at, heads = parts[0], parts[0].storage_offset(), 0
    storage, step = first.untyped_storage().data_ptr(), first.stride(1)
    for t in parts:
        place = t.untyped_storage().data_ptr(), t.storage_offset(), t.stride(), t.dtype
        if place != (storage, at + heads * step, first.stride(), first.dtype):
            return None
        if (t.size(0), *t.shape[2:]) != (first.size(0), *first.shape[2:]):
            return None
        heads += t.size(1)
    return first.as_strided((first.size(0), heads, *first.shape[2:]), first.stride(), at)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, heads):
        return t.split(heads, 1)

    @staticmethod
    def backward(ctx, *grads):
        # a graph of the gradients (create_graph) must lead to each of them
        whole = None if torch.is_grad_enabled() else _joined(grads)
        return torch.cat(grads, 1) if whole is None else whole, None


def split_heads(t, heads):
    """t (B, H, L, D) as its first heads[0] heads, the next heads[1], ...: views, as t.split(heads, 1) gives.

    attention's backward writes the gradients of q, k and v that lie together into one tensor, which here becomes t's
    gradient as it is, where split's would copy them (GPT-2 of 6 layers, 384 wide, 2048 tokens: 7 ms of a step).
    """
    if torch.compiler.is_compiling() or transform() or type(t) not in PLAIN or not t.requires_grad:
        return t.split(heads, 1)
    return _SplitHeads.apply(t, heads)


# ---- the Function


class AttentionFunction(KernelFunction):
    """Saved for the backward: q, k, v, the mask, the output, L (a float32 a row), and dropout's seed."""

    module = "attention"
    mixed = True

    @staticmethod
    def label(q, k, v, bias, slopes, key_lengths, cu_q, *_):
        return "scaled_dot_product_attention" if cu_q is None else "attention_varlen"

    @staticmethod
    def formula(*args):
        return reference(*args)

    @classmethod
    def torch_call(cls, *args):
        if transform() or not _torchs_own(*args):  # torch's own has no forward-mode derivative
            return reference(*args)
        q, k, v, bias, *_, scale, _, right, _, _, dropout_p = args
        return T.scaled_dot_product_attention(
            q, k, v, bias, dropout_p, right == 0, scale=scale, enable_gqa=q.size(1) != k.size(1)
        )

    @staticmethod
    def unserved(q, k, v, bias, slopes, *rest):
        if reason := too_wide(q, v):
            return reason
        if bias is not None and bias.dtype not in (torch.bool, q.dtype):
            return f"a mask of {bias.dtype} beside {q.dtype} has no kernel"
        if slopes is not None and slopes.requires_grad and torch.is_grad_enabled():
            return "the slopes' gradient is the formula's"
        return "a dropout of 1 leaves nothing to compute" if rest[-1] == 1.0 else None

    @staticmethod
    def rule(*args):
        if not _torchs_own(*args):
            return None
        return _torchs_own_wins(*args)

    @staticmethod
    def forward(ctx, q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, *rest):
        *options, backend = rest
        o, lse = attention_fwd(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, *options, backend)
        if (
            not torch.compiler.is_compiling() and o._is_view()
        ):  # the launcher's (B, L, H, D): users may write to a result in place
            o = torch.empty(0, dtype=o.dtype, device=o.device).set_(o)
        ctx.save_for_backward(q, k, v, o, lse, bias, slopes, key_lengths, cu_q, cu_k, seed)
        ctx.options, ctx.backend = options, backend
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse, *others = ctx.saved_tensors
        need = ctx.needs_input_grad[:4]
        packed = all(need[:3]) and not torch.compiler.is_compiling() and _joined((q, k, v)) is not None
        grads = attention_bwd(do, q, k, v, o, lse, *others, *ctx.options, *need, packed, ctx.backend)
        if not packed:
            return grads
        return *grads[0].split((q.size(1), k.size(1), k.size(1)), 1), grads[3]

    @staticmethod
    def inputs(ctx):
        q, k, v, _, _, *others = ctx.saved_tensors
        return (q, k, v, *others, *ctx.options)


def _torchs_own(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, max_q, max_k, scale, left, right, align_end,
                softcap, dropout_p):  # fmt: skip
    """Whether torch's scaled_dot_product_attention has all that these arguments ask for."""
    extras = slopes is not None or key_lengths is not None or cu_q is not None or seed is not None
    return not (extras or softcap or left >= 0 or right > 0 or (bias is not None and right == 0))


# "auto" on a CPU, forward and backward together, C++ over torch on one core, B x H x L x 64. In 32 bits 2x4x64: 1.04
# causal, 0.86 whole; 2x4x128: 1.23, 0.93; 2x6x256: 1.15, 1.02; 1x8x512: 1.6, 1.28. In 16 bits 1x2x32: 1.03; 2x4x64:
# 2.5; 1x8x512: 2 to 4.7 (float16 2x4x128: 29). float64 2x4x128 causal: 2.0.
SMALL, SMALL_CAUSAL, SMALL_16 = 1 << 19, 1 << 17, 1 << 14


def _small(q, k, causal):
    """Whether a CPU has so few scores to compute that a call's fixed cost is not won back."""
    limit = SMALL_16 if q.dtype.itemsize == 2 else SMALL_CAUSAL if causal else SMALL
    return below(q.numel() * k.size(-2), limit * q.size(-1))


def _torchs_own_wins(q, k, v, *rest):
    if q.device.type != "cpu":
        return "torch's own kernel holds no scores either; no GPU has been measured yet"
    if _small(q, k, rest[-4] == 0):
        return "few scores on a CPU"
    if choice.automatic("attention", "cpu", q.dtype) != "cpp":
        return "of the kernels for a CPU only the C++ one is faster than torch's"
    return None


# ---- the public functions


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    window=None,
    softcap=None,
    alibi_slopes=None,
    key_lengths=None,
):
    """softmax(scale Q Kᵀ + mask) V: torch.nn.functional.scaled_dot_product_attention, and what long-context models add.

    Args:
        query: Q, of shape (..., H, L, E).
        key, value: K, V, of shapes (..., Hkv, S, E) and (..., Hkv, S, Ev). Leading dimensions broadcast; the
            dimension of heads may be missing.
        attn_mask: bool (True takes part) or float (added to the scores), broadcastable to (..., H, L, S).
        dropout_p: the probability with which a weight is dropped; applied whenever it is above 0.
        is_causal: query i sees keys 0 ... i, both counted from the first (with attn_mask: both hold).
        scale: of Q Kᵀ; 1/√E unless given.
        enable_gqa: Hkv may divide H; H / Hkv heads in a row share one of keys and values.
        window: (left, right): query i sees keys i - left ... i + right; None or -1: no limit on that side.
        softcap: c > 0: the scaled scores s become c tanh(s / c), before slopes and mask.
        alibi_slopes: m, of shape (H,) or (B, H): m |i - j| is taken off the scores (O. Press et al., Train short,
            test long, arXiv:2108.12409).
        key_lengths: (B,), whole numbers: of sequence b only the first key_lengths[b] keys are seen. B is the
            product of the leading dimensions.

    Returns:
        O, of shape (..., H, L, Ev), in the arguments' dtype (autocast's under torch.autocast). A row that sees no
        key is 0, and so are its gradients.

    float64, float32, bfloat16 and float16 run on kernels for heads of up to 256 features; scores, sums and the
    product with V are accumulated in float32 (float64 for float64). Where torch's own kernel is the faster one for
    the shape and none of the extras is used, "auto" takes that. NaN at a key that a row does not see may or may
    not reach the row, as in torch. alibi_slopes that ask for a gradient run the formula.

    Saved for the backward: Q, K, V, the mask, O, a float32 for each row, and dropout's seed, which is drawn from
    torch's generator: every backend drops the same weights for it. The extra memory of both passes grows with L and
    S, not with their product. Sources: T. Dao et al., FlashAttention, arXiv:2205.14135; T. Dao, FlashAttention-2,
    arXiv:2307.08691.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): shapes, devices, masks, lengths that do not fit.
        ArgumentTypeError (a TypeError and a RuntimeError): dtypes that do not fit, arguments of another type.
    """
    name = "scaled_dot_product_attention"

    def torchs_own():
        return T.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    extras = window is not None or softcap is not None or alibi_slopes is not None or key_lengths is not None
    refused = None
    if not extras and not (is_causal and attn_mask is not None) and _at_once(query, key, value, is_causal):
        try:
            return torchs_own()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            refused = error  # what is wrong is said below
    if not check.tensors(name, query=query, key=key, value=value) or (
        attn_mask is not None and not check.tensors(name, attn_mask=attn_mask)
    ):  # torch.fx
        return torchs_own()
    check.flag(name, "is_causal", is_causal)
    check.flag(name, "enable_gqa", enable_gqa)
    dropout_p = check.probability(name, dropout_p)
    odd = query.is_nested or key.is_nested or value.is_nested or not query.is_floating_point()
    if odd and not extras:
        return torchs_own()
    if odd:
        raise ArgumentError(
            f"{name}: window, softcap, alibi_slopes and key_lengths take plain floating tensors, "
            f"got {'nested ones' if query.dtype.is_floating_point else query.dtype}"
        )
    to = autocast_dtype(query)
    check.dtypes(name, to, query=query, key=key, value=value)
    check.shapes(name, query, key, value, enable_gqa)
    q, k, v, lead = _four_dimensions(query, key, value, enable_gqa)
    (B, H, L, E), S = q.shape, k.size(2)
    bias = attn_mask
    if bias is not None:
        check.mask(name, bias, q, (*lead, L, S), to)
        bias = _four_dimensional_mask(bias, lead, q, S)
    left, right = check.window_of(name, window, is_causal)
    softcap = check.softcap_of(name, softcap)
    slopes = check.slopes_of(name, alibi_slopes, B, H, q)
    key_lengths = check.lengths_of_keys(name, key_lengths, B, S, q)
    options = (L, S, check.scale_of(name, scale, E), left, right, False, softcap, dropout_p)
    if refused is not None:  # by torch, for no reason of the arguments; it may have drawn random numbers
        raise refused
    y = _attend(to, q, k, v, bias, slopes, key_lengths, None, None, options)
    return y if y.dim() == len(lead) + 2 == 4 else y.reshape(*lead, L, v.size(3))


def _at_once(q, k, v, is_causal):
    """Whether "auto" surely leaves the call to torch: a small one then costs 3 us more, not 30."""
    if choice.state.chosen != "auto" or choice.state.calls is not None or torch.compiler.is_compiling():
        return False
    if type(q) not in PLAIN or type(k) not in PLAIN or type(v) not in PLAIN or transform():
        return False
    if (
        q.dim() < 2 or k.dim() < 2 or v.dim() < 2 or k.size(-2) != v.size(-2)
    ):  # which torch may take, and misread
        return False
    return not q.is_cpu or _small(q, k, is_causal)


def _attend(to, q, k, v, bias, slopes, key_lengths, cu_q, cu_k, options):
    """The call of the Function with autocast's casts made (slopes stay float32) and the seed drawn."""
    seed, dropout_p = None, options[-1]
    if 0.0 < dropout_p < 1.0:
        plain = (q, k, v, bias, slopes, key_lengths, cu_q, cu_k, None, *options)
        # a transform runs the formula, which draws by the seed as the kernels do
        if choice.state.chosen != "auto" or transform() or AttentionFunction.rule(*plain) is None:
            seed = draw_seed(q)
    if to is not None:
        q, k, v, bias = (
            t if t is None or t.dtype in (to, torch.bool, torch.float64) else t.to(to)
            for t in (q, k, v, bias)
        )
    if torch.compiler.is_compiling():  # which takes no tensor twice into a Function
        k, v = k.view_as(k), v.view_as(v)
        cu_k = cu_k if cu_k is None else cu_k.view_as(cu_k)
    return AttentionFunction.call(q, k, v, bias, slopes, key_lengths, cu_q, cu_k, seed, *options)


def _four_dimensions(q, k, v, enable_gqa):
    """Query, key and value as (B, H, L, E), (B, Hkv, S, E), (B, Hkv, S, Ev), and the result's leading dimensions."""
    if q.dim() == k.dim() == v.dim() == 4:
        shared = k.size(1) == v.size(1) and (enable_gqa or q.size(1) == k.size(1))
        if shared and q.size(0) == k.size(0) == v.size(0):
            return q, k, v, q.shape[:2]
    if enable_gqa:
        heads = math.lcm(k.size(-3), v.size(-3))  # divides the queries', as both do
        k, v = (t if t.size(-3) == heads else t.repeat_interleave(heads // t.size(-3), -3) for t in (k, v))
        batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
        leads = [(*batch, t.size(-3)) for t in (q, k, v)]
    else:
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        leads = [lead] * 3
    lead = leads[0]
    sizes = [(math.prod(each[:-1]), each[-1] if each else 1) for each in leads]
    q, k, v = (
        t.expand(*each, *t.shape[-2:]).reshape(*size, *t.shape[-2:])
        for t, each, size in zip((q, k, v), leads, sizes, strict=True)
    )
    return q, k, v, lead


def _four_dimensional_mask(m, lead, q, S):
    """A mask of four dimensions, of size 1 where it is broadcast."""
    if len(lead) > 2 and math.prod(m.shape[:-3]) > 1:
        m = m.expand(*lead[:-1], *m.shape[-3:]).reshape(-1, *m.shape[-3:])
    while m.dim() > 4:
        m = m.squeeze(0)
    m = m[(None,) * (4 - m.dim())]
    if m.requires_grad and any(n > 1 and step == 0 for n, step in zip(m.shape, m.stride(), strict=True)):
        m = m.contiguous()  # each element of an expanded mask has a gradient of its own
    return m


def attention_varlen(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    *,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
):
    """Attention within each of several sequences that stand one after another, without padding.

    Args:
        q: (Tq, H, D). k, v: (Tk, Hkv, D) and (Tk, Hkv, Dv); Hkv divides H.
        cu_seqlens_q, cu_seqlens_k: (B + 1,), int32 or int64: sequence b is rows cu[b] ... cu[b + 1] - 1.
        max_seqlen_q, max_seqlen_k: at least the longest sequence; read from the cumulative lengths unless given,
            for which a GPU is waited for.
        is_causal, window, alibi_slopes: as scaled_dot_product_attention's, but query i of a sequence stands at
            i + Lk - Lq among its keys: the last query at the last key.
        dropout_p, scale, softcap: as scaled_dot_product_attention's.

    Returns:
        (Tq, H, Dv). Saved for the backward, accuracy and errors: as scaled_dot_product_attention; cumulative lengths
        that do not rise from 0 to the number of rows are an ArgumentError (on a GPU they are read once for each
        tensor, and not while a graph is captured).
    """
    name = "attention_varlen"
    for argument, t in (("q", q), ("k", k), ("v", v)):
        if not check.tensors(name, **{argument: t}):
            raise ArgumentError(
                f"{name}: {argument} is a proxy of torch.fx, which this function does not take"
            )
    check.tensors(name, q=q, k=k, v=v)
    to = autocast_dtype(q)
    check.dtypes(name, to, q=q, k=k, v=v)
    check.packed(name, q, k, v)
    check.flag(name, "is_causal", is_causal)
    dropout_p = check.probability(name, dropout_p)
    cu, longest = [], []
    for side, given, most, rows in (
        ("q", cu_seqlens_q, max_seqlen_q, q),
        ("k", cu_seqlens_k, max_seqlen_k, k),
    ):
        found = check.sequences(name, side, given, most, rows)
        cu.append(check.int32(given))
        longest.append(found)
    if cu[0].size(0) != cu[1].size(0):
        raise ArgumentError(
            f"{name}: cu_seqlens_q holds {cu[0].size(0) - 1} sequences and cu_seqlens_k {cu[1].size(0) - 1}"
        )
    left, right = check.window_of(name, window, is_causal)
    B, H = cu[0].size(0) - 1, q.size(1)
    options = (
        *longest,
        check.scale_of(name, scale, q.size(2)),
        left,
        right,
        True,
        check.softcap_of(name, softcap),
        dropout_p,
    )
    slopes = check.slopes_of(name, alibi_slopes, B, H, q)
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    return _attend(to, q, k, v, None, slopes, None, *cu, options)[0].transpose(0, 1)
