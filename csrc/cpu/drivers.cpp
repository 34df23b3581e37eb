#include "drivers.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace kernelzoo {
namespace {

// Elements an elementwise task takes: whole blocks.
constexpr int64_t SPAN = 16 * BLOCK;

// How a contiguous (M, N) is cut into pieces of at most BLOCK elements: several whole rows, or part of one.
struct Cut {
  int64_t rows, width, columns;  // rows a unit, columns a piece, pieces a row

  Cut(int64_t N, bool contiguous) {
    rows = contiguous ? std::max<int64_t>(1, BLOCK / N) : 1;
    columns = ceil_div(N, BLOCK);
    width = std::min(N, ceil_div(ceil_div(N, columns), 64) * 64);
  }
};

template <class T>
void bias_act_rows(const Kernels& k, int dtype, int act, void* z, const void* bias, void* y, int64_t M, int64_t N,
                   bool save_z, double p0, double p1, int threads) {
  const Cut cut(N, true);
  const std::unique_ptr<T[]> repeated(new T[cut.rows * N]);
  k.load(bias, repeated.get(), N);
  for (int64_t r = 1; r < cut.rows; ++r) std::copy_n(repeated.get(), N, repeated.get() + r * N);
  const int64_t units = ceil_div(M, cut.rows);
#pragma omp parallel for num_threads(threads) if (M * N > SERIAL)
  for (int64_t u = 0; u < units; ++u) {
    const int64_t row = u * cut.rows, length = std::min(cut.rows, M - row) * N;
    const int64_t width = cut.rows > 1 ? length : cut.width;
    for (int64_t j = 0; j < length; j += width) {
      const int64_t i = row * N + j;
      k.bias_act(act, at(z, dtype, i), repeated.get() + j, at(y, dtype, i), std::min(width, length - j), save_z, p0,
                 p1);
    }
  }
}

// Column sums in double: a block of rows has its own, at most 64 blocks whatever M, and these are added in order.
void linear_bwd_rows(const Kernels& k, int dtype, int act, const void* dy, int64_t stride_dym, const void* saved,
                     void* dz, void* db, int64_t M, int64_t N, double p0, double p1, int threads) {
  const Cut cut(N, stride_dym == N);
  const int64_t units = ceil_div(M, cut.rows);
  const int64_t block_units = 64 * ceil_div(units, 64 * 64), blocks = ceil_div(units, block_units);
  const std::unique_ptr<double[]> partial(db ? new double[blocks * N] : nullptr);
  // Where there are blocks enough a task has whole rows, which memory gives in order (relu, 2048x1536, two cores: 1.8 ms
  // instead of 2.9), else pieces of them.
  const int64_t parts = blocks >= 4 * threads ? 1 : cut.columns, pieces = ceil_div(cut.columns, parts);
#pragma omp parallel for collapse(2) num_threads(threads) if (M * N > SERIAL)
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * pieces * cut.width, end = std::min(first + pieces * cut.width, N);
      double rows[BLOCK];  // of a unit of several
      double* const sum = !db ? nullptr : cut.rows > 1 ? rows : partial.get() + b * N;
      if (db) std::fill(sum + first, sum + (cut.rows > 1 ? cut.rows * N : end), 0.0);
      for (int64_t u = b * block_units; u < std::min(units, (b + 1) * block_units); ++u) {
        const int64_t row = u * cut.rows, count = std::min(cut.rows, M - row);
        for (int64_t j = first; j < end; j += cut.width) {
          const int64_t length = count * std::min(cut.width, N - j);
          k.act_bwd_sum(act, at(dy, dtype, row * stride_dym + j), at(saved, dtype, row * N + j),
                        at(dz, dtype, row * N + j), db ? sum + j : nullptr, length, p0, p1);
        }
      }
      if (!db || cut.rows == 1) continue;
      for (int64_t r = 1; r < cut.rows; ++r)
        for (int64_t i = 0; i < N; ++i) rows[i] += rows[r * N + i];
      std::copy_n(rows, N, partial.get() + b * N);
    }
  }
  if (!db) return;
