// kernelzoo._cuda: raw pointers, sizes and a stream in, launches out. The GIL is released in every launch.
#include "bind.h"
#include "launch.h"
#include "math.cuh"

namespace py = pybind11;
using kz::Act;
using kz::Dtype;
using Ptr = uintptr_t;
using Call = py::call_guard<py::gil_scoped_release>;

namespace {

void* ptr(Ptr p) { return reinterpret_cast<void*>(p); }

std::map<std::string, int> activations() {
  return {
#define KZ_NAME(name, Type) {#name, static_cast<int>(Act::name)},
      KZ_ACTIVATIONS(KZ_NAME)
#undef KZ_NAME
  };
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("ACTS") = activations();
  m.attr("DTYPES") = std::map<std::string, int>{{"float64", static_cast<int>(Dtype::f64)},
                                                {"float32", static_cast<int>(Dtype::f32)},
                                                {"float16", static_cast<int>(Dtype::f16)},
                                                {"bfloat16", static_cast<int>(Dtype::bf16)}};

  m.def("act_fwd",
        [](Ptr x, Ptr y, int64_t numel, int dtype, int act, double p0, double p1, int device, Ptr stream) {
          kz::act_fwd(ptr(x), ptr(y), numel, Dtype(dtype), Act(act), p0, p1, {device, stream});
        },
        Call());
  m.def("act_bwd",
        [](Ptr dy, Ptr saved, Ptr dx, int64_t numel, int dtype, int act, double p0, double p1, int device,
           Ptr stream) {
          kz::act_bwd(ptr(dy), ptr(saved), ptr(dx), numel, Dtype(dtype), Act(act), p0, p1, {device, stream});
        },
        Call());
  m.def("bias_act_fwd",
        [](Ptr z, Ptr b, int64_t stride_bn, int64_t M, int64_t N, int dtype, int act, double p0, double p1,
           int device, Ptr stream) {
          kz::bias_act_fwd(ptr(z), ptr(b), stride_bn, M, N, Dtype(dtype), Act(act), p0, p1, {device, stream});
        },
        Call());
  m.def("bias_act_bwd",
        [](Ptr dy, int64_t stride_dym, Ptr saved, Ptr dz, Ptr db, Ptr partial, int64_t M, int64_t N,
           int dtype, int act, double p0, double p1, int device, Ptr stream) {
          kz::bias_act_bwd(ptr(dy), stride_dym, ptr(saved), ptr(dz), ptr(db), ptr(partial), M, N,
                           Dtype(dtype), Act(act), p0, p1, {device, stream});
        },
        Call());
  m.def("bias_act_bwd_parts",
        [](int64_t M, int64_t N, int dtype) { return kz::bias_act_bwd_parts(M, N, Dtype(dtype)); });
  m.def("softmax_fwd",
        [](Ptr x, Ptr y, int64_t outer, int64_t n, int64_t inner, bool log, int dtype, int device,
           Ptr stream) {
          kz::softmax_fwd(ptr(x), ptr(y), outer, n, inner, log, Dtype(dtype), {device, stream});
        },
        Call());
  m.def("softmax_bwd",
        [](Ptr dy, Ptr y, Ptr dx, int64_t outer, int64_t n, int64_t inner, bool log, int dtype, int device,
           Ptr stream) {
          kz::softmax_bwd(ptr(dy), ptr(y), ptr(dx), outer, n, inner, log, Dtype(dtype), {device, stream});
        },
        Call());
  bind_rnn(m);
}
