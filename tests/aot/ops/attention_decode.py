"""Attention's decode: both kernels, contiguous and paged."""

import torch

from kernelzoo.kernels.triton import attention_decode

from . import attention

B, H, HKV, S, PAGE = 8, 32, 8, 8192, 64


def cases():
    for base in attention.grid():
        dots = {"tensor_core": attention.has_tensor_core(base["target"], base["dtype"])}
        first = attention.is_default(base)
        for flags in ("", "tall+paged+slopes+window+softcap"):
            case = {
                "module": "attention_decode",
                "kernel": "_attention_decode_kernel",
                **base,
                "flags": flags,
                **dots,
            }
            yield case | {"default": first and not flags}
        case = {"module": "attention_decode", "kernel": "_attention_combine_kernel", **base, "flags": ""}
        yield case | {"default": first}


def launch(case, target):
    attention_decode.target_of = lambda x: target
    dtype = getattr(torch, case["dtype"])
    flags, D = case["flags"].split("+"), case["D"]

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    paged = "paged" in flags
    cache = empty(B * S // PAGE, HKV, PAGE, D) if paged else empty(B, HKV, S, D)
    length = 16 if "tall" in flags else 1
    attention_decode.attention_decode(
        empty(B, H, length, D), cache, cache, empty(B, dtype=torch.int32),
        empty(B, S // PAGE, dtype=torch.int32) if paged else None,
        empty(B, H, dtype=torch.float32) if "slopes" in flags else None,
        D**-0.5, 512 if "window" in flags else -1, 30.0 if "softcap" in flags else 0.0,
    )  # fmt: skip
