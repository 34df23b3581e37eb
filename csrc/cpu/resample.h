// Separable linear maps along depth, height and width: averages, interpolation, and their transposes.
// kernels/pool.py makes the tables.
#pragma once

#include "isa.h"

namespace kernelzoo {

// Most taps of an output of the last dimension that go through Rows::spread, and floats that this may take.
constexpr int64_t RESAMPLE_TAPS = 16, RESAMPLE_SPREAD = 1 << 18;

// x (B, D, H, W, L), y (B, OD, OH, OW, L), contiguous; y = sum of weight * x over the taps, over the divisors.
struct Resample {
  int64_t batch, lanes, in[3], out[3], most[3];
  const int32_t* table;   // (OD + OH + OW, 3): first, count, where the weights begin
  const void* weights;    // T
  const void* divisors;   // T, (OD + OH + OW), or null
  const void* x;
  void* y;
  // The last dimension for vectors of 16 outputs, where these read no more than 32 neighbours; else null.
  const float* spread;   // (most[2], n): weights of the outputs' taps
  const int32_t* first;  // (n), n = outputs in whole vectors
  const int32_t* count;
};

struct ResampleKernels {
  // Rows begin ... end - 1 of the B OD OH rows of y: the rows of x that it takes are summed, then its taps along them.
  // scratch: resample_scratch.
  void (*rows)(const Resample& a, int64_t begin, int64_t end, void* scratch);
};

KERNELZOO_TABLES(ResampleKernels, resample)

// Bytes: a converted row, the rows' sum, the same in double, and a row of results.
inline int64_t resample_scratch(const Resample& a) {
  return 8 * (3 * a.in[2] * a.lanes + 64 + ceil_div(a.out[2], 16) * 16);
}

void resample(int dtype, Resample a, int threads);

}  // namespace kernelzoo
