"""Training on photographs with a class for each pixel: the rule, what is held out, the mask, what is refused."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("PIL")

from PIL import Image
from rich.console import Console

from kernelzoo import train
from kernelzoo.data import InputError, load_pictures, split_pictures
from kernelzoo.data.images import Augment
from kernelzoo.data.photographs import IGNORED, Picture, Pictures, by_colour, label
from kernelzoo.train import segment
from kernelzoo.train.engine import TORCH
from kernelzoo.train.loop import SupervisedModule, parts

TINY = {"width": 2, "depth": 1}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(out, data, **how):
    console = Console(file=io.StringIO(), width=300)
    how = {"epochs": 1, "device": "cpu", "tile": 16, "lr": 1e-2, **how}
    options = {**TINY, **how.pop("options", {})}
    result = train.run(train.configure("unet", data=str(data), options=options, out=out, **how), console)
    return {**result, "printed": console.file.getvalue()}


def scene(height=40, width=72):
    """Two classes: what is bright, and what is not; pixels numbered by their column in the blue channel."""
    random = np.random.default_rng(0)
    labels = (random.random((height // 8, width // 8)) < 0.5).repeat(8, 0).repeat(8, 1).astype(np.int64)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.where(labels == 1, 200, 60) + random.integers(-20, 20, labels.shape)
    pixels[..., 2] = np.arange(width)
    return pixels, labels


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
    pixels, labels = scene()
    mask = labels.astype(np.uint8)
    mask[:4, :4] = 255
    Image.fromarray(pixels).save(tmp_path / "scenes" / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "scenes" / "masks" / "a.png")
    return tmp_path / "scenes"


def test_rule_names_colours():
    flat = {
        "dark": (40, 40, 40),
        "pale": (220, 225, 235),
        "warm": (240, 140, 60),
        "green or blue": (30, 120, 100),
    }
    rows = [
        np.broadcast_to(np.array(colour, np.uint8), (9, 9, 3)) for colour in (*flat.values(), (200, 20, 60))
    ]
    assert [np.unique(label(row)).tolist() for row in rows] == [[0], [1], [2], [3], [2]]
    # the rule sees the neighbours: a single bright pixel is as dark as they are
    dot = np.array(rows[0])
    dot[4, 4] = 255
    assert label(dot)[4, 4] == 0


def test_photographs_of_scikit_learn():
    pictures = load_pictures("photographs", 0.25, 64)
    assert [p.name for p in pictures.pictures] == ["china.jpg", "flower.jpg"]
    assert all(p.pixels.shape == (427, 640, 3) and p.cut == 480 for p in pictures.pictures)
    # every class is worth learning
    shares = np.bincount(np.concatenate([p.labels[:, :480].ravel() for p in pictures.pictures])) / (
        2 * 427 * 480
    )
    assert shares.min() > 0.1


def test_training_sees_no_held_out_column_and_validation_every_pixel_once():
    pixels, labels = scene()
    pictures = Pictures((Picture("a", pixels, labels, 46),), ("no", "yes"), "")
    data = split_pictures(pictures, 16, 0, Augment(crop=True, flip=True))
    scale = data.normalization
    columns = []
    for epoch in range(3):
        x, y = data.training[epoch, list(range(len(data.training)))]
        assert x.shape == (128, 3, 16, 16)
        assert y.shape == (128, 16, 16)
        columns.append(((x[:, 2] * scale.std[2] + scale.mean[2]) * 255).round())
        bright = (x[:, 0] * scale.std[0] + scale.mean[0]) * 255 > 130
        assert bright.equal(y == 1)  # labels are cut and turned as the pixels are
    columns = torch.cat(columns)
    assert columns.max() <= 45
    assert columns.min() <= 1
    mirrored = (columns[:, 0, 0] > columns[:, 0, -1]).float().mean()
    assert 0.4 < mirrored < 0.6
    again = data.training[1, [5]][0]
    assert again.equal(data.training[1, [5]][0])
    assert not again.equal(data.training[2, [5]][0])
    x, y = data.validation[0, list(range(len(data.validation)))]
    assert int((y != IGNORED).sum()) == 40 * (72 - 46)
    seen = ((x[:, 2] * scale.std[2] + scale.mean[2]) * 255).round()[y != IGNORED]
    assert seen.unique().tolist() == list(range(46, 72))
    assert pixels[:, :46, 0].mean() / 255 == pytest.approx(scale.mean[0], rel=1e-6)


def test_colour_alone_is_what_training_columns_say_of_a_colour():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, ::2] = 200
    labels = np.zeros((4, 6), np.int64)
    labels[:, ::2] = 1
    labels[:, 4:] = 1 - labels[:, 4:]  # held out, it is the other way round
    labels[0, 0] = IGNORED
    pixels[3, 5] = (0, 0, 250)  # a colour that training has not
    said = by_colour(Pictures((Picture("a", pixels, labels, 4),), ("no", "yes"), ""))[0]
    assert (said[:, ::2] == 1).all()
    assert (said[:, 1::2] == 0).all()


def test_unet_learns_a_folder_of_masks_and_draws_them(tmp_path, folder):
    out = tmp_path / "out"
    result = run(out, folder, epochs=4, options={"width": 4})
    assert result["results"]["kernelzoo"]["metrics"]["iou"] > 0.8
    assert result["held_out"] == {"a.png": "columns from 54 on"}
    assert result["classes"] == ["0", "1"]
    assert set(result["baselines"]) == {"colour alone"}
    assert "mean intersection over union on the held-out columns" in result["printed"]
    assert (out / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_mask_of_a_whole_photograph_is_as_the_tiles_say(folder):
    pictures = load_pictures(str(folder), 0.25, 16)
    data = split_pictures(pictures, 16, 0, Augment(crop=True))

    class Bright(torch.nn.Module):
        def forward(self, x):
            assert x.shape[2] % 16 == x.shape[3] % 16 == 0
            red = x[:, :1]
            return torch.cat([-red, red], 1)

    said = segment.predict(Bright(), pictures.pictures[0].pixels, data)
    assert said.shape == (40, 72)
    known = pictures.pictures[0].labels != IGNORED
    assert (said == pictures.pictures[0].labels)[known].mean() > 0.99


def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, folder):
    whole = run(tmp_path / "whole", folder, epochs=2)
    assert run(tmp_path / "parts", folder, epochs=2, stop_at=1)["stopped"]
    with pytest.raises(InputError, match="epochs was 2 and is now 3"):
        run(tmp_path / "parts", folder, epochs=3, resume=True)
    resumed = run(tmp_path / "parts", folder, epochs=2, resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]
    assert resumed["results"]["kernelzoo"]["history"] == whole["results"]["kernelzoo"]["history"]
    with pytest.raises(InputError, match="tile was 16 and is now 18"):
        run(tmp_path / "parts", folder, epochs=2, resume=True, tile=18)


def test_comparison_trains_the_same_model_in_plain_torch(tmp_path, folder):
    result = run(tmp_path / "out", folder, compare="torch", backend="torch")
    assert result["largest_weight_difference"] < 1e-4 * result["largest_weight"]


def test_loss_has_a_share_of_classifiers_on_the_way():
    module = SimpleNamespace(engine=TORCH, regression=False)
    y = torch.randint(3, (2, 4, 4))
    end, early, late = torch.randn(3, 2, 3, 4, 4)
    loss = torch.nn.functional.cross_entropy
    for said in ({"out": end, "aux": early}, (end, early), (end, early, late), end):
        expected = loss(end, y) + 0.3 * sum(
            loss(one, y) for one in (early, late)[: len(said) - 1] if said is not end
        )
        torch.testing.assert_close(SupervisedModule.loss(module, said, y), expected)
        assert parts(said)[0] is end


def spoil_size(folder):
    Image.new("L", (8, 8)).save(folder / "masks" / "a.png")


def spoil_mode(folder):
    Image.new("RGB", (72, 40)).save(folder / "masks" / "a.png")


def spoil_classes(folder):
    Image.new("L", (72, 40)).save(folder / "masks" / "a.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "masks" / "a.png").unlink(), r"a\.png has no mask; expected .*masks/a\.png"),
        (lambda f: (f / "images" / "a.png").write_bytes(b"x"), r"a\.png cannot be decoded"),
        (lambda f: (f / "images" / "a.png").unlink(), "holds no image"),
        (lambda f: (f / "images").rename(f / "pictures"), "has no folders images and masks"),
        (spoil_size, r"a\.png is 40x72 but its mask .* is 8x8"),
        (spoil_mode, "has mode RGB; a mask's pixels are class numbers"),
        (spoil_classes, "every pixel of the masks is of class 0"),
    ],
    ids=["no-mask", "corrupt", "empty", "no-folders", "size", "mode", "one-class"],
)
def test_bad_folders(tmp_path, folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "photos"}, "no photographs are called 'photos'"),
        ({"tile": 64}, r"a\.png is 40x72; one tile of 64x64 to train on and one to hold out do not fit"),
        ({"tile": 4}, "--tile must be at least 8, got 4"),
        ({"tile": 17}, "multiples of 2: pad the images"),
        ({"augment": "none"}, "--augment none: tiles are drawn at random"),
        ({"options": {"num_classes": 5}}, "needs num_classes=2; leave the option out"),
    ],
)
def test_bad_input(tmp_path, folder, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **{"data": folder, **change})
    assert not (tmp_path / "out").exists()
