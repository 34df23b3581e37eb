"""Data to train on: tables (scikit-learn's small sets, CSV files) and text (any folder, Python's own library)."""

from .tabular import DATASETS, InputError, Normalization, Split, Table, load, split
from .text import Corpus, load_text

__all__ = [
    "DATASETS",
    "Corpus",
    "InputError",
    "Normalization",
    "Split",
    "Table",
    "load",
    "load_text",
    "split",
]
