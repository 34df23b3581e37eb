"""cross_entropy's two kernels: long and short rows, classes before other dimensions, indices and probabilities."""

import torch

from kernelzoo.kernels.triton import cross_entropy

from ..cases import DTYPES, TARGETS

SHAPES = ((64, 50257, 1), (4096, 10, 1), (64, 21, 4096))
KERNELS = ("_cross_entropy_fwd_kernel", "_cross_entropy_bwd_kernel")


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for shape in SHAPES:
                for kernel in KERNELS:
                    default = (target, dtype, shape) == ("sm_90", "bfloat16", SHAPES[0])
                    for probabilities in (False, True):
                        yield {
                            "module": "cross_entropy",
                            "kernel": kernel,
                            "target": target,
                            "dtype": dtype,
                            "shape": shape,
                            "probabilities": probabilities,
                        } | ({"default": True} if default and not probabilities else {})


def launch(case, target):
    cross_entropy.target_of = lambda x: target
    dtype = getattr(torch, case["dtype"])
    outer, n, inner = case["shape"]

    acc = cross_entropy.acc_dtype(dtype)

    def empty(*shape, dtype=acc):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(outer, n, inner, dtype=dtype)
    labels = x if case["probabilities"] else empty(outer, inner, dtype=torch.int64)
    # probabilities, weighted and smoothed: everything at once
    weight, smoothing = (empty(n), 0.1) if case["probabilities"] else (None, 0.0)
    if case["kernel"] == KERNELS[0]:
        cross_entropy.cross_entropy_fwd(x, labels, weight, -100, "mean", smoothing, False)
    else:
        stats = empty(3, outer, inner)
        cross_entropy.cross_entropy_bwd(empty(), x, labels, weight, stats, empty(), -100, smoothing)
