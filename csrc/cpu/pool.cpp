#include "pool.h"

#include <memory>

namespace kernelzoo {
namespace {

// Rows of `width` elements in tasks of at least SERIAL / 4 elements.
void each(int64_t rows, int64_t width, int64_t scratch, int threads,
          void (*run)(const Pool&, int64_t, int64_t, void*), const Pool& a) {
  const int64_t step = width < SERIAL / 4 ? SERIAL / 4 / width : 1, tasks = ceil_div(rows, step);
#pragma omp parallel num_threads(threads) if (rows * width > SERIAL)
  {
    const std::unique_ptr<int64_t[]> own(new int64_t[scratch / 8]);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t) {
      const int64_t first = t * step;
      run(a, first, first + step < rows ? first + step : rows, own.get());
    }
  }
}

bool by_rows(const Pool& a) { return a.lanes == 1 && a.stride > 0; }

}  // namespace

void max_pool_fwd(int dtype, const Pool& a, int threads) {
  const PoolKernels& k = pool(dtype);
  const bool rows = by_rows(a);
  each(a.batch * a.out[0] * a.out[1], a.out[2] * a.lanes, rows ? pool_rows_scratch(a) : pool_lanes_scratch(a), threads,
       rows ? k.rows_fwd : k.lanes_fwd, a);
}

void max_pool_bwd(int dtype, const Pool& a, int threads) {
  const PoolKernels& k = pool(dtype);
  const bool rows = by_rows(a);
  each(a.batch * a.in[0] * a.in[1], a.in[2] * a.lanes, rows ? pool_rows_scratch(a) : pool_lanes_scratch(a), threads,
       rows ? k.rows_bwd : k.lanes_bwd, a);
}

}  // namespace kernelzoo
