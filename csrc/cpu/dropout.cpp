#include "dropout.h"

#include <algorithm>

namespace kernelzoo {

void dropout_fwd(int dtype, const void* x, const void* residual, void* y, int64_t n, uint64_t seed,
                 uint32_t threshold, double scale, int threads) {
  const DropoutKernels& k = dropout(dtype);
  constexpr int64_t SPAN = 16384;  // elements a task takes: whole groups of 64
  const int64_t spans = ceil_div(n, SPAN);
#pragma omp parallel for num_threads(threads) if (n > SERIAL)
  for (int64_t s = 0; s < spans; ++s) {
    const int64_t i = s * SPAN;
    k.fwd(at(x, dtype, i), at(residual, dtype, i), at(y, dtype, i), i, std::min(SPAN, n - i), seed, threshold, scale);
  }
}

}  // namespace kernelzoo
