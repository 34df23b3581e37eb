// Activations on dense tensors, elementwise in storage order, and the launch checks all files share.
#include <stdexcept>
#include <string>

#include "vec.cuh"

namespace kz {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// y = act(x) on a tile of THREADS x UNROLL vectors; all loads of a thread are in flight before the first use.
template <typename S, int VEC, int UNROLL>
__global__ __launch_bounds__(THREADS) void _act_fwd_kernel(const S* x_ptr, S* y_ptr, int64_t numel, Act act,
                                                           AccOf<S> p0, AccOf<S> p1) {
  int64_t first = (static_cast<int64_t>(blockIdx.x) * THREADS * UNROLL + threadIdx.x) * VEC;
  Raw<S, VEC> raw[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    int64_t i = first + u * THREADS * VEC;
    raw[u].load(x_ptr + i, numel - i);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    int64_t i = first + u * THREADS * VEC;
    AccOf<S> v[VEC];
    raw[u].decode(v);
    apply_value<CalcOf<S>>(act, v, p0, p1);
    raw[u].encode(v);
    raw[u].store(y_ptr + i, numel - i);
  }
}

// dx = dy * act'(saved), on the same tile.
template <typename S, int VEC, int UNROLL>
__global__ __launch_bounds__(THREADS) void _act_bwd_kernel(const S* dy_ptr, const S* saved_ptr, S* dx_ptr,
                                                           int64_t numel, Act act, AccOf<S> p0,
                                                           AccOf<S> p1) {
  int64_t first = (static_cast<int64_t>(blockIdx.x) * THREADS * UNROLL + threadIdx.x) * VEC;
  Raw<S, VEC> raw_dy[UNROLL], raw_s[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    int64_t i = first + u * THREADS * VEC;
    raw_dy[u].load(dy_ptr + i, numel - i);
    raw_s[u].load(saved_ptr + i, numel - i);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    int64_t i = first + u * THREADS * VEC;
    AccOf<S> dy[VEC], s[VEC];
    raw_dy[u].decode(dy);
    raw_s[u].decode(s);
    apply_grad<CalcOf<S>>(act, dy, s, p0, p1);
    raw_dy[u].encode(dy);
    raw_dy[u].store(dx_ptr + i, numel - i);
  }
}

// 32 to 64 bytes a thread in flight, from each input: 2 vectors of 16 bytes, 4 of fp32 forward.
template <typename S>
constexpr int FWD_UNROLL = sizeof(S) == 4 ? 4 : 2;

unsigned int blocks_of(int64_t numel, int per_thread) {
  int64_t blocks = ceil_div(numel, static_cast<int64_t>(THREADS) * per_thread);
  if (blocks > INT32_MAX) throw std::runtime_error("activation: tensor too large for one launch");
  return static_cast<unsigned int>(blocks);
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

void act_fwd(const void* x, void* y, int64_t numel, Dtype dtype, Act act, double p0, double p1,
             Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    auto launch = [&](auto kernel, int per_thread) {
      kernel<<<blocks_of(numel, per_thread), THREADS, 0, stream>>>(
          static_cast<const S*>(x), static_cast<S*>(y), numel, act, AccOf<S>(p0), AccOf<S>(p1));
    };
    constexpr int V = VEC16<S>, U = FWD_UNROLL<S>;
    if (aligned16(x) && aligned16(y)) {
      launch(_act_fwd_kernel<S, V, U>, V * U);
    } else {
      launch(_act_fwd_kernel<S, 1, 4>, 4);
    }
    check_launch("act_fwd");
  });
}

void act_bwd(const void* dy, const void* saved, void* dx, int64_t numel, Dtype dtype, Act act, double p0,
             double p1, Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    auto launch = [&](auto kernel, int per_thread) {
      kernel<<<blocks_of(numel, per_thread), THREADS, 0, stream>>>(
          static_cast<const S*>(dy), static_cast<const S*>(saved), static_cast<S*>(dx), numel, act,
          AccOf<S>(p0), AccOf<S>(p1));
    };
    constexpr int V = VEC16<S>;
    if (aligned16(dy) && aligned16(saved) && aligned16(dx)) {
      launch(_act_bwd_kernel<S, V, 2>, V * 2);
    } else {
      launch(_act_bwd_kernel<S, 1, 4>, 4);
    }
    check_launch("act_bwd");
  });
}

}  // namespace kz
