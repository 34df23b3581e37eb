"""A folder of images for each class: found, decoded once to check them, and decoded again as training asks."""

from __future__ import annotations

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .images import CROPPED, Augment, Images, augmented
from .tabular import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")  # modes with more than 8 bits, which Pillow clips to 255
PARTS = (("train", False), ("val", True), ("valid", True), ("test", True))


@dataclass(frozen=True)
class FolderImages(Images):
    """paths[i] is of class y[i]; means and squares (N, 3) are each image's own. image_size: None: as they are."""

    paths: tuple[Path, ...] = ()
    image_size: int | None = None
    means: np.ndarray = None
    squares: np.ndarray = None
    usual_augment = Augment(crop=True, flip=True)
    parallel = True

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.means[rows].mean(0), self.squares[rows].mean(0)

    def read(self, rows: list[int], chance: np.ndarray | None, augment: Augment) -> torch.Tensor:
        pictures = []
        for k, row in enumerate(rows):
            image = decode(self.paths[row])
            if self.image_size is not None:
                corner = (0.5, 0.5) if chance is None or not augment.crop else chance[k, :2]
                image = cut(image, self.image_size, augment.crop, corner)
            pictures.append(np.asarray(image))
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        if chance is None:
            return x
        return augmented(x, chance, Augment(augment.crop and self.image_size is None, augment.flip))


def decode(path: Path) -> Any:
    """The picture as its camera held it, RGB; InputError, naming the file, where it cannot be decoded."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode in DEEP:
                raise InputError(
                    f"{path} has pixels of more than 8 bits (mode {image.mode}); convert it to 8"
                )
            image = ImageOps.exif_transpose(image)
            if "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = (
            str(error).splitlines()[0].removesuffix(f" {str(path)!r}") if str(error) else "no reason given"
        )
        raise InputError(f"{path} cannot be decoded ({reason})") from None


def cut(image: Any, size: int, crop: bool, corner: tuple[float, float]) -> Any:
    """Resized so that the shorter side is `size`, or 8/7 of it where crops are drawn, and a square of `size` of it.

    corner: where the square lies, from 0 (top, left) to 1 in each direction.
    """
    from PIL import Image

    shorter = round(size * CROPPED) if crop else size
    scale = shorter / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = (round(float(at) * (side - size)) for at, side in zip(corner, (height, width), strict=True))
    return image.crop((left, top, left + size, top + size))


def read_folder(folder: Path, image_size: int | None, skip_corrupt: bool) -> Images:
    """The images of a folder; see `load_images`. Where it holds train and val (or test), these are the split."""
    found, held_out, left_out = _find(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checked = list(pool.map(lambda item: _check(item[0], image_size), found))
    broken = [error for error in checked if isinstance(error, InputError)]
    if broken and not skip_corrupt:
        more = f"; {len(broken) - 1} more of {len(found)} cannot either" if len(broken) > 1 else ""
        raise InputError(f"{broken[0]}{more}. Remove it, or leave such files out with --skip-corrupt")
    whole = [i for i, one in enumerate(checked) if not isinstance(one, InputError)]
    paths = tuple(found[i][0] for i in whole)
    names = [found[i][1] for i in whole]
    if not paths:
        raise InputError(f"{folder}: none of its {len(found)} images can be decoded; the first: {broken[0]}")
    sizes = [checked[i].size for i in whole]
    if image_size is None and (other := next((i for i, size in enumerate(sizes) if size != sizes[0]), None)):
        (width, height), (w, h) = sizes[0], sizes[other]
        raise InputError(
            f"{paths[0]} is {height}x{width} but {paths[other]} is {h}x{w}; --image-size N resizes each to N by its "
            f"shorter side and cuts a square out"
        )
    classes = tuple(sorted(set(names)))
    _check_classes(folder, names, classes, None if held_out is None else [held_out[i] for i in whole])
    digest = hashlib.sha256(repr((image_size, classes)).encode())
    for i, path in zip(whole, paths, strict=True):
        digest.update(repr((path.relative_to(folder).as_posix(), checked[i].digest)).encode())
    side = (sizes[0][1], sizes[0][0]) if image_size is None else (image_size, image_size)
    return FolderImages(
        y=np.array([classes.index(name) for name in names], np.int64),
        classes=classes,
        shape=(3, *side),
        held_out=None if held_out is None else np.array([held_out[i] for i in whole]),
        digest=digest.hexdigest(),
        skipped=tuple(str(error) for error in broken),
        left_out=left_out,
        paths=paths,
        image_size=image_size,
        means=np.stack([checked[i].mean for i in whole]),
        squares=np.stack([checked[i].square for i in whole]),
    )


def _find(folder: Path) -> tuple[list[tuple[Path, str]], list[bool] | None, int]:
    """(path, class) of every image, which are held out, and how many other files lie there."""
    parts = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    split = (
        "train" in parts and any(name in parts for name, held in PARTS if held) and len(parts) <= len(PARTS)
    )
    tops = [(parts[name], held) for name, held in PARTS if name in parts] if split else [(folder, False)]
    found, held_out, left_out = [], [], 0
    for top, held in tops:
        for part in sorted(path for path in top.iterdir() if path.is_dir() and path.name[0] != "."):
            for path in sorted(part.rglob("*")):
                if path.is_file() and path.name[0] != ".":
                    if path.suffix.lower() in SUFFIXES:
                        found.append((path, part.name))
                        held_out.append(held)
                    else:
                        left_out += 1
    if not found:
        loose = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
        what = (
            f"{loose} images but no folder of images for each class"
            if loose
            else "no image in a class's folder"
        )
        raise InputError(f"{folder} holds {what}; expected {folder}/CLASS/IMAGE, of {', '.join(SUFFIXES)}")
    return found, held_out if split else None, left_out


@dataclass(frozen=True)
class Checked:
    """What is kept of an image that was decoded once: its size, its channels' moments, its file's digest."""

    size: tuple[int, int]
    mean: np.ndarray
    square: np.ndarray
    digest: str


def _check(path: Path, image_size: int | None) -> Checked | InputError:
    try:
        image = decode(path)
        size = image.size
        if image_size is not None:
            image = cut(image, image_size, False, (0.5, 0.5))
        x = np.asarray(image, np.float64).reshape(-1, 3) / 255
        return Checked(size, x.mean(0), np.square(x).mean(0), hashlib.sha256(path.read_bytes()).hexdigest())
    except InputError as error:
        return error


def _check_classes(
    folder: Path, names: list[str], classes: tuple[str, ...], held_out: list[bool] | None
) -> None:
    if len(classes) < 2:
        raise InputError(f"{folder} has images of a single class ({classes[0]!r}); at least 2 are needed")
    for name in classes:
        if names.count(name) < 2:
            raise InputError(
                f"{folder}: class {name!r} has one image; each needs at least 2, to train on and to validate on"
            )
    if held_out is not None:
        training = {name for name, held in zip(names, held_out, strict=True) if not held}
        if missing := sorted(set(classes) - training):
            raise InputError(
                f"{folder}: no image of class {missing[0]!r} in train, but there are some held out"
            )
        if not any(held_out):
            raise InputError(f"{folder}: no image is held out beside those in train")
