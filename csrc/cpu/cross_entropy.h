// Cross entropy over rows of n classes; the formulas are ops/cross_entropy.py's.
#pragma once

#include "isa.h"

namespace kernelzoo {

// What one row's walk finds; sums are over the classes, w the weights and q the target's probabilities.
struct RowSums {
  double max;
  double exp;  // Σ exp(x - max)
  double q;    // Σ w q
  double qx;   // Σ w q x
  double x;    // Σ w x
};

// The gradient's coefficients: dx = p·exp(x - max - log_sum) - w (q·target + uniform)
struct RowGrad {
  double max, log_sum;
  double p, q, uniform;
};

struct CrossEntropyKernels {
  // q (S) and w (T) may be null; `sums` asks for the last three of RowSums.
  RowSums (*row_sums)(const void* x, const void* q, const void* w, int64_t n, bool sums);
  // dx may be x. `index` >= 0: the target's class, whose element also gets -one_hot.
  void (*row_grad)(const void* x, const void* q, const void* w, void* dx, int64_t n, const RowGrad& g, int64_t index,
                   double one_hot);
  void (*fill)(void* dx, int64_t n, double value);
};

KERNELZOO_TABLES(CrossEntropyKernels, cross_entropy)

// The rows of a contiguous (rows, n). targets (int64, negative where the row is ignored) or probabilities (S).
struct CrossEntropyRows {
  const void* x;
  const int64_t* targets;
  const void* probabilities;
  const void* weights;  // T or null
  int64_t rows, n;
  double smoothing;
};

// loss, counts (Σ w_t of the mean's divisor), stats (rows of maxima, then of log-sums, then of Σ w q): T.
void cross_entropy_fwd(int dtype, const CrossEntropyRows& r, void* loss, void* counts, void* stats, int threads);
// dx may be x; g (T): the rows' incoming gradients, stride_g 0 or 1.
void cross_entropy_bwd(int dtype, const CrossEntropyRows& r, const void* stats, const void* g, int64_t stride_g, void* dx,
                       int threads);
// Both, a row at a time: z is a chunk of logits that its gradient replaces.
void cross_entropy_both(int dtype, const CrossEntropyRows& r, const void* g, int64_t stride_g, void* loss, void* counts,
                        void* dx, int threads);

}  // namespace kernelzoo
