#include "product.h"

#include <algorithm>

namespace kernelzoo {
namespace {

// Of K: a panel of B, 16 columns, is then 24 KB. Of B: what L3 has to hold.
constexpr int64_t PART = 384, STRIP_BYTES = 2 << 20;

struct Plan {
  int64_t part, rows, blocks, strip;
  float *left, *right, *sums;  // left: a thread's `each`
  int64_t each, bytes = 0;

  Plan(int dtype, const Product& p, void* scratch, int threads) {
    const ProductKernels& k = product(dtype);
    const auto even = [](int64_t n, int64_t most, int64_t unit) {  // parts of one size, whole units, about `most`
      return ceil_div(ceil_div(n, ceil_div(n, most)), unit) * unit;
    };
    part = even(p.K, PART, 8);
    const int64_t wanted = ceil_div(ceil_div(p.M, MOST_ROWS), threads) * threads;
    rows = even(p.M, std::max<int64_t>(ceil_div(p.M, wanted), k.rows), k.rows);
    blocks = ceil_div(p.M, rows);
    strip = even(p.N, std::max<int64_t>(STRIP_BYTES / (part * sizeof(float)), k.columns), k.columns);
    each = ceil_div(rows * part, 16) * 16;
    char* memory = static_cast<char*>(scratch);
    const auto take = [&](int64_t n) {
      float* taken = reinterpret_cast<float*>(memory + bytes);
      bytes += ceil_div(n, 16) * 64;
      return taken;
    };
    left = take(each * threads);
    right = take(strip * part);
    sums = dtype == F32 || p.wide ? static_cast<float*>(p.c) : part < p.K ? take(p.M * p.N) : nullptr;
  }
};

}  // namespace

int64_t product_scratch(int dtype, const Product& p, int threads) { return Plan(dtype, p, nullptr, threads).bytes; }

void product_run(int dtype, const Product& p, void* scratch, int threads) {
  const ProductKernels& k = product(dtype);
  const Plan s(dtype, p, scratch, threads);
#pragma omp parallel num_threads(threads)
  for (int64_t j = 0; j < p.N; j += s.strip) {
    const int64_t n = std::min(s.strip, p.N - j);
    for (int64_t from = 0; from < p.K; from += s.part) {
      const int64_t count = std::min(s.part, p.K - from);
      const ProductStep step = {from == 0 && !p.add, from + count == p.K};
#pragma omp for schedule(static)
      for (int64_t c = 0; c < n; c += k.columns)
        k.right(p, j + c, std::min(k.columns, n - c), from, count, s.right + c * count);
#pragma omp for schedule(static)
      for (int64_t thread = 0; thread < threads; ++thread) {
        float* const left = s.left + thread * s.each;
        for (int64_t b = thread * s.blocks / threads; b < (thread + 1) * s.blocks / threads; ++b) {
          const int64_t i = b * s.rows, m = std::min(s.rows, p.M - i);
          k.left(p, i, m, from, count, left);
          k.block(p, i, m, j, n, count, left, s.right, s.sums, step);
        }
      }
    }
  }
}

}  // namespace kernelzoo
