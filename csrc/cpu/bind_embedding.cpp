#include <pybind11/pybind11.h>

#include "embedding.h"

namespace py = pybind11;

void bind_embedding(py::module_& m) {
  using Address = uintptr_t;
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "embedding_fwd",
      [](Address weight, int64_t stride, Address indices, Address y, int64_t rows, int64_t D, int dtype, int threads) {
        kernelzoo::embedding_fwd(dtype, reinterpret_cast<void*>(weight), stride,
                                 reinterpret_cast<const int64_t*>(indices), reinterpret_cast<void*>(y), rows, D,
                                 threads);
      },
      no_gil);
  m.def(
      "embedding_bwd",
      [](Address dy, int64_t stride, Address indices, Address dw, int64_t rows, int64_t V, int64_t D, int64_t padding,
         bool scale, int dtype, int threads) {
        kernelzoo::embedding_bwd(dtype, reinterpret_cast<void*>(dy), stride, reinterpret_cast<const int64_t*>(indices),
                                 reinterpret_cast<void*>(dw), rows, V, D, padding, scale, threads);
      },
      no_gil);
}
