"""lstm, gru and rnn over a sequence, dense and packed, forward and backward; layer norm beside a loop over cells."""

import pytest
import torch
from torch.nn import functional as T
from torch.nn.utils.rnn import PackedSequence

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
TORCH = {"lstm": torch._VF.lstm, "gru": torch._VF.gru, "rnn": torch._VF.rnn_tanh}  # what torch's modules call
# torch.compile runs torch's layers as eager does, or, where it decomposes them, compiles T steps one by one.
NO_COMPILE = {"compile": "unrolls a layer's steps"}


def _weights(normal, mode, features, H):
    width, scale = GATES[mode] * H, H**-0.5
    shapes = (width, features), (width, H), (width,), (width,)
    return [normal(*shape) * scale for shape in shapes]


def _torch(mode, x, weights, sizes):
    B = x.shape[1] if sizes is None else int(sizes[0])
    h = x.new_zeros(1, B, weights[1].shape[1])
    hx = (h, h) if mode == "lstm" else h
    if sizes is None:
        return TORCH[mode](x, hx, weights, True, 1, 0.0, True, False, False)[0]
    packed = PackedSequence(x, sizes)
    return TORCH[mode](packed.data, packed.batch_sizes, hx, weights, True, 1, 0.0, True, False)[0]


def _layer(mode, B, steps, H, dtype, ratio, lengths=None):
    sizes = None
    if lengths is not None:
        sizes = torch.tensor([int((lengths > t).sum()) for t in range(steps)])
    rows = B * steps if sizes is None else int(sizes.sum())

    def make(generator):
        def normal(*shape):
            return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64)

        x = normal(steps, B, H) if sizes is None else normal(rows, H)
        return [x, *_weights(normal, mode, H, H)]

    function = getattr(F, mode)
    width = GATES[mode] * H
    return op_case(
        f"{mode} B{B} T{steps} H{H}{' packed 1:8' if lengths is not None else ''} {SHORT[dtype]}",
        "rnn",
        dtype,
        make,
        lambda x, *w: function(x, None, *w, batch_sizes=sizes)[0],
        lambda x, *w: _torch(mode, x, list(w), sizes),
        ("y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"),
        peers=NO_COMPILE,
        targets=(Target("ratio", ratio),),
        bytes=(4 * rows * H + 4 * width * H) * dtype.itemsize,
        flops=6 * rows * width * 2 * H,
    )


def _loop(x, w_ih, w_hh, b_ih, w_input, w_hidden, w_cell, b_cell):
    """An LSTM with layer norm as it is written in Python, cell after cell."""
    H = w_hh.shape[1]
    h = c = x.new_zeros(x.shape[1], H)
    out = []
    for step in x:
        gates = T.layer_norm(T.linear(step, w_ih), w_input.shape, w_input, b_ih)
        gates = gates + T.layer_norm(T.linear(h, w_hh), w_hidden.shape, w_hidden)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * T.layer_norm(c, (H,), w_cell, b_cell).tanh()
        out.append(h)
    return torch.stack(out)


def _normed(x, w_ih, w_hh, b_ih, *norms):
    return F.lstm(x, None, w_ih, w_hh, b_ih, layer_norm=norms)[0]


def _layer_norm(B, steps, H, dtype, ratio):
    def make(generator):
        def normal(*shape):
            return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float64)

        w_ih, w_hh, b_ih, _ = _weights(normal, "lstm", H, H)
        norms = [1 + 0.1 * normal(4 * H), 1 + 0.1 * normal(4 * H), 1 + 0.1 * normal(H), 0.1 * normal(H)]
        norms[1] /= (
            4  # at a gain of 1 the recurrence is chaotic: within 256 steps float32's rounding fills the output
        )
        return [normal(steps, B, H), w_ih, w_hh, b_ih, *norms]

    return op_case(
        f"lstm layer_norm B{B} T{steps} H{H} {SHORT[dtype]}",
        "rnn",
        dtype,
        make,
        _normed,
        _loop,
        ("y", "dx", "dw_ih", "dw_hh", "db_ih", "dw_input", "dw_hidden", "dw_cell", "db_cell"),
        peers=NO_COMPILE,
        targets=(Target("ratio", ratio),),
        bytes=(4 * B * steps * H + 16 * H * H) * dtype.itemsize,
        flops=6 * B * steps * 4 * H * 2 * H,
    )


LENGTHS = torch.linspace(256, 32, 16).round()  # 1:8
if GPU:
    CASES = [
        *(_layer("lstm", 32, 512, H, BF16, 0.8) for H in (512, 1024)),
        _layer_norm(32, 512, 512, BF16, 10),
    ]
else:
    CASES = [
        _layer("lstm", 16, 256, 512, FP32, 1.1),
        _layer("lstm", 16, 256, 512, BF16, 1.8),
        _layer("lstm", 1, 256, 512, FP32, 0.97),
        _layer("lstm", 1, 256, 512, BF16, 1.8),
        _layer("lstm", 16, 256, 512, FP32, 2, LENGTHS),
        _layer("gru", 16, 256, 512, FP32, 1.1),
        _layer("rnn", 16, 256, 512, FP32, 1.1),
        _layer_norm(16, 256, 512, FP32, 10),
        _layer_norm(1, 256, 128, FP32, 10),
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_rnn(case, row):
    row(case)
