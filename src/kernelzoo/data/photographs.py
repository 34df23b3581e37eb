"""Photographs with a class for every pixel: by a rule on their colours, or from a folder of masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from .images import Augment, draws
from .tabular import InputError, Normalization

PHOTOGRAPHS = "photographs"
CLASSES = ("dark", "pale", "warm", "green or blue")
BLUR = 3.0  # standard deviation, in pixels, of the Gaussian that a photograph is smoothed by before the rule
IGNORED = -100  # a pixel with no class
NO_CLASS = 255  # the same, in a mask
PER_EPOCH = 128  # crops of an epoch
LEVELS = 16  # of each colour channel, for what colour alone tells


@dataclass(frozen=True)
class Picture:
    """pixels (H, W, 3) uint8, labels (H, W) int64; columns from `cut` on are held out."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    cut: int


@dataclass(frozen=True)
class Pictures:
    """Photographs and the names of their pixels' classes; rule: how the labels came about, in a sentence."""

    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    rule: str
    task = "segmentation"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.classes).encode())
        for picture in self.pictures:
            digest.update(repr((picture.name, picture.cut, picture.pixels.shape)).encode())
            digest.update(picture.pixels.tobytes())
            digest.update(picture.labels.tobytes())
        return digest.hexdigest()


def label(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int64, the class of each pixel by its hue, saturation and brightness once smoothed.

    dark: brightness (the largest channel) below 0.3. pale: saturation below 0.25. warm: hue below 60° or from 330°
    on (red, orange, yellow). The rest is green or blue. A net that sees raw pixels has to find out how their
    neighbours smooth them.
    """
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(pixels.astype(np.float64) / 255, (BLUR, BLUR, 0))
    largest, smallest = x.max(2), x.min(2)
    spread = np.maximum(largest - smallest, 1e-12)
    red, green, blue = np.moveaxis(x, 2, 0)
    sector = np.select(
        [largest == red, largest == green],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    hue = sector * 60
    rules = [largest < 0.3, spread < 0.25 * largest, (hue < 60) | (hue >= 330)]
    return np.select(rules, range(3), 3).astype(np.int64)


RULE = (
    f"by hue, saturation and brightness of the photograph blurred with sigma {BLUR:g}: dark, brightness < 0.3; pale, "
    "saturation < 0.25; warm, hue < 60 or >= 330 degrees; else green or blue"
)


def load_pictures(name: str, val_fraction: float, tile: int) -> Pictures:
    """`photographs` (scikit-learn's china.jpg and flower.jpg), or a folder with images/ and masks/.

    Of each picture the last `val_fraction` of its columns, at least a tile, is held out. A mask is a picture of the
    same name and size whose pixels are class numbers, 255 for none.
    """
    path = Path(name)
    if name == PHOTOGRAPHS and not path.exists():
        from sklearn.datasets import load_sample_images

        bunch = load_sample_images()
        found = [
            (Path(file).name, pixels, label(pixels))
            for file, pixels in zip(bunch.filenames, bunch.images, strict=True)
        ]
        classes, rule = CLASSES, RULE
    elif path.is_dir():
        found = _read_folder(path)
        most = max(int(labels.max()) for *_, labels in found)
        if most < 1:
            raise InputError(f"{name}: every pixel of the masks is of class 0; there is nothing to learn")
        classes, rule = tuple(map(str, range(most + 1))), "from masks"
    else:
        raise InputError(
            f"no photographs are called {name!r} (there is {PHOTOGRAPHS}, or a path to a folder with images/, masks/)"
        )
    pictures = []
    for title, pixels, labels in found:
        height, width = labels.shape
        cut = width - max(tile, round(width * val_fraction))
        if height < tile or cut < tile:
            raise InputError(
                f"{title} is {height}x{width}; one tile of {tile}x{tile} to train on and one to hold out do not fit. "
                f"Change --tile or --val-fraction"
            )
        pictures.append(Picture(title, pixels, labels, cut))
    return Pictures(tuple(pictures), classes, rule)


def _read_folder(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    from PIL import Image

    from .image_folder import SUFFIXES, decode

    images, masks = folder / "images", folder / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise InputError(
            f"{folder} has no folders images and masks; each image needs a mask of the same name"
        )
    found = []
    by_stem = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in SUFFIXES}
    for path in sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES):
        if (mask := by_stem.get(path.stem)) is None:
            raise InputError(f"{path} has no mask; expected {masks}/{path.stem}.png")
        decode(mask)
        with Image.open(mask) as opened:
            if opened.mode not in ("L", "P", "1"):
                raise InputError(
                    f"{mask} has mode {opened.mode}; a mask's pixels are class numbers (mode L or P)"
                )
            numbers = np.asarray(opened).astype(np.int64)
        pixels = np.asarray(decode(path))
        if numbers.shape != pixels.shape[:2]:
            sizes = ("x".join(map(str, shape)) for shape in (pixels.shape[:2], numbers.shape))
            raise InputError(f"{path} is {next(sizes)} but its mask {mask} is {next(sizes)}")
        found.append((path.name, pixels, np.where(numbers == NO_CLASS, IGNORED, numbers)))
    if not found:
        raise InputError(f"{images} holds no image; expected one of {', '.join(SUFFIXES)}")
    return found


class Crops(Dataset):
    """Batches by (epoch, numbers of crops): squares of `tile` out of the training columns, each drawn anew."""

    def __init__(
        self, pictures: Pictures, tile: int, scale: Normalization, augment: Augment, seed: int
    ) -> None:
        self.pictures, self.tile, self.scale, self.augment, self.seed = pictures, tile, scale, augment, seed
        places = [(p.labels.shape[0] - tile + 1) * (p.cut - tile + 1) for p in pictures.pictures]
        self.ends = np.cumsum(places) / sum(places)

    def __len__(self) -> int:
        return PER_EPOCH

    def __getitem__(self, asked: tuple[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, at = asked
        chance = draws(self.seed, epoch, len(self))[at]
        pixels, labels = [], []
        for down, right, turn, which in chance:
            picture = self.pictures.pictures[int(np.searchsorted(self.ends, which, side="right"))]
            top = int(down * (picture.labels.shape[0] - self.tile + 1))
            left = int(right * (picture.cut - self.tile + 1))
            square = slice(top, top + self.tile), slice(left, left + self.tile)
            step = -1 if self.augment.flip and turn < 0.5 else 1
            pixels.append(picture.pixels[square][:, ::step])
            labels.append(picture.labels[square][:, ::step])
        return normalised(np.stack(pixels), self.scale), torch.from_numpy(np.stack(labels))


class Tiles(Dataset):
    """Batches by (epoch, numbers of tiles): the held-out columns, every pixel once.

    A tile that would reach beyond the edge is moved back, and what another one holds is ignored in it.
    """

    def __init__(self, pictures: Pictures, tile: int, scale: Normalization) -> None:
        self.pictures, self.tile, self.scale = pictures, tile, scale
        self.places = []
        for number, picture in enumerate(pictures.pictures):
            height, width = picture.labels.shape
            for top in range(0, height, tile):
                for left in range(picture.cut, width, tile):
                    self.places.append((number, top, left))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, asked: tuple[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = [], []
        for i in asked[1]:
            number, top, left = self.places[i]
            picture, tile = self.pictures.pictures[number], self.tile
            height, width = picture.labels.shape
            y, x = min(top, height - tile), min(left, width - tile)
            square = slice(y, y + tile), slice(x, x + tile)
            pixels.append(picture.pixels[square])
            mine = picture.labels[square].copy()
            mine[: top - y] = mine[:, : left - x] = IGNORED
            labels.append(mine)
        return normalised(np.stack(pixels), self.scale), torch.from_numpy(np.stack(labels))


def normalised(pixels: np.ndarray, scale: Normalization) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, by channel."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(part)[:, None, None] for part in (scale.mean, scale.std))
    return (x - mean) / std


@dataclass(frozen=True)
class TileSplit:
    """Crops of the training columns and tiles of the held-out ones, normalised by the training columns."""

    pictures: Pictures
    training: Crops
    validation: Tiles
    normalization: Normalization
    val_batch = 32


def split_pictures(pictures: Pictures, tile: int, seed: int, augment: Augment) -> TileSplit:
    seen = np.concatenate([p.pixels[:, : p.cut].reshape(-1, 3) for p in pictures.pictures]) / 255
    scale = Normalization(seen.mean(0).tolist(), np.maximum(seen.std(0), 1e-6).tolist())
    return TileSplit(
        pictures, Crops(pictures, tile, scale, augment, seed), Tiles(pictures, tile, scale), scale
    )


def by_colour(pictures: Pictures) -> list[np.ndarray]:
    """What each pixel's own colour tells of its class: the commonest of that colour in the training columns.

    Colours are counted at 16 levels a channel; one that was not seen there is of the commonest class of all.
    """
    counts = np.zeros((LEVELS**3, len(pictures.classes)), np.int64)
    cells = [_cells(p.pixels) for p in pictures.pictures]
    for picture, cell in zip(pictures.pictures, cells, strict=True):
        labels, cell = picture.labels[:, : picture.cut], cell[:, : picture.cut]
        known = labels != IGNORED
        np.add.at(counts, (cell[known], labels[known]), 1)
    best = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
    return [best[cell] for cell in cells]


def _cells(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W), the number of the colour's cell."""
    levels = pixels.astype(np.int64) * LEVELS // 256
    return (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
