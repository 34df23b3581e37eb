"""What every op shares: the choice of a backend, the torch ops, the base Function, argument checks."""

from .checks import ArgumentError, ArgumentTypeError
from .choice import (
    FRESH,
    BackendUnavailable,
    Call,
    Status,
    backend,
    backends,
    below,
    has_amx,
    has_avx512,
    leaves_to_torch,
    trace,
)
from .function import KernelFunction, autocast_dtype, torch_serves
from .random import draw_seed
from .registry import define, product_wins

__all__ = [
    "FRESH",
    "ArgumentError",
    "ArgumentTypeError",
    "BackendUnavailable",
    "Call",
    "KernelFunction",
    "Status",
    "autocast_dtype",
    "backend",
    "backends",
    "below",
    "define",
    "draw_seed",
    "has_amx",
    "has_avx512",
    "leaves_to_torch",
    "product_wins",
    "torch_serves",
    "trace",
]
