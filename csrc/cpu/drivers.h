// The parallel loops over the serial kernels. Every pointer is to `dtype` elements, contiguous unless a stride is
// given. Work is divided at places that depend on the sizes alone, so that the number of threads changes no result.
#pragma once

#include "kernels.h"

namespace kernelzoo {

void act_fwd(int dtype, int act, const void* x, void* y, int64_t n, double p0, double p1, int threads);
void act_bwd(int dtype, int act, const void* dy, const void* saved, void* dx, int64_t n, double p0, double p1,
             int threads);

// z (M, N) += bias (N), written back where save_z; y = act(z), which may be z itself.
void bias_act(int dtype, int act, void* z, const void* bias, void* y, int64_t M, int64_t N, bool save_z, double p0,
              double p1, int threads);
// dz (M, N) = dy * act'(saved) unless null; db (N) = dz.sum(0) unless null. dy's rows are stride_dym apart.
void linear_bwd(int dtype, int act, const void* dy, int64_t stride_dym, const void* saved, void* dz, void* db,
                int64_t M, int64_t N, double p0, double p1, int threads);

// (outer, n, inner), over n
void softmax_fwd(int dtype, const void* x, void* y, int64_t outer, int64_t n, int64_t inner, bool log, int threads);
void softmax_bwd(int dtype, const void* dy, const void* y, void* dx, int64_t outer, int64_t n, int64_t inner,
                 bool log, int threads);

}  // namespace kernelzoo
