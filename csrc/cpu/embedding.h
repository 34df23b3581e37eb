// Embedding: rows copied by index, and the gradient's rows summed by their one owner.
#pragma once

#include "isa.h"

namespace kernelzoo {

struct EmbeddingKernels {
  // dw (n) = the sum of the `count` rows order[0], order[1], ... of dy, in this order, over divisor
  void (*sum_rows)(const void* dy, int64_t stride, const int64_t* order, int64_t count, double divisor, void* dw,
                   int64_t n);
};

KERNELZOO_TABLES(EmbeddingKernels, embedding)

// y (rows, D) = weight[indices]
void embedding_fwd(int dtype, const void* weight, int64_t stride, const int64_t* indices, void* y, int64_t rows,
                   int64_t D, int threads);
// dw (V, D) from dy (rows, D), its rows a stride apart; row `padding` of dw is 0 (-1: none); scale divides a row by
// how often it was looked up.
void embedding_bwd(int dtype, const void* dy, int64_t stride, const int64_t* indices, void* dw, int64_t rows, int64_t V,
                   int64_t D, int64_t padding, bool scale, int threads);

}  // namespace kernelzoo
