"""The convolution modules: torch's own classes over kernelzoo's functions.

act: None, an activation's name, or (name, parameter, ...), as in `kernelzoo.functional.conv2d`; it has no entry in the
state dict. A residual given to `forward` is added before it.
"""

import torch
from torch.nn import functional as T

from ..ops import conv
from ..ops.activation import parse


class _Fused:
    """What a convolution module has more than torch's."""

    def _fuse(self, act):
        parse(type(self).__name__, act)
        self.act = act

    def extra_repr(self):
        return super().extra_repr() + (f", act={self.act!r}" if self.act else "")

    def _call(self, function, input, weight, bias, residual, **more):
        """torch's _conv_forward with what is fused behind it: a padding mode that is not zeros pads first."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = T.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        return function(
            input, weight, bias, self.stride, padding, self.dilation, self.groups, act=self.act, residual=residual,
            **more,
        )  # fmt: skip

    def _call_transposed(self, function, input, output_size, residual):
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for {type(self).__name__}")
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            len(self.kernel_size),
            self.dilation,
        )
        return function(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation,
            act=self.act, residual=residual,
        )  # fmt: skip


class Conv1d(_Fused, torch.nn.Conv1d):
    """torch.nn.Conv1d: y = act(conv1d(x) + residual); causal=True as in `kernelzoo.functional.conv1d`."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
        causal=False,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self._fuse(act)
        if causal and (self.padding != (0,) or padding_mode != "zeros"):
            raise ValueError(
                f"Conv1d: causal=True takes padding 0 of zeros, got padding={padding!r}, padding_mode={padding_mode!r}"
            )
        self.causal = causal

    def extra_repr(self):
        return super().extra_repr() + (", causal=True" if self.causal else "")

    def _conv_forward(self, input, weight, bias, residual=None):
        return self._call(conv.conv1d, input, weight, bias, residual, causal=self.causal)

    def forward(self, input, residual=None):
        return self._conv_forward(input, self.weight, self.bias, residual)


class Conv2d(_Fused, torch.nn.Conv2d):
    """torch.nn.Conv2d: y = act(conv2d(x) + residual)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self._fuse(act)

    def _conv_forward(self, input, weight, bias, residual=None):
        return self._call(conv.conv2d, input, weight, bias, residual)

    def forward(self, input, residual=None):
        return self._conv_forward(input, self.weight, self.bias, residual)


class Conv3d(_Fused, torch.nn.Conv3d):
    """torch.nn.Conv3d: y = act(conv3d(x) + residual)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self._fuse(act)

    def _conv_forward(self, input, weight, bias, residual=None):
        return self._call(conv.conv3d, input, weight, bias, residual)

    def forward(self, input, residual=None):
        return self._conv_forward(input, self.weight, self.bias, residual)


class ConvTranspose1d(_Fused, torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d: y = act(conv_transpose1d(x) + residual)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._fuse(act)

    def forward(self, input, output_size=None, residual=None):
        return self._call_transposed(conv.conv_transpose1d, input, output_size, residual)


class ConvTranspose2d(_Fused, torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d: y = act(conv_transpose2d(x) + residual)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._fuse(act)

    def forward(self, input, output_size=None, residual=None):
        return self._call_transposed(conv.conv_transpose2d, input, output_size, residual)


class ConvTranspose3d(_Fused, torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d: y = act(conv_transpose3d(x) + residual)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        act=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._fuse(act)

    def forward(self, input, output_size=None, residual=None):
        return self._call_transposed(conv.conv_transpose3d, input, output_size, residual)
