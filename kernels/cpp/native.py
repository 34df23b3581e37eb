"""How the launchers name things to the compiled module."""

import torch

from kernelzoo import _cpu

DTYPES = {getattr(torch, name): code for code, name in enumerate(_cpu.DTYPES)}
ACTS = _cpu.ACTS
