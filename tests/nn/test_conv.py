"""The convolution modules: padding modes, what is fused, lazy forms, training beside torch's."""

import copy

import pytest
import torch

import kernelzoo as kz
from kernelzoo import nn

from ..harness import here


def pair(name, *args, **options):
    """kernelzoo's module and torch's with the same weights."""
    fused = {key: options.pop(key) for key in ("act", "causal") if key in options}
    ours, theirs = getattr(nn, name)(*args, **options, **fused), getattr(torch.nn, name)(*args, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
def test_padding_modes(name, mode):
    ours, theirs = pair(name, 3, 4, 3, padding=2, padding_mode=mode)
    x = torch.randn(2, 3, *(7, 6, 5)[: int(name[-2])])
    with kz.backend(here()):
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 0)])
def test_paddings(padding):
    ours, theirs = pair("Conv2d", 4, 4, 3, padding=padding, groups=2, dilation=2)
    x = torch.randn(2, 4, 9, 8)
    with kz.backend(here()):
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    "name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
)
def test_what_is_fused(name):
    ours, theirs = pair(name, 3, 5, 2, stride=2, act=("leaky_relu", 0.2))
    x = torch.randn(2, 3, *(6, 4, 4)[: int(name[-2])])
    z = theirs(x)
    residual = torch.randn_like(z)
    with kz.backend(here()):
        torch.testing.assert_close(ours(x), torch.nn.functional.leaky_relu(z, 0.2))
        y = ours(x, residual=residual)
    torch.testing.assert_close(y, torch.nn.functional.leaky_relu(z + residual, 0.2))
    assert repr(ours) == repr(theirs)[:-1] + ", act=('leaky_relu', 0.2))"
    with pytest.raises(ValueError, match=f"{name}: unknown act 'gelou'"):
        getattr(nn, name)(3, 5, 2, act="gelou")


@pytest.mark.parametrize("size", [(11, 9), (12, 10)])
def test_output_size(size):
    ours, theirs = pair("ConvTranspose2d", 3, 2, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 6, 5)
    with kz.backend(here()):
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size))
        with pytest.raises(ValueError, match="requested an output size"):
            ours(x, output_size=(99, 99))


def test_causal():
    ours, theirs = pair("Conv1d", 4, 4, 3, groups=4, dilation=2, causal=True)
    x = torch.randn(2, 4, 10)
    with kz.backend(here()):
        torch.testing.assert_close(ours(x), theirs(torch.nn.functional.pad(x, (4, 0))))
    assert repr(ours) == repr(theirs)[:-1] + ", causal=True)"
    with pytest.raises(ValueError, match="Conv1d: causal=True takes padding 0 of zeros, got padding=1"):
        nn.Conv1d(4, 4, 3, padding=1, causal=True)


def test_zeros_only():
    with pytest.raises(ValueError, match="ConvTranspose2d"):
        nn.ConvTranspose2d(3, 2, 3, padding_mode="reflect")


def test_lazy_forms_are_torchs():
    assert nn.LazyConv2d is torch.nn.LazyConv2d
    assert nn.LazyConvTranspose1d is torch.nn.LazyConvTranspose1d


@pytest.mark.parametrize("last", [False, True])
def test_twenty_steps_beside_torch(last):
    """A convolution, a depthwise one and a transposed one: parameters stay together."""
    ours = torch.nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, act="silu"),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
    ).double()
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2),
        torch.nn.ConvTranspose2d(8, 2, 2, stride=2),
    ).double()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(mine.data)
    if last:
        ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))
    x, target = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 2, 8, 8).double()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with kz.backend(here()):
            for _ in range(20):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_copies_and_pickles_keep_what_is_fused():
    layer = nn.Conv1d(2, 2, 3, act="relu", causal=True)
    twin = copy.deepcopy(layer)
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(twin(x), layer(x))
    assert repr(twin) == repr(layer)
