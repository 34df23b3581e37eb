// Losses element by element; the formulas are ops/loss.py's.
#pragma once

#include "isa.h"

#define KERNELZOO_LOSSES(X) X(mse) X(l1) X(huber) X(smooth_l1) X(bce) X(bce_logits) X(kl) X(kl_log)

namespace kernelzoo {

enum LossKind {
#define X(name) LOSS_##name,
  KERNELZOO_LOSSES(X)
#undef X
      LOSSES
};

struct LossKernels {
  // Σ l(x, t); l to `out` (S) unless null; adds to `outside` how many x or t of a bce lie outside [0, 1].
  double (*value)(int kind, const void* x, const void* t, void* out, int64_t n, double p, int64_t* outside);
  // dx and dt (S, either may be null) from dy (S), or from the one `g` where dy is null.
  void (*grad)(int kind, const void* x, const void* t, const void* dy, double g, void* dx, void* dt, int64_t n,
               double p);
};

KERNELZOO_TABLES(LossKernels, loss)

// Returns Σ l, added up in an order of its own whatever the threads.
double loss_fwd(int dtype, int kind, const void* x, const void* t, void* out, int64_t n, double p, int64_t* outside,
                int threads);
void loss_bwd(int dtype, int kind, const void* x, const void* t, const void* dy, double g, void* dx, void* dt, int64_t n,
              double p, int threads);

}  // namespace kernelzoo
