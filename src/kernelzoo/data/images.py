"""Images with a class each: scikit-learn's digits, MNIST's and CIFAR-10's files, folders of class folders."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from . import image_files
from .tabular import InputError, Normalization, split_rows

DIGITS = "digits"
CROPPED = 8 / 7  # a picture is resized to so many times the side of the crop, as 256 to 224
MARGIN = 1 / 8  # of the side, what a picture that is not resized is padded by before a crop
VAL_VALUES = 2**20  # numbers of a batch of validation images


@dataclass(frozen=True)
class Augment:
    """What training images go through: a random crop, a mirror image of every other one."""

    crop: bool = False
    flip: bool = False

    @classmethod
    def parse(cls, text: str) -> Augment:
        """`none`, `crop`, `flip` or `crop,flip`."""
        parts = [] if text == "none" else text.split(",")
        if unknown := [part for part in parts if part not in ("crop", "flip")]:
            raise InputError(f"--augment is none, crop, flip or crop,flip, got {unknown[0]!r}")
        return cls("crop" in parts, "flip" in parts)


def draws(seed: int, epoch: int, rows: int) -> np.ndarray:
    """(rows, 4) numbers in [0, 1) that decide how each row of an epoch is cropped and turned."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, 2])).random((rows, 4), np.float32)


