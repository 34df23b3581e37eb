#include "resample.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace kernelzoo {
namespace {

// The last dimension's tables for vectors of 16 outputs.
struct Spread {
  std::vector<float> weights;
  std::vector<int32_t> first, count;

  explicit Spread(const Resample& a) {
    const int64_t outputs = a.out[2], n = ceil_div(outputs, 16) * 16, taps = a.most[2];
    if (taps > RESAMPLE_TAPS || taps * n > RESAMPLE_SPREAD) return;
    const int32_t* table = a.table + 3 * (a.out[0] + a.out[1]);
    first.resize(n);
    count.resize(n);
    for (int64_t j = 0; j < n; ++j) {
      first[j] = table[3 * std::min(j, outputs - 1)];
      count[j] = j < outputs ? table[3 * j + 1] : 0;
      if (first[j] - first[j / 16 * 16] > 31 || first[j] - first[j / 8 * 8] > 15) return;  // two vectors of either set
    }
    weights.resize(taps * n);
    for (int64_t j = 0; j < outputs; ++j)
      for (int64_t c = 0; c < count[j]; ++c)
        weights[c * n + j] = static_cast<const float*>(a.weights)[table[3 * j + 2] + c];
  }
};

}  // namespace

void resample(int dtype, Resample a, int threads) {
  const ResampleKernels& k = resample(dtype);
  const int64_t scratch = resample_scratch(a);
  const int64_t rows = a.batch * a.out[0] * a.out[1];
  const int64_t width = std::max(a.out[2], a.in[2]) * a.lanes;
  const int64_t step = width < SERIAL / 4 ? SERIAL / 4 / width : 1, tasks = ceil_div(rows, step);
  std::unique_ptr<Spread> spread;
  if (a.lanes == 1 && dtype != F64) spread.reset(new Spread(a));
  if (spread && !spread->weights.empty()) {
    a.spread = spread->weights.data();
    a.first = spread->first.data();
    a.count = spread->count.data();
  }
#pragma omp parallel num_threads(threads) if (rows * width > SERIAL)
  {
    const std::unique_ptr<int64_t[]> own(new int64_t[scratch / 8]);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t)
      k.rows(a, t * step, std::min(rows, (t + 1) * step), own.get());
  }
}

}  // namespace kernelzoo
