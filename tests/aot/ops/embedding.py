"""Embedding: the tiles of narrow, common and wide rows."""

import torch

from kernelzoo.kernels.triton import embedding

from ..cases import DTYPES, TARGETS


def cases():
    for target in TARGETS:
        for dtype in DTYPES:
            for kernel in ("_embedding_fwd_kernel", "_embedding_bwd_kernel"):
                for width in (16, 768, 4096):
                    yield {
                        "module": "embedding",
                        "kernel": kernel,
                        "width": width,
                        "target": target,
                        "dtype": dtype,
                        "default": dtype == "bfloat16" and target == "sm_90" and width == 768,
                    }


def launch(case, target):
    embedding.target_of = lambda x: target
    rows = torch.empty(8192, case["width"], dtype=getattr(torch, case["dtype"]), device="meta")
    indices = torch.empty(8192, dtype=torch.int64, device="meta")
    if case["kernel"] == "_embedding_fwd_kernel":
        embedding.embedding_fwd(rows, indices)
    else:
        embedding.embedding_bwd(rows, indices, 50257, -1, True)