@dataclass(frozen=True)
class Images:
    """y (N,) int64; held_out: which rows their maker keeps for tests, None where that is left to a split.

    shape: (C, H, W) of what a model sees. skipped: files that could not be read; left_out: that are no images.
    """

    y: np.ndarray
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    held_out: np.ndarray | None
    digest: str
    skipped: tuple[str, ...] = ()
    left_out: int = 0
    task = "classification"
    usual_augment = Augment(crop=True)
    parallel = False  # whether processes of their own should read them

    def __len__(self) -> int:
        return len(self.y)

    def fingerprint(self) -> str:
        return self.digest

    def pictures(self, rows: np.ndarray) -> torch.Tensor:
        """(N, C, H, W) in [0, 1], as they are."""
        return self.read(rows, None, Augment())

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and mean square by channel, over these rows."""
        raise NotImplementedError

    def read(self, rows: list[int], chance: np.ndarray | None, augment: Augment) -> torch.Tensor:
        """(B, C, H, W) in [0, 1]; chance (B, 4): cropped and turned so; None: the middle, as it is."""
        raise NotImplementedError


@dataclass(frozen=True)
class ArrayImages(Images):
    """pixels (N, C, H, W) uint8, 0 to `largest`, in memory."""

    pixels: np.ndarray = None
    largest: int = 255
    usual_augment: Augment = Augment(crop=True)

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = self.pixels[rows].astype(np.float64) / self.largest
        return x.mean((0, 2, 3)), np.square(x).mean((0, 2, 3))

    def read(self, rows: list[int], chance: np.ndarray | None, augment: Augment) -> torch.Tensor:
        x = torch.from_numpy(self.pixels[rows]).float() / self.largest
        return x if chance is None else augmented(x, chance, augment)


def augmented(x: torch.Tensor, chance: np.ndarray, augment: Augment) -> torch.Tensor:
    """x (B, C, H, W), each cut out of itself with black around it, and mirrored where its third number says so."""
    if augment.crop:
        height, width = x.shape[2:]
        around = [max(1, round(side * MARGIN)) for side in (height, width)]
        padded = torch.nn.functional.pad(x, (around[1], around[1], around[0], around[0]))
        tops, lefts = (np.floor(chance[:, i] * (2 * around[i] + 1)).astype(int) for i in (0, 1))
        x = torch.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, top, left in zip(padded, tops.tolist(), lefts.tolist(), strict=True)
            ]
        )
    if augment.flip:
        x = torch.where(torch.from_numpy(chance[:, 2] < 0.5)[:, None, None, None], x.flip(3), x)
    return x


class ImageRows(Dataset):
    """Batches by (epoch, numbers of rows): normalised images and classes; seed None: not augmented."""

    def __init__(
        self, images: Images, rows: np.ndarray, scale: Normalization, augment: Augment, seed: int | None
    ) -> None:
        self.images, self.rows, self.augment, self.seed = images, rows, augment, seed
        self.mean, self.std = (torch.tensor(part)[:, None, None] for part in (scale.mean, scale.std))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, asked: tuple[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, at = asked
        chance = None
        if self.seed is not None:
            chance = draws(self.seed, epoch, len(self.rows))[at]
        rows = self.rows[at]
        x = self.images.read(rows, chance, self.augment)
        return (x - self.mean) / self.std, torch.from_numpy(self.images.y[rows])


@dataclass(frozen=True)
class ImageSplit:
    """What is trained and validated on, normalised by channel by the training images."""

    images: Images
    training: ImageRows
    validation: ImageRows
    normalization: Normalization

    @property
    def val_batch(self) -> int:
        return max(1, min(4096, VAL_VALUES // int(np.prod(self.images.shape))))


def load_images(name: str, image_size: int | None = None, *, skip_corrupt: bool = False) -> Images:
    """`digits` (1797 of 8x8 pixels), or a folder: MNIST's files, CIFAR-10's, or a folder of images for each class.

    image_size: pictures of a folder of class folders are resized, by their shorter side, and cut out of the middle
    to this side; without it all must be of one size. skip_corrupt: leave out files that cannot be decoded.
    Raises InputError, naming the file, where one cannot be read, and where there is nothing to learn from.
    """
    path = Path(name)
    if name == DIGITS and not path.exists():
        return _whole_size(_digits(), name, image_size)
    if path.is_dir():
        for read in (image_files.mnist, image_files.cifar):
            if (found := read(path)) is not None:
                return _whole_size(_array(*found), name, image_size)
        from .image_folder import read_folder

        return read_folder(path, image_size, skip_corrupt)
    if path.exists():
        raise InputError(
            f"{name} is a file; images come from a folder with a folder of images for each class"
        )
    close = difflib.get_close_matches(name, [DIGITS], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(
        f"no images are called {name!r}{hint} (there is {DIGITS}, or a path to a folder of class folders, of MNIST's "
        f"files or of CIFAR-10's)"
    )


def _whole_size(images: Images, name: str, image_size: int | None) -> Images:
    if image_size is not None and images.shape[1:] != (image_size, image_size):
        height, width = images.shape[1:]
        raise InputError(
            f"--image-size {image_size}: the images of {name} are {height}x{width} and are used as they are"
        )
    return images


def _digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _array(
        bunch.images.astype(np.uint8)[:, None],
        bunch.target.astype(np.int64),
        tuple(map(str, bunch.target_names)),
        None,
        Augment(crop=True),
        largest=16,
    )


def _array(
    pixels: np.ndarray,
    y: np.ndarray,
    classes: tuple[str, ...],
    held_out: np.ndarray | None,
    augment: Augment,
    largest: int = 255,
) -> Images:
    digest = hashlib.sha256(repr((pixels.shape, classes, largest)).encode())
    for part in (pixels, y) if held_out is None else (pixels, y, held_out):
        digest.update(np.ascontiguousarray(part).tobytes())
    return ArrayImages(
        y=y,
        classes=classes,
        shape=pixels.shape[1:],
        held_out=held_out,
        digest=digest.hexdigest(),
        pixels=pixels,
        largest=largest,
        usual_augment=augment,
    )


def split_images(images: Images, val_fraction: float, seed: int, augment: Augment) -> ImageSplit:
    """Hold images out, their maker's or a share of each class drawn by `seed`, and normalise by the others."""
    if images.held_out is None:
        train, val = split_rows(images.y, len(images.classes), val_fraction, seed)
    else:
        train, val = (np.flatnonzero(images.held_out == side) for side in (False, True))
    mean, square = images.moments(train)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    scale = Normalization(mean.tolist(), np.where(std < 1e-6, 1.0, std).tolist())
    return ImageSplit(
        images,
        ImageRows(images, train, scale, augment, seed),
        ImageRows(images, val, scale, augment, None),
        scale,
    )
