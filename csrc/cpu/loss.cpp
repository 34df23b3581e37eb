#include "loss.h"

#include <algorithm>
#include <vector>

namespace kernelzoo {

// Elements a task takes.
constexpr int64_t SPAN = 1 << 14;

double loss_fwd(int dtype, int kind, const void* x, const void* t, void* out, int64_t n, double p, int64_t* outside,
                int threads) {
  const LossKernels& k = loss(dtype);
  const int64_t spans = ceil_div(n, SPAN);
  std::vector<double> sums(spans);
  std::vector<int64_t> outsides(spans);
#pragma omp parallel for num_threads(threads) if (n > SERIAL)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t i = s * SPAN;
    sums[s] = k.value(kind, at(x, dtype, i), at(t, dtype, i), at(out, dtype, i), std::min(SPAN, n - i), p, &outsides[s]);
  }
  double total = 0;
  for (double sum : sums) total += sum;
  for (int64_t count : outsides) *outside += count;
  return total;
}

void loss_bwd(int dtype, int kind, const void* x, const void* t, const void* dy, double g, void* dx, void* dt, int64_t n,
              double p, int threads) {
  const LossKernels& k = loss(dtype);
  const int64_t spans = ceil_div(n, SPAN);
#pragma omp parallel for num_threads(threads) if (n > SERIAL)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t i = s * SPAN;
    k.grad(kind, at(x, dtype, i), at(t, dtype, i), at(dy, dtype, i), g, at(dx, dtype, i), at(dt, dtype, i),
           std::min(SPAN, n - i), p);
  }
}

}  // namespace kernelzoo
