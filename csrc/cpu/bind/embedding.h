#pragma once

#include "bind.h"

#include "../embedding.h"

inline void bind_embedding(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "embedding_fwd",
      [](Address weight, int64_t stride, Address indices, Address y, int64_t rows, int64_t D, int dtype, int threads) {
        kernelzoo::embedding_fwd(dtype, pointer(weight), stride,
                                 pointer<const int64_t>(indices), pointer(y), rows, D,
                                 threads);
      },
      no_gil);
  m.def(
      "embedding_bwd",
      [](Address dy, int64_t stride, Address indices, Address dw, int64_t rows, int64_t V, int64_t D, int64_t padding,
         bool scale, int dtype, int threads) {
        kernelzoo::embedding_bwd(dtype, pointer(dy), stride, pointer<const int64_t>(indices),
                                 pointer(dw), rows, V, D, padding, scale, threads);
      },
      no_gil);
}
