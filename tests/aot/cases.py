"""Which kernels are compiled ahead of time: every tile that a launcher can choose, on every target."""

from typing import Any, NamedTuple

import torch

from kernelzoo.kernels.triton import linear
from kernelzoo.kernels.triton.runtime import Target


class Device(NamedTuple):
    """A target, as the launchers see it and as Triton's compiler does."""

    target: Target
    arch: Any
    warp_size: int
    shared_limit: int  # bytes a program may use on that chip


TARGETS = {
    "sm_80": Device(Target("cuda", 80, 108, 166912), 80, 32, 166912),
    "sm_90": Device(Target("cuda", 90, 132, 232448), 90, 32, 232448),
    "sm_100": Device(Target("cuda", 100, 148, 232448), 100, 32, 232448),
    "sm_120": Device(Target("cuda", 120, 170, 101376), 120, 32, 101376),
    "gfx942": Device(Target("hip", 0, 304, 65536), "gfx942", 64, 65536),
    "gfx950": Device(Target("hip", 0, 256, 65536), "gfx950", 64, 163840),
}
DTYPES = ("float64", "float32", "bfloat16")  # float16 has bfloat16's tiles


def tile_of(case):
    """The case's tile in the launcher's own table."""
    target = TARGETS[case["target"]].target
    dtype = getattr(torch, case["dtype"])
    tile = linear.tiles(target, dtype, case["precision"], case["descriptors"])[case["tile"]]
    return tile._replace(num_warps=case.get("num_warps", tile.num_warps))


def linear_cases():
    """Every tile of every list, with the widest epilogue: erf, and z beside y."""
    for name, device in TARGETS.items():
        for dtype in DTYPES:
            for precision in ("ieee", "tf32") if dtype == "float32" else ("ieee",):
                if precision == "tf32" and device.target.backend == "hip":
                    continue
                torch_dtype = getattr(torch, dtype)
                paths = [False]
                if linear.has_descriptor_kernel(device.target, torch_dtype, precision):
                    paths.append(True)
                for descriptors in paths:
                    for i in range(len(linear.tiles(device.target, torch_dtype, precision, descriptors))):
                        yield {
                            "op": "linear_act_fwd", "target": name, "dtype": dtype, "precision": precision,
                            "descriptors": descriptors, "tile": i, "act": "gelu", "save_z": True,
                        }  # fmt: skip


def elementwise_cases():
    """The backward pass, the activations and softmax: each has one tile a dtype or shape."""
    for name in TARGETS:
        for dtype in DTYPES:
            for op in ("linear_act_bwd", "act_fwd", "act_bwd"):
                yield {"op": op, "target": name, "dtype": dtype, "act": "gelu"}
            for shape in ((4096, 1024, 1), (64, 16384, 1), (64, 100000, 1), (4096, 10, 1), (64, 21, 4096)):
                for op in ("softmax_fwd", "softmax_bwd"):
                    yield {
                        "op": op,
                        "target": name,
                        "dtype": dtype,
                        "shape": shape,
                        "log": op == "softmax_bwd",
                    }


def case_id(case):
    parts = [case["op"], case["target"], case["dtype"]]
    if "tile" in case:
        tile = tile_of(case)
        parts += ["desc" if case["descriptors"] else "ptr", case["precision"]]
        parts.append(f"{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K}")
    if "shape" in case:
        parts.append("x".join(map(str, case["shape"])))
    return "-".join(parts)
