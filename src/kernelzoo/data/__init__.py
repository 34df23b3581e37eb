"""Data to train on: tables (scikit-learn's small sets, CSV files), text (any folder, Python's own library), pairs of
texts, and series in time."""

from .pairs import load_pairs
from .series import Series, SeriesSplit, load_series, split_series
from .tabular import DATASETS, InputError, Normalization, Split, Table, load, split
from .text import Corpus, load_text

__all__ = [
    "DATASETS",
    "Corpus",
    "InputError",
    "Normalization",
    "Series",
    "SeriesSplit",
    "Split",
    "Table",
    "load",
    "load_pairs",
    "load_series",
    "load_text",
    "split",
    "split_series",
]
