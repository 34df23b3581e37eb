"""Attention's forward: both kernels, at the widths that heads have, with the flags that cost most registers."""

import torch

from kernelzoo.kernels.triton import attention

from ..cases import DTYPES, TARGETS

B, H, HKV, L = 4, 16, 4, 2048
PLAIN = "causal"
FULL = "causal+window+dropout+float+slopes"  # takes the second table's tiles


def has_tensor_core(target, dtype):
    """Whether Triton makes a tensor-core instruction of a dot: of fp32, which is IEEE here, on AMD's only."""
    if dtype == "float32":
        return target.startswith("gfx")
    return dtype == "bfloat16" or target in ("sm_80", "sm_90") or target.startswith("gfx")


def grid(dtypes=DTYPES, widths=(64, 96, 128, 256)):
    """Targets, dtypes and widths of heads; 96 stands for those that no tile has, in bf16."""
    for target in TARGETS:
        for dtype in dtypes:
            for D in widths:
                if D != 96 or dtype == "bfloat16":
                    yield {"target": target, "dtype": dtype, "D": D}


def is_default(case):
    return (case["target"], case["dtype"], case["D"]) == ("sm_90", "bfloat16", 128)


def cases():
    for base in grid():
        dots = {"tensor_core": has_tensor_core(base["target"], base["dtype"])}
        kernels = {"_attention_fwd_kernel": (PLAIN + "+packed", FULL)}
        target, dtype = TARGETS[base["target"]].target, getattr(torch, base["dtype"])
        if attention.has_descriptor_kernel(target, dtype, base["D"], base["D"]):
            kernels["_attention_fwd_desc_kernel"] = (PLAIN, FULL.replace("+float", ""))
        for kernel, mixes in kernels.items():
            for flags in mixes:
                case = {"module": "attention", "kernel": kernel, **base, "flags": flags, **dots}
                yield case | {"default": is_default(base) and flags == mixes[0]}


def arguments(case):
    """What the forward launcher takes; shapes whose divisibility is that of real ones."""
    dtype = getattr(torch, case["dtype"])
    D, flags = case["D"], case["flags"].split("+")

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    packed = "packed" in flags
    batch, length = (1, B * L) if packed else (B, L)
    q = empty(batch, length, H, D).transpose(1, 2)
    k = empty(batch, length, HKV, D).transpose(1, 2)
    bias = None
    if "bool" in flags:
        bias = empty(B, 1, L, L, dtype=torch.bool).expand(B, H, L, L)
    if "float" in flags:
        bias = empty(1, H, L, L).expand(B, H, L, L)
    cu = empty(B + 1, dtype=torch.int32) if packed else None
    return {
        "q": q, "k": k, "v": k, "bias": bias,
        "slopes": empty(B, H, dtype=torch.float32) if "slopes" in flags else None,
        "key_lengths": empty(B, dtype=torch.int32) if "lengths" in flags else None, "cu_q": cu, "cu_k": cu,
        "seed": empty(1, dtype=torch.int64), "max_q": L, "max_k": L, "scale": D**-0.5,
        "left": 512 if "window" in flags else -1, "right": 0 if "causal" in flags else -1,
        "align_end": packed, "softcap": 30.0 if "softcap" in flags else 0.0,
        "dropout_p": 0.1 if "dropout" in flags else 0.0,
    }  # fmt: skip


def launch(case, target):
    attention.target_of = lambda x: target
    attention.attention_fwd(**arguments(case))
