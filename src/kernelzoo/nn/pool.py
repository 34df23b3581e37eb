"""The pooling and upsampling modules: torch's own classes over kernelzoo's functions."""

import torch

from ..ops import avg_pool, interpolate, max_pool


def _mirror(base, function, *attributes):
    """A subclass of torch's module whose forward is function(input, *the module's attributes)."""

    def forward(self, input):
        return function(input, *(getattr(self, name) for name in attributes))

    return type(base.__name__, (base,), {"forward": forward, "__module__": __name__, "__doc__": base.__doc__})


_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_RESIZED = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

MaxPool1d = _mirror(torch.nn.MaxPool1d, max_pool.max_pool1d, *_MAX)
MaxPool2d = _mirror(torch.nn.MaxPool2d, max_pool.max_pool2d, *_MAX)
MaxPool3d = _mirror(torch.nn.MaxPool3d, max_pool.max_pool3d, *_MAX)
AvgPool1d = _mirror(torch.nn.AvgPool1d, avg_pool.avg_pool1d, *_AVG)
AvgPool2d = _mirror(torch.nn.AvgPool2d, avg_pool.avg_pool2d, *_AVG, "divisor_override")
AvgPool3d = _mirror(torch.nn.AvgPool3d, avg_pool.avg_pool3d, *_AVG, "divisor_override")
AdaptiveMaxPool1d = _mirror(
    torch.nn.AdaptiveMaxPool1d, max_pool.adaptive_max_pool1d, "output_size", "return_indices"
)
AdaptiveMaxPool2d = _mirror(
    torch.nn.AdaptiveMaxPool2d, max_pool.adaptive_max_pool2d, "output_size", "return_indices"
)
AdaptiveMaxPool3d = _mirror(
    torch.nn.AdaptiveMaxPool3d, max_pool.adaptive_max_pool3d, "output_size", "return_indices"
)
AdaptiveAvgPool1d = _mirror(torch.nn.AdaptiveAvgPool1d, avg_pool.adaptive_avg_pool1d, "output_size")
AdaptiveAvgPool2d = _mirror(torch.nn.AdaptiveAvgPool2d, avg_pool.adaptive_avg_pool2d, "output_size")
AdaptiveAvgPool3d = _mirror(torch.nn.AdaptiveAvgPool3d, avg_pool.adaptive_avg_pool3d, "output_size")
Upsample = _mirror(torch.nn.Upsample, interpolate.interpolate, *_RESIZED)
UpsamplingNearest2d = _mirror(torch.nn.UpsamplingNearest2d, interpolate.interpolate, *_RESIZED)
UpsamplingBilinear2d = _mirror(torch.nn.UpsamplingBilinear2d, interpolate.interpolate, *_RESIZED)
