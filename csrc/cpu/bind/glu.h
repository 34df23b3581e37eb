#pragma once

#include "bind.h"

#include "../glu.h"

inline void bind_glu(py::module_& m) {
  using kernelzoo::GluRows;
  const py::call_guard<py::gil_scoped_release> no_gil;
  static const auto rows = [](Address address, int64_t stride) {
    return GluRows{pointer(address), stride};
  };
  m.def(
      "glu_fwd",
      [](Address gate, int64_t stride_gate, Address up, int64_t stride_up, Address y, int64_t stride_y, int64_t M,
         int64_t N, int dtype, int act, int threads) {
        kernelzoo::glu_fwd(dtype, act, rows(gate, stride_gate), rows(up, stride_up), rows(y, stride_y), M, N,
                           threads);
      },
      no_gil);
  m.def(
      "glu_bwd",
      [](Address dy, int64_t stride_dy, Address gate, int64_t stride_gate, Address up, int64_t stride_up,
         Address dgate, int64_t stride_dgate, Address dup, int64_t stride_dup, int64_t M, int64_t N, int dtype,
         int act, int threads) {
        kernelzoo::glu_bwd(dtype, act, rows(dy, stride_dy), rows(gate, stride_gate), rows(up, stride_up),
                           rows(dgate, stride_dgate), rows(dup, stride_dup), M, N, threads);
      },
      no_gil);
}
