"""A torchvision that was built for another torch, as the registry's is beside a CPU torch, made importable.

Lightning and torchmetrics import torchvision where it is installed. Such a one cannot load its operators, and then asks
torch for two of them as it is imported. Declared, they let it be imported; called, they still are not there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_DECLARED: list[torch.library.Library] = []  # they are there as long as this is


def mend_torchvision() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _DECLARED:
        return
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
