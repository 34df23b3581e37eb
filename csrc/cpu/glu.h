// Gated activations y = f(gate) * up. The serial kernels take n contiguous elements; the drivers take M rows of N
// adjacent elements, the rows of each tensor a stride apart. f is one of KERNELZOO_GATES.
#pragma once

#include "kernels.h"

#define KERNELZOO_GATES(X) X(sigmoid) X(silu) X(gelu) X(gelu_tanh) X(relu)

namespace kernelzoo {

struct GluKernels {
  void (*fwd)(int act, const void* gate, const void* up, void* y, int64_t n);
  // dup = dy * f(gate), dgate = dy * up * f'(gate)
  void (*bwd)(int act, const void* dy, const void* gate, const void* up, void* dgate, void* dup, int64_t n);
};

KERNELZOO_TABLES(GluKernels, glu)

struct GluRows {
  void* data;
  int64_t stride;
};

void glu_fwd(int dtype, int act, GluRows gate, GluRows up, GluRows y, int64_t M, int64_t N, int threads);
void glu_bwd(int dtype, int act, GluRows dy, GluRows gate, GluRows up, GluRows dgate, GluRows dup, int64_t M, int64_t N,
             int threads);

}  // namespace kernelzoo
