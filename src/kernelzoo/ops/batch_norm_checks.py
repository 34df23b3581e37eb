"""The arguments of batch_norm and instance_norm: whether a kernel could take them, and what is wrong where not."""

import numbers

import torch

from .core import ArgumentError, ArgumentTypeError, below
from .core.checks import same_device


def fits(name, x, running_mean, running_var, weight, bias, training, momentum, eps, residual):
    """Whether a kernel could take these: one cheap look, so that a good call pays for no explanation."""
    if not isinstance(x, torch.Tensor) or x.is_nested or x.dim() < 2:
        return False
    if not isinstance(eps, numbers.Real) or eps < 0 or not isinstance(momentum, numbers.Real):
        return False
    if (running_mean is None) != (running_var is None):
        return False
    channels = x.size(1)
    if training:
        units = channels * x.size(0) if name == "instance_norm" else channels
        # an empty tensor, or one value a unit: torch has its say
        if eps == 0 or below(x.numel(), 2 * units) or below(x.numel(), 1):
            return False
    elif running_mean is None:
        return False
    for t in (running_mean, running_var, weight, bias):
        if t is not None and not (
            isinstance(t, torch.Tensor)
            and t.dim() == 1
            and t.size(0) == channels
            and t.device == x.device
            and t.is_floating_point()
        ):
            return False
    return residual is None or (
        isinstance(residual, torch.Tensor) and residual.shape == x.shape and residual.device == x.device
    )


def explain(name, x, running_mean, running_var, weight, bias, training, momentum, eps, residual):
    """Raise what is wrong with arguments that do not fit; return where torch takes them all the same, or has an
    error of its own."""
    labels = ("input", "running_mean", "running_var", "weight", "bias", "residual")
    tensors = (x, running_mean, running_var, weight, bias, residual)
    for label, t in zip(labels, tensors, strict=True):
        if not isinstance(t, torch.Tensor) and (t is not None or label == "input"):
            if hasattr(t, "__torch_function__"):  # torch.fx
                return
            raise ArgumentTypeError(f"{name}: {label} must be a Tensor, got {type(t).__name__}")
    if x.is_nested:
        return
    for label, number in (("eps", eps), ("momentum", momentum)):
        if not isinstance(number, numbers.Real):
            raise ArgumentTypeError(f"{name}: {label} must be a number, got {type(number).__name__}")
    shape = tuple(x.shape)
    if x.dim() < 2:
        if x.numel() == 0:  # which torch takes
            return
        raise ArgumentError(
            f"{name}: expected at least 2 dimensions, of shape (N, C, *), got input of shape {shape}"
        )
    channels = x.size(1)
    _explain_statistics(name, x, running_mean, running_var, training, eps)
    for label, t in zip(labels[1:5], tensors[1:5], strict=True):
        if t is not None:
            if tuple(t.shape) != (channels,):
                raise ArgumentError(
                    f"{name}: {label} should contain {channels} elements not {t.numel()}, for input of shape "
                    f"{shape}; got {label} of shape {tuple(t.shape)}"
                )
            same_device(name, label, t, "input", x)
    if residual is not None:
        if residual.shape != x.shape:
            raise ArgumentError(
                f"{name}: residual has shape {tuple(residual.shape)} but input has {shape}; they must be the same, as "
                f"in residual.expand_as(input)"
            )
        same_device(name, "residual", residual, "input", x)


def _explain_statistics(name, x, running_mean, running_var, training, eps):
    if (running_mean is None) != (running_var is None):
        raise ArgumentError(
            f"{name}: running_mean and running_var must either both be None or neither be None"
        )
    if not training and running_mean is None:
        if name == "instance_norm":
            raise ArgumentError(
                f"{name}: Expected running_mean and running_var to be defined when use_input_stats is false"
            )
        raise ArgumentError(f"{name}: running_mean must be defined in evaluation mode (training=False)")
    if name != "instance_norm" and (eps < 0 or (training and eps == 0)):  # whose eps torch takes as it is
        raise ArgumentError(
            f"{name} eps must be {'positive during training' if training else 'non-negative'}, but got {eps}"
        )
    shape = tuple(x.shape)
    values = 1
    for size in shape[2:] if name == "instance_norm" else (shape[0], *shape[2:]):
        values *= size
    if training and values == 1 and name != "sync_batch_norm":  # other processes have more
        what = "spatial element" if name == "instance_norm" else "value per channel"
        raise ArgumentError(f"{name}: Expected more than 1 {what} when training, got input size {x.shape}")
