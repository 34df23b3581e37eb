#pragma once

#include "bind.h"

#include "../loss.h"

inline void bind_loss(py::module_& m) {
  py::dict kinds;
#define X(name) kinds[#name] = static_cast<int>(kernelzoo::LOSS_##name);
  KERNELZOO_LOSSES(X)
#undef X
  m.attr("LOSSES") = kinds;

  m.def(
      "loss_fwd",
      [](Address x, Address t, Address out, int64_t n, int dtype, int kind, double p, int threads) {
        int64_t outside = 0;
        double total;
        {
          const py::gil_scoped_release released;
          total = kernelzoo::loss_fwd(dtype, kind, pointer(x), pointer(t), pointer(out), n, p, &outside, threads);
        }
        return py::make_tuple(total, outside);
      },
      "The sum of the losses, and how many elements of a bce lie outside [0, 1].");
  m.def(
      "loss_bwd",
      [](Address x, Address t, Address dy, double g, Address dx, Address dt, int64_t n, int dtype, int kind, double p,
         int threads) {
        kernelzoo::loss_bwd(dtype, kind, pointer(x), pointer(t), pointer(dy), g, pointer(dx), pointer(dt), n, p,
                            threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