#pragma omp parallel for num_threads(threads) if (blocks * N > SERIAL)
  for (int64_t c = 0; c < cut.columns; ++c) {
    const int64_t j = c * cut.width, w = std::min(cut.width, N - j);
    double total[BLOCK] = {};
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = 0; i < w; ++i) total[i] += partial[b * N + j + i];
    if (dtype == F64) {
      std::copy_n(total, w, static_cast<double*>(db) + j);
    } else {
      float rounded[BLOCK];
      std::copy_n(total, w, rounded);
      k.store(rounded, at(db, dtype, j), w);
    }
  }
}

// f(first, count) over the pieces of a row: on `threads` threads, or on one where the caller has divided the rows.
template <class F>
void for_pieces(int64_t n, int threads, F f) {
  const int64_t pieces = ceil_div(n, PIECE);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t p = 0; p < pieces; ++p) f(p * PIECE, std::min(PIECE, n - p * PIECE));
}

// The pieces' results f(first, count), in order.
template <class F>
std::vector<double> of_pieces(int64_t n, int threads, F f) {
  std::vector<double> results(ceil_div(n, PIECE));
  for_pieces(n, threads, [&](int64_t first, int64_t count) { results[first / PIECE] = f(first, count); });
  return results;
}

double sum(const std::vector<double>& values) {
  double total = 0;
  for (double value : values) total += value;
  return total;
}

// f(row, threads for its pieces): rows in parallel, or where there are too few, the pieces of each.
template <class F>
void for_rows(int64_t outer, int64_t n, int threads, F f) {
  if (outer < threads && n > 2 * PIECE) {
    for (int64_t row = 0; row < outer; ++row) f(row, threads);
    return;
  }
#pragma omp parallel for num_threads(threads) if (outer * n > SERIAL)
  for (int64_t row = 0; row < outer; ++row) f(row, 1);
}

// f(offset, columns) over tiles of (outer, n, inner): narrower than TILE where the threads would lack work.
template <class F>
void for_tiles(int64_t outer, int64_t n, int64_t inner, int threads, F f) {
  const int64_t share = ceil_div(outer * inner, 4 * threads * 64) * 64;
  const int64_t width = std::clamp<int64_t>(share, 64, TILE), tiles = ceil_div(inner, width);
#pragma omp parallel for collapse(2) num_threads(threads) if (outer * n * inner > SERIAL)
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t t = 0; t < tiles; ++t) f(o * n * inner + t * width, std::min(width, inner - t * width));
}

// f(offset, rows) over blocks of short rows
template <class F>
void for_short_rows(int64_t outer, int64_t n, int threads, F f) {
  const int64_t blocks = ceil_div(outer, SHORT_ROWS);
#pragma omp parallel for num_threads(threads) if (outer * n > SERIAL)
  for (int64_t b = 0; b < blocks; ++b) f(b * SHORT_ROWS * n, std::min(SHORT_ROWS, outer - b * SHORT_ROWS));
}

// torch compares hardshrink's input, and in the backward softshrink's, with lambd in the tensor's dtype.
double bound(int dtype, int act, bool backward, double p0) {
  if (dtype == F64 || !(act == ACT_hardshrink || (backward && act == ACT_softshrink))) return p0;
  const Kernels& k = base(dtype);
  float value = static_cast<float>(p0), stored;
  k.store(&value, &stored, 1);
  k.load(&stored, &value, 1);
  return value;
}

}  // namespace

void act_fwd(int dtype, int act, const void* x, void* y, int64_t n, double p0, double p1, int threads) {
  const Kernels& k = base(dtype);
  p0 = bound(dtype, act, false, p0);
  const int64_t spans = ceil_div(n, SPAN);
#pragma omp parallel for num_threads(threads) if (n > SERIAL)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t i = s * SPAN;
    k.act_fwd(act, at(x, dtype, i), at(y, dtype, i), std::min(SPAN, n - i), p0, p1);
  }
}

void act_bwd(int dtype, int act, const void* dy, const void* saved, void* dx, int64_t n, double p0, double p1,
             int threads) {
  const Kernels& k = base(dtype);
  p0 = bound(dtype, act, true, p0);
  const int64_t spans = ceil_div(n, SPAN);
#pragma omp parallel for num_threads(threads) if (n > SERIAL)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t i = s * SPAN;
    k.act_bwd(act, at(dy, dtype, i), at(saved, dtype, i), at(dx, dtype, i), std::min(SPAN, n - i), p0, p1);
  }
}

