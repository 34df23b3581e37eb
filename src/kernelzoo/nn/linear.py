import torch

from ..ops.activation import parse
from ..ops.linear import linear


class Linear(torch.nn.Linear):
    """y = f(x Wᵀ + b): torch.nn.Linear, with the activation f fused behind it.

    act: None, an activation's name, or (name, parameter, ...), as in `kernelzoo.functional.linear`; it has
    no entry in the state dict, which is torch.nn.Linear's.
    """

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, act=None):
        parse("Linear", act)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.act = act

    def forward(self, input):
        return linear(input, self.weight, self.bias, act=self.act)

    def extra_repr(self):
        return super().extra_repr() + (f", act={self.act!r}" if self.act else "")
