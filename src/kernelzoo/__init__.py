"""Custom-kernel neural network engine for PyTorch: torch's names over hand-written kernels.

>>> import kernelzoo as kz
>>> import kernelzoo.functional as F
>>> from kernelzoo import nn, zoo
>>> with kz.backend("numba"), kz.trace() as calls:
...     y = F.linear(x, w, b, act="gelu")
"""

import importlib

from .ops.core import (
    ArgumentError,
    ArgumentTypeError,
    BackendUnavailable,
    backend,
    backends,
    trace,
)

__version__ = "0.1.0"
__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendUnavailable",
    "backend",
    "backends",
    "fold_batchnorm",
    "functional",
    "nn",
    "optim",
    "trace",
    "zoo",
]


def __getattr__(name):
    if name in ("functional", "nn", "optim", "zoo"):
        return importlib.import_module(f"kernelzoo.{name}")
    if name == "fold_batchnorm":
        return importlib.import_module("kernelzoo.nn.fold").fold_batchnorm
    raise AttributeError(f"module 'kernelzoo' has no attribute {name!r}")


def __dir__():
    return __all__
