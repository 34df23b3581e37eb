"""Dropout: one tile a dtype, with and without a residual."""

import torch

from kernelzoo.kernels.triton import dropout

from ..cases import DTYPES, TARGETS


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for residual in (False, True):
                yield {
                    "module": "dropout",
                    "kernel": "_dropout_kernel",
                    "residual": residual,
                    "target": target,
                    "dtype": dtype,
                    "wide": True,
                    "default": dtype == "bfloat16" and target == "sm_90" and residual,
                }


def launch(case, target):
    x = torch.empty(1 << 20, dtype=getattr(torch, case["dtype"]), device="meta")
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    dropout.dropout_fwd(x, x if case["residual"] else None, seed, 0.1)
