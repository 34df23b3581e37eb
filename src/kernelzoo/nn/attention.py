"""torch.nn.MultiheadAttention over kernelzoo's linear and scaled_dot_product_attention."""

import torch

from ..ops.attention import scaled_dot_product_attention
from ..ops.linear import linear


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention: its arguments, state dict and results.

    With need_weights=False the scores are never held whole, in training and in evaluation alike: torch's inference
    fast path is not taken. A bool mask stays bool on the way to the kernel, and is_causal goes there as a flag.
    Where the weights are asked for, and with add_bias_kv, add_zero_attn, nested tensors, masks of two kinds or of
    another dtype, torch's own forward runs.
    """

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        if need_weights or not self._fits(query, key, value, key_padding_mask, attn_mask, is_causal):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batched = query.dim() == 3
        # strides of (batch, tokens, features), whichever comes first
        turn = batched and not self.batch_first
        q, k, v = self._projected(query, key, value)
        q, k, v = (self._heads(t if batched else t[None], turn) for t in (q, k, v))
        is_causal = is_causal and key_padding_mask is None  # else torch keeps attn_mask and ignores the hint
        mask = self._mask(key_padding_mask, None if is_causal else attn_mask, q, k)
        o = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal)
        o = o.permute(2, 0, 1, 3) if turn else o.transpose(1, 2)
        o = linear(o.flatten(2), self.out_proj.weight, self.out_proj.bias)
        return o if batched else o[0], None

    def _fits(self, query, key, value, key_padding_mask, attn_mask, is_causal):
        """Whether the code below serves these; torch's own serves, or says what is wrong with, the others."""
        if self.bias_k is not None or self.add_zero_attn or (is_causal and attn_mask is None):
            return False
        for t in (query, key, value):
            if (
                not isinstance(t, torch.Tensor)
                or t.is_nested
                or t.dim() not in (2, 3)
                or t.dim() != query.dim()
            ):
                return False
        if query.size(-1) != self.embed_dim or key.size(-1) != self.kdim or value.size(-1) != self.vdim:
            return False
        if key.shape[:-1] != value.shape[:-1]:
            return False
        if query.dim() == 2:
            (L, S), N, padding = (query.size(0), key.size(0)), 1, (key.size(0),)
        else:
            tokens, batch = (1, 0) if self.batch_first else (0, 1)
            L, S, N = query.size(tokens), key.size(tokens), query.size(batch)
            if key.size(batch) != N:
                return False
            padding = (N, S)
        masks = [m for m in (key_padding_mask, attn_mask) if m is not None]
        if any(not isinstance(m, torch.Tensor) or m.dtype not in (torch.bool, query.dtype) for m in masks):
            return False
        if len({m.dtype for m in masks}) > 1:
            return False
        if key_padding_mask is not None and tuple(key_padding_mask.shape) != padding:
            return False
        return attn_mask is None or tuple(attn_mask.shape) in ((L, S), (N * self.num_heads, L, S))

    def _projected(self, query, key, value):
        E, bias = self.embed_dim, self.in_proj_bias
        if not self._qkv_same_embed_dim:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            biases = (None,) * 3 if bias is None else bias.split(E)
            return [linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True)]
        weight = self.in_proj_weight
        if query is key and key is value:
            return linear(query, weight, bias).chunk(3, -1)
        sizes = (E, 2 * E) if key is value else (E, E, E)
        inputs = (query, key) if key is value else (query, key, value)
        biases = (None,) * len(sizes) if bias is None else bias.split(sizes)
        q, *kv = (linear(t, w, b) for t, w, b in zip(inputs, weight.split(sizes), biases, strict=True))
        return [q, *(kv[0].chunk(2, -1) if key is value else kv)]

    def _heads(self, t, turn):
        """(N, L, E), or (L, N, E) where turn, as (N, H, L, E / H)."""
        t = t.unflatten(-1, (self.num_heads, self.head_dim))
        return t.permute(1, 2, 0, 3) if turn else t.transpose(1, 2)

    def _mask(self, key_padding_mask, attn_mask, q, k):
        """Both masks as one of scaled_dot_product_attention's: there True takes part, here it is left out."""
        mask = None
        if key_padding_mask is not None:
            mask = key_padding_mask.view(-1, 1, 1, k.size(2))
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.view(q.size(0), self.num_heads, q.size(2), k.size(2))
            if mask is None:
                mask = attn_mask
            else:
                mask = mask | attn_mask if mask.dtype == torch.bool else mask + attn_mask
        return ~mask if mask is not None and mask.dtype == torch.bool else mask
