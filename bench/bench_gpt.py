"""One training step of a GPT-2 of 6 layers: forward, loss, backward, clipped AdamW of each one's own namespace."""

import copy
import functools

import pytest
import torch

from kernelzoo import optim, zoo

from .core import DEVICE, GPU, Case, Problem, Target

SHAPE = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 256, "vocab_size": 8192}
BATCH = 8
if GPU:  # GPT-2-124M
    SHAPE, BATCH = {"n_positions": 1024}, 16
DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # its masks are drawn differently


def _model(nn=None):
    torch.manual_seed(1)
    return zoo.create("gpt2", **SHAPE, **DROPOUT, nn=nn).to(DEVICE)


def _step(model, tokens, precision, forward=None, optim=torch.optim):
    """One step on a copy of the model; its first call's results are those of the initial weights."""
    model = copy.deepcopy(model).train()
    optimizer = optim.AdamW(model.parameters(), lr=1e-4)
    forward = forward(model) if forward else model
    kept = [p for p in model.parameters() if p.ndim == 2][:3]

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(tokens, labels=tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach(), *(p.grad for p in kept)

    return run


def _build(precision):
    ours, theirs = _model(), _model(zoo.plain)
    n = ours.options["n_positions"]
    vocabulary = ours.options["vocab_size"]
    tokens = torch.randint(vocabulary, (BATCH, n), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    steps = {
        "ours": _step(ours, tokens, precision, optim=optim),
        "eager": _step(theirs, tokens, precision),
        "compile": _step(theirs, tokens, precision, torch.compile),
    }
    return Problem(steps, _step(copy.deepcopy(theirs).double(), tokens, "fp64"), {})


def _flops():
    """6 a weight and token, and 12 a layer, token, key and feature in attention, half of it causal."""
    with torch.device("meta"):
        model = zoo.create("gpt2", **SHAPE)
    o = model.options
    tokens = BATCH * o["n_positions"]
    weights = sum(p.numel() for p in model.parameters())
    return tokens * (6 * weights + 6 * o["n_layer"] * o["n_positions"] * o["n_embd"])


def _name():
    layers, width = SHAPE.get("n_layer", 12), SHAPE.get("n_embd", 768)
    return f"gpt2 {layers}x{width} {BATCH}x{SHAPE['n_positions']} tokens"


CASES = [
    Case(
        f"{_name()} {precision} training step",
        "gpt",
        dtype,
        functools.partial(_build, precision),
        ("loss", "dw0", "dw1", "dw2"),
        bytes=1.0,
        flops=_flops(),
        targets=(Target("ratio", 1.0 if GPU else 1.2),),
        kept=False,
    )
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_gpt(case, row):
    row(case)
