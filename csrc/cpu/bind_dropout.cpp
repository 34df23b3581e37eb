#include <pybind11/pybind11.h>

#include "dropout.h"

namespace py = pybind11;

void bind_dropout(py::module_& m) {
  using Address = uintptr_t;
  m.def(
      "dropout_fwd",
      [](Address x, Address residual, Address y, int64_t n, uint64_t seed, uint32_t threshold, double scale, int dtype,
         int threads) {
        kernelzoo::dropout_fwd(dtype, reinterpret_cast<void*>(x), reinterpret_cast<void*>(residual),
                               reinterpret_cast<void*>(y), n, seed, threshold, scale, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
