// A call's tensors are too many to pass one by one: the launcher sets their addresses by name, 0 where absent.
#pragma once

#include "bind.h"

#include "../rnn.h"

namespace {

using kernelzoo::Rnn;

template <auto Field>
void address(py::class_<Rnn>& type, const char* name) {
  type.def_property(
      name, [](const Rnn& a) { return reinterpret_cast<uintptr_t>(a.*Field); },
      [](Rnn& a, uintptr_t p) {
        a.*Field = reinterpret_cast<std::remove_reference_t<decltype(a.*Field)>>(p);
      });
}

}  // namespace

inline void bind_rnn(py::module_& m) {
  py::class_<Rnn> type(m, "Rnn");
  type.def(py::init([](int mode, int64_t B, int64_t T, int64_t R, int64_t H, int64_t P, int64_t heads, bool reverse,
                       double eps) {
    Rnn a = {};
    a.mode = mode, a.B = B, a.T = T, a.R = R, a.H = H, a.P = P, a.heads = heads, a.reverse = reverse, a.eps = eps;
    return a;
  }));
#define X(name) address<&Rnn::name>(type, #name);
  X(batch_sizes) X(gx) X(h0) X(c0) X(w_hh) X(b_hn) X(w_hr) X(peephole) X(ln_weight) X(ln_cell) X(h_mask) X(zone_h)
  X(zone_c) X(out) X(hn) X(cn) X(gates) X(cells) X(gh) X(rstd) X(dout) X(dhn) X(dcn) X(dgx) X(dgh) X(dh0) X(dc0)
  X(dh_new) X(workspace)
#undef X
  m.def("rnn_size", [](const Rnn& a, int dtype, bool backward) { return kernelzoo::rnn_size(dtype, a, backward); });
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("rnn_fwd", [](const Rnn& a, int dtype, int threads) { kernelzoo::rnn_fwd(dtype, a, threads); }, no_gil);
  m.def("rnn_bwd", [](const Rnn& a, int dtype, int threads) { kernelzoo::rnn_bwd(dtype, a, threads); }, no_gil);
}
