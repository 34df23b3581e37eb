"""Rotary embedding: the head sizes' tiles, both layouts, with and without positions."""

import torch

from kernelzoo.kernels.triton import rotary

from ..cases import DTYPES, TARGETS


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for head, turned in ((64, 64), (128, 128), (80, 32), (512, 512)):
                for interleaved in (False, True):
                    yield {
                        "module": "rotary",
                        "kernel": "_rotary_kernel",
                        "head": head,
                        "turned": turned,
                        "interleaved": interleaved,
                        "target": target,
                        "dtype": dtype,
                        "default": dtype == "bfloat16"
                        and target == "sm_90"
                        and head == 128
                        and not interleaved,
                    }


def launch(case, target):
    rotary.target_of = lambda x: target
    dtype = getattr(torch, case["dtype"])
    table = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.empty(2, 4096, 32, case["head"], dtype=dtype, device="meta").transpose(1, 2)
    cos = torch.empty(4096, case["turned"] // 2, dtype=table, device="meta")
    ids = torch.empty(2, 4096, dtype=torch.int64, device="meta") if case["interleaved"] else None
    rotary.rotary(x, cos, cos, ids, case["interleaved"], case["interleaved"])
