"""Adam and AdamW (Kingma, Ba: arXiv:1412.6980; Loshchilov, Hutter: arXiv:1711.05101), a parameter in one pass.

torch has the kernel, fused=True, and does not take it by default. It reads weight, gradient and both moments and writes
the weight and the moments, 28 bytes a parameter in fp32, where the default passes over the memory ten times.
"""

import functools
import inspect

import torch

from ..ops.core.registry import PLAIN


def _fused(params):
    """Whether torch's fused kernel takes these: floating tensors, none of a subclass, on a CPU or a CUDA device."""
    entries = [p[1] if isinstance(p, tuple) else p for p in params]
    groups = [p["params"] for p in entries if isinstance(p, dict)]
    tensors = [t for t in entries if not isinstance(t, dict)]
    for group in groups:
        tensors += [group] if isinstance(group, torch.Tensor) else group
    return all(
        type(t) in PLAIN and t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors
    )


def _fused_by_default(cls):
    """cls, whose constructor sets fused=True where neither fused nor an option that excludes it is given."""
    init = cls.__mro__[1].__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self, params, *args, **options):
        given = signature.bind(self, params, *args, **options).arguments
        excluded = any(given.get(name) for name in ("foreach", "capturable", "differentiable"))
        if given.get("fused") is None and not excluded and not isinstance(params, torch.Tensor):
            params = [dict(p, params=_listed(p["params"])) if isinstance(p, dict) else p for p in params]
            options["fused"] = _fused(params) or None
        init(self, params, *args, **options)

    cls.__init__ = __init__
    return cls


def _listed(params):
    return params if isinstance(params, torch.Tensor) else list(params)


@_fused_by_default
class Adam(torch.optim.Adam):
    """torch.optim.Adam, with fused=True where that is possible and neither it nor `foreach` is given."""


@_fused_by_default
class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, with fused=True where that is possible and neither it nor `foreach` is given."""
