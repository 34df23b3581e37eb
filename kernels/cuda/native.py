"""How the launchers name things to the compiled module."""

import torch

from kernelzoo import _cuda

ACTS = _cuda.ACTS
DTYPES = {getattr(torch, name): code for name, code in _cuda.DTYPES.items()}


def target(t):
    """(device, stream): torch's current stream on t's device."""
    return t.device.index, torch.cuda.current_stream(t.device).cuda_stream
