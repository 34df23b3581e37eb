// kernelzoo._cpu: the drivers over raw addresses. The launchers in kernels/cpp vouch for the tensors behind them.
// One file to the compiler: pybind11's headers take it 10 s.
#include "bind/bind.h"

#include <stdexcept>
#include <string>

#include "bind/attention.h"
#include "bind/batch_norm.h"
#include "bind/conv.h"
#include "bind/cross_entropy.h"
#include "bind/dropout.h"
#include "bind/embedding.h"
#include "bind/glu.h"
#include "bind/loss.h"
#include "bind/norm.h"
#include "bind/pool.h"
#include "bind/product.h"
#include "bind/rnn.h"
#include "bind/rotary.h"
#include "drivers.h"

PYBIND11_MODULE(_cpu, m) {
  using namespace pybind11::literals;
  const py::call_guard<py::gil_scoped_release> no_gil;

  py::dict acts;
#define X(name) acts[#name] = static_cast<int>(kernelzoo::ACT_##name);
  KERNELZOO_ACTS(X)
#undef X
  m.attr("ACTS") = acts;
  m.attr("DTYPES") = py::make_tuple("float64", "float32", "bfloat16", "float16");

  m.def("isa", &kernelzoo::isa, "The instruction set in use: avx512, avx2 or plain.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        if (!kernelzoo::set_isa(name.c_str())) throw std::invalid_argument("this processor or build lacks " + name);
      },
      "Use another instruction set's kernels (for tests).", "name"_a);

  m.def(
      "act_fwd",
      [](Address x, Address y, int64_t n, int dtype, int act, double p0, double p1, int threads) {
        kernelzoo::act_fwd(dtype, act, pointer(x), pointer(y), n, p0, p1, threads);
      },
      no_gil);
  m.def(
      "act_bwd",
      [](Address dy, Address saved, Address dx, int64_t n, int dtype, int act, double p0, double p1, int threads) {
        kernelzoo::act_bwd(dtype, act, pointer(dy), pointer(saved), pointer(dx), n, p0, p1, threads);
      },
      no_gil);
  m.def(
      "bias_act",
      [](Address z, Address bias, Address y, int64_t M, int64_t N, bool save_z, int dtype, int act, double p0,
         double p1, int threads) {
        kernelzoo::bias_act(dtype, act, pointer(z), pointer(bias), pointer(y), M, N, save_z, p0, p1, threads);
      },
      no_gil);
  m.def(
      "linear_bwd",
      [](Address dy, int64_t stride_dym, Address saved, Address dz, Address db, int64_t M, int64_t N, int dtype,
         int act, double p0, double p1, int threads) {
        kernelzoo::linear_bwd(dtype, act, pointer(dy), stride_dym, pointer(saved), pointer(dz), pointer(db), M, N, p0,
                              p1, threads);
      },
      no_gil);
  m.def(
      "softmax_fwd",
      [](Address x, Address y, int64_t outer, int64_t n, int64_t inner, bool log, int dtype, int threads) {
        kernelzoo::softmax_fwd(dtype, pointer(x), pointer(y), outer, n, inner, log, threads);
      },
      no_gil);
  m.def(
      "softmax_bwd",
      [](Address dy, Address y, Address dx, int64_t outer, int64_t n, int64_t inner, bool log, int dtype,
         int threads) {
        kernelzoo::softmax_bwd(dtype, pointer(dy), pointer(y), pointer(dx), outer, n, inner, log, threads);
      },
      no_gil);

  bind_attention(m);
  bind_batch_norm(m);
  bind_conv(m);
  bind_cross_entropy(m);
  bind_dropout(m);
  bind_embedding(m);
  bind_glu(m);
  bind_loss(m);
  bind_norm(m);
  bind_pool(m);
  bind_product(m);
  bind_rnn(m);
  bind_rotary(m);
}
