"""The kernels of group_norm, for images and for single positions."""

import torch

from kernelzoo.kernels.triton import group_norm, norm

from ..cases import TARGETS

DTYPES = ("float32", "bfloat16", "float64")  # float16 has bfloat16's tiles
SHAPES = ((8, 64, 3136, 8), (256, 64, 16, 8))


def cases():
    for kernel in ("_group_norm_fwd_kernel", "_group_norm_bwd_kernel"):
        for shape in SHAPES:
            for dtype in DTYPES:
                for target in TARGETS:
                    default = (dtype, target, shape) == ("bfloat16", "sm_90", SHAPES[0])
                    yield {
                        "module": "group_norm", "kernel": kernel, "target": target, "dtype": dtype,
                        "shape": shape, "default": default,
                    }  # fmt: skip


def launch(case, target):
    group_norm.target_of = norm.target_of = lambda x: target
    N, C, L, groups = case["shape"]
    dtype = getattr(torch, case["dtype"])
    x, dy = (torch.empty((N, C, L), dtype=dtype, device="meta") for _ in range(2))
    w, b = (torch.empty(C, dtype=dtype, device="meta") for _ in range(2))
    if case["kernel"] == "_group_norm_fwd_kernel":
        group_norm.group_norm_fwd(x, w, b, groups, 1e-5)
        return
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    mean, rstd = (torch.empty(N * groups, dtype=statistics, device="meta") for _ in range(2))
    group_norm.group_norm_bwd(dy, x, w, mean, rstd, groups, True, True, True)
