#pragma once

#include "bind.h"

#include "../norm.h"

inline void bind_norm(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "norm_fwd",
      [](Address x, Address other, Address w, Address b, Address y, Address s, Address mean, Address rstd, int64_t M,
         int64_t n, double eps, int dtype, int other_dtype, int w_dtype, int threads) {
        kernelzoo::NormRows a = {};
        a.n = n, a.eps = eps, a.x = pointer(x), a.other = pointer(other), a.other_dtype = other_dtype;
        a.w = pointer(w), a.b = pointer(b), a.y = pointer(y), a.s = pointer(s);
        a.mean = pointer(mean), a.rstd = pointer(rstd);
        kernelzoo::norm_fwd(dtype, w_dtype, a, M, threads);
      },
      no_gil);
  m.def(
      "norm_bwd",
      [](Address dy, Address ds, Address x, Address w, Address mean, Address rstd, Address dx, Address dw, Address db,
         Address partial, int64_t blocks, int64_t M, int64_t n, int dtype, int w_dtype, int threads) {
        kernelzoo::NormRows a = {};
        a.n = n, a.x = pointer(x), a.w = pointer(w), a.mean = pointer(mean), a.rstd = pointer(rstd);
        a.dy = pointer(dy), a.ds = pointer(ds), a.dx = pointer(dx);
        kernelzoo::norm_bwd(dtype, w_dtype, a, pointer(dw), pointer(db), pointer<double>(partial), blocks, M, threads);
      },
      no_gil);
  m.def(
      "group_norm_fwd",
      [](Address x, Address w, Address b, Address y, Address mean, Address rstd, int64_t N, int64_t channels,
         int64_t length, int64_t groups, double eps, int dtype, int w_dtype, int threads) {
        kernelzoo::NormGroups a = {};
        a.channels = channels, a.length = length, a.groups = groups, a.eps = eps;
        a.x = pointer(x), a.w = pointer(w), a.b = pointer(b), a.y = pointer(y);
        a.mean = pointer(mean), a.rstd = pointer(rstd);
        kernelzoo::group_norm_fwd(dtype, w_dtype, a, N, threads);
      },
      no_gil);
  m.def(
      "group_norm_bwd",
      [](Address dy, Address x, Address w, Address mean, Address rstd, Address dx, Address dw, Address db,
         Address partial, int64_t N, int64_t channels, int64_t length, int64_t groups, int dtype, int w_dtype,
         int threads) {
        kernelzoo::NormGroups a = {};
        a.channels = channels, a.length = length, a.groups = groups;
        a.x = pointer(x), a.w = pointer(w), a.mean = pointer(mean), a.rstd = pointer(rstd);
        a.dy = pointer(dy), a.dx = pointer(dx);
        a.dw = dw ? pointer<double>(partial) : nullptr;
        a.db = db ? pointer<double>(partial) + N * channels : nullptr;
        kernelzoo::group_norm_bwd(dtype, w_dtype, a, pointer(dw), pointer(db), N, threads);
      },
      no_gil);
}
