"""Models of images, sound and control: shapes, their plain twin, compile, export, saving, bad input."""

import copy

import pytest
import torch

from kernelzoo import zoo

F = torch.nn.functional
UNET = {"num_channels": 2, "num_classes": 3, "width": 4, "depth": 2}
WAVENET = {
    "num_codes": 16,
    "residual_channels": 6,
    "gate_channels": 5,
    "skip_channels": 7,
    "layers": 3,
    "kernel_size": 3,
}
# id: (zoo's name, options, shape of an input, shape of the output)
MODELS = {
    "unet": ("unet", UNET, (2, 2, 8, 12), (2, 3, 8, 12)),
    "unet-no-norm": ("unet", {**UNET, "batch_norm": False}, (1, 2, 4, 4), (1, 3, 4, 4)),
    "wavenet": ("wavenet", WAVENET, (2, 21), (2, 21, 16)),
    "wavenet-one": ("wavenet", {**WAVENET, "stacks": 1, "layers": 1, "kernel_size": 2}, (1, 2), (1, 2, 16)),
    "dcgan": (
        "dcgan",
        {"image_size": 16, "num_channels": 2, "width": 3, "latent_size": 5},
        (3, 5),
        (3, 2, 16, 16),
    ),
    "dcgan-8": (
        "dcgan",
        {"image_size": 8, "num_channels": 1, "width": 3, "latent_size": 5},
        (3, 5),
        (3, 1, 8, 8),
    ),
    "dqn": ("dqn", {"num_actions": 3, "observation": (2, 36, 44), "hidden": 9}, (2, 2, 36, 44), (2, 3)),
    "dqn-vector": ("dqn", {"num_actions": 2, "observation": 4, "hidden": (6, 5)}, (3, 4), (3, 2)),
}


def build(case, nn=None, **more):
    name, options, *_ = MODELS[case]
    torch.manual_seed(3)
    return zoo.create(name, nn=nn, **{**options, **more})


def inputs(case, dtype=torch.float32):
    shape = MODELS[case][2]
    if case.startswith("wavenet"):
        return torch.randint(16, shape)
    return torch.randn(shape, dtype=dtype)


def loss_of(model, x):
    """A scalar that every parameter has a part in."""
    if model.name == "wavenet":
        return model(x, labels=x)
    y = model(x)
    # no square: what comes from a norm has the same sum of squares whatever went in
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(8))
    loss = (y * weights.to(y)).sum()
    return loss + model.discriminate(y).sum() if model.name == "dcgan" else loss


