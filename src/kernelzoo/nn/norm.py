"""The normalisation modules: torch's own classes over kernelzoo's functions."""

import torch

from ..ops.group_norm import group_norm
from ..ops.norm import layer_norm, rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm; with a residual it returns (y, s), s = input + residual and y the norm of s."""

    def forward(self, input, residual=None):
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual)


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm; with a residual it returns (y, s), s = input + residual and y the norm of s."""

    def forward(self, x, residual=None):
        return rms_norm(x, self.normalized_shape, self.weight, self.eps, residual=residual)


class GroupNorm(torch.nn.GroupNorm):
    """torch.nn.GroupNorm."""

    def forward(self, input):
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
