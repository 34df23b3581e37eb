"""Averages and interpolation: channels last and first, few taps and many."""

import torch

from kernelzoo.kernels.triton import resample

from ..cases import DTYPES, TARGETS

# channels, last, mode, sizes in and out, transposed
SHAPES = (
    (64, True, "linear", 56, 112, False),
    (64, True, "linear", 56, 112, True),
    (64, False, "nearest", 56, 112, True),
    (64, False, "adaptive", 56, 1, False),
    (2048, True, "adaptive", 7, 1, False),
    (3, True, "corners", 56, 112, False),
)


def cases():
    for shape in SHAPES:
        for target in TARGETS:
            for dtype in DTYPES:
                yield {
                    "module": "resample", "kernel": "_resample_kernel", "target": target, "dtype": dtype,
                    "shape": shape, "default": (shape, target, dtype) == (SHAPES[0], "sm_90", "bfloat16"),
                    "wide": shape == SHAPES[0] and dtype != "float64",
                }  # fmt: skip


def launch(case, target):
    resample.target_of = lambda x: target
    channels, last, mode, size, out, transposed = case["shape"]
    size, out = (out, size) if transposed else (size, out)
    shape = (16, 1, size, size, channels) if last else (16, channels, 1, size, size)
    x = torch.empty(shape, dtype=getattr(torch, case["dtype"]), device="meta")
    x = x.permute(0, 4, 1, 2, 3) if last else x
    resample.resample(x, [1, out, out], mode, [], 0, [0.0, 2.0, 2.0], transposed, last)