@pytest.mark.parametrize("case", MODELS)
def test_plain_twin(case):
    ours, plain = build(case), build(case, zoo.plain)
    states = ours.state_dict(), plain.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(type(layer).__module__.startswith("kernelzoo.nn") for layer in plain.modules())
    x = inputs(case, torch.float64)
    results = []
    for model in (ours.double(), plain.double()):
        y = model(x)
        loss = loss_of(model, x)
        loss.backward()
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        results.append([y, loss.detach(), *(p.grad for p in model.parameters()), *buffers])
    assert results[0][0].shape == MODELS[case][3]
    assert all(t is not None for t in results[0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", MODELS)
def test_saved_loaded_and_copied(tmp_path, case):
    pytest.importorskip("safetensors")
    model = build(case)
    x = inputs(case)
    model(x)  # running statistics that are not those of the start
    model.eval()
    expected = loss_of(model, x)
    zoo.save(model, tmp_path)
    for again in (zoo.load(model.name, tmp_path), copy.deepcopy(model)):
        assert torch.equal(loss_of(again, x), expected)


@pytest.mark.parametrize("case", ["unet", "wavenet-one", "dcgan-8", "dqn", "dqn-vector"])
def test_compiles_without_a_break(case):
    model = build(case).eval()
    x = inputs(case)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    if model.name == "dcgan":
        images = model(x).detach()
        compiled = torch.compile(model.discriminate, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model.discriminate(images))


@pytest.mark.parametrize("case", MODELS)
def test_exports(case):
    model = build(case).eval()
    x = inputs(case)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_unet_without_depth_is_its_formula():
    model = build("unet", depth=1, batch_norm=False).double()
    x = inputs("unet", torch.float64)

    def double(block, x):
        for conv in (block.conv1, block.conv2):
            x = F.conv2d(x, conv.weight, conv.bias, padding=1).relu()
        return x

    top = double(model.down[0], x)
    low = double(model.down[1], F.max_pool2d(top, 2))
    up = F.conv_transpose2d(low, model.up[0].weight, model.up[0].bias, stride=2)
    y = double(model.merge[0], torch.cat([top, up], 1))
    torch.testing.assert_close(model(x), F.conv2d(y, model.head.weight, model.head.bias))


def test_wavenet_looks_back_on_its_receptive_field_and_on_nothing_ahead():
    model = build("wavenet").double().eval()
    assert model.receptive_field == 2 * 2 * 7 + 1
    codes = torch.randint(16, (1, 70))
    before = model(codes)
    changed = codes.clone()
    changed[0, 20] = (codes[0, 20] + 1) % 16
    moved = (model(changed) != before).any(-1)[0].nonzero()[:, 0].tolist()
    assert (moved[0], moved[-1]) == (20, 20 + model.receptive_field - 1)


def test_wavenet_generates_what_it_says_of_the_whole():
    model = build("wavenet").double().eval()
    prompt = torch.randint(16, (3, 9))
    out = model.generate(prompt, max_new_tokens=30)
    assert out.shape == (3, 39)
    assert torch.equal(out[:, 9:], model(out).argmax(-1)[:, 8:-1])
    drawn = [model.generate(prompt, max_new_tokens=12, do_sample=True, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    model.generate(prompt, max_new_tokens=4, num_beams=2)


def test_wavenet_of_known_weights_is_the_papers_gate():
    model = build("wavenet-one").double()
    block = model.blocks[0]
    codes = torch.randint(16, (1, 5))
    x = model.codes(codes)[0].T  # (C, L)
    shifted = F.pad(x, (1, 0))[:, :-1]
    w, b = block.conv.weight, block.conv.bias
    both = w[:, :, 0] @ shifted + w[:, :, 1] @ x + b[:, None]
    z = both[:5].tanh() * both[5:].sigmoid()
    skip = block.skip.weight[:, :, 0] @ z + block.skip.bias[:, None]
    y = model.mix.weight[:, :, 0] @ skip.relu() + model.mix.bias[:, None]
    y = model.head.weight[:, :, 0] @ y.relu() + model.head.bias[:, None]
    torch.testing.assert_close(model(codes)[0], y.T)
    expected = F.cross_entropy(y.T[:-1], codes[0, 1:])
    torch.testing.assert_close(model(codes, labels=codes), expected)


def test_dcgan_doubles_its_sides_and_starts_as_the_paper_says():
    model = build("dcgan", image_size=32, width=8)
    assert [conv.out_channels for conv in model.generator.up] == [16, 8, 2]
    assert [conv.out_channels for conv in model.discriminator.down] == [8, 16, 32]
    x = torch.randn(2, 5)
    assert model(x).abs().max() <= 1
    assert model.discriminate(model(x)).shape == (2,)
    assert model.generator.start.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"depth": 0}, "unet: depth is 0; expected 1 or more"),
        ("wavenet", {"kernel_size": 1}, "wavenet: kernel_size is 1; expected 2 or more"),
        ("dcgan", {"image_size": 12}, "dcgan: image_size is 12; expected a power of two from 8"),
        ("dcgan", {"width": 0}, "dcgan: width is 0"),
        ("dqn", {"num_actions": 2, "observation": (4, 30, 84)}, "frames of at least 36x36"),
        ("dqn", {"num_actions": 2, "observation": (3, 3)}, r"expected a number or \(frames, height, width\)"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, **options)


@pytest.mark.parametrize(
    ("case", "given", "message"),
    [
        ("unet", torch.zeros(1, 2, 6, 8), r"unet: x has shape \(1, 2, 6, 8\); .* multiples of 4: pad"),
        ("unet", torch.zeros(1, 3, 8, 8), r"expected \(batch, 2, height, width\)"),
        ("wavenet", torch.zeros(1, 5), "wavenet: input_ids has dtype torch.float32"),
        ("dcgan", torch.zeros(2, 4), r"dcgan: z has shape \(2, 4\); expected \(batch, 5\)"),
        ("dqn", torch.zeros(2, 4), r"dqn: x has shape \(2, 4\); expected \(batch, 2, 36, 44\)"),
    ],
)
def test_bad_inputs(case, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(case)(given)
    if case == "dcgan":
        with pytest.raises(ValueError, match=r"images has shape .*; expected \(batch, 2, 16, 16\)"):
            build(case).discriminate(torch.zeros(2, 2, 8, 8))
