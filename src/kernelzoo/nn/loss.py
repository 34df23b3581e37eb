"""The losses: torch's own classes over kernelzoo's functions."""

import torch

from ..ops import cross_entropy as class_ops
from ..ops import loss as ops
from ..ops.linear_cross_entropy import linear_cross_entropy


def _mirror(base, function, *attributes):
    """A subclass of torch's module whose forward is function(input, target, **the module's attributes)."""

    def forward(self, input, target):
        return function(input, target, **{name: getattr(self, name) for name in attributes})

    return type(base.__name__, (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})


BCELoss = _mirror(torch.nn.BCELoss, ops.binary_cross_entropy, "weight", "reduction")
BCEWithLogitsLoss = _mirror(
    torch.nn.BCEWithLogitsLoss, ops.binary_cross_entropy_with_logits, "weight", "reduction", "pos_weight"
)
CrossEntropyLoss = _mirror(
    torch.nn.CrossEntropyLoss,
    class_ops.cross_entropy,
    "weight",
    "ignore_index",
    "reduction",
    "label_smoothing",
)
HuberLoss = _mirror(torch.nn.HuberLoss, ops.huber_loss, "reduction", "delta")
KLDivLoss = _mirror(torch.nn.KLDivLoss, ops.kl_div, "reduction", "log_target")
L1Loss = _mirror(torch.nn.L1Loss, ops.l1_loss, "reduction")
MSELoss = _mirror(torch.nn.MSELoss, ops.mse_loss, "reduction")
NLLLoss = _mirror(torch.nn.NLLLoss, class_ops.nll_loss, "weight", "ignore_index", "reduction")
SmoothL1Loss = _mirror(torch.nn.SmoothL1Loss, ops.smooth_l1_loss, "reduction", "beta")

if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # torch has it since 2.12

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """torch.nn.LinearCrossEntropyLoss, whose logits are never whole in memory."""

        def forward(self, input, target):
            weight, bias = self.linear.weight, self.linear.bias
            shape = (self.num_classes, *self.out_features)
            return linear_cross_entropy(
                input,
                weight.reshape(*shape, weight.size(-1)) if self.out_features else weight,
                target,
                linear_bias=bias.reshape(shape) if self.out_features and bias is not None else bias,
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )
