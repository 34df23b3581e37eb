// layer_norm, rms_norm and group_norm: the table of serial kernels that isa/norm.cpp gives, and the drivers.
//
// S is the type in memory, T that of the arithmetic, of w and b as the kernels see them and of mean and rstd: double
// for double, float for the rest.
#pragma once

#include "isa.h"

namespace kernelzoo {

// Terms of a sum added up in T before they join it in double: the error of a long row stays that of a short one.
constexpr int64_t NORM_BLOCK = 1024;
// Rows whose weight gradients are added up in T before they join a block's in double.
constexpr int64_t NORM_ROWS = 32;

// Bytes of a call's rows, read and written, that no last-level cache of a few cores holds: a result that would be gone
// before anyone reads it is streamed past the caches.
constexpr int64_t NORM_STREAMED = 32 << 20;

// (M, n), contiguous; null where absent. mean is null for rms_norm.
struct NormRows {
  int64_t n;
  double eps;
  const void* x;      // S
  const void* other;  // what is added to x, of dtype other_dtype: S, or 16 bits where S is float
  int other_dtype;
  const void* w;  // T
  const void* b;  // T
  void* y;        // S
  void* s;        // S: x + other
  void* mean;     // T
  void* rstd;     // T
  const void* dy;
  const void* ds;
  void* dx;
  bool streamed;  // y and s, or dx, past the caches
};

// (N, C, L), contiguous, normalised over runs of C / groups channels.
struct NormGroups {
  int64_t channels, length, groups;
  double eps;
  const void* x;
  const void* w;  // T, (C)
  const void* b;  // T, (C)
  void* y;
  void* mean;  // T, (N groups)
  void* rstd;
  const void* dy;
  void* dx;
  double* dw;  // (N, C): each sample's share
  double* db;
};

struct NormKernels {
  // Rows first ... last - 1. scratch: norm_scratch(n) elements of T.
  void (*fwd)(const NormRows& a, int64_t first, int64_t last, void* scratch);
  // The same; dw, db: sums over these rows (n), written, unless null. scratch: as above.
  void (*bwd)(const NormRows& a, int64_t first, int64_t last, double* dw, double* db, void* scratch);
  // Group `unit` of N * groups. scratch: norm_scratch(C / groups * L) elements of T where S is 16 bits.
  void (*group_fwd)(const NormGroups& a, int64_t unit, void* scratch);
  void (*group_bwd)(const NormGroups& a, int64_t unit, void* scratch);
};

KERNELZOO_TABLES(NormKernels, norm)

// Two rows of x and of dy, and the two sums of weight gradients.
inline int64_t norm_scratch(int64_t n) { return 6 * ceil_div(n, 16) * 16; }

// M rows; w, b of dtype w_dtype.
void norm_fwd(int dtype, int w_dtype, NormRows a, int64_t M, int threads);
// partial: 2 * blocks * n doubles of scratch where dw or db is asked for; the rows are cut into `blocks`.
void norm_bwd(int dtype, int w_dtype, NormRows a, void* dw, void* db, double* partial, int64_t blocks, int64_t M,
              int threads);

// N samples; a.dw and a.db are scratch, dw and db (C) the results.
void group_norm_fwd(int dtype, int w_dtype, NormGroups a, int64_t N, int threads);
void group_norm_bwd(int dtype, int w_dtype, NormGroups a, void* dw, void* db, int64_t N, int threads);

}  // namespace kernelzoo
