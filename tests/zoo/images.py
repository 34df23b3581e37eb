"""The zoo's models of images beside torchvision's and timm's: how these are imported, built and compared."""

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from kernelzoo import zoo
from kernelzoo.train.wheels import mend_torchvision
from kernelzoo.verify import assert_as_good

CLASSES = 7
PEERS = Path(sys.prefix) / "peers"
MOST = 100_000  # numbers of one gradient that are compared


@functools.cache
def torchvision():
    """torchvision, where it is installed or where the Makefile puts it."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    mend_torchvision()
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


def timm():
    torchvision()
    return pytest.importorskip("timm", reason="timm is not installed")


class Case(NamedTuple):
    """A model of the zoo and the function that builds the other library's. size: of the images, in eval mode."""

    name: str
    theirs: Any
    options: dict[str, Any]
    size: int
    training_size: int


def models():
    return torchvision().models


def their_resnet(block, layers, **options):
    resnet = models().resnet
    return resnet.ResNet(getattr(resnet, block), list(layers), num_classes=CLASSES, **options)


def their_seresnet():
    resnet = timm().models.resnet
    return resnet.ResNet(
        resnet.Bottleneck, (1, 1, 1, 1), num_classes=CLASSES, block_args={"attn_layer": "se"}
    )


def their_vgg(norm):
    vgg = models().vgg
    return vgg.VGG(vgg.make_layers(SMALL_VGG, batch_norm=norm), num_classes=CLASSES)


def their_efficientnet():
    m = models().efficientnet
    settings = [m.MBConvConfig(e, k, s, i, o, n, 0.5, 1.1) for e, k, s, i, o, n in SMALL_EFFICIENTNET]
    norm = functools.partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.01)
    return m.EfficientNet(settings, 0.2, num_classes=CLASSES, norm_layer=norm)


def their_convnext():
    m = models().convnext
    widths, depths = SMALL_CONVNEXT
    blocks = [m.CNBlockConfig(*one) for one in zip(widths, (*widths[1:], None), depths, strict=True)]
    return m.ConvNeXt(blocks, 0.1, num_classes=CLASSES)


def their_segmentation(module, assemble):
    backbone = their_resnet("Bottleneck", (1, 1, 1, 1), replace_stride_with_dilation=[False, True, True])
    return getattr(getattr(models().segmentation, module), assemble)(backbone, CLASSES, True)


SMALL_VGG = [8, "M", 16, "M", 24, "M", 512, "M", "M"]
SMALL_EFFICIENTNET = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 1, 24, 40, 1)]
SMALL_CONVNEXT = (16, 24, 32, 40), (1, 1, 2, 1)
SMALL_V2 = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 24, 2, 1))
ONES = {"layers": (1, 1, 1, 1)}
AUX = {"aux_loss": True}

# a family's architecture with few blocks or channels, where torchvision can build it so
SMALL = {
    "resnet": Case("resnet18", lambda: their_resnet("BasicBlock", (1, 1, 1, 1)), ONES, 1, 65),
    "resnext": Case(
        "resnext50_32x4d",
        lambda: their_resnet(
            "Bottleneck",
            (1, 1, 2, 1),
            groups=4,
            width_per_group=8,
            replace_stride_with_dilation=[False, True, False],
            zero_init_residual=True,
        ),
        {
            "layers": (1, 1, 2, 1),
            "groups": 4,
            "width_per_group": 8,
            "replace_stride_with_dilation": (False, True, False),
            "zero_init_residual": True,
        },
        1,
        33,
    ),
    "seresnet": Case("seresnet50", their_seresnet, ONES, 1, 33),
    "densenet": Case(
        "densenet121",
        lambda: models().densenet.DenseNet(8, (2, 3, 1, 2), 12, 3, num_classes=CLASSES),
        {"growth_rate": 8, "block_config": (2, 3, 1, 2), "num_init_features": 12, "bn_size": 3},
        29,
        64,
    ),
    "mobilenet_v2": Case(
        "mobilenet_v2",
        lambda: models().mobilenet_v2(
            num_classes=CLASSES, width_mult=0.6, inverted_residual_setting=[list(row) for row in SMALL_V2]
        ),
        {"width_mult": 0.6, "inverted_residual_setting": SMALL_V2},
        1,
        33,
    ),
    "mobilenet_v3": Case(
        "mobilenet_v3_small",
        lambda: models().mobilenet_v3_small(
            num_classes=CLASSES, width_mult=0.4, reduced_tail=True, dilated=True
        ),
        {"width_mult": 0.4, "reduced_tail": True, "dilated": True},
        1,
        33,
    ),
    "efficientnet": Case(
        "efficientnet_b0",
        their_efficientnet,
        {
            "width_mult": 0.5,
            "depth_mult": 1.1,
            "norm_eps": 0.001,
            "norm_momentum": 0.01,
            "inverted_residual_setting": tuple((e, k, s, o, n) for e, k, s, _, o, n in SMALL_EFFICIENTNET),
        },
        1,
        33,
    ),
    "convnext": Case(
        "convnext_tiny",
        their_convnext,
        {"dims": SMALL_CONVNEXT[0], "depths": SMALL_CONVNEXT[1]},
        32,
        64,
    ),
    "fcn": Case("fcn_resnet50", lambda: their_segmentation("fcn", "_fcn_resnet"), {**ONES, **AUX}, 1, 33),
    "deeplabv3": Case(
        "deeplabv3_resnet50",
        lambda: their_segmentation("deeplabv3", "_deeplabv3_resnet"),
        {**ONES, **AUX},
        1,
        9,
    ),
    "googlenet": Case(
        "googlenet", lambda: models().googlenet(num_classes=CLASSES, init_weights=True), {}, 15, 96
    ),
    "inception_v3": Case(
        "inception_v3", lambda: models().inception_v3(num_classes=CLASSES, init_weights=True), {}, 75, 299
    ),
    "vgg": Case("vgg11", lambda: their_vgg(False), {"cfg": tuple(SMALL_VGG)}, 32, 33),
    "vgg_bn": Case(
        "vgg11_bn", lambda: their_vgg(True), {"cfg": tuple(SMALL_VGG), "batch_norm": True}, 32, 40
    ),
    "alexnet": Case("alexnet", lambda: models().alexnet(num_classes=CLASSES), {}, 63, 63),
}
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50")
# models as torchvision's and timm's functions of these names build them: the sizes of images by the first part
SIZES = {
    "alexnet": (63, 63),
    "vgg": (32, 40),
    "resnet": (1, 65),
    "resnext": (1, 65),
    "wide": (1, 65),
    "seresnet": (1, 65),
    "googlenet": (15, 96),
    "inception": (75, 299),
    "densenet": (29, 96),
    "efficientnet": (1, 65),
    "mobilenet": (1, 65),
    "convnext": (32, 64),
    "fcn": (1, 33),
    "deeplabv3": (1, 33),
}


