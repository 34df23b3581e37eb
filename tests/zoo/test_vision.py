"""Models of images beside torchvision's and timm's: the same names, numbers, gradients and starts."""

import copy
import json
import pickle

import pytest
import torch

from kernelzoo import zoo
from kernelzoo.zoo.vision import ImageModel

from .images import (
    CLASSES,
    SEGMENTATION,
    SMALL,
    compare,
    images,
    loaded,
    parts,
    randomise,
    results,
    same,
    saved,
    still,
    torchvision,
    whole,
)

slow = pytest.mark.slow
NAMES = [
    name
    for name in zoo.list()
    if isinstance(kind := zoo.registry._MODELS[name], type) and issubclass(kind, ImageModel) and kind.sized
]
LARGE = ("alexnet", "inception_v3", "googlenet")  # no smaller form of the architecture
DEFAULT = ("resnet", "densenet", "mobilenet_v3", "efficientnet", "convnext")


def some(names, default):
    """Parameters, of which the default suite takes a few."""
    return [name if name in default else pytest.param(name, marks=slow) for name in names]


def ours(case, nn=None, seed=3):
    torch.manual_seed(seed)
    return zoo.create(case.name, nn=nn, num_classes=CLASSES, **case.options)


def test_every_model_of_the_issue_is_here():
    numbers = {
        "vgg": ("11", "13", "16", "19", "11_bn", "13_bn", "16_bn", "19_bn"),
        "resnet": (18, 34, 50, 101, 152),
        "densenet": (121, 161, 169, 201),
        "efficientnet_b": range(8),
        "convnext_": ("tiny", "small", "base", "large"),
        "mobilenet_": ("v2", "v3_small", "v3_large"),
    }
    expected = {f"{family}{n}" for family, some in numbers.items() for n in some}
    expected |= {"alexnet", "googlenet", "inception_v3", "seresnet50", "resnext50_32x4d", "resnext101_32x8d"}
    assert expected | {"wide_resnet50_2", *SEGMENTATION} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    """Every key, in order: optimizers count parameters by it."""
    with torch.device("meta"):
        theirs = whole(name, 1000).theirs()
        mine = zoo.create(name, num_classes=1000, **whole(name).options)
    assert [(key, t.shape) for key, t in mine.state_dict().items()] == [
        (key, t.shape) for key, t in theirs.state_dict().items()
    ]
    assert [key for key, _ in mine.named_parameters()] == [key for key, _ in theirs.named_parameters()]


@pytest.mark.parametrize(
    "case", some(SMALL, (*DEFAULT, "seresnet", "resnext", "mobilenet_v2", "deeplabv3", "googlenet"))
)
def test_outputs_and_gradients(case, tmp_path):
    case = SMALL[case]
    theirs = randomise(case.theirs())
    compare(theirs, loaded(case, theirs, tmp_path), case.size, case.training_size)


@slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
def test_outputs_and_gradients_in_full(name, tmp_path):
    case = whole(name)
    theirs = randomise(case.theirs())
    compare(theirs, loaded(case, theirs, tmp_path), case.size, case.training_size)


@pytest.mark.parametrize("norm", [False, True])
def test_features_of_vgg(norm):
    """Without the dense layers, whose 100 million weights torchvision does not leave out."""
    cfg = (8, "M", 12, 16, "M")
    theirs = torchvision().models.vgg.make_layers(cfg, batch_norm=norm).double()
    mine = zoo.create("vgg11_bn" if norm else "vgg11", cfg=cfg, num_classes=CLASSES).features.double()
    mine.load_state_dict(randomise(theirs).state_dict())
    same(*(results(model, images(11, torch.float64)) for model in (mine, theirs)))


def start(model):
    return {key: t.clone() for key, t in model.state_dict().items()}


