"""Sets of images in one or a few files: MNIST's IDX, CIFAR-10's binary version and its Python version."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .tabular import InputError

CIFAR_SHAPE = (3, 32, 32)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def mnist(folder: Path) -> tuple[Any, ...] | None:
    """Pixels, classes, their names, which are held out (the t10k files), augmentation; None: not that format.

    The format, big-endian: two zeros, the type of a value (8: a byte), the number of axes; the length of each axis;
    the values. Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    parts = [_idx_pair(folder, "train"), _idx_pair(folder, "t10k")]
    if parts == [None, None]:
        return None
    if parts[0] is None:
        raise InputError(
            f"{folder} has t10k files but no train-images-idx3-ubyte; put MNIST's training files there"
        )
    images, labels = zip(*(part for part in parts if part is not None), strict=True)
    if len({part.shape[1:] for part in images}) > 1:
        raise InputError(
            f"{folder}: training images are {images[0].shape[1:]}, test images {images[1].shape[1:]}"
        )
    y = np.concatenate(labels).astype(np.int64)
    held_out = np.arange(len(y)) >= len(labels[0]) if len(labels) == 2 else None
    return _made(
        np.concatenate(images)[:, None], y, tuple(map(str, range(int(y.max()) + 1))), held_out, "crop"
    )


def _idx_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    paths = []
    for kind, axes in (("images", 3), ("labels", 1)):
        names = [f"{part}-{kind}{dot}idx{axes}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
        paths.append(next((folder / name for name in names if (folder / name).is_file()), None))
    if paths == [None, None]:
        return None
    for path, kind, axes in zip(paths, ("images", "labels"), (3, 1), strict=True):
        if path is None:
            raise InputError(
                f"{folder} has no {part}-{kind}-idx{axes}-ubyte (or .gz) beside the other {part} file"
            )
    images, labels = (read_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True))
    if len(images) != len(labels):
        raise InputError(f"{paths[0]} has {len(images)} images but {paths[1].name} has {len(labels)} labels")
    return images, labels


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The bytes of an IDX file, gzip-compressed or not, with so many axes; InputError where it is none."""
    content = _content(path)
    if len(content) < 4 + 4 * axes or content[:2] != b"\0\0":
        raise InputError(f"{path} is not an IDX file: it does not start with two zeros and its sizes")
    if (kind := (content[2], content[3])) != (8, axes):
        raise InputError(
            f"{path} is an IDX file of type {kind[0]} with {kind[1]} axes; expected bytes (8) with {axes}"
        )
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != np.prod(shape, dtype=object):
        raise InputError(
            f"{path} holds {len(values)} bytes after its head, which says {'x'.join(map(str, shape))}; it is "
            f"truncated or not whole"
        )
    return values.reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def cifar(folder: Path) -> tuple[Any, ...] | None:
    """As `mnist`, of data_batch_*.bin, or of data_batch_* without a suffix; held out is test_batch.

    A record of the binary version is a byte of the class and 3072 of pixels, red, green and blue planes of 32x32; the
    Python version holds the same in pickled dictionaries.
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    inner = [folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"]
    folder = next((path for path in inner if path.is_dir()), folder)
    batches, read, test = sorted(folder.glob("data_batch_*.bin")), _records, folder / "test_batch.bin"
    if not batches:
        batches, read, test = sorted(folder.glob("data_batch_[0-9]")), _pickled, folder / "test_batch"
    if not batches:
        return None
    records = [read(path) for path in (*batches, *([test] if test.is_file() else []))]
    every = np.concatenate(records)
    held_out = None
    if test.is_file():
        held_out = np.arange(len(every)) >= len(every) - len(records[-1])
    pixels = every[:, 1:].reshape(-1, *CIFAR_SHAPE)
    return _made(pixels, every[:, 0].astype(np.int64), CIFAR_CLASSES, held_out, "crop,flip")


class _Arrays(pickle.Unpickler):
    """Of a pickle nothing but arrays, lists, text and numbers: what else it names, and might run, is refused."""

    NAMES = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # bytes, as Python 3 writes them for Python 2
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR-10 does")
        return super().find_class(module, name)


def _pickled(path: Path) -> np.ndarray:
    """The records of a batch of the Python version, as `_records` gives them."""
    try:
        with path.open("rb") as file:
            batch = _Arrays(file, encoding="bytes").load()
        labels = np.asarray(batch.get(b"labels", batch.get("labels")))
        pixels = np.asarray(batch.get(b"data", batch.get("data")))
    except Exception as error:  # whatever a broken pickle makes of itself
        raise InputError(f"{path} is no batch of CIFAR-10's Python version: {error}") from None
    size = int(np.prod(CIFAR_SHAPE))
    if pixels.dtype != np.uint8 or pixels.shape != (labels.size, size) or labels.ndim != 1:
        raise InputError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape} and labels of shape {labels.shape}; expected bytes "
            f"of shape (N, {size}) and N labels"
        )
    return _classed(path, np.concatenate([labels[:, None].astype(np.int64), pixels], 1))


def _records(path: Path) -> np.ndarray:
    content = _content(path)
    size = 1 + int(np.prod(CIFAR_SHAPE))
    if not content or len(content) % size:
        raise InputError(
            f"{path} has {len(content)} bytes, which are no whole records of {size}; it is truncated or not CIFAR-10's"
        )
    return _classed(path, np.frombuffer(content, np.uint8).reshape(-1, size))


def _classed(path: Path, records: np.ndarray) -> np.ndarray:
    for label in (records[:, 0].min(initial=0), records[:, 0].max(initial=0)):
        if not 0 <= label < len(CIFAR_CLASSES):
            raise InputError(f"{path} has a record of class {label}; CIFAR-10's are 0 to 9")
    return records.astype(np.uint8, copy=False)


def _made(
    pixels: np.ndarray, y: np.ndarray, classes: tuple[str, ...], held_out: np.ndarray | None, augment: str
) -> tuple[Any, ...]:
    from .images import Augment

    return pixels, y, classes, held_out, Augment.parse(augment)
