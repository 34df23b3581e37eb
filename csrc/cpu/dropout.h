// Dropout, its mask drawn from a seed: element i is number i.
#pragma once

#include "isa.h"

namespace kernelzoo {

struct DropoutKernels {
  // y = x * (word < threshold ? 0 : scale), plus residual unless null, for the n elements that begin with number
  // `first`, a multiple of 64; the pointers are to that element.
  void (*fwd)(const void* x, const void* residual, void* y, int64_t first, int64_t n, uint64_t seed,
              uint32_t threshold, double scale);
};

KERNELZOO_TABLES(DropoutKernels, dropout)

void dropout_fwd(int dtype, const void* x, const void* residual, void* y, int64_t n, uint64_t seed,
                 uint32_t threshold, double scale, int threads);

}  // namespace kernelzoo
