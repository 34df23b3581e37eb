"""What every op shares: the choice of a backend, the torch ops, the base Function, argument checks."""

from .checks import ArgumentError, ArgumentTypeError
from .choice import BackendUnavailable, Call, Status, backend, backends, trace
from .function import KernelFunction, below
from .registry import define

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendUnavailable",
    "Call",
    "KernelFunction",
    "Status",
    "backend",
    "backends",
    "below",
    "define",
    "trace",
]
