"""Every kernel of batch_norm and instance_norm: planes, rows (channels-last), and planes that share a tile."""

import torch

from kernelzoo.kernels.triton import batch_norm, norm

from ..cases import TARGETS

DTYPES = ("float32", "bfloat16", "float64")  # float16 has bfloat16's tiles
KERNELS = (
    "_batch_norm_moments_kernel",
    "_batch_norm_join_kernel",
    "_batch_norm_fwd_kernel",
    "_batch_norm_sums_kernel",
    "_batch_norm_bwd_kernel",
)
SHAPES = ((16, 64, 56, 56), (64, 512, 8, 8))


def cases():
    for kernel in KERNELS:
        for shape in SHAPES:
            for last in (False, True):
                for dtype in DTYPES:
                    for target in TARGETS:
                        default = (dtype, target, shape, last) == ("bfloat16", "sm_90", SHAPES[0], True)
                        yield {
                            "module": "batch_norm", "kernel": kernel, "target": target, "dtype": dtype, "shape": shape,
                            "last": last, "wide": kernel != "_batch_norm_join_kernel" and dtype != "float64",
                            "default": default,
                        }  # fmt: skip


def launch(case, target):
    batch_norm.target_of = norm.target_of = lambda x: target
    dtype = getattr(torch, case["dtype"])
    layout = torch.channels_last if case["last"] else torch.contiguous_format
    x, dy, r = (
        torch.empty(case["shape"], dtype=dtype, device="meta").to(memory_format=layout) for _ in range(3)
    )
    w, b = (torch.empty(case["shape"][1], dtype=dtype, device="meta") for _ in range(2))
    act = ("gelu", 0.0, 0.0)  # the widest
    if case["kernel"] in KERNELS[:3]:
        batch_norm.batch_norm_fwd(x, r, w, b, None, None, False, 1e-5, *act)
        return
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = (torch.empty(case["shape"][1], dtype=statistics, device="meta") for _ in range(2))
    batch_norm.batch_norm_bwd(
        dy, x, r, w, b, mean, var, None, None, 0.0, True, False, False, 1e-5, *act, True, True, True, True
    )
