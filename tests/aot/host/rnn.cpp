// csrc/cuda/rnn.cu and its bindings as a host module: a device of a few multiprocessors, whose sizes a test may set.
#include "cuda.h"

#include "bind.h"
#include "rnn.cu"

namespace {

int multiprocessors = 3, shared_memory = 64 << 10;
bool cooperative = true;
std::vector<std::string> launches;

using Kernel = void (*)(kz::Rnn, kz::Cut, bool, int64_t, int64_t);

cudaError_t launch(const void* entry, dim3 grid, dim3 block, void** args, size_t bytes, bool together) {
  if (bytes > static_cast<size_t>(shared_memory)) return cudaErrorInvalidValue;
  if (together && grid.x * grid.y > static_cast<unsigned int>(multiprocessors))
    return cudaErrorCooperativeLaunchTooLarge;
  launches.push_back(together ? "cooperative" : "step");
  auto kernel = reinterpret_cast<Kernel>(const_cast<void*>(entry));
  host::run(grid, block, bytes, together, [&] {
    kernel(*static_cast<kz::Rnn*>(args[0]), *static_cast<kz::Cut*>(args[1]), *static_cast<bool*>(args[2]),
           *static_cast<int64_t*>(args[3]), *static_cast<int64_t*>(args[4]));
  });
  return cudaSuccess;
}

}  // namespace

extern "C" {
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** args, size_t bytes, cudaStream_t) {
  return launch(f, grid, block, args, bytes, true);
}
cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t bytes, cudaStream_t) {
  return launch(f, grid, block, args, bytes, false);
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "of the host"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? multiprocessors
           : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? shared_memory : cooperative;
  return cudaSuccess;
}
}

namespace kz {
DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;
}  // namespace kz

PYBIND11_MODULE(_cuda, m) {
  m.attr("ACTS") = std::map<std::string, int>();
  m.attr("DTYPES") = std::map<std::string, int>{{"float64", 0}, {"float32", 1}, {"float16", 2}, {"bfloat16", 3}};
  m.def("set_device", [](int sms, int bytes, bool together) {
    multiprocessors = sms, shared_memory = bytes, cooperative = together;
  });
  m.def("launches", [] { return std::exchange(launches, {}); });
  bind_rnn(m);
}
