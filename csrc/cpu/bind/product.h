#pragma once

#include "bind.h"

#include "../product.h"

inline void bind_product(py::module_& m) {
  py::class_<kernelzoo::Product>(m, "Product")
      .def(py::init([](int64_t M, int64_t N, int64_t K, Address a, std::array<int64_t, 2> a_strides, Address b,
                       std::array<int64_t, 2> b_strides, Address bias, Address c, bool wide, bool add) {
        return kernelzoo::Product{M, N, K, pointer(a), pointer(b), a_strides[0], a_strides[1], b_strides[0],
                                  b_strides[1], pointer(bias), pointer(c), wide, add};
      }));
  m.def("product_scratch", [](const kernelzoo::Product& p, int dtype, int threads) {
    return kernelzoo::product_scratch(dtype, p, threads);
  });
  m.def(
      "product",
      [](const kernelzoo::Product& p, Address scratch, int dtype, int threads) {
        kernelzoo::product_run(dtype, p, pointer(scratch), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
