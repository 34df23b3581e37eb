#include "product.h"

#include <algorithm>

namespace kernelzoo {
namespace {

// Of K: a panel of B, 16 columns, is then 24 KB. Of B: what L3 has to hold.
constexpr int64_t PART = 384, STRIP_BYTES = 2 << 20;

// n cut into pieces of one size, whole units, about `most`.
int64_t even(int64_t n, int64_t most, int64_t unit) { return ceil_div(ceil_div(n, ceil_div(n, most)), unit) * unit; }

struct Plan {
  int64_t part, strip, rows, blocks;
  int64_t shares;  // of a block's columns, where there are fewer blocks than threads
  float *left, *right, *sums;  // left: a thread's `each`; sums: of a strip, unless c is theirs
  int64_t each, bytes = 0;

  Plan(int dtype, const Product& p, void* scratch, int threads) {
    const ProductKernels& k = product(dtype);
    part = even(p.K, PART, 8);
    strip = even(p.N, std::max<int64_t>(STRIP_BYTES / (part * sizeof(float)), k.columns), k.columns);
    const int64_t wanted = ceil_div(ceil_div(p.M, MOST_ROWS), threads) * threads;
    rows = even(p.M, std::max<int64_t>(ceil_div(p.M, wanted), k.rows), k.rows);
    blocks = ceil_div(p.M, rows);
    shares = std::max<int64_t>(1, threads / blocks);
    each = ceil_div(rows * part, 16) * 16;
    char* memory = static_cast<char*>(scratch);
    const auto take = [&](int64_t n) {
      float* taken = reinterpret_cast<float*>(memory + bytes);
      bytes += ceil_div(n, 16) * 64;
      return taken;
    };
    left = take(each * threads);
    right = take(strip * part);
    sums = dtype == F32 || p.wide || part >= p.K ? nullptr : take(p.M * strip);
  }

  ProductSums sums_of(const Product& p, int64_t j, int64_t k, int64_t count) const {
    const bool first = k == 0 && !p.add, last = k + count == p.K;
    if (sums) return {sums, strip, first, last};
    return {static_cast<float*>(p.c) + j, p.N, first, last};  // of a 16-bit c, whose only part is the last, not used
  }
};

}  // namespace

int64_t product_scratch(int dtype, const Product& p, int threads) { return Plan(dtype, p, nullptr, threads).bytes; }

void product_run(int dtype, const Product& p, void* scratch, int threads) {
  const ProductKernels& k = product(dtype);
  const Plan s(dtype, p, scratch, threads);
  const int64_t items = s.blocks * s.shares;
#pragma omp parallel num_threads(threads)
  for (int64_t j = 0; j < p.N; j += s.strip) {
    const int64_t n = std::min(s.strip, p.N - j), panels = ceil_div(n, k.columns);
    for (int64_t from = 0; from < p.K; from += s.part) {
      const int64_t count = std::min(s.part, p.K - from);
      const ProductSums sums = s.sums_of(p, j, from, count);
#pragma omp for schedule(static)
      for (int64_t c = 0; c < n; c += k.columns)
        k.right(p, j + c, std::min(k.columns, n - c), from, count, s.right + c * count);
#pragma omp for schedule(static)
      for (int64_t thread = 0; thread < threads; ++thread) {
        float* const left = s.left + thread * s.each;
        for (int64_t item = thread * items / threads; item < (thread + 1) * items / threads; ++item) {
          const int64_t i = item / s.shares * s.rows, m = std::min(s.rows, p.M - i), share = item % s.shares;
          const int64_t begin = share * panels / s.shares * k.columns, end = (share + 1) * panels / s.shares * k.columns;
          k.left(p, i, m, from, count, left);
          k.block(p, i, m, j, begin, std::min(end, n), count, left, s.right, sums);
        }
      }
    }
  }
}

}  // namespace kernelzoo
