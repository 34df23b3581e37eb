"""A series in time: its last years held out, its windows, its normalisation."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .tabular import InputError, Normalization, Split

SUNSPOTS = "sunspots"


@dataclass(frozen=True)
class Series:
    """values (N,) float64 at times (N,), which increase."""

    times: np.ndarray
    values: np.ndarray
    target: str
    task = "forecast"
    classes = None

    @property
    def features(self) -> tuple[str, ...]:
        return (self.target,)

    def fingerprint(self) -> str:
        """A digest of all that training sees."""
        digest = hashlib.sha256(repr((self.target, len(self.values))).encode())
        digest.update(self.times.tobytes())
        digest.update(self.values.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SeriesSplit(Split):
    """x (rows, context, 1) and the y (rows, horizon, 1) that follow, normalised by the training years.

    A row of val_x may reach back into the training years; every value of val_y is held out. first: number of the
    first held-out value.
    """

    first: int

    def restored(self, values: torch.Tensor) -> np.ndarray:
        """Normalised values in the series' own unit."""
        scale = self.normalization
        return values.double().cpu().numpy() * scale.target_std + scale.target_mean


def load_series(name: str, target: str | None = None) -> Series:
    """`sunspots` (yearly mean numbers from 1700 to 2008, of statsmodels), or two columns of a CSV file.

    Of a file, `target` is the series and the first other column the time, which must increase from row to row.
    """
    if name == SUNSPOTS and not Path(name).exists():
        if target is not None:
            raise InputError(f"the series {name} has its own target; --target is for CSV files")
        return _sunspots()
    if Path(name).suffix.lower() != ".csv" and not Path(name).exists():
        close = difflib.get_close_matches(name, [SUNSPOTS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(
            f"no series is called {name!r}{hint} (there is {SUNSPOTS}, or a path to a .csv file)"
        )
    from .csv import read

    table = read(Path(name), target, "regression")
    times, column = table.x[:, 0], table.features[0]
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        i = back[0]
        raise InputError(
            f"{name}: the column {column!r} is read as the time and goes from {times[i]:g} to {times[i + 1]:g}; "
            f"sort the rows, or put the time first"
        )
    if table.y.min() == table.y.max():
        raise InputError(f"{name}: every row has {target} = {table.y[0]:g}; there is nothing to learn")
    return Series(times, table.y, table.target)


def _sunspots() -> Series:
    try:
        from statsmodels.datasets import sunspots
    except ImportError as error:
        raise InputError(
            f"--data {SUNSPOTS} needs statsmodels ({error}): pip install kernelzoo[train]"
        ) from None
    data = sunspots.load_pandas().data
    return Series(
        data["YEAR"].to_numpy(np.float64), data["SUNACTIVITY"].to_numpy(np.float64), "sunspot number"
    )


def split_series(series: Series, context: int, horizon: int, val_fraction: float) -> SeriesSplit:
    """Hold the last `val_fraction` of the values out, and cut windows of `context` values and `horizon` after them.

    Raises InputError where either part has no window.
    """
    total = len(series.values)
    first = total - round(total * val_fraction)
    if first < context + horizon or total - first < horizon:
        raise InputError(
            f"{total} values, of which the last {total - first} are held out, leave {first} to train on; a window "
            f"is {context} values (--context) and {horizon} to forecast: shorten it or change --val-fraction"
        )
    known = series.values[:first]
    mean, std = known.mean(), known.std()
    if not np.isfinite(std) or std == 0:
        raise InputError(
            f"{series.target}: the training values have a standard deviation of {std:g}; "
            f"there is nothing to learn from them"
        )
    z = torch.from_numpy((series.values - mean) / std).float()[:, None]

    def windows(starts: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each start, the values before it and those from it on."""
        return (
            torch.stack([z[start - context : start] for start in starts]),
            torch.stack([z[start : start + horizon] for start in starts]),
        )

    scale = Normalization([mean.item()], [std.item()], mean.item(), std.item())
    return SeriesSplit(
        *windows(range(context, first - horizon + 1)),
        *windows(range(first, total - horizon + 1)),
        scale,
        first,
    )
