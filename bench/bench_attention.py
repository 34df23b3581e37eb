"""Scaled dot product attention, forward and backward: causal, whole, masked, grouped heads, and decoding."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernelzoo.functional as F

from .core import DEVICE, GPU, Target, op_case

T = torch.nn.functional
FLOOR = Target("ratio", 0.97)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FP32, BF16 = torch.float32, torch.bfloat16


def _pinned(backend, **options):
    """torch's function on one of its own kernels."""

    def call(q, k, v, *mask):
        with sdpa_kernel(backend):
            return T.scaled_dot_product_attention(q, k, v, *mask, **options)

    return call


def _attention(
    B, H, L, D, dtype, *, S=None, kv_heads=None, mask=False, backward=True, targets=(FLOOR,), **options
):
    S, kv_heads = S or L, kv_heads or H
    if kv_heads != H:
        options["enable_gqa"] = True

    def make(generator):
        shapes = [(B, H, L, D), (B, kv_heads, S, D), (B, kv_heads, S, D), *([(1, 1, L, S)] if mask else [])]
        return [torch.randn(s, generator=generator, device=DEVICE, dtype=torch.float64) for s in shapes]

    causal = options.get("is_causal", False)
    flops = 4 * B * H * L * S * D * (0.5 if causal else 1.0) * (3.5 if backward else 1.0)
    values = B * (2 * H * L + 2 * kv_heads * S) * D
    what = [
        f"attention {B}x{H}x{L}x{D}",
        *([f"S{S}"] if S != L else []),
        *(["causal"] if causal else []),
        *([f"gqa{kv_heads}"] if kv_heads != H else []),
        *(["mask"] if mask else []),
        SHORT[dtype],
        *([] if backward else ["forward"]),
    ]
    pinned = {}
    if GPU and dtype == BF16 and not mask:
        pinned = {
            "flash": _pinned(SDPBackend.FLASH_ATTENTION, **options),
            "cudnn": _pinned(SDPBackend.CUDNN_ATTENTION, **options),
        }
    return op_case(
        " ".join(what),
        "attention",
        dtype,
        make,
        lambda q, k, v, *m: F.scaled_dot_product_attention(q, k, v, *m, **options),
        lambda q, k, v, *m: T.scaled_dot_product_attention(q, k, v, *m, **options),
        ("o", "dq", "dk", "dv", "dmask")[: 5 if mask else 4],
        peers=pinned,
        targets=targets,
        backward=backward,
        bytes=(3 if backward else 1) * values * dtype.itemsize,
        flops=flops,
    )


def _decode(B, H, kv_heads, S, D, dtype):
    def make(generator):
        shapes = ((B, H, 1, D), (B, kv_heads, S, D), (B, kv_heads, S, D))
        return [torch.randn(s, generator=generator, device=DEVICE, dtype=torch.float64) for s in shapes]

    lengths = torch.full((B,), S, device=DEVICE)
    return op_case(
        f"decode {B}x{H}x{S}x{D} gqa{kv_heads} {SHORT[dtype]}",
        "attention",
        dtype,
        make,
        lambda q, k, v: F.attention_decode(q, k, v, lengths),
        lambda q, k, v: T.scaled_dot_product_attention(q, k, v, enable_gqa=kv_heads != H),
        ("o",),
        targets=(FLOOR,),
        backward=False,
        bytes=2 * B * kv_heads * S * D * dtype.itemsize,
        flops=4 * B * H * S * D,
    )


def _at_least(ratio):
    return (Target("ratio", ratio),)


if GPU:
    # beside SDPA-flash: forward 1.3, forward and backward 1.2
    CASES = [
        _attention(2, 16, 8192, 128, BF16, is_causal=True, backward=False,
                   targets=(FLOOR, Target("ratio to flash", 1.3))),
        _attention(2, 16, 8192, 128, BF16, is_causal=True, targets=(FLOOR, Target("ratio to flash", 1.2))),
        _attention(2, 16, 8192, 128, BF16),
        _attention(4, 16, 2048, 64, BF16, is_causal=True),
        _attention(2, 32, 4096, 128, BF16, kv_heads=8, is_causal=True),
        _attention(2, 8, 2048, 64, BF16, mask=True),
        _decode(32, 32, 8, 8192, 128, BF16),
    ]  # fmt: skip
else:
    CASES = [
        _attention(2, 8, 1024, 64, FP32, is_causal=True, targets=_at_least(1.4)),
        _attention(2, 8, 1024, 64, BF16, is_causal=True, targets=_at_least(1.5)),
        _attention(1, 8, 4096, 64, FP32, targets=_at_least(1.3)),
        _attention(1, 8, 4096, 64, FP32, is_causal=True, targets=_at_least(1.3)),
        _attention(2, 8, 512, 64, FP32),
        _attention(2, 8, 512, 64, FP32, mask=True),
        _attention(2, 8, 512, 64, BF16, kv_heads=2, is_causal=True),
        _attention(4, 6, 256, 64, FP32, is_causal=True),
        _attention(2, 8, 1024, 96, FP32, is_causal=True, backward=False),
        _decode(8, 8, 2, 2048, 64, FP32),
        _decode(8, 8, 8, 2048, 64, BF16),
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_attention(case, row):
    row(case)
