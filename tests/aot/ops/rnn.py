"""The recurrent layers' kernels: a step's tiles, plain and with all options; the persistent at every width."""

import torch

from kernelzoo.kernels.triton import rnn

from ..cases import DTYPES, TARGETS
from .attention import has_tensor_core

PERSISTENT = ("_rnn_persistent_fwd_kernel", "_rnn_persistent_bwd_kernel")
ROWS = ("_rnn_rows_fwd_kernel", "_rnn_rows_bwd_kernel")
STEP = ("_rnn_step_fwd_kernel", "_rnn_step_bwd_kernel")
PROJECT = "_rnn_project_kernel"
WIDTHS = (16, 32, 64, 128)


def variants():
    """(kernel, mode, B, H, options): B and H name the tile."""
    for kernel in PERSISTENT:
        for H in WIDTHS:
            yield kernel, "lstm", 64, H, ""
            yield kernel, "lstm", 64, H, "full+packed+norm"
            yield kernel, "gru", 64, H, "norm"
    for kernel in STEP:
        for B in (16, 32, 64, 4096):
            yield kernel, "lstm", B, 512, ""
        yield kernel, "lstm", 4096, 512, "full"
        yield kernel, "gru", 4096, 512, "full"
        yield kernel, "rnn_tanh", 16, 512, ""
    for kernel in ROWS:
        for H in (256, 2048):
            yield kernel, "lstm", 64, H, "full+norm"
            yield kernel, "gru", 64, H, "full+norm"
    for B in (16, 4096):
        yield PROJECT, "lstm", B, 512, "full+project"


def cases():
    for kernel, mode, B, H, options in variants():
        for dtype in DTYPES:
            for target in TARGETS:
                device = TARGETS[target].target
                backward = kernel.endswith("bwd_kernel")
                persistent = rnn.is_persistent(device, getattr(torch, dtype), H, None, backward)
                if kernel in PERSISTENT and not persistent:
                    continue
                if kernel in STEP + ROWS and persistent:
                    continue
                dots = kernel not in ROWS and has_tensor_core(target, dtype)
                default = (target, dtype, options) == (
                    "sm_90",
                    "bfloat16",
                    "full+norm" if kernel in ROWS else "",
                )
                if kernel == PROJECT:
                    default = (target, dtype, B) == ("sm_90", "bfloat16", 16)
                yield {
                    "module": "rnn", "kernel": kernel, "target": target, "dtype": dtype, "mode": mode, "B": B,
                    "H": H, "options": options, "tensor_core": dots, "default": default and mode == "lstm",
                }  # fmt: skip


def launch(case, target):
    rnn.target_of = lambda x: target
    dtype = getattr(torch, case["dtype"])
    mode, B, H = case["mode"], case["B"], case["H"]
    options = case["options"].split("+")
    full, norm = "full" in options, "norm" in options
    G, lstm, packed = rnn.GATES[mode], mode == "lstm", "packed" in options
    T = 4 if packed else 1
    P = H // 2 if "project" in options else H

    def empty(*shape, when=True, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta") if when else None

    R = T * B
    h0, c0, out, w = empty(B, P), empty(B, H, when=lstm), empty(R, P), empty(G * H, P)
    given = (
        w, empty(H, when=mode == "gru"), empty(P, H, when=P != H), empty(3, H, when=full and lstm),
        empty(G * H, when=norm), empty(2, H, when=norm and lstm), empty(B, P, when=full), empty(R, P, when=full),
        empty(R, H, when=full and lstm), torch.full((T,), B) if packed else None,
    )  # fmt: skip
    if case["kernel"].endswith("bwd_kernel"):
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        rnn._recurrence(
            out, empty(B, P), c0, out, h0, c0, *given, empty(R, G * H), empty(R, H, when=lstm, dtype=acc),
            empty(R, G * H if norm else H), empty(R, when=norm, dtype=acc), mode, False, 1, 1e-5, norm and lstm,
        )  # fmt: skip
    else:
        rnn.rnn_fwd(empty(R, G * H), h0, c0, *given, mode, False, 1, 1e-5, True)
