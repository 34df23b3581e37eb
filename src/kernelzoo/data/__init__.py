"""Tables of numbers with a target, from scikit-learn's small sets or a CSV file, split and normalised."""

from .tabular import DATASETS, InputError, Normalization, Split, Table, load, split

__all__ = ["DATASETS", "InputError", "Normalization", "Split", "Table", "load", "split"]
