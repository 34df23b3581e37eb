"""Batch norms folded into the convolutions and linear layers before them, for inference."""

import copy
from collections import Counter

import torch
import torch.fx
from torch.nn.utils.parametrize import is_parametrized

from ..ops.activation import parse
from ..ops.core import ArgumentError, ArgumentTypeError

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
NORMS = torch.nn.modules.batchnorm._BatchNorm


class FoldedNorm(torch.nn.Module):
    """What is left of a batch norm: f(x + residual). dims: how many x must have, where the norm took two forms."""

    def __init__(self, act=None, dims=None):
        super().__init__()
        self.act, self.dims = act, dims

    def forward(self, input, residual=None, keep_residual=False):
        if self.dims not in (None, input.dim()):
            raise ArgumentError(
                f"fold_batchnorm: a batch norm behind a linear layer is folded for inputs of shape (N, C), got "
                f"{tuple(input.shape)}"
            )
        return parse("FoldedNorm", self.act).formula(input if residual is None else input + residual)

    def extra_repr(self):
        return f"act={self.act!r}" if self.act else ""


class _Shallow(torch.fx.Tracer):
    """Traces one forward, whose submodules are calls."""

    def is_leaf_module(self, module, name):
        return True


def _graph(module):
    """The graph of a module's own forward, or None where torch.fx cannot trace it."""
    if type(module).forward is torch.nn.Module.forward:  # a container without one
        return None
    try:
        return _Shallow().trace(module)
    except Exception:  # whatever a user's code raises when it is given proxies
        return None


def _pairs(model):
    """(layer's name, norm's name, whether it adds a residual) of each norm that is all that its layer's result goes to,
    both called once, by one forward that torch.fx traces."""
    names = {id(m): name for name, m in model.named_modules()}
    shared = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    weights = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    calls, read, found = Counter(), set(), []
    for prefix, parent in model.named_modules():
        graph = _graph(parent) if any(True for _ in parent.children()) else None
        for node in graph.nodes if graph else ():
            if node.op == "get_attr":
                read.add(f"{prefix}.{node.target}".lstrip(".").rpartition(".")[0])
            if node.op != "call_module":
                continue
            norm = parent.get_submodule(node.target)
            calls[id(norm)] += 1
            before = node.args[0] if node.args else node.kwargs.get("input")
            if (
                not isinstance(norm, NORMS)
                or not isinstance(before, torch.fx.Node)
                or before.op != "call_module"
            ):
                continue
            layer = parent.get_submodule(before.target)
            if len(before.users) == 1 and _folds(layer, norm):
                residual = len(node.args) > 1 or "residual" in node.kwargs
                found.append((layer, norm, residual))
    for layer, norm, residual in found:
        once = all(calls[id(m)] == shared[id(m)] == 1 and names[id(m)] not in read for m in (layer, norm))
        if once and all(weights[id(p)] == 1 for p in layer.parameters()):
            yield names[id(layer)], names[id(norm)], residual


def _folds(layer, norm):
    if norm.running_mean is None or norm.running_var is None or getattr(layer, "act", None):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks or is_parametrized(m) for m in (layer, norm)):
        return False
    if isinstance(layer, torch.nn.Linear):
        return isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.SyncBatchNorm))
    return isinstance(layer, CONVOLUTIONS + TRANSPOSED)


def _fold(layer, norm):
    """w' = w · γ rstd, b' = β + (b - mean) γ rstd of each output channel, computed in float64."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    weight, bias = layer.weight, layer.bias
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, *), the inputs of a group after each other
        grouped = weight.double().unflatten(0, (layer.groups, -1))
        by_output = scale.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
        folded = (grouped * by_output).flatten(0, 1)
    else:
        folded = weight.double() * scale.view(-1, *(1,) * (weight.dim() - 1))
    layout = (
        torch.channels_last if weight.dim() == 4 and not weight.is_contiguous() else torch.preserve_format
    )
    folded = (
        folded.to(weight.dtype).contiguous(memory_format=layout)
        if weight.dim() == 4
        else folded.to(weight.dtype)
    )
    layer.weight = torch.nn.Parameter(folded, weight.requires_grad)
    layer.bias = torch.nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def fold_batchnorm(model):
    """A copy of a model, in evaluation, whose batch norms are folded into the layers before them where that changes
    nothing but rounding: w' = w · γ / sqrt(var + eps), b' = β + (b - mean) · γ / sqrt(var + eps), computed in float64.

    Folded is a norm with running statistics (BatchNorm1d to 3d, SyncBatchNorm; torch's and kernelzoo's) that takes the
    result of a convolution, a transposed convolution or a linear layer (of shape (N, C)), which nothing else takes:
    neighbours in a Sequential, and those that one forward calls one after the other, `self.bn1(self.conv1(x))`, as
    torch.fx finds them, which traces each module's forward on its own. A norm's `act` and `residual` stay; the act goes
    into the layer where that has one (kernelzoo's Linear).

    Left as they are: norms before a layer, behind an activation or a concatenation; layers and norms that are shared,
    called twice, hooked or parametrized; pairs whose layer is called by one module and whose norm by another; a forward
    that torch.fx cannot trace (a branch on a tensor's values).

    Args:
        model: a Module; it is not changed.

    Returns:
        the copy, of the same classes but for the norms: torch.nn.Identity, or FoldedNorm where an act or a residual is
        left.

    Raises:
        ArgumentTypeError (a TypeError and a RuntimeError): anything but a Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError(f"fold_batchnorm: model must be a Module, got {type(model).__name__}")
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for layer_name, norm_name, residual in list(_pairs(model)):
            layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
            _fold(layer, norm)
            act = getattr(norm, "act", None)
            if act and not residual and hasattr(layer, "act"):
                layer.act, act = act, None
            dims = 2 if isinstance(layer, torch.nn.Linear) else None
            left = FoldedNorm(act, dims) if act or residual or dims else torch.nn.Identity()
            model.set_submodule(norm_name, left.eval())
    return model
