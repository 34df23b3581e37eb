"""Argument checks: raised once, before anything is launched, and caught by code that expects torch's type.

torch raises RuntimeError for most bad shapes, so these are both.
"""


class ArgumentError(ValueError, RuntimeError):
    """A value, shape or device that does not fit."""


class ArgumentTypeError(TypeError, RuntimeError):
    """A type or dtype that does not fit."""


def same_device(function, name, t, first_name, first):
    if t.device != first.device:
        raise ArgumentError(
            f"{function}: {name} is on {t.device} but {first_name} is on {first.device}; "
            f"move one of them with .to({str(first.device)!r})"
        )


def same_dtype(function, name, t, first_name, first):
    if t.dtype != first.dtype:
        raise ArgumentTypeError(
            f"{function}: {name} has dtype {t.dtype} but {first_name} has {first.dtype}; "
            f"convert one of them, or run under torch.autocast"
        )
