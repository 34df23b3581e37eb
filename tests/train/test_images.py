"""Training on images: formats, augmentation, class folders, workers, resumption, what is refused."""

import gzip
import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("PIL")

from PIL import Image
from rich.console import Console

from kernelzoo import train, zoo
from kernelzoo.data import InputError, load_images, split_images
from kernelzoo.data.images import Augment, augmented, draws
from kernelzoo.train.loop import EpochBatches


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TINY = {"filters": (3, 4), "hidden": 8}


def run(out, data="digits", model="cnn", **how):
    console = Console(file=io.StringIO(), width=200)
    how = {"epochs": 2, "device": "cpu", "workers": 0, "batch_size": 256, **how}
    options = {**(TINY if model == "cnn" else {}), **how.pop("options", {})}
    result = train.run(train.configure(model, data=str(data), options=options, out=out, **how), console)
    return {**result, "printed": console.file.getvalue()}


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 12 images each, 20x24: dark ones and bright ones, in four file formats."""
    random = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 40)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(level - 30, level + 30, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02}.{('png', 'jpg', 'bmp', 'gif')[i % 4]}")
    (tmp_path / "pictures" / "dark" / "notes.txt").write_text("not an image")
    return tmp_path / "pictures"


def test_digits_are_scikit_learns_and_their_held_out_part_is_never_augmented():
    images = load_images("digits")
    assert images.shape == (1, 8, 8)
    assert len(images) == 1797
    data = split_images(images, 0.2, 0, Augment(crop=True))
    assert not set(data.training.rows) & set(data.validation.rows)
    assert len(data.training) + len(data.validation) == 1797
    rows = list(range(len(data.training)))
    seen = [data.training[epoch, rows][0] for epoch in (0, 0, 1)]
    assert seen[0].equal(seen[1])
    assert not seen[0].equal(seen[2])
    held = [data.validation[epoch, [0, 1]][0] for epoch in (0, 1)]
    assert held[0].equal(held[1])
    pixels = images.pixels[data.training.rows].astype(float) / 16
    assert data.normalization.mean[0] == pytest.approx(pixels.mean())
    assert data.normalization.std[0] == pytest.approx(pixels.std())
    # one row at a time, as other workers and batches would, is the same
    for i in (0, 7, 1000):
        assert data.training[1, [i]][0][0].equal(seen[2][i])


def test_crops_shift_by_the_margin_and_flips_mirror():
    x = torch.arange(2 * 8 * 8.0).view(2, 1, 8, 8) + 1
    chance = np.array([[0, 0.999, 0.2, 0], [0.5, 0.5, 0.7, 0]], np.float32)
    y = augmented(x, chance, Augment(crop=True))
    assert y[0, 0, 0].eq(0).all()  # black came in at the top
    assert y[0, 0, :, -1].eq(0).all()  # and at the right
    assert y[0, 0, 1:, :-1].equal(x[0, 0, :-1, 1:])
    assert y[1].equal(x[1])
    flipped = augmented(x, chance, Augment(flip=True))
    assert flipped[0].equal(x[0].flip(2))
    assert flipped[1].equal(x[1])
    shifts = (draws(3, 0, 1000)[:, 0] * 3).astype(int)
    assert set(shifts) == {0, 1, 2}


def test_a_lone_last_row_joins_the_batch_before():
    for rows, size, expected in (
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ):
        batches = EpochBatches(rows, size, seed=0, epoch=2)
        found = list(batches)
        assert [len(at) for _, at in found] == expected
        assert len(batches) == len(expected)
        assert sorted(row for _, at in found for row in at) == list(range(rows))
        assert {epoch for epoch, _ in found} == {2}


def test_cnn_learns_digits_and_says_what_its_weights_do(tmp_path):
    how = {"epochs": 4, "batch_size": 32, "lr": 5e-3, "augment": "none"}
    result = run(tmp_path, **how, options={"filters": (16, 32), "hidden": 32})
    assert result["results"]["kernelzoo"]["metrics"]["accuracy"] > 0.9
    assert result["images"] == {"training": 1438, "validation": 359}
    assert result["options"]["padding"] == "same"
    data = split_images(load_images("digits"), 0.2, 0, Augment())
    model = zoo.load("cnn", tmp_path / "model.safetensors")
    x, y = data.validation[0, list(range(359))]
    right = (model(x).argmax(1) == y).float().mean().item()
    assert right == pytest.approx(result["results"]["kernelzoo"]["metrics"]["accuracy"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.ckpt", "curves.png", "metrics.json", "model.safetensors",
    }  # fmt: skip


def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    how = {"options": {"dropout": 0.3}, "epochs": 3}
    whole = run(tmp_path / "whole", **how)
    assert run(tmp_path / "parts", stop_at=1, **how)["stopped"]
    resumed = run(tmp_path / "parts", resume=True, **how)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]
    assert resumed["results"]["kernelzoo"]["history"] == whole["results"]["kernelzoo"]["history"]
    with pytest.raises(InputError, match=r"augment was .*crop=True.* and is now .*crop=False"):
        run(tmp_path / "parts", resume=True, augment="none", **how)


def test_comparison_trains_the_same_model_in_plain_torch(tmp_path):
    result = run(tmp_path, compare="torch", backend="torch")
    assert result["largest_weight_difference"] < 1e-4 * result["largest_weight"]


def test_folder_of_class_folders_with_worker_processes(tmp_path, pictures):
    how = {
        "model": "resnet18",
        "batch_size": 8,
        "epochs": 1,
        "image_size": 16,
        "options": {"layers": (1, 1, 1, 1)},
    }
    with_workers = run(tmp_path / "two", pictures, **{**how, "workers": 2})
    run(tmp_path / "none", pictures, **how)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "none")]
    assert weights[0] == weights[1]
    assert with_workers["classes"] == ["bright", "dark"]
    assert with_workers["shape"] == [3, 16, 16]
    assert with_workers["augment"] == {"crop": True, "flip": True}
    assert "1 files that are no images" in with_workers["printed"]


def test_sizes_and_cuts_of_a_folder(pictures):
    images = load_images(str(pictures))
    assert images.shape == (3, 20, 24)
    plain = images.pictures(np.arange(3))
    with Image.open(images.paths[0]) as image:
        np.testing.assert_allclose(plain[0].permute(1, 2, 0).numpy() * 255, np.asarray(image.convert("RGB")))
    squares = load_images(str(pictures), 14)
    assert squares.shape == (3, 14, 14)
    chance = draws(0, 0, 2)
    crop = Augment(crop=True)
    # from 16x19, the shorter side 8/7 of 14: the middle when validating, anywhere when training
    middle, drawn = (squares.read([0, 1], how, crop) for how in (None, chance))
    assert middle.shape == drawn.shape == (2, 3, 14, 14)
    assert not middle.equal(drawn)
    rows = np.arange(24)
    mean, _ = images.moments(rows)
    np.testing.assert_allclose(mean, images.pictures(rows).mean((0, 2, 3)).numpy(), rtol=1e-5)


def test_mixed_sizes_need_a_size(pictures):
    Image.new("RGB", (30, 30)).save(pictures / "dark" / "other.png")
    with pytest.raises(
        InputError, match=r"00\.png is 20x24 but .*other\.png is 30x30; --image-size N resizes"
    ):
        load_images(str(pictures))
    assert load_images(str(pictures), 12).shape == (3, 12, 12)


def test_corrupt_images_are_named_and_skipped_only_when_asked(tmp_path, pictures):
    whole = (pictures / "dark" / "01.jpg").read_bytes()
    (pictures / "dark" / "01.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "bright" / "08.png").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"08\.png cannot be decoded .*1 more of 24 .*--skip-corrupt"):
        run(tmp_path / "out", pictures)
    assert not (tmp_path / "out").exists()
    result = run(tmp_path / "out", pictures, skip_corrupt=True, epochs=1)
    assert sum(result["images"].values()) == 22
    assert "skipped: " in result["printed"]
    assert "01.jpg" in result["printed"]
    assert len(json.loads((tmp_path / "out" / "metrics.json").read_text())["skipped"]) == 2


def test_deep_images_are_refused_and_turned_ones_turned(tmp_path, pictures):
    path = pictures / "dark" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 24)).save(path, exif=exif)
    assert load_images(str(pictures)).shape == (3, 20, 24)
    Image.fromarray(np.full((20, 24), 40000, np.uint16)).save(pictures / "dark" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png has pixels of more than 8 bits \(mode I;16\)"):
        load_images(str(pictures))


def test_train_and_val_folders_are_the_split(tmp_path, pictures):
    for part, numbers in (("train", range(8)), ("val", range(8, 12))):
        for name in ("bright", "dark"):
            folder = tmp_path / "split" / part / name
            folder.mkdir(parents=True)
            for i in numbers:
                file = next((pictures / name).glob(f"{i:02}.*"))
                (folder / file.name).write_bytes(file.read_bytes())
    images = load_images(str(tmp_path / "split"))
    data = split_images(images, 0.5, 0, Augment())
    assert (len(data.training), len(data.validation)) == (16, 8)
    assert all("val" in images.paths[row].parts for row in data.validation.rows)
    for path in (tmp_path / "split" / "train" / "dark").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no image of class 'dark' in train"):
        load_images(str(tmp_path / "split"))


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path):
    random = np.random.default_rng(1)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, rows in (("train", 40), ("t10k", 12)):
        images = random.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(rows) % 4).astype(np.uint8)))
    return folder


def test_mnist_files_compressed_or_not(mnist):
    images = load_images(str(mnist))
    assert images.shape == (1, 28, 28)
    data = split_images(images, 0.2, 0, Augment())
    assert (len(data.training), len(data.validation)) == (40, 12)
    assert images.classes == ("0", "1", "2", "3")
    content = gzip.decompress((mnist / "train-images-idx3-ubyte.gz").read_bytes())
    assert images.pixels[:40].tobytes() == content[16:]
    with pytest.raises(InputError, match="are 28x28 and are used as they are"):
        load_images(str(mnist), 14)


def test_lenet_takes_mnist_padded_to_32(tmp_path, mnist):
    result = run(tmp_path / "out", model="lenet", data=str(mnist), epochs=1, batch_size=8, options={})
    assert result["options"]["padding"] == 2
    assert result["options"]["image_size"] == 28


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("train-labels-idx1-ubyte", lambda b: b[:-3], "holds 37 bytes after its head, which says 40"),
        ("train-labels-idx1-ubyte", lambda b: b"PK" + b[2:], "is not an IDX file"),
        (
            "train-labels-idx1-ubyte",
            lambda b: b[:2] + b"\x0d" + b[3:],
            "of type 13 with 1 axes; expected bytes",
        ),
        ("train-images-idx3-ubyte.gz", lambda b: b[:100], "cannot be read"),
        (
            "train-labels-idx1-ubyte",
            lambda b: idx(np.zeros(39, np.uint8)),
            "has 40 images but .* has 39 labels",
        ),
        ("train-labels-idx1-ubyte", None, "has no train-labels-idx1-ubyte"),
    ],
    ids=["short", "foreign", "type", "gzip", "count", "missing"],
)
def test_bad_mnist_files(mnist, name, spoil, message):
    path = mnist / name
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_images(str(mnist))


def test_cifar_is_read_in_both_its_versions(tmp_path):
    random = np.random.default_rng(2)
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, rows in (("data_batch_1", 30), ("data_batch_2", 30), ("test_batch", 20)):
        records = random.integers(0, 256, (rows, 3073)).astype(np.uint8)
        records[:, 0] = np.arange(rows) % 10
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
        batch = {b"labels": records[:, 0].tolist(), b"data": records[:, 1:], b"batch_label": b"of many"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    images = load_images(str(tmp_path))
    pickled = load_images(str(tmp_path / "python"))
    np.testing.assert_array_equal(images.pixels, pickled.pixels)
    np.testing.assert_array_equal(images.y, pickled.y)
    np.testing.assert_array_equal(images.held_out, pickled.held_out)
    assert images.shape == (3, 32, 32)
    assert images.classes[3] == "cat"
    assert images.usual_augment == Augment(crop=True, flip=True)
    assert images.held_out.sum() == 20
    np.testing.assert_array_equal(images.pixels[-1], records[-1, 1:].reshape(3, 32, 32))
    (tmp_path / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_2\.bin has .* no whole records of 3073"):
        load_images(str(tmp_path))


class Opener:
    def __reduce__(self):
        return open, ("opened", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({b"labels": [0], b"data": Opener()}),
            "it names (io|_io).open, which no batch of CIFAR-10 does",
        ),
        (b"\x80\x04", "data_batch_1 is no batch of CIFAR-10's Python version"),
        (pickle.dumps([1, 2]), "data_batch_1 is no batch of CIFAR-10's Python version"),
        (
            pickle.dumps({b"labels": [0, 1], b"data": np.zeros((1, 3072), np.uint8)}),
            r"of shape \(1, 3072\) and labels",
        ),
        (pickle.dumps({b"labels": [0], b"data": np.zeros((1, 3072))}), "holds float64 of shape"),
        (pickle.dumps({b"labels": [-1], b"data": np.zeros((1, 3072), np.uint8)}), "a record of class -1"),
    ],
    ids=["code", "truncated", "list", "lengths", "dtype", "class"],
)
def test_bad_pickles_of_cifar(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_images(str(tmp_path))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "no images are called 'nowhere'"),
        ({"augment": "turn"}, "--augment is none, crop, flip or crop,flip, got 'turn'"),
        ({"image_size": 28}, "the images of digits are 8x8 and are used as they are"),
        ({"image_size": 2}, "--image-size must be at least 4, got 2"),
        ({"workers": -1}, "--workers must be at least 0"),
        ({"task": "regression"}, "--task: cnn classifies images and has no other task"),
        ({"options": {"num_classes": 3}}, "needs num_classes=10; leave the option out"),
        ({"options": {"padding": "valid"}}, "convolutions and pools leave nothing"),
        ({"model": "densenet121", "options": {"block_config": (1, 1, 1, 1)}}, "8x8; expected at least 29x29"),
    ],
)
def test_bad_input(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **{"model": "cnn", **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "holds no image in a class's folder"),
        (
            lambda f: Image.new("RGB", (8, 8)).save(f / "a.png"),
            "1 images but no folder of images for each class",
        ),
        (
            lambda f: [(f / "one").mkdir(), Image.new("RGB", (8, 8)).save(f / "one" / "a.png")],
            "a single class",
        ),
        (
            lambda f: [
                ((f / n).mkdir(), Image.new("RGB", (8, 8)).save(f / n / "a.png")) for n in ("one", "two")
            ],
            "class 'one' has one image",
        ),
    ],
    ids=["empty", "loose", "one-class", "one-image"],
)
def test_folders_with_nothing_to_learn(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        load_images(str(tmp_path))
