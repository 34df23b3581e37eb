"""Max-pooling: channels last and first, both kinds of index, dilation."""

import torch

from kernelzoo.kernels.triton import pool

from ..cases import DTYPES, TARGETS

# channels, last, kernel, stride, padding, dilation, index
SHAPES = (
    (64, True, 3, 2, 1, 1, "tap"),
    (64, False, 3, 2, 1, 1, "tap"),
    (64, True, 2, 2, 0, 1, "flat"),
    (3, True, 3, 1, 2, 2, "flat"),
)


def cases():
    for kernel in ("_max_pool_fwd_kernel", "_max_pool_bwd_kernel"):
        for shape in SHAPES:
            for target in TARGETS:
                for dtype in DTYPES:
                    yield {
                        "module": "pool", "kernel": kernel, "target": target, "dtype": dtype, "shape": shape,
                        "default": (shape, target, dtype) == (SHAPES[0], "sm_90", "bfloat16"),
                        "wide": shape == SHAPES[0] and dtype != "float64",
                    }  # fmt: skip


def launch(case, target):
    pool.target_of = lambda x: target
    channels, last, kernel, stride, padding, dilation, index = case["shape"]
    windows = [1, kernel, kernel], [1, stride, stride], [0, padding, padding], [1, dilation, dilation]
    out = (112 + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    def empty(dtype, *sizes):
        t = torch.empty((16, *sizes, channels), dtype=dtype, device="meta").permute(0, 4, 1, 2, 3)
        return t if last else torch.empty(t.shape, dtype=dtype, device="meta")

    dtype = getattr(torch, case["dtype"])
    if case["kernel"] == "_max_pool_fwd_kernel":
        pool.max_pool_fwd(empty(dtype, 1, 112, 112), [1, out, out], *windows, index, last)
        return
    chosen = empty(torch.uint8 if index == "tap" else torch.int64, 1, out, out)
    pool.max_pool_bwd(empty(dtype, 1, out, out), chosen, [1, 112, 112], *windows, last)
