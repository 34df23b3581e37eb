"""torch.nn's transformer layers, their inner modules kernelzoo's."""

import functools
import inspect

import torch
from torch.nn import functional as T

from ..ops import activation as ops
from ..ops.linear import linear
from .attention import MultiheadAttention
from .dropout import Dropout
from .linear import Linear
from .norm import LayerNorm


def _adopt(module):
    """Makes torch's modules inside a module kernelzoo's, which have the same attributes: torch's own constructor has
    drawn their values."""
    for child in module.modules():
        if ours := _OURS.get(type(child)):
            child.__class__ = ours
            if ours is Linear:
                child.act = None


def _plain(module, cls):
    """Whether calling the module is calling its function: not a subclass, no hooks."""
    return type(module) is cls and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _name(activation):
    """The activation as `linear` fuses it, or None."""
    if activation in (T.relu, ops.relu) or isinstance(activation, torch.nn.ReLU):
        return "relu"
    if activation in (T.gelu, ops.gelu):
        return "gelu"
    if isinstance(activation, torch.nn.GELU):
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    return None


def _hidden(layer, x):
    """dropout(activation(linear1(x))), with the activation fused into the product where it can be."""
    name = _name(layer.activation)
    if name and _plain(layer.linear1, Linear):
        return layer.dropout(linear(x, layer.linear1.weight, layer.linear1.bias, act=name))
    return layer.dropout(layer.activation(layer.linear1(x)))


def _sum_norm(norm, branch, x):
    """(norm(s), s), s = x + branch, in one pass."""
    if _plain(norm, LayerNorm):
        return norm(branch, residual=x)
    s = x + branch
    return norm(s), s


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer: its arguments, state dict and results; relu and gelu are fused into
    linear1, each residual sum into the norm after it.

    Evaluation runs the same code as training: torch's inference fast path is taken only for nested tensors (as
    torch.nn.TransformerEncoder makes of a padding mask in evaluation), which nothing else computes.
    """

    @functools.wraps(torch.nn.TransformerEncoderLayer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _adopt(self)

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        if src.is_nested:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            branch = self._sa_block(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            y, x = _sum_norm(self.norm2, branch, src)
            return x + self._ff_block(y)
        branch = self._sa_block(src, src_mask, src_key_padding_mask, is_causal)
        x, _ = _sum_norm(self.norm1, branch, src)
        return _sum_norm(self.norm2, self._ff_block(x), x)[0]

    def _ff_block(self, x):
        return self.dropout2(self.linear2(_hidden(self, x)))


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """torch.nn.TransformerDecoderLayer: its arguments, state dict and results; relu and gelu are fused into
    linear1, each residual sum into the norm after it."""

    @functools.wraps(torch.nn.TransformerDecoderLayer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _adopt(self)

    def forward(
        self,
        tgt,
        memory,
        tgt_mask=None,
        memory_mask=None,
        tgt_key_padding_mask=None,
        memory_key_padding_mask=None,
        tgt_is_causal=False,
        memory_is_causal=False,
    ):
        mine = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        theirs = (memory, memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            y, x = _sum_norm(self.norm2, self._sa_block(self.norm1(tgt), *mine), tgt)
            y, x = _sum_norm(self.norm3, self._mha_block(y, *theirs), x)
            return x + self._ff_block(y)
        x, _ = _sum_norm(self.norm1, self._sa_block(tgt, *mine), tgt)
        x, _ = _sum_norm(self.norm2, self._mha_block(x, *theirs), x)
        return _sum_norm(self.norm3, self._ff_block(x), x)[0]

    def _ff_block(self, x):
        return self.dropout3(self.linear2(_hidden(self, x)))


class TransformerEncoder(torch.nn.TransformerEncoder):
    """torch.nn.TransformerEncoder: copies of the layer that it is given, run one after another."""


class TransformerDecoder(torch.nn.TransformerDecoder):
    """torch.nn.TransformerDecoder: copies of the layer that it is given, run one after another."""


class Transformer(torch.nn.Transformer):
    """torch.nn.Transformer: its arguments, state dict and results, of kernelzoo's layers (A. Vaswani et al., Attention
    Is All You Need, arXiv:1706.03762). A custom encoder or decoder stays as it is given."""

    @functools.wraps(torch.nn.Transformer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        given = inspect.signature(torch.nn.Transformer.__init__).bind(self, *args, **kwargs).arguments
        for name in ("encoder", "decoder"):
            if given.get(f"custom_{name}") is None:
                _adopt(getattr(self, name))


_OURS = {
    torch.nn.Dropout: Dropout,
    torch.nn.LayerNorm: LayerNorm,
    torch.nn.Linear: Linear,
    torch.nn.MultiheadAttention: MultiheadAttention,
    torch.nn.TransformerDecoder: TransformerDecoder,
    torch.nn.TransformerDecoderLayer: TransformerDecoderLayer,
    torch.nn.TransformerEncoder: TransformerEncoder,
    torch.nn.TransformerEncoderLayer: TransformerEncoderLayer,
}
