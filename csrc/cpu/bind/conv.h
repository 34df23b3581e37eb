#pragma once

#include "bind.h"

#include "../conv.h"
#include "../winograd.h"

namespace {

using Three = std::array<int64_t, 3>;

kernelzoo::Depthwise depthwise(int64_t N, int64_t C, const Three& in, const Three& out, const Three& kernel,
                               const Three& stride, const Three& padding, const Three& dilation, bool first) {
  kernelzoo::Depthwise a = {};
  a.N = N, a.C = C, a.first = first;
  const auto set = [](int64_t* to, const Three& from) { std::copy(from.begin(), from.end(), to); };
  set(a.in, in), set(a.out, out), set(a.kernel, kernel);
  set(a.stride, stride), set(a.padding, padding), set(a.dilation, dilation);
  return a;
}

// A block has about `tiles` tiles: their transforms, and a panel of filters, lie in a near cache.
kernelzoo::Winograd winograd(int64_t N, int64_t C, int64_t O, std::array<int64_t, 2> in, std::array<int64_t, 2> out,
                             std::array<int64_t, 2> padding, bool first, int64_t tiles) {
  kernelzoo::Winograd a = {};
  a.N = N, a.first = first;
  a.in = {in[0], in[1], C}, a.out = {out[0], out[1], O};
  a.top = padding[0], a.left = padding[1];
  a.down = kernelzoo::ceil_div(out[0], 2), a.across = kernelzoo::ceil_div(out[1], 2);
  a.lines = std::clamp<int64_t>(tiles / a.across, 1, a.all_lines());
  a.columns = kernelzoo::ceil_div(a.across, kernelzoo::ceil_div(a.across, 2 * tiles));
  return a;
}

}  // namespace

inline void bind_conv(py::module_& m) {
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
  py::class_<kernelzoo::Winograd>(m, "Winograd").def(py::init(&winograd));
  m.def("winograd_scratch", [](const kernelzoo::Winograd& a, bool weight, int dtype, int threads) {
    return kernelzoo::winograd_scratch(dtype, a, weight, threads);
  });
  // strides of w, (rows, columns, 3, 3), from its first element
  m.def(
      "winograd_fwd",
      [](const kernelzoo::Winograd& a, Address x, Address w, std::array<int64_t, 4> strides, Address b, Address y,
         Address scratch, int dtype, int threads) {
        const kernelzoo::WinogradFilter f = {
            pointer(w), a.in.C, a.out.C, strides[0], strides[1], {strides[2], strides[3]}};
        return kernelzoo::winograd_fwd(dtype, a, f, pointer(x), pointer(b), pointer(y), pointer(scratch), threads);
      },
      no_gil);
  m.def(
      "winograd_bwd_weight",
      [](const kernelzoo::Winograd& a, Address dz, Address x, Address dw, Address scratch, int dtype, int threads) {
        return kernelzoo::winograd_bwd_weight(dtype, a, pointer(dz), pointer(x), pointer(dw), pointer(scratch), threads);
      },
      no_gil);
}
