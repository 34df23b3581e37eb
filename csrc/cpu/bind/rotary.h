#pragma once

#include "bind.h"

#include "../rotary.h"

inline void bind_rotary(py::module_& m) {
  m.def(
      "rotary",
      [](Address x, int64_t stride_xb, int64_t stride_xh, int64_t stride_xl, Address y, int64_t stride_yb,
         int64_t stride_yh, int64_t stride_yl, Address cos, Address sin, Address ids, int64_t stride_ids_b,
         int64_t stride_ids_l, int64_t B, int64_t H, int64_t L, int64_t width, int64_t positions, int64_t half,
         bool interleaved, bool inverse, int dtype, int threads) {
        const kernelzoo::Turn turn{pointer(cos), pointer(sin), positions, half,
                                   width,                        interleaved,                  inverse};
        kernelzoo::rotary(dtype, turn, {pointer(x), stride_xb, stride_xh, stride_xl},
                          {pointer(y), stride_yb, stride_yh, stride_yl},
                          pointer<const int64_t>(ids), stride_ids_b, stride_ids_l, B, H, L, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
