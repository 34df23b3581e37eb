"""The pooling and upsampling modules beside torch's, in training."""

import pytest
import torch

import kernelzoo as kz
from kernelzoo import nn

from ..harness import here

T = torch.nn
# made with torch.nn or with ours, and the shape of what goes in: enough elements for "auto" to have a choice
MODULES = {
    "MaxPool1d": (lambda m: m.MaxPool1d(3, 2, 1), (4, 70, 301)),
    "MaxPool2d": (lambda m: m.MaxPool2d(3, 2, 1, ceil_mode=True), (4, 33, 57, 56)),
    "MaxPool3d": (lambda m: m.MaxPool3d((1, 2, 2), dilation=(1, 2, 1)), (2, 17, 8, 23, 22)),
    "AvgPool1d": (lambda m: m.AvgPool1d(3, 2, 1), (4, 70, 301)),
    "AvgPool2d": (lambda m: m.AvgPool2d(3, 2, 1, count_include_pad=False), (4, 33, 57, 56)),
    "AvgPool3d": (lambda m: m.AvgPool3d(2, divisor_override=3), (2, 17, 8, 23, 22)),
    "AdaptiveMaxPool2d": (lambda m: m.AdaptiveMaxPool2d((7, None)), (4, 33, 57, 56)),
    "AdaptiveAvgPool2d": (lambda m: m.AdaptiveAvgPool2d(1), (4, 33, 57, 56)),
    "AdaptiveAvgPool3d": (lambda m: m.AdaptiveAvgPool3d((2, 3, 4)), (2, 17, 8, 23, 22)),
    "Upsample": (lambda m: m.Upsample(scale_factor=2, mode="bilinear"), (4, 33, 19, 28)),
    "UpsamplingNearest2d": (lambda m: m.UpsamplingNearest2d(scale_factor=3), (4, 33, 19, 28)),
    "UpsamplingBilinear2d": (lambda m: m.UpsamplingBilinear2d((40, 41)), (4, 33, 19, 28)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", ["auto", "kernels"])
def test_as_torch(name, backend):
    make, shape = MODULES[name]
    x = torch.randn(shape, requires_grad=True)
    found = []
    for module in (nn, T):
        with kz.backend("auto" if backend == "auto" else here()):
            y = make(module)(x)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
            found.append((y, *torch.autograd.grad(y, x, dy)))
    torch.testing.assert_close(*found)
    assert repr(make(nn)) == repr(make(T))


def test_indices_go_back_through_unpooling():
    """torch.nn.MaxUnpool2d takes the indices of ours."""
    x = torch.randn(2, 5, 60, 60)
    with kz.backend(here()):
        y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    theirs = T.MaxPool2d(2, return_indices=True)(x)
    torch.use_deterministic_algorithms(False)  # torch's unpooling has no other
    torch.testing.assert_close(T.MaxUnpool2d(2)(y, indices), T.MaxUnpool2d(2)(*theirs))


def test_attributes_as_torch():
    """A module of torch.nn that is swapped for ours keeps its attributes."""
    for make, _ in MODULES.values():
        ours, theirs = vars(make(nn)), vars(make(T))
        assert {k: v for k, v in ours.items() if k[0] != "_"} == {
            k: v for k, v in theirs.items() if k[0] != "_"
        }
