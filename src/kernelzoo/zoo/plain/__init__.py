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


INPLACE = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "hardswish", "hardtanh")


class _Epilogue:
    """act(y + residual), into the memory of y where torch's activation can, as models are written."""

    def _take(self, act: str | tuple | None) -> None:
        self.act, *self.act_args = (act,) if act is None or isinstance(act, str) else act
        if self.act is not None:
            self._function = getattr(functional, self.act)
            self._how = {"inplace": True} if self.act in INPLACE else {}

    def _finish(self, y: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if residual is not None:
            y = y + residual
        return y if self.act is None else self._function(y, *self.act_args, **self._how)


class Conv2d(_Epilogue, torch.nn.Conv2d):
    """y = act(conv(x) + b + residual)."""

    def __init__(self, *args: Any, act: str | tuple | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._take(act)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return self._finish(super().forward(input), residual)


class BatchNorm2d(_Epilogue, torch.nn.BatchNorm2d):
    """y = act(norm(x) + residual)."""

    def __init__(self, *args: Any, act: str | tuple | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._take(act)

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, keep_residual: bool = False
    ) -> torch.Tensor:
        return self._finish(super().forward(input), residual)


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm; with a residual it returns (y, s), s = input + residual and y the norm of s."""

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return super().forward(input)
        total = input + residual
        return super().forward(total), total


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm; with a residual it returns (y, s), s = input + residual and y the norm of s."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return super().forward(x)
        total = x + residual
        return super().forward(total), total


class GatedMLP(torch.nn.Module):
    """y = down(act(gate(x))·up(x))."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act: str = "silu",
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.gate_proj = Linear(in_features, hidden_features, bias, device, dtype, act=act)
        self.up_proj = Linear(in_features, hidden_features, bias, device, dtype)
        self.down_proj = Linear(hidden_features, in_features, bias, device, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(input) * self.up_proj(input))


class RotaryEmbedding(torch.nn.Module):
    """Turns pairs of features of each position by its angles; the tables are buffers no state dict holds."""

    def __init__(
        self,
        dim: int,
        max_positions: int = 2048,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        inv_freq: Any = None,
    ) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved = dim, base, interleaved
        self.inv_freq = None if inv_freq is None else tuple(map(float, inv_freq))
        cos, sin = self._tables(max_positions, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, positions: int, device: Any, dtype: torch.dtype = torch.float32) -> Any:
        return functional.rotary_tables(
            positions, self.dim, self.base, inv_freq=self.inv_freq, device=device, dtype=dtype
        )

    def _apply(self, fn: Any, recurse: bool = True) -> torch.nn.Module:
        device, dtype, rows = self.cos.device, self.cos.dtype, self.cos.shape[0]
        super()._apply(fn, recurse)
        if self.cos.device != device or self.cos.dtype != dtype:
            wide = torch.float64 if self.cos.dtype == torch.float64 else torch.float32
            self.cos, self.sin = self._tables(rows, self.cos.device, wide)
        return self

    def reach(self, positions: int) -> None:
        """Make the tables at least `positions` rows long."""
        if positions > self.cos.shape[0]:
            rows = max(positions, 2 * self.cos.shape[0])
            self.cos, self.sin = self._tables(rows, self.cos.device, self.cos.dtype)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        if position_ids is None:
            self.reach(x.shape[-2])
        return functional.rotary_embedding(x, self.cos, self.sin, position_ids, interleaved=self.interleaved)


def __getattr__(name: str) -> Any:
    return getattr(torch.nn, name)
