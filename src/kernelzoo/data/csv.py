"""A CSV file with a header and a target column, read strictly: every refusal names the row and the column."""

from __future__ import annotations

import csv
import difflib
import math
from pathlib import Path

import numpy as np

from .tabular import InputError, Table, make_target, to_number


def read(path: Path, target: str | None, task: str | None) -> Table:
    """Read a comma-separated UTF-8 file; all columns but `target` are numeric features.

    Raises InputError naming file, line and column for: no file, no header, repeated names, a missing target,
    ragged rows, empty cells, text or NaN or Inf among the features. Empty lines are skipped.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} is empty; a header line and rows of numbers are needed")
    header = _header(path, rows[0][1])
    if target is None:
        raise InputError(
            f"{path}: say which column to predict with --target; the columns are {_listing(header)}"
        )
    if target not in header:
        close = difflib.get_close_matches(target, header, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{path} has no column {target!r}{hint} (the columns are {_listing(header)})")
    if len(header) < 2:
        raise InputError(f"{path} has the target column only; at least one feature column is needed")
    at = header.index(target)
    features, labels = [], []
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells, but the header names {len(header)} columns"
            )
        features.append([_feature(path, line, header[i], c) for i, c in enumerate(cells) if i != at])
        labels.append(_label(path, line, target, cells[at]))
    if not features:
        raise InputError(f"{path} has a header but no rows")
    try:
        y, classes = make_target(labels, task)
    except InputError as error:
        raise InputError(f"{path}, column {target!r}: {error}") from None
    names = tuple(name for name in header if name != target)
    return Table(np.array(features, dtype=np.float64), y, names, target, classes)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, stripped cells) of each row that is not empty."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a CSV file: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return [(line, cells) for line, cells in rows if cells not in ([], [""])]


def _header(path: Path, header: list[str]) -> list[str]:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise InputError(f"{path}: the header {header[0]!r} is one column; separate the columns by commas")
    if all(to_number(name) is not None for name in header):
        raise InputError(f"{path}, line 1: only numbers where the column names should be; add a header line")
    for i, name in enumerate(header):
        if not name:
            raise InputError(f"{path}, line 1: column {i + 1} has no name")
        if name in header[:i]:
            raise InputError(f"{path}, line 1: two columns are called {name!r}; give each its own name")
    return header


def _feature(path: Path, line: int, column: str, cell: str) -> float:
    value = to_number(cell)
    where = f"{path}, line {line}, column {column!r}"
    if not cell or (value is not None and math.isnan(value)):
        raise InputError(f"{where}: the value is missing ({cell or 'empty'}); fill it in or drop the row")
    if value is None:
        raise InputError(f"{where}: {cell!r} is text; features must be numbers: encode the column or drop it")
    if math.isinf(value):
        raise InputError(f"{where}: the value is infinite; replace it or drop the row")
    return value


def _label(path: Path, line: int, column: str, cell: str) -> str:
    value = to_number(cell)
    if not cell or (value is not None and not math.isfinite(value)):
        raise InputError(
            f"{path}, line {line}, column {column!r}: the target is missing ({cell or 'empty'}); "
            "fill it in or drop the row"
        )
    return cell


def _listing(header: list[str], most: int = 12) -> str:
    return ", ".join(header[:most]) + (f", ... ({len(header)} in all)" if len(header) > most else "")
