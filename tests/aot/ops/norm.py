"""Every kernel of layer_norm and rms_norm: short rows that share a program, rows that fit, rows that do not."""

import torch

from kernelzoo.kernels.triton import norm

from ..cases import TARGETS

DTYPES = ("float32", "bfloat16", "float64")  # float16 has bfloat16's tiles
SHAPES = {
    "_norm_fwd_kernel": ((4096, 128), (4096, 1024), (4096, 4096), (1024, 16384), (256, 65536)),
    "_norm_bwd_kernel": ((4096, 128), (4096, 2048), (4096, 4096), (1024, 8192)),
    "_norm_bwd_dx_kernel": ((256, 65536),),
    "_norm_bwd_dw_kernel": ((256, 65536),),
    "_norm_sum_kernel": ((4096, 1024),),
}


def cases():
    for kernel, shapes in SHAPES.items():
        for shape in shapes:
            for rms in (False, True):
                for dtype in DTYPES:
                    for target in TARGETS:
                        widest = {"float64": 2048, "float32": 4096, "bfloat16": 8192}[dtype]
                        if kernel == "_norm_bwd_kernel" and shape[1] > widest:
                            continue  # these rows go through the two other kernels
                        default = (dtype, target, shape, rms) == ("bfloat16", "sm_90", shapes[-1], False)
                        yield {
                            "module": "norm", "kernel": kernel, "target": target, "dtype": dtype,
                            "shape": shape, "rms": rms, "default": default,
                        }  # fmt: skip


def launch(case, target):
    norm.target_of = lambda x: target
    M, N = case["shape"]
    dtype = getattr(torch, case["dtype"])
    x, residual, dy, ds = (torch.empty((M, N), dtype=dtype, device="meta") for _ in range(4))
    w, b = (torch.empty(N, dtype=dtype, device="meta") for _ in range(2))
    rms = case["rms"]
    if case["kernel"] == "_norm_fwd_kernel":
        norm.norm_fwd(x, residual, w, None if rms else b, 1e-5, rms)
        return
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    mean, rstd = (torch.empty(M, dtype=statistics, device="meta") for _ in range(2))
    norm.norm_bwd(dy, ds, x, w, None if rms else mean, rstd, True, True, not rms)
