#pragma once

#include "bind.h"

#include "../dropout.h"

inline void bind_dropout(py::module_& m) {
  m.def(
      "dropout_fwd",
      [](Address x, Address residual, Address y, int64_t n, uint64_t seed, uint32_t threshold, double scale, int dtype,
         int threads) {
        kernelzoo::dropout_fwd(dtype, pointer(x), pointer(residual),
                               pointer(y), n, seed, threshold, scale, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
