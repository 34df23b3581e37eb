"""The convolution kernels: every tile of the implicit products, plain, with a stride to gather from, taps merged."""

import torch

from kernelzoo.kernels.triton import conv, conv_tiles

from ..cases import DTYPES, TARGETS
from .attention import has_tensor_core

GEMM, WEIGHT = "_conv_kernel", "_conv_bwd_weight_kernel"
# channels of x and y, size, kernel, stride, padding, dilation, groups
SHAPES = {
    "3x3": (128, 128, (1, 56, 56), (1, 3, 3), 1, 1),
    "3x3s2": (128, 128, (1, 56, 56), (1, 3, 3), 2, 1),
    "7x7s2c3": (3, 64, (1, 224, 224), (1, 7, 7), 2, 1),
    "3x3g4": (128, 128, (1, 56, 56), (1, 3, 3), 1, 4),
    "dw3x3": (128, 128, (1, 56, 56), (1, 3, 3), 1, 128),
    "dw3x3s2": (128, 128, (1, 56, 56), (1, 3, 3), 2, 128),
    "dw3x3c2": (64, 128, (1, 56, 56), (1, 3, 3), 1, 64),
    "dw4": (768, 768, (1, 1, 2048), (1, 1, 4), 1, 768),
    "dw8": (768, 768, (1, 1, 2048), (1, 1, 8), 1, 768),
}
GEMMS = (("3x3", False), ("3x3s2", True), ("3x3g4", False), ("7x7s2c3", False))
DIRECT = (  # kernel, shape, transposed; the first of a kernel is the default suite's
    ("_depthwise_kernel", "dw3x3", False),
    ("_depthwise_kernel", "dw3x3c2", False),
    ("_depthwise_kernel", "dw3x3s2", True),
    ("_depthwise_bwd_weight_kernel", "dw3x3", False),
    ("_depthwise_bwd_weight_kernel", "dw3x3c2", False),
    ("_conv1d_short_kernel", "dw4", False),
    ("_conv1d_short_kernel", "dw8", True),
    ("_conv1d_short_bwd_weight_kernel", "dw4", False),
    ("_conv1d_short_bwd_weight_kernel", "dw8", False),
)


def cases():
    for target, device in TARGETS.items():
        for dtype in DTYPES:
            common = {"module": "conv", "target": target, "dtype": dtype}
            first = target == "sm_90" and dtype == "bfloat16"
            for kernel, shape, transposed in DIRECT:
                default = first and shape == next(s for k, s, _ in DIRECT if k == kernel)
                yield common | {
                    "kernel": kernel, "shape": shape, "transposed": transposed, "default": default,
                    "wide": shape != "dw3x3c2",
                }  # fmt: skip
            tf32 = dtype == "float32" and device.target.backend == "cuda"
            for precision in ("ieee", "tf32") if tf32 else ("ieee",):
                dots = has_tensor_core(target, dtype) or precision == "tf32"
                for kernel in (GEMM, WEIGHT):
                    key = device.target, getattr(torch, dtype), precision, kernel == WEIGHT
                    tiles = conv_tiles.tiles(*key)
                    for i, tile in enumerate(tiles):
                        for shape, transposed in GEMMS:
                            if kernel == WEIGHT and transposed:
                                continue
                            if shape == "7x7s2c3" and tile.BLOCK_N > 64:
                                continue  # more columns than it has
                            if shape == "3x3g4" and (tile.BLOCK_N != 32 or kernel == WEIGHT):
                                continue
                            yield common | {
                                "kernel": kernel, "shape": shape, "transposed": transposed, "precision": precision,
                                "tile": i, "size": "x".join(map(str, tile[:3])), "tensor_core": dots,
                                "default": first and shape == "3x3" and (tile.BLOCK_M, tile.BLOCK_N) == (64, 64),
                            }  # fmt: skip


def launch(case, target):
    dtype = getattr(torch, case["dtype"])
    conv.target_of = lambda x: target
    if "tile" in case:
        tiles = conv_tiles.tiles(target, dtype, case["precision"], case["kernel"] == WEIGHT)
        conv.choose_tile = lambda *key: tiles[case["tile"]]
        conv.conv_precision = lambda target, dtype: case["precision"]
    conv.sum_rows = lambda partial, dtype: partial.sum(0)
    conv.column_sums = lambda dz: dz.sum(0)
    C, O, size, kernel, stride, groups = SHAPES[case["shape"]]

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    padding = [k // 2 for k in kernel]
    strides = [stride if n > 1 else 1 for n in size]
    outputs = [(n + 2 * p - k) // s + 1 for n, k, p, s in zip(size, kernel, padding, strides, strict=True)]
    x, y, w = empty(32, *size, C), empty(32, *outputs, O), empty(O, *kernel, C // groups)
    options = (strides, padding, [1, 1, 1], groups)
    if case["kernel"].endswith("bwd_weight_kernel"):
        conv.conv_bwd_weight(y, x, list(kernel), *options, True)
    elif case["transposed"]:
        conv.conv_bwd_input(y, w, empty(C), x, list(size), *options, "gelu", 0.0, 0.0, True)
    else:
        conv.conv_fwd(x, w, empty(O), y, outputs, *options, "gelu", 0.0, 0.0, True)
