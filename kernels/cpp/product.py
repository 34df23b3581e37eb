"""Matrix products packed for tiles in registers (csrc/cpu/product.h), in float32, bfloat16 and float16.

They serve where AVX2 is all there is. On 2 such AMD EPYC cores 2048x384 @ 384x1536 runs in fp32 at 140 GFLOP/s, in
MKL at 94 to 111, in oneDNN at 103 to 124; 256x384 @ 384x1536 in bf16, for which the processor has no instructions,
in torch at 1 to 11.
"""

import torch

from kernelzoo import _cpu
from kernelzoo.kernels import memory
from kernelzoo.kernels.cpp.native import DTYPES
from kernelzoo.kernels.product import Products, flops, is_amd

# A call's fixed cost of 15 us is won back from here on: 64x384 @ 384x384 in fp32 takes MKL 190 us and this 196,
# 64x384 @ 384x1536 950 and 840; 16x64 @ 64x64 in bf16 takes torch 25 us and this 19.
LEAST_FLOPS = 1 << 25
LEAST_FLOPS_16 = 1 << 16
LEAST_ROWS, LEAST_ROWS_16 = 16, 8  # and columns; 8x384 @ 384x384 in bf16: torch 145 us, this 147


class Packed(Products):
    def wins(self, dtype):
        if not _is_avx2() or dtype == torch.float64:
            return super().wins(dtype)
        # MKL was not measured on its maker's processors
        return dtype != torch.float32 or is_amd()

    def serves(self, a, b):
        if not (_is_avx2() and self.wins(a.dtype)):  # without the first what wins is oneDNN's
            return False
        if a.dtype != b.dtype or a.shape[1] != b.shape[0]:  # torch's error says so
            return False
        wide = a.dtype == torch.float32
        if min(a.shape[0], b.shape[1]) < (LEAST_ROWS if wide else LEAST_ROWS_16):
            return False
        return flops(a, b) >= (LEAST_FLOPS if wide else LEAST_FLOPS_16)

    def run(self, a, b, bias, out, add=False):
        # the negative bit of an imaginary part, which is not in its memory
        a, b = a.resolve_neg(), b.resolve_neg()
        bias = None if bias is None else bias.contiguous().resolve_neg()
        call = _cpu.Product(
            *out.shape,
            a.shape[1],
            a.data_ptr(),
            a.stride(),
            b.data_ptr(),
            b.stride(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            out.dtype == torch.float32,
            add,
        )
        dtype, threads = DTYPES[a.dtype], torch.get_num_threads()
        scratch = memory.product_scratch(_cpu.product_scratch(call, dtype, threads))
        _cpu.product(call, -(-scratch.data_ptr() // 64) * 64, dtype, threads)
        return out


def _is_avx2():
    return _cpu.isa() == "avx2"


products = Packed()
