#include "embedding.h"

#include <cstring>
#include <vector>

namespace kernelzoo {

void embedding_fwd(int dtype, const void* weight, int64_t stride, const int64_t* indices, void* y, int64_t rows,
                   int64_t D, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > SERIAL)
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(at(y, dtype, i * D), at(weight, dtype, indices[i] * stride), D * ITEM[dtype]);
}

void embedding_bwd(int dtype, const void* dy, int64_t stride, const int64_t* indices, void* dw, int64_t rows, int64_t V,
                   int64_t D, int64_t padding, bool scale, int threads) {
  const EmbeddingKernels& k = embedding(dtype);
  // Stable counting sort: order[ends[v - 1]] ... order[ends[v] - 1] are the places of v.
  std::vector<int64_t> ends(V + 1, 0), order(rows);
  for (int64_t i = 0; i < rows; ++i) ++ends[indices[i] + 1];
  for (int64_t v = 0; v < V; ++v) ends[v + 1] += ends[v];
  for (int64_t i = 0; i < rows; ++i) order[ends[indices[i]]++] = i;
  // now ends[v] is where v's places end, and v + 1's begin
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads) if (V * D > SERIAL)
  for (int64_t v = 0; v < V; ++v) {
    const int64_t first = v ? ends[v - 1] : 0, count = ends[v] - first;
    void* row = at(dw, dtype, v * D);
    if (count == 0 || v == padding)
      std::memset(row, 0, D * ITEM[dtype]);
    else
      k.sum_rows(dy, stride, order.data() + first, count, scale ? static_cast<double>(count) : 1.0, row, D);
  }
}

}  // namespace kernelzoo
