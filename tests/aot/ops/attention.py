"""Attention's forward: both kernels, at the widths that heads have, with the flags that cost most registers."""

import torch

from kernelzoo.kernels.triton import attention

B, H, HKV, L = 4, 16, 4, 2048


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
    return dict(
        q=q, k=k, v=k, bias=bias, slopes=empty(B, H, dtype=torch.float32) if "slopes" in flags else None,
        key_lengths=empty(B, dtype=torch.int32) if "lengths" in flags else None, cu_q=cu, cu_k=cu,
        seed=empty(1, dtype=torch.int64), max_q=L, max_k=L, scale=D**-0.5,
        left=512 if "window" in flags else -1, right=0 if "causal" in flags else -1, align_end=packed,
        softcap=30.0 if "softcap" in flags else 0.0, dropout_p=0.1 if "dropout" in flags else 0.0,
    )  # fmt: skip


def launch(case, target):
    attention.target_of = lambda x: target
    attention.attention_fwd(**arguments(case))
