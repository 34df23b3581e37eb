"""Attention's backward: its four kernels, as attention.py has the forward's."""

import torch

from kernelzoo.kernels.triton import attention_bwd

from . import attention


def launch(case, target):
    attention_bwd.target_of = lambda x: target
    given = attention.arguments(case)
    q = given["q"]
    o = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float64 if case["dtype"] == "float64" else torch.float32, device="meta")
    dbias = case["kernel"].endswith("dbias_kernel")
    needs = case.get("needs", "dk dv").split()
    attention_bwd.attention_bwd(
        o, **given, o=o, lse=lse, need_dq=not dbias, need_dk="dk" in needs and not dbias, need_dv="dv" in needs and not dbias, need_dbias=dbias
    )
