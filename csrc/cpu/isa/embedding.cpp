// Embedding.
#include "../embedding.h"
#include "begin.h"

template <class S, class T>
void sum_rows(const void* dy_, int64_t stride, const int64_t* order, int64_t count, double divisor, void* dw_,
              int64_t n) {
  constexpr int64_t PIECE = 512;
  const S* dy = static_cast<const S*>(dy_);
  S* dw = static_cast<S*>(dw_);
  if (count == 1) {
    std::memcpy(dw, dy + order[0] * stride, n * sizeof(S));
    return;
  }
  T sum[PIECE], block[PIECE];
  for (int64_t j = 0; j < n; j += PIECE) {
    const int64_t m = n - j < PIECE ? n - j : PIECE;
    load(dy + order[0] * stride + j, sum, m);
    for (int64_t i = 1; i < count; ++i) {
      const T* row = loaded(dy + order[i] * stride + j, block, m);
#pragma omp simd
      for (int64_t c = 0; c < m; ++c) sum[c] += row[c];
    }
    if (divisor != 1) {
      const T by = T(divisor);
#pragma omp simd
      for (int64_t c = 0; c < m; ++c) sum[c] /= by;
    }
    store(sum, dw + j, m);
  }
}

const EmbeddingKernels TABLES[DTYPES] = {{sum_rows<double, double>}, {sum_rows<float, float>}, {sum_rows<Bf16, float>},
                                         {sum_rows<Fp16, float>}};

KERNELZOO_EXPORT(EmbeddingKernels, embedding, TABLES)
