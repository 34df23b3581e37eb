"""Mirror of torch.optim: Adam and AdamW take torch's fused kernel unless told otherwise, and torch's own object for
every other name."""

import torch.optim as _torch

from .adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]


def __getattr__(name):
    return getattr(_torch, name)


def __dir__():
    return sorted({*__all__, *dir(_torch)})
