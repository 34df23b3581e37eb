"""Attention's backward: its four kernels, as attention.py has the forward's."""

import torch

from kernelzoo.kernels.triton import attention_bwd
from kernelzoo.kernels.triton.attention_scores import block_d
from kernelzoo.kernels.triton.attention_tiles import dkv_tile

from ..cases import TARGETS
from . import attention
from .attention import FULL, PLAIN


def cases():
    for base in attention.grid():
        target, dtype = TARGETS[base["target"]].target, getattr(torch, base["dtype"])
        if base["dtype"] == "float64" and base["D"] > 128:
            continue  # operands of fp64's mma.sync alone exceed the registers there: it spills, and still is right
        dots = {"tensor_core": attention.has_tensor_core(base["target"], base["dtype"])}
        first = attention.is_default(base)
        for flags in (PLAIN, FULL):
            common = {"module": "attention_bwd", **base, "flags": flags, "default": first and flags == PLAIN}
            apart = dkv_tile(target, dtype, block_d(base["D"]), flags == FULL, base["D"] != 96)["APART"]
            for needs in ("dk", "dv") if apart else ("dk dv",):
                yield common | dots | {"kernel": "_attention_bwd_dkv_kernel", "needs": needs}
            yield common | dots | {"kernel": "_attention_bwd_dq_kernel"}
        if (base["target"], base["dtype"], base["D"]) != ("sm_90", "float64", 128):  # as above: 36 bytes
            yield common | dots | {"kernel": "_attention_bwd_dbias_kernel", "default": first}
        yield common | {"kernel": "_attention_delta_kernel", "default": first}


def launch(case, target):
    attention_bwd.target_of = lambda x: target
    given = attention.arguments(case)
    q = given["q"]
    o = torch.empty_like(q)
    lse = torch.empty(
        q.shape[:3], dtype=torch.float64 if case["dtype"] == "float64" else torch.float32, device="meta"
    )
    dbias = case["kernel"].endswith("dbias_kernel")
    needs = case.get("needs", "dk dv").split()
    attention_bwd.attention_bwd(
        o,
        **given,
        o=o,
        lse=lse,
        need_dq=not dbias,
        need_dk="dk" in needs and not dbias,
        need_dv="dv" in needs and not dbias,
        need_dbias=dbias,
        packed=False,
    )
