"""Gated activations: one tile a dtype; over whole rows and over the halves of wider ones."""

import torch

from kernelzoo.kernels.triton import glu

from ..cases import DTYPES, TARGETS

LAUNCHERS = {"_glu_fwd_kernel": ("glu_fwd", "glu_split_fwd"), "_glu_bwd_kernel": ("glu_bwd", "glu_split_bwd")}


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for kernel, launchers in LAUNCHERS.items():
                for launcher in launchers:
                    yield {
                        "module": "glu",
                        "kernel": kernel,
                        "launcher": launcher,
                        "target": target,
                        "dtype": dtype,
                        "act": "gelu",
                        "wide": True,
                        "default": dtype == "bfloat16" and target == "sm_90" and "split" not in launcher,
                    }


def launch(case, target):
    def empty(*shape):
        return torch.empty(shape, dtype=getattr(torch, case["dtype"]), device="meta")

    gate, name = empty(4096, 4096), case["launcher"]
    if name == "glu_fwd":
        glu.glu_fwd(gate, gate, case["act"])
    elif name == "glu_bwd":
        glu.glu_bwd(gate, gate, gate, case["act"])
    elif name == "glu_split_fwd":
        glu.glu_split_fwd(empty(4096, 8192))
    else:
        glu.glu_split_bwd(gate, empty(4096, 8192))