@pytest.mark.parametrize(
    "case", some(SMALL, (*DEFAULT, "seresnet", "mobilenet_v2", "deeplabv3", "googlenet"))
)
def test_the_same_start_from_the_same_seed(case):
    case = SMALL[case]
    torch.manual_seed(3)
    theirs = case.theirs()
    if case.name not in SEGMENTATION:
        same(start(ours(case)), start(theirs))
        return
    # torchvision builds a classifier of images first and leaves it out: other draws, of the same spread
    for key, t in ours(case).state_dict().items():
        expected = theirs.state_dict()[key]
        if expected.eq(expected.flatten()[0]).all():
            assert torch.equal(t, expected)
        elif t.numel() > 1000:
            torch.testing.assert_close(t.std(), expected.std(), rtol=0.1, atol=0)
            assert t.mean().abs() < 0.1 * t.std()


@slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*LARGE, *SEGMENTATION)])
def test_the_same_start_in_full(name):
    torch.manual_seed(3)
    theirs = start(whole(name).theirs())
    same(start(ours(whole(name))), theirs)


@pytest.mark.parametrize("case", ["mobilenet_v3", "efficientnet", "convnext"])
def test_dropouts_draw_as_torchvision(case):
    """Dropout and stochastic depth, in torch's own layers: as likely, and in the same places."""
    case, found = SMALL[case], []
    theirs, mine = case.theirs(), ours(case, zoo.plain)
    mine.load_state_dict(theirs.state_dict())
    for model in (mine, theirs):
        torch.manual_seed(5)
        found.append(model.train()(images(64, batch=4)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", some(SMALL, DEFAULT))
def test_plain_twin(case):
    case = SMALL[case]
    mine, plain = ours(case), ours(case, zoo.plain)
    same(start(mine), start(plain))
    assert not any(type(layer).__module__.startswith("kernelzoo.nn") for layer in plain.modules())
    assert any(type(layer).__module__.startswith("kernelzoo.nn") for layer in mine.modules())
    x = images(case.training_size, torch.float64, batch=4)
    same(*(results(still(model).double(), x) for model in (mine, plain)))


@pytest.mark.parametrize("case", some(SMALL, ("resnet",)))
def test_compiles_whole(case):
    case = SMALL[case]
    model, x = ours(case).eval(), images(case.size)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    found = []
    for one in (y, expected):
        loss = sum(
            (part * torch.linspace(0, 1, part.numel()).view_as(part)).sum() for part in parts(one).values()
        )
        used = [p for key, p in model.named_parameters() if not key.startswith(("aux1", "aux2", "AuxLogits"))]
        found.append([*parts(one).values(), *torch.autograd.grad(loss, used)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", some(SMALL, ("resnet", "mobilenet_v3")))
def test_exports(case):
    case = SMALL[case]
    model, x = ours(case).eval(), images(case.size)
    program = torch.export.export(model, (x,))
    same(parts(program.module()(x)), parts(model(x)))


class Tracer(torch.fx.Tracer):
    """Our layers are calls in the graph, as torch's are."""

    def is_leaf_module(self, module, name):
        ours = type(module).__module__.startswith(("kernelzoo.nn", "kernelzoo.zoo.plain"))
        return ours or super().is_leaf_module(module, name)


@pytest.mark.parametrize("case", some(SMALL, ("resnet", "googlenet")))
def test_symbolic_trace(case):
    """Checks of images are one call in the graph."""
    case = SMALL[case]
    model, x = ours(case).eval(), images(case.size)
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    same(parts(traced(x)), parts(model(x)))
    with pytest.raises(ValueError, match="images have shape"):
        traced(x[:, :2])


@pytest.mark.parametrize("case", ["resnet", "mobilenet_v3"])
def test_copies(case):
    case = SMALL[case]
    model, x = ours(case).eval(), images(case.size)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))
    pickle.loads(pickle.dumps(ours(case, zoo.plain)))


@pytest.mark.parametrize("case", ["resnet", "googlenet"])
def test_autocast(case):
    case = SMALL[case]
    model, x = randomise(ours(case)).eval(), images(case.size)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


def test_inputs_are_not_written_to():
    for case in ("resnet", "mobilenet_v2"):
        model, x = ours(SMALL[case]), images(33)
        before = x.clone()
        model(x)
        assert torch.equal(x, before)


def test_memory_efficient_densenet_is_the_same():
    case = SMALL["densenet"]
    x, found = images(64, torch.float64, batch=3), []
    for efficient in (False, True):
        torch.manual_seed(3)
        model = zoo.create("densenet121", **case.options, memory_efficient=efficient).double()
        found.append(results(model, x))
    same(*found)


def test_a_pretransformed_input(tmp_path):
    """torchvision's ImageNet weights of GoogLeNet and Inception v3 are used with transform_input."""
    theirs = (
        torchvision().models.googlenet(num_classes=CLASSES, init_weights=True, transform_input=True).eval()
    )
    mine = zoo.load("googlenet", saved(theirs, tmp_path), transform_input=True)
    x = images(15)
    torch.testing.assert_close(mine(x), theirs(x))
    with pytest.raises(ValueError, match="transform_input takes 3 channels, but num_channels=1"):
        zoo.create("googlenet", num_channels=1, transform_input=True)(images(15, channels=1))


# -- files


@pytest.mark.parametrize("case", ["resnet", "mobilenet_v3", "googlenet"])
def test_what_we_save_torchvision_reads(case, tmp_path):
    load_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").load_file
    case = SMALL[case]
    mine = randomise(ours(case)).eval()
    mine.label_names = tuple("abcdefg")
    zoo.save(mine, tmp_path)
    theirs = case.theirs().eval()
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = images(case.size)
    torch.testing.assert_close(theirs(x), mine(x))
    again = zoo.load(case.name, tmp_path)
    assert again.options == json.loads(json.dumps(mine.options))
    assert again.label_names == mine.label_names
    assert torch.equal(again(x), mine(x))


def test_a_pickle_is_refused_and_the_way_out_works(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    case = SMALL["resnet"]
    theirs = randomise(case.theirs()).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(
        zoo.CheckpointError, match=r"is a pickle.*save_file\(torch.load\(path, weights_only=True\)"
    ):
        zoo.load("resnet18", tmp_path / "resnet18.pth", **case.options)
    file = tmp_path / "resnet18.safetensors"
    safetensors.save_file(torch.load(tmp_path / "resnet18.pth", weights_only=True), file)
    x = images(case.size)
    torch.testing.assert_close(zoo.load("resnet18", file, **case.options)(x), theirs(x))


@pytest.fixture
def weights():
    """A small ResNet's, of 7 classes and two channels."""
    return zoo.create("resnet18", num_classes=CLASSES, num_channels=2, **SMALL["resnet"].options).state_dict()


def write(weights, folder, name="model.safetensors"):
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    save_file({key: t.contiguous() for key, t in weights.items()}, folder / name)
    return folder / name


def read(path, name="resnet18", **options):
    return zoo.load(name, path, **{**SMALL["resnet"].options, **options})


def refused(path, match, **options):
    with pytest.raises(zoo.CheckpointError, match=match):
        read(path, **options)


def test_sizes_follow_from_the_weights(weights, tmp_path):
    file = write(weights, tmp_path)
    for path in (file, tmp_path):
        model = read(path)
        assert (model.options["num_classes"], model.options["num_channels"]) == (CLASSES, 2)
        assert not model.training


@pytest.mark.parametrize("aux", [True, False])
def test_auxiliary_classifiers_follow_from_the_weights(aux, tmp_path):
    model = zoo.create("fcn_resnet50", **SMALL["resnet"].options, aux_loss=aux)
    file = write(model.state_dict(), tmp_path)
    assert read(file, "fcn_resnet50").options["aux_loss"] is aux
    assert read(file, "fcn_resnet50", aux_loss=False).aux_classifier is None
    if not aux:
        with pytest.raises(zoo.CheckpointError, match=r"has no aux_classifier.0.weight nor \d+ more"):
            read(file, "fcn_resnet50", aux_loss=True)


def test_a_new_head(weights, tmp_path):
    file = write(weights, tmp_path)
    refused(file, r"fc.bias in .* \(7,\); expected \(3,\); .* new_head=True", num_classes=3)
    model = read(file, num_classes=3, new_head=True)
    assert model.fc.weight.shape == (3, 512)
    assert torch.equal(model.layer4[0].conv2.weight, weights["layer4.0.conv2.weight"])


def test_missing_foreign_and_misshapen_keys(weights, tmp_path):
    less = {key: t for key, t in weights.items() if not key.startswith("layer3.0.conv1")}
    refused(write(less, tmp_path), r"has no layer3.0.conv1.weight, which resnet18 needs")
    more = {**weights, "layer5.0.conv1.weight": torch.ones(1), "layer5.0.conv2.weight": torch.ones(1)}
    refused(write(more, tmp_path), r"holds layer5.0.conv1.weight and 1 more, which the model does not have")
    other = {**weights, "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}
    refused(
        write(other, tmp_path), r"layer1.0.conv1.weight in .* \(64, 64, 1, 1\); expected \(64, 64, 3, 3\)"
    )
    kind = {**weights, "layer1.0.conv1.weight": torch.ones(64, 64, 3, 3, dtype=torch.int8)}
    refused(write(kind, tmp_path), r"layer1.0.conv1.weight in .* has dtype I8; expected")
    file = write(weights, tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    refused(file, "is truncated or no safetensors file")


def test_counters_may_be_missing(weights, tmp_path):
    """Files of before 2018 have none; torch starts them at 0."""
    old = {key: t for key, t in weights.items() if not key.endswith("num_batches_tracked")}
    model = read(write(old, tmp_path))
    assert model.bn1.num_batches_tracked == 0
    assert not any(t.is_meta for t in (*model.buffers(), *model.parameters()))


def test_old_names_of_densenet(tmp_path):
    """densenet121-a639ec97.pth and its like say norm.1 where torchvision's model says norm1."""
    options = SMALL["densenet"].options
    model = randomise(zoo.create("densenet121", **options)).eval()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t
        for key, t in model.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old
    again = zoo.load("densenet121", write(old, tmp_path), **options)
    assert torch.equal(again(images(29)), model(images(29)))


def test_a_folder_of_timms(weights, tmp_path):
    write(weights, tmp_path)
    config = {
        "architecture": "resnet18",
        "num_classes": CLASSES,
        "pretrained_cfg": {"input_size": [3, 224, 224]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read(tmp_path).options["num_classes"] == CLASSES
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "resnet18d"}))
    refused(tmp_path, "says architecture 'resnet18d'; expected 'resnet18'")


def test_a_sized_model_needs_its_settings(tmp_path):
    write(zoo.create("lenet").state_dict(), tmp_path)
    with pytest.raises(zoo.CheckpointError, match=r"has no config.json, which says how large"):
        zoo.load("lenet", tmp_path)


# -- bad input


@pytest.mark.parametrize(
    "name",
    some(NAMES, (*LARGE, "vgg11", "resnet18", "densenet121", "convnext_tiny", "mobilenet_v3_small")),
)
def test_the_smallest_image(name):
    """The limit is where torch's own layers refuse, no higher."""
    with torch.device("meta"):
        model = zoo.create(name, nn=zoo.plain).eval()
        side = model.smallest
        model(torch.empty(1, 3, side, side))
        if side > 1:
            less = torch.empty(1, 3, side, side - 1)
            with pytest.raises(ValueError, match=f"are {side}x{side - 1}; expected at least {side}x{side}"):
                model(less)
            model.smallest = 1
            with pytest.raises(RuntimeError, match=r"too small|can't be greater"):
                model(less)


def test_the_smallest_image_in_training():
    """The classifier on the way of Inception v3 needs the paper's images."""
    with torch.device("meta"):
        model = zoo.create("inception_v3", nn=zoo.plain)
        model(torch.empty(2, 3, 299, 299))
        with pytest.raises(
            ValueError, match="299x298; expected at least 299x299 in training with aux_logits"
        ):
            model(torch.empty(2, 3, 299, 298))
        zoo.create("inception_v3", nn=zoo.plain, aux_logits=False)(torch.empty(2, 3, 107, 107))


def test_bad_images():
    model = ours(SMALL["resnet"])
    with pytest.raises(ValueError, match=r"shape \(2, 4, 9, 9\); expected \(batch, 3, height, width\)"):
        model(torch.ones(2, 4, 9, 9))
    with pytest.raises(ValueError, match=r"shape \(3, 9, 9\); expected \(batch, 3"):
        model(torch.ones(3, 9, 9))
    with pytest.raises(TypeError, match=r"dtype torch.uint8; expected floats"):
        model(torch.ones(2, 3, 9, 9, dtype=torch.uint8))


def test_options_that_are_refused():
    with pytest.raises(ValueError, match="block is 'wide'; expected 'basic' or 'bottleneck'"):
        zoo.create("resnet18", block="wide")
    with pytest.raises(ValueError, match="has no dilation, groups"):
        zoo.create("resnet18", replace_stride_with_dilation=(True, False, False))
    with pytest.raises(ValueError, match=r"layers is \(1, 1, 1\).*expected four numbers"):
        zoo.create("resnet18", layers=(1, 1, 1))
    with pytest.raises(ValueError, match=r"p is 1\.\d+; expected a probability"):
        zoo.create("convnext_tiny", stochastic_depth_prob=1.5)
    with pytest.raises(ValueError, match="inverted_residual_setting has no block"):
        zoo.create("efficientnet_b0", depth_mult=0)
    assert zoo.registry.mistyped("resnet18", {"layers": "1"}) == "layers is '1'; expected tuple[int, ...]"
    with pytest.raises(TypeError, match=r"no option 'num_class'; did you mean 'num_classes'\? .*groups=32"):
        zoo.create("resnext50_32x4d", num_class=3)


# -- the models that are not torchvision's


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_cnn_is_its_formula(padding):
    torch.manual_seed(3)
    model = zoo.create("cnn", image_size=(12, 15), num_channels=2, num_classes=4, padding=padding).double()
    F, x = torch.nn.functional, torch.randn(3, 2, 12, 15, dtype=torch.float64)
    w = dict(model.named_parameters())
    y = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=padding).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, w["conv2.weight"], w["conv2.bias"], padding=padding).relu(), 2).flatten(1)
    y = F.linear(F.linear(y, w["hidden.weight"], w["hidden.bias"]).relu(), w["head.weight"], w["head.bias"])
    torch.testing.assert_close(model(x), y)
    softmax = zoo.create("cnn", **{**model.options, "softmax": True}).double()
    softmax.load_state_dict(model.state_dict())
    torch.testing.assert_close(softmax(x), y.softmax(1))


@pytest.mark.parametrize(("size", "padding"), [(32, 0), (28, 2)])
def test_lenet_is_its_formula(size, padding):
    model = zoo.create("lenet", image_size=size, padding=padding).double()
    assert sum(p.numel() for p in model.parameters()) == 61706
    F, x = torch.nn.functional, torch.randn(3, 1, size, size, dtype=torch.float64)
    w = dict(model.named_parameters())
    y = F.avg_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=padding).tanh(), 2)
    y = F.avg_pool2d(F.conv2d(y, w["conv2.weight"], w["conv2.bias"]).tanh(), 2)
    y = F.conv2d(y, w["conv3.weight"], w["conv3.bias"]).tanh().flatten(1)
    y = F.linear(F.linear(y, w["hidden.weight"], w["hidden.bias"]).tanh(), w["head.weight"], w["head.bias"])
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("name", ["cnn", "lenet"])
def test_models_of_one_size(name, tmp_path):
    side = zoo.options(name)["image_size"]
    with pytest.raises(ValueError, match=rf"shape \(1, 1, 9, 9\); expected \(batch, 1, {side}, {side}\)"):
        zoo.create(name)(torch.ones(1, 1, 9, 9))
    with pytest.raises(ValueError, match="of image_size=8 the convolutions and pools leave nothing"):
        zoo.create(name, image_size=8)
    assert name == "lenet" or zoo.create(name, image_size=8, padding="same")
    model = zoo.create(name, num_classes=3).eval()
    zoo.save(model, tmp_path)
    x = torch.randn(2, 1, side, side)
    assert torch.equal(zoo.load(name, tmp_path)(x), model(x))
    torch.manual_seed(3)
    plain = zoo.create(name, nn=zoo.plain)
    torch.manual_seed(3)
    same(start(zoo.create(name)), start(plain))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
