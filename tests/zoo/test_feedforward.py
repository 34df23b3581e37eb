import json

import pytest
import torch

from kernelzoo import nn, zoo

MODELS = {
    "linear": ("linear_regression", {}),
    "mlp": ("mlp", {}),
    "mlp-leaky-nobias": ("mlp", {"hidden": 5, "act": ("leaky_relu", 0.2), "bias": False}),
    "mlp-gelu_tanh": ("mlp", {"hidden": (9, 7, 5), "act": "gelu_tanh", "dropout": 0.3}),
    "mlp-no-hidden": ("mlp", {"hidden": ()}),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def pair(request):
    """The same model from kernelzoo's layers and from plain PyTorch's, from one seed."""
    name, options = request.param
    models = []
    for namespace in (None, zoo.plain):
        torch.manual_seed(3)
        models.append(zoo.create(name, in_features=6, out_features=4, nn=namespace, **options))
    return models


def test_plain_twin_has_the_same_state_dict(pair):
    ours, plain = (model.state_dict() for model in pair)
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[key], plain[key]) for key in ours)


def test_plain_twin_holds_no_layer_of_ours(pair):
    _, plain = pair
    layers = [layer for layer in plain.modules() if layer is not plain]
    assert not any(type(layer).__module__.startswith("kernelzoo.nn") for layer in layers)
    assert any(isinstance(layer, nn.Linear) for layer in pair[0].modules())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_plain_twin_computes_the_same(pair, training):
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    results = []
    for model in pair:
        model.double().train(training)
        torch.manual_seed(5)
        y = model(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_mlp_is_its_formula():
    model = zoo.create("mlp", in_features=6, out_features=4, hidden=(5, 3), act="tanh")
    x = torch.randn(7, 6)
    w1, b1, w2, b2, w3, b3 = model.parameters()
    expected = torch.tanh(torch.tanh(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("hidden", [0, (8, -1), "wide", (2.5,)])
def test_mlp_refuses_widths_that_are_none(hidden):
    with pytest.raises(ValueError, match="hidden must be positive widths"):
        zoo.create("mlp", in_features=6, out_features=4, hidden=hidden)


def test_weights_load_with_the_options_they_were_saved_with(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = zoo.create("mlp", in_features=6, out_features=4, hidden=(5,))
    about = {"model": "mlp", "options": {"in_features": 6, "out_features": 4, "hidden": [5]}}
    save_file(model.state_dict(), tmp_path / "w.safetensors", {"kernelzoo": json.dumps(about)})
    x = torch.randn(3, 6)
    assert torch.equal(zoo.load("mlp", tmp_path / "w.safetensors")(x), model(x))
    with pytest.raises(ValueError, match="holds the weights of 'mlp'"):
        zoo.load("linear_regression", tmp_path / "w.safetensors")
