"""Data to train on: tables (scikit-learn's small sets, CSV files), text (any folder, Python's own library), pairs of
texts, series in time, images with a class each, and photographs with a class for every pixel."""

from .images import Images, load_images, split_images
from .pairs import load_pairs
from .photographs import Pictures, load_pictures, split_pictures
from .series import Series, SeriesSplit, load_series, split_series
from .tabular import DATASETS, InputError, Normalization, Split, Table, load, split
from .text import Corpus, load_text

__all__ = [
    "DATASETS",
    "Corpus",
    "Images",
    "InputError",
    "Normalization",
    "Pictures",
    "Series",
    "SeriesSplit",
    "Split",
    "Table",
    "load",
    "load_images",
    "load_pairs",
    "load_pictures",
    "load_series",
    "load_text",
    "split",
    "split_images",
    "split_pictures",
    "split_series",
]
