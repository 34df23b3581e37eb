#pragma once

#include "bind.h"

#include "../pool.h"
#include "../resample.h"

namespace {

using Sizes = std::array<int64_t, 3>;

Sizes sizes(const py::tuple& t) { return {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>()}; }

// stride: the last dimension's, or 0 where its windows are not equally long.
kernelzoo::Pool pool_of(int64_t batch, int64_t lanes, const Sizes& in, const Sizes& out, const Sizes& kernel,
                        const Sizes& dilation, int64_t stride, int64_t padding, const Sizes& most, Address reach,
                        Address covers, int index_kind, Address index) {
  kernelzoo::Pool a = {};
  a.batch = batch, a.lanes = lanes, a.stride = stride, a.padding = padding, a.index_kind = index_kind;
  std::copy(in.begin(), in.end(), a.in), std::copy(out.begin(), out.end(), a.out);
  std::copy(most.begin(), most.end(), a.most), std::copy(kernel.begin(), kernel.end(), a.kernel);
  std::copy(dilation.begin(), dilation.end(), a.dilation);
  a.reach = pointer<int32_t>(reach), a.covers = pointer<int32_t>(covers), a.index = pointer(index);
  return a;
}

}  // namespace

inline void bind_pool(py::module_& m) {
  m.def("max_pool_fwd",
        [](Address x, Address y, Address index, int index_kind, Address reach, Address covers, int64_t batch,
           int64_t lanes, py::tuple in, py::tuple out, py::tuple kernel, py::tuple dilation, int64_t stride,
           int64_t padding, py::tuple most, int dtype, int threads) {
          kernelzoo::Pool a = pool_of(batch, lanes, sizes(in), sizes(out), sizes(kernel), sizes(dilation), stride,
                                      padding, sizes(most), reach, covers, index_kind, index);
          a.x = pointer(x), a.y = pointer(y);
          const py::gil_scoped_release no_gil;
          kernelzoo::max_pool_fwd(dtype, a, threads);
        });
  m.def("max_pool_bwd",
        [](Address dy, Address index, Address dx, int index_kind, Address reach, Address covers, int64_t batch,
           int64_t lanes, py::tuple in, py::tuple out, py::tuple kernel, py::tuple dilation, int64_t stride,
           int64_t padding, py::tuple most, int dtype, int threads) {
          kernelzoo::Pool a = pool_of(batch, lanes, sizes(in), sizes(out), sizes(kernel), sizes(dilation), stride,
                                      padding, sizes(most), reach, covers, index_kind, index);
          a.dy = pointer(dy), a.dx = pointer(dx);
          const py::gil_scoped_release no_gil;
          kernelzoo::max_pool_bwd(dtype, a, threads);
        });
  m.def("resample", [](Address x, Address y, Address table, Address weights, Address divisors, int64_t batch,
                       int64_t lanes, py::tuple in, py::tuple out, py::tuple most, int dtype, int threads) {
    kernelzoo::Resample a = {};
    a.batch = batch, a.lanes = lanes;
    const Sizes in_sizes = sizes(in), out_sizes = sizes(out), most_taps = sizes(most);
    std::copy(in_sizes.begin(), in_sizes.end(), a.in), std::copy(out_sizes.begin(), out_sizes.end(), a.out);
    std::copy(most_taps.begin(), most_taps.end(), a.most);
    a.table = pointer<int32_t>(table), a.weights = pointer(weights), a.divisors = pointer(divisors);
    a.x = pointer(x), a.y = pointer(y);
    const py::gil_scoped_release no_gil;
    kernelzoo::resample(dtype, a, threads);
  });
}
