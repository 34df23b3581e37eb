// Storage types, 16-byte accesses, and the dispatch over dtypes that all kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.h"
#include "math.cuh"

namespace kz {

constexpr int THREADS = 256;

// Bits: what one element is loaded as. C: the calculus of math.cuh that serves it.
template <typename S>
struct Storage;

template <>
struct Storage<double> {
  using C = Fp64;
  using Bits = unsigned long long;
  static __device__ double decode(Bits b) { return __longlong_as_double(static_cast<long long>(b)); }
  static __device__ Bits encode(double v) { return static_cast<Bits>(__double_as_longlong(v)); }
};

template <>
struct Storage<float> {
  using C = Fp32;
  using Bits = unsigned int;
  static __device__ float decode(Bits b) { return __uint_as_float(b); }
  static __device__ Bits encode(float v) { return __float_as_uint(v); }
};

template <>
struct Storage<__half> {
  using C = Fp16;
  using Bits = unsigned short;
  static __device__ float decode(Bits b) { return __half2float(__ushort_as_half(b)); }
  static __device__ Bits encode(float v) { return __half_as_ushort(__float2half_rn(v)); }
  static __device__ unsigned int encode2(float lo, float hi) {
    __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<unsigned int*>(&h);
  }
};

template <>
struct Storage<__nv_bfloat16> {
  using C = Fp16;
  using Bits = unsigned short;
  static __device__ float decode(Bits b) { return __uint_as_float(static_cast<unsigned int>(b) << 16); }
  static __device__ Bits encode(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
  static __device__ unsigned int encode2(float lo, float hi) {
    __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<unsigned int*>(&h);
  }
};

template <typename S>
using CalcOf = typename Storage<S>::C;
template <typename S>
using AccOf = typename Storage<S>::C::T;
template <typename S>
constexpr int VEC16 = 16 / sizeof(S);

// VEC elements as they lie in memory: 16 bytes in four registers, or one element.
template <typename S, int VEC>
struct Raw;

template <typename S>
struct Raw<S, 1> {
  typename Storage<S>::Bits bits;

  __device__ void load(const S* ptr, int64_t left) {
    bits = left > 0 ? *reinterpret_cast<const typename Storage<S>::Bits*>(ptr) : 0;
  }
  __device__ void store(S* ptr, int64_t left) const {
    if (left > 0) *reinterpret_cast<typename Storage<S>::Bits*>(ptr) = bits;
  }
  template <int N>
  __device__ void decode(AccOf<S> (&v)[N], int = 0) const { v[0] = Storage<S>::decode(bits); }
  template <int N>
  __device__ void encode(const AccOf<S> (&v)[N], int = 0) { bits = Storage<S>::encode(v[0]); }
};

template <typename S, int VEC>
struct Raw {
  static_assert(VEC * sizeof(S) == 16);
  using Bits = typename Storage<S>::Bits;
  unsigned int w[4];

  // `left` elements exist from ptr on: at the end of a row or tensor the rest reads as 0. ptr is 16-byte
  // aligned.
  __device__ void load(const S* ptr, int64_t left) {
    if (left >= VEC) {
      uint4 q = *reinterpret_cast<const uint4*>(ptr);
      w[0] = q.x, w[1] = q.y, w[2] = q.z, w[3] = q.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = 0;
#pragma unroll
      for (int j = 0; j < VEC - 1; ++j)
        if (j < left) put(j, reinterpret_cast<const Bits*>(ptr)[j]);
    }
  }

  __device__ void store(S* ptr, int64_t left) const {
    if (left >= VEC) {
      *reinterpret_cast<uint4*>(ptr) = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
#pragma unroll
      for (int j = 0; j < VEC - 1; ++j)
        if (j < left) reinterpret_cast<Bits*>(ptr)[j] = get(j);
    }
  }

  // N elements from element `from` on
  template <int N>
  __device__ void decode(AccOf<S> (&v)[N], int from = 0) const {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = Storage<S>::decode(get(from + j));
  }

  template <int N>
  __device__ void encode(const AccOf<S> (&v)[N], int from = 0) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if constexpr (sizeof(S) == 2) {
        if (j % 2 == 0) w[(from + j) / 2] = Storage<S>::encode2(v[j], v[j + 1]);
      } else {
        put(from + j, Storage<S>::encode(v[j]));
      }
    }
  }

 private:
  // j is a constant once unrolled, so that w stays in registers.
  __device__ Bits get(int j) const {
    if constexpr (sizeof(S) == 8) {
      return static_cast<Bits>(w[2 * j]) | static_cast<Bits>(w[2 * j + 1]) << 32;
    } else if constexpr (sizeof(S) == 4) {
      return w[j];
    } else {
      return static_cast<Bits>(w[j / 2] >> (j % 2 * 16));
    }
  }
  __device__ void put(int j, Bits b) {
    if constexpr (sizeof(S) == 8) {
      w[2 * j] = static_cast<unsigned int>(b), w[2 * j + 1] = static_cast<unsigned int>(b >> 32);
    } else if constexpr (sizeof(S) == 4) {
      w[j] = b;
    } else {
      w[j / 2] |= static_cast<unsigned int>(b) << (j % 2 * 16);  // the word was zeroed
    }
  }
};

// Calls f with a null pointer of the storage type: f(static_cast<float*>(nullptr)).
template <typename F>
void for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return f(static_cast<double*>(nullptr));
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

inline bool aligned16(const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; }

KZ_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

KZ_FN int pow2_ceil(int64_t n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

}  // namespace kz
