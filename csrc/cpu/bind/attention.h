// A tensor travels as the tuple of its address and strides, null as an empty one: attention has too many of both to
// name each. The launchers in kernels/cpp vouch for them.
#pragma once

#include "bind.h"

#include "../attention.h"

namespace {

using kernelzoo::Attention;

int64_t number(const py::tuple& t, size_t i) {
  return i < t.size() ? static_cast<int64_t>(PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(t.ptr(), i))) : 0;
}

template <class T>
T* address(const py::tuple& t) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(number(t, 0)));
}

kernelzoo::Rows rows(const py::tuple& t) {
  return {address<void>(t), number(t, 1), number(t, 2), number(t, 3)};
}

int64_t limit(int64_t keys) { return keys < 0 || keys > kernelzoo::UNLIMITED ? kernelzoo::UNLIMITED : keys; }

// sizes: B, H, Hkv, Lq, Lk, D, Dv, left, right, align_end; factors: scale, softcap, dropout_p
Attention problem(const py::tuple& q, const py::tuple& k, const py::tuple& v, const py::tuple& o, const py::tuple& lse,
                  const py::tuple& bias, const py::tuple& slopes, const py::tuple& lengths, const py::tuple& cu_q,
                  const py::tuple& cu_k, const py::tuple& seed, const py::tuple& sizes, const py::tuple& factors) {
  Attention a;
  a.q = rows(q);
  a.k = rows(k);
  a.v = rows(v);
  a.o = rows(o);
  a.lse = rows(lse);
  int64_t* const fields[] = {&a.B, &a.H, &a.Hkv, &a.Lq, &a.Lk, &a.D, &a.Dv};
  for (size_t i = 0; i < 7; ++i) *fields[i] = number(sizes, i);
  a.left = limit(number(sizes, 7));
  a.right = limit(number(sizes, 8));
  a.align_end = number(sizes, 9);
  a.bias = address<const void>(bias);
  for (size_t i = 0; i < 4; ++i) a.bias_stride[i] = number(bias, i + 1);
  a.bias_kind = static_cast<int>(number(bias, 5));
  a.slopes = address<const float>(slopes);
  a.slopes_batch = number(slopes, 1);
  a.slopes_head = number(slopes, 2);
  a.key_lengths = address<const int32_t>(lengths);
  a.cu_q = address<const int32_t>(cu_q);
  a.cu_k = address<const int32_t>(cu_k);
  a.seed = address<const int64_t>(seed);
  a.scale = factors[0].cast<double>();
  a.softcap = factors[1].cast<double>();
  a.dropout_p = factors[2].cast<double>();
  return a;
}

}  // namespace

inline void bind_attention(py::module_& m) {
  m.def("attention_problem", &problem);
  py::class_<Attention>(m, "Attention");
  m.def(
      "attention_fwd",
      [](const Attention& a, int dtype, int threads) { kernelzoo::attention_fwd(dtype, a, threads); },
      py::call_guard<py::gil_scoped_release>());
  m.def("attention_bwd_size", [](Attention& a, const py::tuple& dbias, int dtype, int threads) {
    a.dbias = address<void>(dbias);
    for (size_t i = 0; i < 4; ++i) a.dbias_shape[i] = number(dbias, i + 1);
    return kernelzoo::attention_bwd_size(dtype, a, threads);
  });
  m.def("attention_bwd", [](Attention& a, uintptr_t acc, const py::tuple& grad, const py::tuple& dq,
                            const py::tuple& dk, const py::tuple& dv, int dtype, int threads) {
    a.acc = pointer(acc);
    a.grad = rows(grad);
    a.dq = rows(dq);
    a.dk = rows(dk);
    a.dv = rows(dv);
    py::gil_scoped_release no_gil;
    kernelzoo::attention_bwd(dtype, a, threads);
  });
  m.def("attention_decode_size", [](Attention& a, uintptr_t lengths, uintptr_t table, int64_t table_row,
                                     int64_t page) {
    a.lengths = pointer<const int32_t>(lengths);
    a.table = pointer<const int32_t>(table);
    a.table_row = table_row;
    a.page = page;
    return kernelzoo::attention_decode_size(a);
  });
  m.def("attention_decode", [](Attention& a, uintptr_t acc, int dtype, int threads) {
    a.acc = pointer(acc);
    py::gil_scoped_release no_gil;
    kernelzoo::attention_decode(dtype, a, threads);
  });
}
