// batch_norm and instance_norm: the table of serial kernels that isa/batch_norm.cpp gives, and the drivers.
//
// S is the type in memory, T that of the arithmetic and of what there is one of a channel: double for double, float for
// the rest. A unit is a channel of an instance, i * C + c: what shares a mean and a variance.
#pragma once

#include "caches.h"
#include "isa.h"

namespace kernelzoo {

// Elements of rows whose moments are taken at once, and the fewest rows: they are read twice, the second time from a
// near cache.
constexpr int64_t BATCH_BLOCK = 4096, BATCH_ROWS = 16;

// (I, N, C, L), contiguous: planes where L > 1, else rows of C. Null where absent.
struct BatchNorm {
  int64_t I, N, C, L;
  double eps;
  int act;
  double p0, p1;
  bool from_output;  // saved is y, from which act's derivative is had; else it is what was added
  bool training;     // the moments are x's own: its gradient passes through them
  bool streamed;     // dx past the caches; y is what the next layer reads
  const void* x;        // S
  const void* residual; // S
  const void* saved;    // S
  const void* dy;       // S
  void* y;              // S
  void* dx;             // S
  void* dr;             // S: dy act'(z), the residual's gradient
  // T, (I C)
  void* mean;
  void* var;
  const void* scale;     // w rstd
  const void* shift;     // b
  const void* g_mean;    // mean(g), g = dy act'(z)
  const void* x_factor;  // rstd mean(g x̂)
  // Of T: y = act(x), dx = dy act'(saved)
  void (*value)(int act, const void* x, void* y, int64_t n, double p0, double p1);
  void (*grad)(int act, const void* dy, const void* saved, void* dx, int64_t n, double p0, double p1);
};

struct BatchNormKernels {
  // Planes first ... last - 1 of a unit's N. Mean, and mean of the squares about it.
  void (*unit_moments)(const BatchNorm& a, int64_t unit, double* mean, double* var);
  void (*unit_fwd)(const BatchNorm& a, int64_t unit, int64_t first, int64_t last);
  // Σ g and Σ g (x - mean)
  void (*unit_sums)(const BatchNorm& a, int64_t unit, double* g, double* gx);
  void (*unit_bwd)(const BatchNorm& a, int64_t unit, int64_t first, int64_t last);
  // Rows first ... last - 1 of I * N, all of one instance. Moments and sums are arrays (C), `squares` the sum of the
  // squares about the mean; scratch: batch_norm_scratch(C) elements of T.
  void (*rows_moments)(const BatchNorm& a, int64_t first, int64_t last, double* mean, double* squares, void* scratch);
  void (*rows_fwd)(const BatchNorm& a, int64_t first, int64_t last);
  void (*rows_sums)(const BatchNorm& a, int64_t first, int64_t last, double* g, double* gx, void* scratch);
  void (*rows_bwd)(const BatchNorm& a, int64_t first, int64_t last);
};

KERNELZOO_TABLES(BatchNormKernels, batch_norm)

inline int64_t batch_norm_rows(int64_t C) { return C * BATCH_ROWS > BATCH_BLOCK ? BATCH_ROWS : BATCH_BLOCK / C; }
inline int64_t batch_norm_scratch(int64_t C) { return batch_norm_rows(C) * C; }

// The rows of an instance are cut into `stripes`, each with moments and sums of its own; planes have one.
// partial: 2 * I * stripes * C doubles of scratch.

// Where `given`, mean and var are read, else written; y is not computed where null.
void batch_norm_fwd(int dtype, int w_dtype, BatchNorm a, const void* w, const void* b, bool given, double* partial,
                    int64_t stripes, int threads);
// sum_g = Σ g, sum_gx = Σ g x̂ (T, (I C)): written where `count` is 0, and then the means over N L elements of them are
// taken, else read, and the means over `count`. dx, dw and db (C) are not computed where null.
void batch_norm_bwd(int dtype, int w_dtype, BatchNorm a, const void* w, const void* b, void* sum_g, void* sum_gx,
                    double count, void* dw, void* db, double* partial, int64_t stripes, int threads);

}  // namespace kernelzoo
