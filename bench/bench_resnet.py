"""ResNet-18: one training step (forward, loss, backward, SGD with momentum), and inference with its batch norms folded.

Each contender takes the layers, the loss and the optimizer of its own namespace.
"""

import copy

import pytest
import torch

import kernelzoo as kz
from kernelzoo import functional, optim, zoo

from .core import DEVICE, GPU, Case, Problem, Target

SHAPE = (128, 3, 224, 224) if GPU else (8, 3, 128, 128)
LAYOUT = torch.channels_last if GPU else torch.contiguous_format
MODEL = "resnet50" if GPU else "resnet18"


def _model(nn=None):
    torch.manual_seed(1)
    return zoo.create(MODEL, nn=nn).to(DEVICE, memory_format=LAYOUT)


def _given(dtype=torch.float32):
    g = torch.Generator().manual_seed(2)
    images = torch.randn(SHAPE, generator=g).to(DEVICE, dtype, memory_format=LAYOUT)
    return images, torch.randint(1000, SHAPE[:1], generator=g).to(DEVICE)


def _step(model, images, labels, forward=None, F=torch.nn.functional, optim=torch.optim):
    """One step on a copy of the model; its first call's results are those of the initial weights."""
    model = copy.deepcopy(model).train()
    optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    forward = forward(model) if forward else model
    kept = [model.fc.weight, model.layer4[1].conv2.weight, model.layer1[0].conv1.weight, model.conv1.weight]

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), *(p.grad for p in kept)

    return run


def _training():
    ours, theirs = _model(), _model(zoo.plain)
    given = _given()
    steps = {
        "ours": _step(ours, *given, F=functional, optim=optim),
        "eager": _step(theirs, *given),
        "compile": _step(theirs, *given, torch.compile),
    }
    return Problem(steps, _step(copy.deepcopy(theirs).double(), given[0].double(), given[1]), {})


def _inference():
    """Statistics that a training step has moved."""
    models = [_model(), _model(zoo.plain)]
    images, _ = _given()
    for model in models:
        model.train()(images)
        model.eval()
    ours, theirs = models
    ours = kz.fold_batchnorm(ours)
    compiled, exact = torch.compile(theirs), copy.deepcopy(theirs).double()

    def of(model, images=images):
        def run():
            with torch.no_grad():
                return (model(images),)

        return run

    steps = {"ours": of(ours), "eager": of(theirs), "compile": of(compiled)}
    return Problem(steps, of(exact, images.double()), {})


def _flops():
    """Two a weight and position, of convolutions and linear layers, forward."""
    with torch.device("meta"):
        model, images = zoo.create(MODEL, nn=zoo.plain).eval(), torch.empty(SHAPE)
    total = []

    def count(layer, given, y):
        total.append(2 * y.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    model(images)
    return sum(total)


FLOPS = _flops()
ROW = f"{MODEL} {'x'.join(map(str, SHAPE))} {'channels-last ' if GPU else ''}fp32"
CASES = [
    Case(
        f"{ROW} training step",
        "resnet",
        torch.float32,
        _training,
        ("loss", "dw fc", "dw layer4", "dw layer1", "dw conv1"),
        bytes=1.0,
        flops=3 * FLOPS,
        targets=(
            Target("ratio", 1.0 if GPU else 1.1),
            Target("temporary memory to eager", 0.8, at_least=False),
        ),
        kept=False,
    ),
    Case(
        f"{ROW} inference, batch norms folded",
        "resnet",
        torch.float32,
        _inference,
        ("logits",),
        bytes=1.0,
        flops=FLOPS,
        targets=(Target("ratio", 1.2),),
        kept=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_resnet(case, row):
    row(case)