def whole(name, classes=CLASSES):
    """The case of a model in full."""
    size = next(size for start, size in SIZES.items() if name.startswith(start))

    def theirs():
        if name == "seresnet50":
            return timm().create_model(name, num_classes=classes)
        if name in SEGMENTATION:
            build = getattr(models().segmentation, name)
            return build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return getattr(models(), name)(num_classes=classes, **more)

    return Case(name, theirs, AUX if name in SEGMENTATION else {}, *size)


def randomise(model, seed=0):
    """Every number of the model's state away from where it starts: norms, their statistics, factors, biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, t in model.state_dict().items():
            noise = torch.randn(t.shape, generator=generator) if t.is_floating_point() else None
            if key.endswith("num_batches_tracked"):
                t.fill_(3)
            elif key.endswith("running_var"):
                t.copy_(0.5 + noise.square())
            elif key.endswith(("bias", "running_mean")):
                t.add_(0.1 * noise)
            elif t.dim() == 1 or key.endswith("layer_scale"):
                t.copy_(1 + 0.2 * noise)
    return model


def still(model):
    """No dropout nor stochastic depth, whose masks differ between libraries."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout) or type(layer).__name__ in ("StochasticDepth", "DropPath"):
            layer.p = 0.0
    return model


def images(size, dtype=torch.float32, seed=7, batch=2, channels=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=g).to(dtype)


def parts(y):
    """name -> tensor of what a model gives."""
    if isinstance(y, torch.Tensor):
        return {"output": y}
    return dict(y) if isinstance(y, dict) else y._asdict()


def results(model, x):
    """name -> the model's outputs, and the gradients of a weighted sum of them.

    Of a large gradient some numbers, evenly spread: those of whole models fill the memory.
    """
    found = parts(model(x))
    loss = 0.0
    for i, y in enumerate(found.values()):
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(i)).to(y)
        loss = loss + (y * weights).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    known = {
        name: g.flatten()[:: 1 + g.numel() // MOST].clone()
        for name, g in zip(names, gradients, strict=True)
        if g is not None
    }
    return {name: y.detach() for name, y in found.items()} | known


def compare(theirs, ours, size, training_size):
    """Outputs and gradients with the norms' statistics in float32 by the rule, and in training in float64."""
    x = [images(size, seed=seed) for seed in range(2)]
    theirs.eval()
    both = [[results(model, one) for one in x] for model in (ours, theirs)]
    for model in (ours, theirs):
        model.double()
    exact = [results(theirs, one.double()) for one in x]
    for key in exact[0]:
        assert_as_good(key, *(torch.stack([one[key] for one in found]) for found in (*both, exact)))
    same(results(ours, x[0].double()), exact[0])
    x = images(training_size, torch.float64, batch=4)
    same(*(results(still(model).train(), x) for model in (ours, theirs)))
    same(dict(ours.named_buffers()), dict(theirs.named_buffers()))


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for key, t in ours.items():
        torch.testing.assert_close(t, theirs[key], msg=lambda text, key=key: f"{key}: {text}")


def saved(model, folder):
    """The file of a state dict alone, as one converts torchvision's."""
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def loaded(case, theirs, folder, **options):
    return zoo.load(case.name, saved(theirs, folder), **{**case.options, **options})
