"""`torch.nn` with our layers' extra arguments, composed of torch's own functions: the peer of `kernelzoo.nn`.

Pass this module as `nn=` to build a zoo model with no kernel of ours in it. Every name that has no extra
argument falls through to `torch.nn`; `plain.functional` is `torch.nn.functional` with our functions composed.
"""

from __future__ import annotations

from typing import Any

import torch

from . import functional


class Linear(torch.nn.Linear):
    """y = act(x Wᵀ + b): torch.nn.functional.linear, then the activation of torch.nn.functional."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: str | tuple | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.act, *self.act_args = (act,) if act is None or isinstance(act, str) else act
        if self.act is not None:
            self._function = getattr(functional, self.act)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(input, self.weight, self.bias)
        return y if self.act is None else self._function(y, *self.act_args)


def __getattr__(name: str) -> Any:
    return getattr(torch.nn, name)
