"""Feed-forward models on vectors: linear regression and the multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import nn as kz_nn
from .base import Pretrained
from .registry import register


@register("linear_regression")
class LinearRegression(Pretrained):
    """y = x Wᵀ + b. With cross-entropy as its loss this is (multinomial) logistic regression.

    x (..., in_features) -> (..., out_features), in the dtype of the weights.
    Source: T. Hastie, R. Tibshirani, J. Friedman, The Elements of Statistical Learning, 2009, §3.2 and §4.4.
    """

    name = "linear_regression"

    def __init__(
        self, in_features: int, out_features: int = 1, bias: bool = True, *, nn: Any = kz_nn
    ) -> None:
        super().__init__(dict(locals()))
        self.linear = nn.Linear(in_features, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@register("mlp")
class MLP(Pretrained):
    """h_0 = x;  h_i = dropout(act(h_{i-1} W_iᵀ + b_i));  y = h_L Wᵀ + b.

    x (..., in_features) -> (..., out_features), in the dtype of the weights.
    hidden: widths of h_1 ... h_L; empty for a linear model. act: as in `kernelzoo.nn.Linear`, a name or
    (name, parameters...). dropout: probability of zeroing an element of h_i in training.
    Sources: D. E. Rumelhart, G. E. Hinton, R. J. Williams, Learning representations by back-propagating
    errors, Nature 323, 1986, doi:10.1038/323533a0; dropout: N. Srivastava et al., JMLR 15, 2014, 1929-1958.
    """

    name = "mlp"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int | Sequence[int] = (256, 128),
        act: str | tuple | None = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        *,
        nn: Any = kz_nn,
    ) -> None:
        super().__init__(dict(locals()))
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        if not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"mlp: hidden must be positive widths such as (256, 128), got {hidden!r}")
        sizes = (in_features, *widths)
        self.hidden = nn.ModuleList(
            nn.Linear(n_in, n_out, bias, act=act) for n_in, n_out in zip(sizes, widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(sizes[-1], out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = self.dropout(layer(x))
        return self.head(x)
