"""conv2d bare, with what stands behind it, and with a filter a channel; conv1d with a filter a channel, causal.

Channels-last rows are given (N, H, W, C) and permuted, so that the incoming gradient is channels-last too, as it is
between layers.
"""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo.functional as F

from .core import DEVICE, Target, op_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16
FLOOR = 0.97


def _normal(*shapes):
    def make(generator):
        made = []
        for i, shape in enumerate(shapes):
            scale = torch.Size(shape[1:]).numel() ** -0.5 if i == 1 else 1.0
            made.append(torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64) * scale)
        return made

    return make


def _innermost(function):
    """function of (N, C, H, W), of tensors (N, H, W, C) and with such a result."""

    def call(x, w, *rest, residual=None):
        residual = None if residual is None else residual.permute(0, 3, 1, 2)
        more = {} if residual is None else {"residual": residual}
        return function(x.permute(0, 3, 1, 2), w, *rest, **more).permute(0, 2, 3, 1)

    return call


def _row(name, x, w, dtype, ratio, ours, eager, *, last=True, extra=(), results=("y", "dx", "dw"), passes=5):
    """x (N, C, H, W), w (O, C / groups, kH, kW), the rest vectors of O; passes: of x's and y's elements, in halves of
    their sum: x, y; dy, x, dx."""
    N, C, *size = x
    given = (N, *size, C) if last else x
    outputs = N * w[0] * torch.Size(size).numel()
    inputs = N * C * torch.Size(size).numel()
    order = " channels-last" if last else ""
    return op_case(
        f"{name} {'x'.join(map(str, x))}{order} {SHORT[dtype]}",
        "conv",
        dtype,
        _normal(given, w, *extra),
        _innermost(ours) if last else ours,
        _innermost(eager) if last else eager,
        results,
        targets=(Target("ratio", ratio),),
        bytes=passes * (inputs + outputs) / 2 * dtype.itemsize,
        flops=3 * 2 * outputs * torch.Size(w[1:]).numel(),
    )


def _bare(k, x, channels, last, dtype=FP32):
    def call(module):
        return lambda x, w: module.conv2d(x, w, padding=k // 2)

    name = f"conv{k}x{k} to {channels}"
    return _row(name, x, (channels, x[1], k, k), dtype, FLOOR, call(F), call(T), last=last)


def _behind(x, channels, act, dtype=FP32):
    """A bias and an activation behind it; gelu, whose derivative jumps nowhere, for the check's sake."""
    formula = {"gelu": T.gelu, "silu": T.silu}[act]
    return _row(
        f"conv3x3+bias+{act} to {channels}", x, (channels, x[1], 3, 3), dtype, FLOOR,
        lambda x, w, b: F.conv2d(x, w, b, padding=1, act=act),
        lambda x, w, b: formula(T.conv2d(x, w, b, padding=1)),
        extra=((channels,),), results=("y", "dx", "dw", "db"), passes=7,
    )  # fmt: skip


def _depthwise(x, k, last, dtype=FP32, ratio=1.2, stride=1):
    def call(module):
        return lambda x, w: module.conv2d(x, w, padding=k // 2, groups=x.shape[1], stride=stride)

    name = f"depthwise {k}x{k}{f' stride {stride}' if stride > 1 else ''}"
    return _row(name, x, (x[1], 1, k, k), dtype, ratio, call(F), call(T), last=last)


def _causal(x, k, act, dtype=FP32, ratio=4.0):
    """torch's own as models write it: padded at both ends, and cut."""
    formula = T.silu if act else lambda z: z

    def eager(x, w, b):
        return formula(T.conv1d(x, w, b, padding=k - 1, groups=x.shape[1])[..., : x.shape[2]])

    return _row(
        f"depthwise causal conv1d k{k}{f'+{act}' if act else ''}", x, (x[1], 1, k), dtype, ratio,
        lambda x, w, b: F.conv1d(x, w, b, groups=x.shape[1], causal=True, act=act), eager,
        last=False, extra=((x[1],),), results=("y", "dx", "dw", "db"), passes=8 if act else 5,
    )  # fmt: skip


def _normalised(x, channels, ratio, dtype=FP32):
    """conv, batch norm in training, relu."""

    def ours(x, w, gamma, beta):
        return F.batch_norm(F.conv2d(x, w, padding=1), None, None, gamma, beta, training=True, act="relu")

    def eager(x, w, gamma, beta):
        return T.relu(T.batch_norm(T.conv2d(x, w, padding=1), None, None, gamma, beta, training=True))

    return _row(
        f"conv3x3+BN+ReLU to {channels}", x, (channels, x[1], 3, 3), dtype, ratio, ours, eager,
        extra=((channels,), (channels,)), results=("y", "dx", "dw", "dgamma", "dbeta"), passes=9,
    )  # fmt: skip


CASES = [
    _normalised((8, 64, 56, 56), 64, 1.25),
    _bare(3, (8, 64, 56, 56), 64, True),
    _bare(3, (8, 64, 56, 56), 64, False),
    _bare(1, (8, 256, 28, 28), 128, True),
    _bare(1, (8, 256, 28, 28), 128, False),
    _behind((8, 64, 56, 56), 64, "gelu"),
    _behind((8, 128, 28, 28), 128, "silu"),
    _depthwise((8, 128, 56, 56), 3, True),
    _depthwise((8, 128, 56, 56), 3, False),
    _depthwise((8, 128, 56, 56), 3, True, ratio=FLOOR, stride=2),
    _depthwise((8, 96, 56, 56), 7, True, ratio=FLOOR),
    _depthwise((8, 128, 56, 56), 3, True, BF16),
    _causal((8, 768, 2048), 4, None),
    _causal((8, 768, 2048), 4, "silu"),
    _causal((8, 768, 2048), 4, None, BF16, FLOOR),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_conv(case, row):
    row(case)
