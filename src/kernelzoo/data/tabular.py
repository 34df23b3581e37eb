"""A table (features, target), its train/validation split and its normalisation."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

DATASETS = ("breast_cancer", "diabetes", "digits")
MIN_ROWS = 10
MAX_INTEGER_CLASSES = 20


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and what to do."""


@dataclass(frozen=True)
class Table:
    """x (rows, features) float64; y (rows,): int64 class numbers if there are `classes`, else float64."""

    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...] | None

    @property
    def task(self) -> str:
        return "regression" if self.classes is None else "classification"

    def fingerprint(self) -> str:
        """A digest of all that training sees, to tell whether a checkpoint belongs to this data."""
        digest = hashlib.sha256(repr((self.x.shape, self.features, self.target, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.x).tobytes())
        digest.update(np.ascontiguousarray(self.y).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std by feature, and by target in regression (0 and 1 in classification)."""

    mean: list[float]
    std: list[float]
    target_mean: float = 0.0
    target_std: float = 1.0

    def as_dict(self) -> dict:
        return asdict(self)


class Rows(Dataset):
    """Batches of a table by (epoch, numbers of rows); every epoch has the same rows."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, asked: tuple[int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[asked[1]], self.y[asked[1]]


@dataclass(frozen=True)
class Split:
    """Normalised tensors: x (rows, features) float32; y (rows,) int64 classes or (rows, 1) float32 values."""

    x: torch.Tensor
    y: torch.Tensor
    val_x: torch.Tensor
    val_y: torch.Tensor
    normalization: Normalization
    val_batch = 4096

    @property
    def training(self) -> Rows:
        return Rows(self.x, self.y)

    @property
    def validation(self) -> Rows:
        return Rows(self.val_x, self.val_y)


def make_target(
    labels: list[str] | np.ndarray, task: str | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Class numbers and class names, or values and None.

    The rule, when `task` is None: classification if any cell is text, or if all cells are whole numbers with
    at most 20 different values; else regression.
    """
    numbers = [to_number(cell) for cell in labels]
    text = next((cell for cell, number in zip(labels, numbers, strict=True) if number is None), None)
    if task is None:
        whole = text is None and all(number == int(number) for number in numbers)
        task = (
            "classification" if text or (whole and len(set(numbers)) <= MAX_INTEGER_CLASSES) else "regression"
        )
    if task == "regression":
        if text is not None:
            raise InputError(
                f"the target holds the text {text!r}; regression needs numbers, or use --task classification"
            )
        return np.array(numbers, dtype=np.float64), None
    # numbers that are equal are one class however they are written: 1, 1.0, 01
    keys = [str(cell) for cell in labels] if text is not None else numbers
    classes = sorted(set(keys))
    index = {key: i for i, key in enumerate(classes)}
    return np.array([index[key] for key in keys], dtype=np.int64), tuple(
        key if isinstance(key, str) else f"{key:.15g}" for key in classes
    )


def to_number(cell: object) -> float | None:
    """The number in a cell, None if it holds text. Python's 1_000 is text here."""
    try:
        return None if "_" in str(cell) else float(cell)
    except ValueError:
        return None


def load(name: str, target: str | None = None, task: str | None = None) -> Table:
    """A named data set, or a CSV file with a header and a target column; `task` overrides the rule."""
    if task not in (None, "classification", "regression"):
        raise InputError(f"--task is classification or regression, got {task!r}")
    if name in DATASETS:
        if target is not None:
            raise InputError(f"the data set {name} has its own target; --target is for CSV files")
        return check(_load_named(name, task), name)
    if Path(name).suffix.lower() == ".csv" or Path(name).exists():
        from .csv import read

        return check(read(Path(name), target, task), name)
    close = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(
        f"no data set is called {name!r}{hint} (there are {', '.join(DATASETS)}, or a path to a .csv file)"
    )


def _load_named(name: str, task: str | None) -> Table:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    if name == "diabetes":
        y, classes = make_target(bunch.target, task or "regression")
    else:
        labels = [str(bunch.target_names[i]) for i in bunch.target]
        y, classes = make_target(labels, task or "classification")
    return Table(
        np.asarray(bunch.data, np.float64), y, tuple(map(str, bunch.feature_names)), "target", classes
    )


def check(table: Table, name: str) -> Table:
    """Refuse what cannot be learnt from: too few rows, one class, a class too small to split, one value."""
    rows = len(table.y)
    if rows < MIN_ROWS:
        raise InputError(f"{name} has {rows} rows; training and validation need at least {MIN_ROWS}")
    if table.classes is None:
        if table.y.min() == table.y.max():
            raise InputError(
                f"{name}: every row has {table.target} = {table.y[0]:g}; there is nothing to learn"
            )
        return table
    if len(table.classes) < 2:
        raise InputError(
            f"{name}: the target {table.target} has a single class ({table.classes[0]!r}); "
            "at least 2 are needed"
        )
    smallest, count = min(Counter(table.y.tolist()).items(), key=lambda item: item[1])
    if count < 2:
        raise InputError(
            f"{name}: class {table.classes[smallest]!r} of {table.target} has one row; each class needs at "
            "least 2 (to train on and to validate on). Add rows, drop the class, or use --task regression"
        )
    return table


def split(table: Table, val_fraction: float, seed: int) -> Split:
    """Shuffle by `seed`, split (stratified by class in classification), normalise by the training part."""
    train, val = split_rows(table.y, len(table.classes or ()), val_fraction, seed)
    mean, std = _moments(table.x[train], table.features)
    x = (table.x - mean) / std
    y, target_mean, target_std = table.y, 0.0, 1.0
    if table.classes is None:
        moments = _moments(table.y[train, None], (table.target,))
        target_mean, target_std = (m.item() for m in moments)
        y = ((table.y - target_mean) / target_std)[:, None]
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    y = y if table.classes else y.float()
    return Split(
        x[train],
        y[train],
        x[val],
        y[val],
        Normalization(mean.tolist(), std.tolist(), target_mean, target_std),
    )


def split_rows(y: np.ndarray, classes: int, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows to train and to validate on, shuffled; of each class its share, where there are some."""
    from sklearn.model_selection import train_test_split

    rows = len(y)
    n_val = max(round(rows * val_fraction), 2)
    least = classes or 2
    if not least <= n_val <= rows - least:
        raise InputError(
            f"a validation fraction of {val_fraction} of {rows} rows leaves {rows - n_val} to train on and "
            f"{n_val} to validate on; each part needs at least {least}. Change --val-fraction or add rows"
        )
    return train_test_split(
        np.arange(rows), test_size=n_val, random_state=seed, stratify=y if classes else None
    )


def _moments(a: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by column; 1 for a constant column, which has nothing to scale."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = a.mean(0), a.std(0)
    for column in np.flatnonzero(~np.isfinite(std)):
        raise InputError(f"column {names[column]!r} holds values too large to normalise; rescale it")
    return mean, np.where((a.min(0) == a.max(0)) | (std == 0), 1.0, std)
