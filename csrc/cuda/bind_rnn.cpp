// The recurrent layers' entry points: every field of kz::Rnn by its name, pointers as integers, 0 for null.
#include "bind.h"
#include "rnn.h"

namespace py = pybind11;

namespace {

using Launch = void (*)(const kz::Rnn&, kz::Dtype, kz::Target);

void call(Launch launch, int dtype, int device, uintptr_t stream, const py::kwargs& fields) {
  kz::Rnn r;
#define KZ_FIELD(name) r.name = reinterpret_cast<void*>(fields[#name].cast<uintptr_t>());
  KZ_RNN_POINTERS(KZ_FIELD)
#undef KZ_FIELD
#define KZ_FIELD(name) r.name = fields[#name].cast<int64_t>();
  KZ_RNN_SIZES(KZ_FIELD)
#undef KZ_FIELD
  r.mode = static_cast<kz::RnnMode>(fields["mode"].cast<int>());
  r.reverse = fields["reverse"].cast<bool>();
  py::gil_scoped_release release;
  launch(r, kz::Dtype(dtype), {device, stream});
}

}  // namespace

void bind_rnn(py::module_& m) {
  std::vector<std::string> pointers = {
#define KZ_NAME(name) #name,
      KZ_RNN_POINTERS(KZ_NAME)
#undef KZ_NAME
  };
  m.attr("RNN_POINTERS") = pointers;
  m.attr("RNN_MODES") = std::map<std::string, int>{{"lstm", static_cast<int>(kz::RnnMode::lstm)},
                                                   {"gru", static_cast<int>(kz::RnnMode::gru)},
                                                   {"rnn_tanh", static_cast<int>(kz::RnnMode::rnn_tanh)},
                                                   {"rnn_relu", static_cast<int>(kz::RnnMode::rnn_relu)}};
  m.def("rnn_fwd", [](int dtype, int device, uintptr_t stream, const py::kwargs& fields) {
    call(kz::rnn_fwd, dtype, device, stream, fields);
  });
  m.def("rnn_bwd", [](int dtype, int device, uintptr_t stream, const py::kwargs& fields) {
    call(kz::rnn_bwd, dtype, device, stream, fields);
  });
}
