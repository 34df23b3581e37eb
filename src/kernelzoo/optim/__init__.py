"""Mirror of torch.optim: torch's own object for every name."""

import torch.optim as _torch


def __getattr__(name):
    return getattr(_torch, name)


def __dir__():
    return dir(_torch)
