import functools

import torch

from ..ops.core import ArgumentError
from ..ops.glu import geglu, glu, reglu, swiglu
from .linear import Linear


class GLU(torch.nn.GLU):
    __doc__ = torch.nn.GLU.__doc__

    def forward(self, input):
        return glu(input, self.dim)


GATED = {
    "silu": swiglu,
    "gelu": geglu,
    "gelu_tanh": functools.partial(geglu, approximate="tanh"),
    "relu": reglu,
}


class GatedMLP(torch.nn.Module):
    """y = down(act(gate(x))·up(x)): the feed-forward block of Llama and its kin (Shazeer, arXiv:2002.05202).

    in_features, hidden_features: widths outside and inside; act: "silu", "gelu", "gelu_tanh" or "relu";
    bias: whether the three layers, gate_proj, up_proj and down_proj, have one. Input and output: (*, in_features).
    """

    def __init__(self, in_features, hidden_features, act="silu", bias=False, device=None, dtype=None):
        if act not in GATED:
            raise ArgumentError(f"GatedMLP: unknown act {act!r}; expected one of {', '.join(GATED)}")
        super().__init__()
        self.act = act
        self.gate_proj = Linear(in_features, hidden_features, bias, device, dtype)
        self.up_proj = Linear(in_features, hidden_features, bias, device, dtype)
        self.down_proj = Linear(hidden_features, in_features, bias, device, dtype)

    def forward(self, input):
        return self.down_proj(GATED[self.act](self.gate_proj(input), self.up_proj(input)))

    def extra_repr(self):
        return f"act={self.act!r}"
