// The kernels' host interface: raw pointers, sizes and a stream. No CUDA type, so bindings.cpp needs no
// CUDA header. Every function throws std::runtime_error on a CUDA error.
#pragma once

#include <cstdint>

namespace kz {

enum class Act : int;
enum class Dtype : int { f64, f32, f16, bf16 };

struct Target {
  int device;
  uintptr_t stream;
};

// Makes `device` current for a scope, and restores the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

// Throws for an error of the launch just made.
void check_launch(const char* kernel);

void act_fwd(const void* x, void* y, int64_t numel, Dtype, Act, double p0, double p1, Target);
void act_bwd(const void* dy, const void* saved, void* dx, int64_t numel, Dtype, Act, double p0, double p1,
             Target);

// z (M, N) contiguous, in place: z = act(z + b), b (N,) with stride stride_bn.
void bias_act_fwd(void* z, const void* b, int64_t stride_bn, int64_t M, int64_t N, Dtype, Act, double p0,
                  double p1, Target);

// dy (M, N) with rows stride_dym apart, saved and dz (M, N) contiguous. dz, or db (N,), may be null.
// `partial` is scratch of bias_act_bwd_parts(M, N, dtype) * N accumulators, needed for db.
void bias_act_bwd(const void* dy, int64_t stride_dym, const void* saved, void* dz, void* db, void* partial,
                  int64_t M, int64_t N, Dtype, Act, double p0, double p1, Target);
int64_t bias_act_bwd_parts(int64_t M, int64_t N, Dtype);

// (outer, n, inner) contiguous, over n.
void softmax_fwd(const void* x, void* y, int64_t outer, int64_t n, int64_t inner, bool log, Dtype, Target);
void softmax_bwd(const void* dy, const void* y, void* dx, int64_t outer, int64_t n, int64_t inner, bool log,
                 Dtype, Target);

}  // namespace kz
