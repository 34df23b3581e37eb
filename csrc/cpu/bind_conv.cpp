#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "conv.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Three = std::array<int64_t, 3>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

kernelzoo::Depthwise depthwise(int64_t N, int64_t C, const Three& in, const Three& out, const Three& kernel,
                               const Three& stride, const Three& padding, const Three& dilation, bool first) {
  kernelzoo::Depthwise a = {};
  a.N = N, a.C = C, a.first = first;
  const auto set = [](int64_t* to, const Three& from) { std::copy(from.begin(), from.end(), to); };
  set(a.in, in), set(a.out, out), set(a.kernel, kernel);
  set(a.stride, stride), set(a.padding, padding), set(a.dilation, dilation);
  return a;
}

}  // namespace

void bind_conv(py::module_& m) {
  py::class_<kernelzoo::Depthwise>(m, "Depthwise").def(py::init(&depthwise));
  m.def("depthwise_partial",
        [](const kernelzoo::Depthwise& a, int dtype) { return kernelzoo::depthwise_partial(dtype, a); });
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "depthwise_fwd",
      [](kernelzoo::Depthwise a, bool backward, Address x, Address w, Address b, Address residual, Address z,
         Address y, bool save_z, int dtype, int act, double p0, double p1, int threads) {
        a.x = pointer(x), a.w = pointer(w), a.b = pointer(b);
        const kernelzoo::Behind behind = {act, p0, p1, pointer(residual), save_z};
        kernelzoo::depthwise_fwd(dtype, a, backward, behind, pointer(z), pointer(y), threads);
      },
      no_gil);
  m.def(
      "depthwise_bwd_weight",
      [](kernelzoo::Depthwise a, Address dz, Address x, Address dw, Address db, Address partial, int dtype,
         int threads) {
        a.x = pointer(x);
        kernelzoo::depthwise_bwd_weight(dtype, a, pointer(dz), pointer(dw), pointer(db), pointer(partial), threads);
      },
      no_gil);
  m.def(
      "add_act",
      [](Address z, Address residual, Address y, int64_t n, bool save_z, int dtype, int act, double p0, double p1,
         int threads) {
        const kernelzoo::Behind behind = {act, p0, p1, pointer(residual), save_z};
        kernelzoo::add_act(dtype, behind, pointer(z), pointer(y), n, threads);
      },
      no_gil);
}
