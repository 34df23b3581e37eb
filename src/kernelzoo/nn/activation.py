"""The activation modules: torch's own classes over kernelzoo's functions."""

import torch

from ..ops import activation as ops
from ..ops import softmax as softmax_ops


def _mirror(base, function, *attributes):
    """A subclass of torch's module whose forward is function(input, *the module's attributes)."""

    def forward(self, input):
        return function(input, *(getattr(self, name) for name in attributes))

    return type(base.__name__, (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})


def _softmax(function):
    return lambda input, dim: function(input, dim, _stacklevel=5)


CELU = _mirror(torch.nn.CELU, ops.celu, "alpha", "inplace")
ELU = _mirror(torch.nn.ELU, ops.elu, "alpha", "inplace")
GELU = _mirror(torch.nn.GELU, ops.gelu, "approximate")
Hardshrink = _mirror(torch.nn.Hardshrink, ops.hardshrink, "lambd")
Hardsigmoid = _mirror(torch.nn.Hardsigmoid, ops.hardsigmoid, "inplace")
Hardswish = _mirror(torch.nn.Hardswish, ops.hardswish, "inplace")
Hardtanh = _mirror(torch.nn.Hardtanh, ops.hardtanh, "min_val", "max_val", "inplace")
LeakyReLU = _mirror(torch.nn.LeakyReLU, ops.leaky_relu, "negative_slope", "inplace")
LogSigmoid = _mirror(torch.nn.LogSigmoid, ops.logsigmoid)
LogSoftmax = _mirror(torch.nn.LogSoftmax, _softmax(softmax_ops.log_softmax), "dim")
Mish = _mirror(torch.nn.Mish, ops.mish, "inplace")
ReLU = _mirror(torch.nn.ReLU, ops.relu, "inplace")
ReLU6 = _mirror(torch.nn.ReLU6, ops.relu6, "inplace")
SELU = _mirror(torch.nn.SELU, ops.selu, "inplace")
Sigmoid = _mirror(torch.nn.Sigmoid, ops.sigmoid)
SiLU = _mirror(torch.nn.SiLU, ops.silu, "inplace")
Softmax = _mirror(torch.nn.Softmax, _softmax(softmax_ops.softmax), "dim")
Softplus = _mirror(torch.nn.Softplus, ops.softplus, "beta", "threshold")
Softshrink = _mirror(torch.nn.Softshrink, ops.softshrink, "lambd")
Softsign = _mirror(torch.nn.Softsign, ops.softsign)
Tanh = _mirror(torch.nn.Tanh, ops.tanh)
Tanhshrink = _mirror(torch.nn.Tanhshrink, ops.tanhshrink)
Threshold = _mirror(torch.nn.Threshold, ops.threshold, "threshold", "value", "inplace")
