// C (M, N) = A (M, K) B (K, N), + C, + a bias: packed, in tiles that lie in registers.
//
// A strip of B's columns is packed for a PART of K in panels as wide as a tile; each thread packs a block of A's rows and
// goes with it over the strip: a panel of B stays in L1, the block of A in L2, the strip in L3. (Goto, van de Geijn:
// Anatomy of high-performance matrix multiplication, ACM TOMS 34, 2008.) Sums are made in float, at most FOLD terms one
// after the other, which is what keeps long ones exact.
#pragma once

#include "isa.h"

namespace kernelzoo {

constexpr int64_t MOST_ROWS = 96;  // of A in a block: with a part of K, 147 KB

struct Product {
  int64_t M, N, K;  // none is 0
  const void *a, *b;  // of dtype S; element (i, k) of A stands at i a_row + k a_k, (k, j) of B at k b_k + j b_column
  int64_t a_row, a_k, b_k, b_column;
  const void* bias;  // N of S, or null
  void* c;           // contiguous: of S, or float where `wide`
  bool wide, add;    // add: to what c holds; only with float
};

// The sums, in float, of a strip: `ld` apart, from column 0 of the strip on.
struct ProductSums {
  float* p;
  int64_t ld;
  bool first, last;  // of the parts of K: nothing is there yet; c is written instead
};

struct ProductKernels {
  int64_t rows, columns;  // of a tile
  // `rows` of A from row i, `count` of K from k; `columns` of B from column j; to panels, a tile's k after k
  void (*left)(const Product& p, int64_t i, int64_t m, int64_t k, int64_t count, float* to);
  void (*right)(const Product& p, int64_t j, int64_t n, int64_t k, int64_t count, float* to);
  // Rows [i, i + m) and columns [from, to) of the strip that begins at column j, whose panels these are.
  void (*block)(const Product& p, int64_t i, int64_t m, int64_t j, int64_t from, int64_t to, int64_t count,
                const float* rows, const float* panels, const ProductSums& sums);
};

KERNELZOO_TABLES(ProductKernels, product)

// Bytes of scratch, aligned to 64.
int64_t product_scratch(int dtype, const Product& p, int threads);
void product_run(int dtype, const Product& p, void* scratch, int threads);

}  // namespace kernelzoo
