"""The Triton launchers alone, where their tiles and phases have edges that the common cases do not reach."""

import pytest
import torch
from torch.nn import functional as T

from kernelzoo.kernels.triton import conv
from kernelzoo.verify import assert_as_good

from ..harness import device_of, need

CONV = (None, T.conv1d, T.conv2d, T.conv3d)
# x, w, stride, padding, dilation, groups; the rank is that of x
CASES = {
    "channels beyond a tile": ((1, 17, 4, 5), (18, 17, 3, 3), 1, 1, 1, 1),
    "stride and dilation share a factor": ((2, 4, 29), (5, 4, 4), 6, 5, 4, 1),
    "phases that no tap meets": ((2, 17, 13), (4, 17, 2), 4, 0, 1, 1),
    "stride beyond the size": ((1, 2, 2, 3), (3, 2, 1, 2), (3, 5), 0, 1, 1),
    "two phases, groups": ((1, 6, 9, 8), (4, 3, 3, 2), (2, 3), (2, 1), (2, 3), 2),
    "pointwise": ((2, 5, 3, 4), (7, 5, 1, 1), 1, 0, 1, 1),
    "pointwise with a stride": ((2, 5, 5, 4), (7, 5, 1, 1), 2, 0, 1, 1),
    "few channels, padding beyond the kernel": ((1, 3, 5, 6), (5, 3, 3, 3), 2, 4, 1, 1),
    "three dimensions": ((1, 3, 4, 3, 5), (4, 3, 2, 3, 2), (1, 2, 1), 1, 1, 1),
    "three dimensions, groups": ((1, 4, 4, 5, 3), (6, 2, 3, 2, 1), 2, (1, 1, 0), (1, 2, 1), 2),
    "two filters a channel, stride": ((1, 3, 6, 5), (6, 1, 3, 2), 2, 2, 1, 3),
    "depthwise in three dimensions": ((1, 3, 4, 4, 3), (3, 1, 2, 3, 2), (2, 1, 1), 1, 1, 3),
    "a short kernel": ((2, 5, 11), (5, 1, 4), 1, 3, 1, 5),
    "the longest short kernel": ((1, 3, 9), (3, 1, 8), 1, 5, 1, 3),
    "a kernel too long to be short": ((1, 3, 13), (3, 1, 9), 1, 4, 1, 3),
}
DEFAULT = (
    "channels beyond a tile",
    "stride and dilation share a factor",
    "phases that no tap meets",
    "two filters a channel, stride",
    "a short kernel",
)


def three(value, rank, lead):
    return [lead] * (3 - rank) + ([value] * rank if isinstance(value, int) else list(value))


def volume(t):
    """(N, C, ...) as (N, D, H, W, C)."""
    return t.reshape(*t.shape[:2], *[1] * (5 - t.dim()), *t.shape[2:]).movedim(1, -1).contiguous()


def results(module, x, w, b, c, dz, residual, stride, padding, dilation, groups):
    """What the three launchers give: y and z; the transposed convolution's; dw and db."""
    sizes = x.shape[1:4], dz.shape[1:4]
    options = stride, padding, dilation, groups
    y, z = module.conv_fwd(x, w, b, dz, list(sizes[1]), *options, "gelu", 0.0, 0.0, True)
    dx, dx_z = module.conv_bwd_input(dz, w, c, residual, list(sizes[0]), *options, "relu", 0.0, 0.0, True)
    return y, z, dx, dx_z, *module.conv_bwd_weight(dz, x, list(w.shape[1:4]), *options, True)


class Torch:
    """The same from torch's convolutions."""

    @staticmethod
    def conv(x, w, stride, padding, dilation, groups):
        z = T.conv3d(x.movedim(-1, 1), w.movedim(-1, 1), None, stride, padding, dilation, groups)
        return z.movedim(1, -1)

    @classmethod
    def conv_fwd(cls, x, w, b, residual, size, *options):
        z = cls.conv(x, w, *options[:4]) + b + residual
        return T.gelu(z), z

    @classmethod
    def conv_bwd_input(cls, dz, w, b, residual, size, *options):
        x = dz.new_zeros(dz.shape[0], *size, w.shape[4] * options[3], requires_grad=True)
        z = torch.autograd.grad(cls.conv(x, w, *options[:4]), x, dz)[0] + b + residual
        return z.relu(), z

    @classmethod
    def conv_bwd_weight(cls, dz, x, kernel, stride, padding, dilation, groups, need_db):
        w = dz.new_zeros(dz.shape[4], *kernel, x.shape[4] // groups, requires_grad=True)
        dw = torch.autograd.grad(cls.conv(x, w, stride, padding, dilation, groups), w, dz)[0]
        return dw, dz.sum((0, 1, 2, 3))


def check(name, dtype):
    need("triton")
    xs, ws, *options, groups = CASES[name]
    rank = len(xs) - 2
    g = torch.Generator().manual_seed(1)
    empty = [torch.empty(s, device="meta") for s in (xs, ws)]
    shapes = xs, ws, CONV[rank](*empty, None, *options, groups).shape, xs, (ws[0],), (xs[1],)
    values = [torch.randn(s, generator=g, dtype=torch.float64).to(device_of("triton"), dtype) for s in shapes]
    (x, w, dz, residual), (b, c) = (volume(t) for t in values[:4]), values[4:]
    options = [three(v, rank, lead) for v, lead in zip(options, (1, 0, 1), strict=True)]
    given = x, w, b, c, dz, residual
    ours = results(conv, *given, *options, groups)
    theirs = results(Torch, *given, *options, groups)
    right = results(Torch, *(t.double() for t in given), *options, groups)
    names = ("y", "z", "dx", "dx before relu", "dw", "db")
    for result, *three_ways in zip(names, ours, theirs, right, strict=True):
        assert_as_good(result, *three_ways)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.slow) for n in CASES]
)
def test_launchers(name):
    check(name, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_launchers_in_fp64(name):
    check(name, torch.float64)


@pytest.mark.parametrize("name", ["phases that no tap meets", "two filters a channel, stride"])
def test_more_rows_than_int32_numbers(name, monkeypatch):
    monkeypatch.setattr(conv, "INT32_ROWS", 0)
    check(name, torch.float32)


def test_phases_do_the_forwards_work():
    """Each tap of each output is in one phase's list, once, at the position that it meets."""
    ones = [1, 1]
    numbers = ((13, 5, 3, 2, 1), (29, 4, 6, 5, 4), (17, 3, 4, 0, 2), (9, 3, 2, 4, 3), (8, 1, 3, 1, 1))
    for size, k, s, p, d in numbers:
        outputs = (size + 2 * p - d * (k - 1) - 1) // s + 1
        sizes = 1, [*ones, size], 1, [*ones, outputs], 1
        g = conv.Geometry(*sizes, [*ones, k], [*ones, s], [0, 0, p], [*ones, d], 1)
        count, found = g.phases(True)
        assert count == s
        step, inverse = found["step_w"], found["inverse_w"]
        met = []
        for j in range(size):
            r, common = j % s, s // step
            first = (r + p) // common * inverse % step
            taps = range(first, k, step) if (r + p) % common == 0 else ()
            for t in taps:
                i, rest = divmod(j + p - t * d, s)
                assert rest == 0
                if 0 <= i < outputs:
                    met.append((i, t, j))
        right = [(i, t, i * s - p + t * d) for i in range(outputs) for t in range(k)]
        assert sorted(met) == sorted(one for one in right if 0 <= one[2] < size)
