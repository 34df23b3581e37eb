"""The elementwise losses' two kernels: each has one tile a dtype; every formula on one target."""

import torch

from kernelzoo.kernels.triton import loss
from kernelzoo.ops.loss import FORMULAS

from ..cases import DTYPES, TARGETS


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for kind in FORMULAS if target == "sm_90" else ("bce",):
                for kernel in ("_loss_fwd_kernel", "_loss_bwd_kernel"):
                    default = (target, dtype, kind) == ("sm_90", "bfloat16", "mse")
                    yield {
                        "module": "loss",
                        "kernel": kernel,
                        "target": target,
                        "dtype": dtype,
                        "kind": kind,
                    } | ({"default": True, "wide": True} if default else {})


def launch(case, target):
    def empty(*shape):
        return torch.empty(shape, dtype=getattr(torch, case["dtype"]), device="meta")

    x = empty(1 << 20)
    if case["kernel"] == "_loss_fwd_kernel":
        loss.loss_fwd(x, x, case["kind"], 0.5, "mean")
    else:
        loss.loss_bwd(empty(), x, x, case["kind"], 0.5, "mean", True, True)
