// Rotary embedding: pairs of features turned by the angle of their row's position.
#pragma once

#include "isa.h"

namespace kernelzoo {

// What a row does: `half` pairs, of features i and i + half or 2i and 2i + 1, are turned, by -angle where inverse;
// the rest of the `width` features is copied. The tables have `positions` rows of `half` T each.
struct Turn {
  const void *cos, *sin;
  int64_t positions, half, width;
  bool interleaved, inverse;
};

struct RotaryKernels {
  // `rows` rows, of x stride_x apart and of y stride_y; row i has position first + i where ids is null, else
  // ids[i * stride_ids], taken to the nearest row of the tables.
  void (*rows)(const Turn& turn, const void* x, int64_t stride_x, void* y, int64_t stride_y, const int64_t* ids,
               int64_t stride_ids, int64_t first, int64_t rows);
};

KERNELZOO_TABLES(RotaryKernels, rotary)

// (B, H, L, width), the strides in this order, the last being 1.
struct Heads {
  void* data;
  int64_t b, h, l;
};

// ids: null, or (B, L) with these strides.
void rotary(int dtype, const Turn& turn, Heads x, Heads y, const int64_t* ids, int64_t stride_ids_b,
            int64_t stride_ids_l, int64_t B, int64_t H, int64_t L, int threads);

}  // namespace kernelzoo