void bias_act(int dtype, int act, void* z, const void* bias, void* y, int64_t M, int64_t N, bool save_z, double p0,
              double p1, int threads) {
  if (M == 0 || N == 0) return;
  const auto rows = dtype == F64 ? bias_act_rows<double> : bias_act_rows<float>;
  p0 = bound(dtype, act, false, p0);
  rows(base(dtype), dtype, act, z, bias, y, M, N, save_z, p0, p1, threads);
}

void linear_bwd(int dtype, int act, const void* dy, int64_t stride_dym, const void* saved, void* dz, void* db,
                int64_t M, int64_t N, double p0, double p1, int threads) {
  if (M == 0 || N == 0) {  // a compiled graph may be run on an empty batch
    if (db) std::memset(db, 0, N * ITEM[dtype]);
    return;
  }
  p0 = bound(dtype, act, true, p0);
  linear_bwd_rows(base(dtype), dtype, act, dy, stride_dym, saved, dz, db, M, N, p0, p1, threads);
}

void softmax_fwd(int dtype, const void* x, void* y, int64_t outer, int64_t n, int64_t inner, bool log, int threads) {
  const Kernels& k = base(dtype);
  if (inner > 1) {
    for_tiles(outer, n, inner, threads, [&](int64_t i, int64_t columns) {
      k.tile_fwd(at(x, dtype, i), at(y, dtype, i), n, inner, columns, log);
    });
    return;
  }
  if (n <= SHORT) {
    for_short_rows(outer, n, threads, [&](int64_t i, int64_t rows) {
      k.short_fwd(at(x, dtype, i), at(y, dtype, i), rows, n, log);
    });
    return;
  }
  for_rows(outer, n, threads, [&](int64_t row, int row_threads) {
    const void* xs = at(x, dtype, row * n);
    void* ys = at(y, dtype, row * n);
    if (n <= PIECE) {
      const double max = k.row_max(xs, n);
      k.row_fwd(xs, ys, n, max, k.row_sum(xs, n, max), log);
      return;
    }
    const std::vector<double> maxima = of_pieces(
        n, row_threads, [&](int64_t first, int64_t count) { return k.row_max(at(xs, dtype, first), count); });
    const double max = *std::max_element(maxima.begin(), maxima.end());
    const double total = sum(of_pieces(n, row_threads, [&](int64_t first, int64_t count) {
      return k.row_sum(at(xs, dtype, first), count, max);
    }));
    for_pieces(n, row_threads, [&](int64_t first, int64_t count) {
      k.row_fwd(at(xs, dtype, first), at(ys, dtype, first), count, max, total, log);
    });
  });
}

void softmax_bwd(int dtype, const void* dy, const void* y, void* dx, int64_t outer, int64_t n, int64_t inner,
                 bool log, int threads) {
  const Kernels& k = base(dtype);
  if (inner > 1) {
    for_tiles(outer, n, inner, threads, [&](int64_t i, int64_t columns) {
      k.tile_bwd(at(dy, dtype, i), at(y, dtype, i), at(dx, dtype, i), n, inner, columns, log);
    });
    return;
  }
  if (n <= SHORT) {
    for_short_rows(outer, n, threads, [&](int64_t i, int64_t rows) {
      k.short_bwd(at(dy, dtype, i), at(y, dtype, i), at(dx, dtype, i), rows, n, log);
    });
    return;
  }
  for_rows(outer, n, threads, [&](int64_t row, int row_threads) {
    const void* dys = at(dy, dtype, row * n);
    const void* ys = at(y, dtype, row * n);
    void* dxs = at(dx, dtype, row * n);
    if (n <= PIECE) {
      k.row_bwd(dys, ys, dxs, n, k.row_dot(dys, ys, n, log), log);
      return;
    }
    const double total = sum(of_pieces(n, row_threads, [&](int64_t first, int64_t count) {
      return k.row_dot(at(dys, dtype, first), at(ys, dtype, first), count, log);
    }));
    for_pieces(n, row_threads, [&](int64_t first, int64_t count) {
      k.row_bwd(at(dys, dtype, first), at(ys, dtype, first), at(dxs, dtype, first), count, total, log);
    });
  });
}

}  // namespace kernelzoo
