#include "norm.h"

#include <algorithm>
#include <memory>

#include "kernels.h"

namespace kernelzoo {
namespace {

using Bytes = std::unique_ptr<char[]>;

int64_t acc_bytes(int dtype) { return dtype == F64 ? 8 : 4; }

// n elements of dtype as the arithmetic's type, or that many ones where a kernel cannot do without.
Bytes widened(const void* values, int w_dtype, int dtype, int64_t n, bool ones) {
  if (!values && !ones) return nullptr;
  Bytes wide(new char[n * acc_bytes(dtype)]);
  if (values) {
    base(w_dtype).load(values, wide.get(), n);
  } else if (dtype == F64) {
    std::fill_n(reinterpret_cast<double*>(wide.get()), n, 1.0);
  } else {
    std::fill_n(reinterpret_cast<float*>(wide.get()), n, 1.0f);
  }
  return wide;
}

// dw and db (n, dtype; null where not wanted) are the sums of their partial's `blocks` rows, in order. Inside a
// parallel region, whose threads divide the columns.
void sum_rows(const double* dw_partial, const double* db_partial, int64_t blocks, int64_t n, void* dw, void* db,
              int dtype) {
  constexpr int64_t WIDTH = 256;
  const int64_t tiles = ceil_div(n, WIDTH);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < 2 * tiles; ++t) {
    void* const out = t < tiles ? dw : db;
    if (!out) continue;
    const double* const partial = t < tiles ? dw_partial : db_partial;
    const int64_t j = t % tiles * WIDTH, width = std::min(WIDTH, n - j);
    double total[WIDTH] = {};
    for (int64_t r = 0; r < blocks; ++r)
      for (int64_t i = 0; i < width; ++i) total[i] += partial[r * n + j + i];
    if (dtype == F64) {
      std::copy_n(total, width, static_cast<double*>(out) + j);
    } else {
      float rounded[WIDTH];
      std::copy_n(total, width, rounded);
      base(dtype).store(rounded, at(out, dtype, j), width);
    }
  }
}

}  // namespace

void norm_fwd(int dtype, int w_dtype, NormRows a, int64_t M, int threads) {
  const NormKernels& k = norm(dtype);
  const Bytes w = widened(a.w, w_dtype, dtype, a.n, false), b = widened(a.b, w_dtype, dtype, a.n, false);
  a.w = w.get();
  a.b = b.get();
  a.streamed = (a.other ? 4 : 2) * M * a.n * ITEM[dtype] >= NORM_STREAMED;
  // 8 rows or 16 KB a task
  const int64_t rows = std::max<int64_t>(8, 4096 / a.n), tasks = ceil_div(M, rows);
#pragma omp parallel num_threads(threads) if (M * a.n > SERIAL)
  {
    const Bytes scratch(new char[norm_scratch(a.n) * acc_bytes(dtype)]);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t) k.fwd(a, t * rows, std::min(M, (t + 1) * rows), scratch.get());
  }
}

void norm_bwd(int dtype, int w_dtype, NormRows a, void* dw, void* db, double* partial, int64_t blocks, int64_t M,
              int threads) {
  const NormKernels& k = norm(dtype);
  const Bytes w = widened(a.w, w_dtype, dtype, a.n, true);
  a.w = w.get();
  a.streamed = (a.ds ? 4 : 3) * M * a.n * ITEM[dtype] >= NORM_STREAMED;
  const int64_t rows = std::max<int64_t>(NORM_ROWS, ceil_div(M, blocks));
  double* const dw_partial = dw ? partial : nullptr;
  double* const db_partial = db ? partial + blocks * a.n : nullptr;
#pragma omp parallel num_threads(threads) if (M * a.n > SERIAL)
  {
    const Bytes scratch(new char[norm_scratch(a.n) * acc_bytes(dtype)]);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < blocks; ++t)
      k.bwd(a, t * rows, std::min(M, (t + 1) * rows), dw ? dw_partial + t * a.n : nullptr,
            db ? db_partial + t * a.n : nullptr, scratch.get());
    if (dw || db) sum_rows(dw_partial, db_partial, blocks, a.n, dw, db, w_dtype);
  }
}

void group_norm_fwd(int dtype, int w_dtype, NormGroups a, int64_t N, int threads) {
  const NormKernels& k = norm(dtype);
  const Bytes w = widened(a.w, w_dtype, dtype, a.channels, false);
  const Bytes b = widened(a.b, w_dtype, dtype, a.channels, false);
  a.w = w.get();
  a.b = b.get();
  const int64_t units = N * a.groups, n = a.channels / a.groups * a.length;
#pragma omp parallel num_threads(threads) if (units * n > SERIAL)
  {
    const Bytes scratch(new char[dtype < BF16 ? 1 : norm_scratch(n) * acc_bytes(dtype)]);
#pragma omp for schedule(static)
    for (int64_t u = 0; u < units; ++u) k.group_fwd(a, u, scratch.get());
  }
}

void group_norm_bwd(int dtype, int w_dtype, NormGroups a, void* dw, void* db, int64_t N, int threads) {
  const NormKernels& k = norm(dtype);
  const Bytes w = widened(a.w, w_dtype, dtype, a.channels, false);
  a.w = w.get();
  const int64_t units = N * a.groups, n = a.channels / a.groups * a.length;
#pragma omp parallel num_threads(threads) if (units * n > SERIAL)
  {
    const Bytes scratch(new char[dtype < BF16 ? 1 : norm_scratch(n) * acc_bytes(dtype)]);
#pragma omp for schedule(static)
    for (int64_t u = 0; u < units; ++u) k.group_bwd(a, u, scratch.get());
    if (dw || db) sum_rows(a.dw, a.db, N, a.channels, dw, db, w_dtype);
  }
}

}  // namespace kernelzoo
