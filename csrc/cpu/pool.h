// Max-pooling: each output takes the largest value of its window and which tap that was; each input collects the
// gradients of the outputs that took it. kernels/pool.py makes the tables.
#pragma once

#include "isa.h"

namespace kernelzoo {

enum PoolIndex { POOL_NONE, POOL_TAP, POOL_FLAT };  // none, uint8: the tap's number, int64: its place in the plane

// x (B, D, H, W, L), y and index (B, OD, OH, OW, L), contiguous.
struct Pool {
  int64_t batch, lanes, in[3], out[3], kernel[3], dilation[3], stride, padding;  // the last dimension's
  int64_t most[3];        // outputs that cover an input, at most, a dimension
  const int32_t* reach;   // (OD + OH + OW, 3): start, first tap, one past the last
  const int32_t* covers;  // (D + H + W, 2): first output, one past the last
  int index_kind;
  const void* x;
  void* y;
  const void* dy;
  void* dx;
  void* index;
};

struct PoolKernels {
  // Rows first ... last - 1 of the B OD OH rows of y (fwd) or B D H of dx (bwd).
  // lanes_: vectors along L; scratch: pool_lanes_scratch. rows_: L = 1 and equal windows, vectors along W; scratch:
  // pool_rows_scratch.
  void (*lanes_fwd)(const Pool& a, int64_t first, int64_t last, void* scratch);
  void (*lanes_bwd)(const Pool& a, int64_t first, int64_t last, void* scratch);
  void (*rows_fwd)(const Pool& a, int64_t first, int64_t last, void* scratch);
  void (*rows_bwd)(const Pool& a, int64_t first, int64_t last, void* scratch);
};

KERNELZOO_TABLES(PoolKernels, pool)

// How rows are cut into one array for each remainder of a position by the stride: output o's tap c is element
// o + shift(c) of array phase(c).
struct PoolPhases {
  int64_t lowest, length;  // of o + shift(c); elements of an array, whole vectors of outputs

  explicit PoolPhases(const Pool& a) {
    lowest = floor_div(-a.padding, a.stride);
    length = ceil_div(a.out[2], 16) * 16 + shift(a, a.kernel[2] - 1) - lowest;
  }
  static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
  static int64_t shift(const Pool& a, int64_t c) { return floor_div(c * a.dilation[2] - a.padding, a.stride); }
  static int64_t phase(const Pool& a, int64_t c) {
    return c * a.dilation[2] - a.padding - shift(a, c) * a.stride;
  }
};

// Bytes: the rows of a window or of what covers a row, and for each position what covers it: 16 bytes a place.
inline int64_t pool_lanes_scratch(const Pool& a) {
  const int64_t rows = a.kernel[0] * a.kernel[1] + a.most[0] * a.most[1];
  return 16 * (rows + a.in[2] * a.most[2]) + 8 * a.in[2];
}
// Bytes: phases; values, choices and the converted row (twice: in, out), of 8 bytes an element.
inline int64_t pool_rows_scratch(const Pool& a) {
  const int64_t outputs = ceil_div(a.out[2], 16) * 16;
  return 8 * (a.stride * PoolPhases(a).length + 3 * outputs + a.in[2] + 16);
}

void max_pool_fwd(int dtype, const Pool& a, int threads);
void max_pool_bwd(int dtype, const Pool& a, int threads);

}  // namespace kernelzoo
