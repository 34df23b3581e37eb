#pragma once

#include "bind.h"

#include "../batch_norm.h"

inline void bind_batch_norm(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "batch_norm_fwd",
      [](Address x, Address residual, Address w, Address b, Address mean, Address var, bool given, Address y,
         Address partial, int64_t stripes, int64_t I, int64_t N, int64_t C, int64_t L, double eps, int dtype,
         int w_dtype, int act, double p0, double p1, int threads) {
        kernelzoo::BatchNorm a = {};
        a.I = I, a.N = N, a.C = C, a.L = L, a.eps = eps, a.act = act, a.p0 = p0, a.p1 = p1;
        a.x = pointer(x), a.residual = pointer(residual), a.y = pointer(y);
        a.mean = pointer(mean), a.var = pointer(var);
        kernelzoo::batch_norm_fwd(dtype, w_dtype, a, pointer(w), pointer(b), given, pointer<double>(partial), stripes,
                                  threads);
      },
      no_gil);
  m.def(
      "batch_norm_bwd",
      [](Address dy, Address x, Address saved, bool from_output, Address w, Address b, Address mean, Address var,
         Address sum_g, Address sum_gx, double count, bool training, Address dx, Address dr, Address dw, Address db,
         Address partial, int64_t stripes, int64_t I, int64_t N, int64_t C, int64_t L, double eps, int dtype,
         int w_dtype, int act, double p0, double p1, int threads) {
        kernelzoo::BatchNorm a = {};
        a.I = I, a.N = N, a.C = C, a.L = L, a.eps = eps, a.act = act, a.p0 = p0, a.p1 = p1;
        a.dy = pointer(dy), a.x = pointer(x), a.saved = pointer(saved), a.from_output = from_output;
        a.training = training, a.dx = pointer(dx), a.dr = pointer(dr);
        a.mean = pointer(mean), a.var = pointer(var);
        kernelzoo::batch_norm_bwd(dtype, w_dtype, a, pointer(w), pointer(b), pointer(sum_g), pointer(sum_gx), count,
                                  pointer(dw), pointer(db), pointer<double>(partial), stripes, threads);
      },
      no_gil);
}
