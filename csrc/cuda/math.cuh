// The activations: value and derivative side by side, pure functions on values.
//
// Every function takes a calculus `C` (Fp64, Fp32, Fp16 below) that says how exp, erf and a quotient are
// computed. `s` in a derivative is what the forward saved: the output for sigmoid and tanh, either the
// input or the output for relu, relu6, hardtanh and leaky_relu, the input for all others. A derivative
// returns dz, not a factor: a zero slope gives 0 even where dy is inf or NaN, as torch's selects do.
// NaN and inf come out where torch's formulas put them, so the forms below follow torch's.
//
// Also compiles as host C++, for tests without a GPU.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define KZ_FN __host__ __device__ __forceinline__
#define KZ_UNROLL _Pragma("unroll")
#else
#define KZ_FN inline
#define KZ_UNROLL
#endif

namespace kz {

// Comparisons, not fmin/fmax: those drop a NaN.
template <typename R>
KZ_FN R clamp(R x, R low, R high) {
  return x < low ? low : (x > high ? high : x);
}

// What fp64 and fp32 share: the language's own functions, a few ulp.
template <typename Real>
struct Exact {
  using T = Real;
  static KZ_FN T exp(T x) { return ::exp(x); }
  static KZ_FN T expm1(T x) { return ::expm1(x); }
  static KZ_FN T log1p(T z) { return ::log1p(z); }  // of z = exp(-|x|), in [0, 1]
  static KZ_FN T tanh(T x) { return ::tanh(x); }
  static KZ_FN T div(T a, T b) { return a / b; }
  static KZ_FN T sixth(T x) { return x / T(6); }
  static KZ_FN T gauss(T x) { return exp(T(-0.5) * x * x); }
  static KZ_FN T normal_cdf(T x, T) { return T(0.5) * (T(1) + ::erf(x * T(0.70710678118654752440))); }
};

using Fp64 = Exact<double>;

struct Fp32 : Exact<float> {
  static KZ_FN T exp(T x) { return ::expf(x); }
  static KZ_FN T expm1(T x) { return ::expm1f(x); }
  static KZ_FN T log1p(T z) { return ::log1pf(z); }
  static KZ_FN T tanh(T x) { return ::tanhf(x); }
  // The reciprocal is good to 1 ulp, so the quotient to 1.5. The exact `/` calls a subroutine for odd
  // operands, around which registers spill. Not __fdividef: it returns 0 for b between 2^126 and 2^128,
  // where 1 + exp(88) lies.
  static KZ_FN T div(T a, T b) {
#ifdef __CUDA_ARCH__
    T r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(b));
    return a * r;
#else
    return a * (1.0f / b);
#endif
  }
  static KZ_FN T sixth(T x) { return x * (1.0f / 6.0f); }
  static KZ_FN T gauss(T x) { return exp(-0.5f * x * x); }
  static KZ_FN T normal_cdf(T x, T) { return 0.5f * (1.0f + ::erff(x * 0.70710678118654752440f)); }
};

// For bf16 and fp16 storage: fp32 arithmetic with errors of about 1e-6, far below the 5e-4 of a rounding
// to fp16. At 4.3 TB/s a chip of 132 multiprocessors has 28 instruction slots an element for a 2-byte
// forward pass: the exact erf alone would use them up.
struct Fp16 : Fp32 {
  static KZ_FN T exp(T x) {
#ifdef __CUDA_ARCH__
    return __expf(x);
#else
    return ::expf(x);
#endif
  }

  static KZ_FN T gauss(T x) { return exp(-0.5f * x * x); }

  // log1p(z) / z as a minimax polynomial on [0, 1], relative error 2e-7.
  static KZ_FN T log1p(T z) {
    T q = -0.0085390965f;
    q = q * z + 0.0440892391f;
    q = q * z - 0.10768117f;
    q = q * z + 0.177452043f;
    q = q * z - 0.244954497f;
    q = q * z + 0.332754761f;
    q = q * z - 0.499974042f;
    q = q * z + 0.999999821f;
    return z * q;
  }

  // cdf(-|x|) = gauss(x) * t * p(t), t = 1 / (1 + 0.3275911 |x| / sqrt 2): the form of Abramowitz and
  // Stegun 7.1.26, with p fitted to a relative error of 3e-7, so that the tail keeps its digits too.
  static KZ_FN T normal_cdf(T x, T gauss_x) {
    T t = div(1.0f, 1.0f + 0.231641888f * fabsf(x));
    T p = -0.0684274957f;
    p = p * t + 0.239199013f;
    p = p * t - 0.186682701f;
    p = p * t + 0.211070314f;
    p = p * t + 0.0213141702f;
    p = p * t + 0.100201294f;
    p = p * t + 0.0908316821f;
    p = p * t + 0.0924938619f;
    T tail = gauss_x * (t * p);
    return x > 0.0f ? 1.0f - tail : tail;
  }
};

template <typename C>
KZ_FN typename C::T sigmoid(typename C::T x) {
  using T = typename C::T;
  return C::div(T(1), T(1) + C::exp(-x));
}

// Each: y = value(x), dz = grad(dy, s); parameters p and q where it has any.
#define KZ_VALUE \
  template <typename C, typename T = typename C::T> \
  static KZ_FN T value(T x, [[maybe_unused]] T p, [[maybe_unused]] T q)
#define KZ_GRAD \
  template <typename C, typename T = typename C::T> \
  static KZ_FN T grad(T dy, [[maybe_unused]] T s, [[maybe_unused]] T p, [[maybe_unused]] T q)

struct None {
  KZ_VALUE { return x; }
  KZ_GRAD { return dy; }
};

struct Relu {
  KZ_VALUE { return x <= T(0) ? T(0) : x; }
  KZ_GRAD { return s <= T(0) ? T(0) : dy; }
};

struct Relu6 {
  KZ_VALUE { return clamp(x, T(0), T(6)); }
  KZ_GRAD { return s <= T(0) || s >= T(6) ? T(0) : dy; }
};

struct LeakyRelu {  // p: negative_slope
  KZ_VALUE { return x > T(0) ? x : x * p; }
  KZ_GRAD { return s > T(0) ? dy : dy * p; }
};

struct Elu {  // p: alpha
  KZ_VALUE { return x <= T(0) ? p * C::expm1(x) : x; }
  KZ_GRAD { return s <= T(0) ? dy * p * C::exp(s) : dy; }
};

struct Selu {
  static constexpr double ALPHA = 1.6732632423543772848170429916717;
  static constexpr double SCALE = 1.0507009873554804934193349852946;
  KZ_VALUE { return x <= T(0) ? T(ALPHA * SCALE) * C::expm1(x) : x * T(SCALE); }
  KZ_GRAD { return s <= T(0) ? dy * T(ALPHA * SCALE) * C::exp(s) : dy * T(SCALE); }
};

struct Celu {  // p: alpha
  KZ_VALUE { return x <= T(0) ? p * C::expm1(C::div(x, p)) : x; }
  KZ_GRAD { return s <= T(0) ? dy * C::exp(C::div(s, p)) : dy; }
};

struct Gelu {
  KZ_VALUE { return x * C::normal_cdf(x, C::gauss(x)); }
  KZ_GRAD {
    T gauss = C::gauss(s);
    T pdf = T(0.39894228040143267794) * gauss;
    return dy * (C::normal_cdf(s, gauss) + s * pdf);
  }
};

// tanh(u) = 2 sigmoid(2u) - 1, so 0.5 (1 + tanh(u)) = sigmoid(2u), which keeps its digits where tanh is -1.
struct GeluTanh {
  static constexpr double BETA = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double KAPPA = 0.044715;
  KZ_VALUE {
    T u = T(BETA) * (x + T(KAPPA) * x * x * x);
    return C::div(x, T(1) + C::exp(T(-2) * u));
  }
  KZ_GRAD {
    T u = T(BETA) * (s + T(KAPPA) * s * s * s);
    T du = T(BETA) * (T(1) + T(3 * KAPPA) * s * s);
    T g = sigmoid<C>(T(2) * u);
    return dy * (g + T(2) * s * g * (T(1) - g) * du);
  }
};

struct Silu {
  KZ_VALUE { return C::div(x, T(1) + C::exp(-x)); }
  KZ_GRAD {
    T g = sigmoid<C>(s);
    return dy * g * (T(1) + s * (T(1) - g));
  }
};

// tanh(log1p(e)) = n / (n + 2) with n = e (e + 2), e = exp(x); beyond 20 it is 1 to fp64's last bit.
struct Mish {
  KZ_VALUE {
    T e = C::exp(x), n = e * (e + T(2));
    return x * (x > T(20) ? T(1) : C::div(n, n + T(2)));
  }
  KZ_GRAD {
    T e = C::exp(s), n = e * (e + T(2)), r = C::div(T(1), n + T(2));
    bool one = s > T(20);
    T t = one ? T(1) : n * r;
    T g = one ? T(1) : C::div(e, T(1) + e);
    T slope = one ? T(0) : T(2) * r * (T(1) + t);  // 1 - t^2
    return dy * (t + s * g * slope);
  }
};

struct Sigmoid {
  KZ_VALUE { return sigmoid<C>(x); }
  KZ_GRAD { return dy * (T(1) - s) * s; }
};

struct LogSigmoid {
  KZ_VALUE { return (x < T(0) ? x : T(0)) - C::log1p(C::exp(-::fabs(x))); }
  KZ_GRAD {
    T z = C::exp(-::fabs(s));
    T f = C::div(z, T(1) + z);
    return dy * (s < T(0) ? T(1) - f : f);
  }
};

struct Hardsigmoid {
  KZ_VALUE { return C::sixth(clamp(x + T(3), T(0), T(6))); }
  KZ_GRAD { return s > T(-3) && s < T(3) ? C::sixth(dy) : T(0); }
};

struct Hardswish {
  KZ_VALUE { return C::sixth(x * clamp(x + T(3), T(0), T(6))); }
  KZ_GRAD { return s <= T(-3) ? T(0) : (s < T(3) ? dy * (s * T(1.0 / 3) + T(0.5)) : dy); }
};

struct Hardtanh {  // p: min_val, q: max_val
  KZ_VALUE { return clamp(x, p, q); }
  KZ_GRAD { return s <= p || s >= q ? T(0) : dy; }
};

struct Tanh {
  KZ_VALUE { return C::tanh(x); }
  KZ_GRAD { return dy * (T(1) - s * s); }
};

struct Tanhshrink {
  KZ_VALUE { return x - C::tanh(x); }
  KZ_GRAD {
    T t = C::tanh(s);
    return dy * (t * t) + (dy - dy);  // dy - dy: NaN at inf, as torch's difference of two terms
  }
};

// log1p(exp(v)) = max(v, 0) + log1p(exp(-|v|)); torch's form overflows where exp(v) does.
struct Softplus {  // p: beta, q: threshold
  KZ_VALUE {
    T v = x * p;
    T z = C::exp(-::fabs(v));
    T soft = (v > T(0) ? v : T(0)) + C::log1p(z);
    soft = v > overflow(T()) ? T(INFINITY) : soft;
    return v > q ? x : C::div(soft, p);
  }
  KZ_GRAD {
    T v = s * p;
    T z = C::exp(v);
    return v > q ? dy : C::div(dy * z, z + T(1));
  }
  static KZ_FN float overflow(float) { return 88.722839f; }
  static KZ_FN double overflow(double) { return 709.782712893384; }
};

struct Softsign {
  KZ_VALUE { return C::div(x, T(1) + ::fabs(x)); }
  KZ_GRAD {
    T r = C::div(T(1), T(1) + ::fabs(s));
    return dy * (r * r) + ((s - s) + (dy - dy));  // NaN for an infinite s or dy, as torch's quotient rule
  }
};

struct Softshrink {  // p: lambd; a NaN passes through
  KZ_VALUE { return x > p ? x - p : (x < -p ? x + p : (x != x ? x : T(0))); }
  KZ_GRAD { return s >= -p && s <= p ? T(0) : dy; }
};

struct Hardshrink {  // p: lambd
  KZ_VALUE { return x >= -p && x <= p ? T(0) : x; }
  KZ_GRAD { return s >= -p && s <= p ? T(0) : dy; }
};

struct Threshold {  // p: threshold, q: value
  KZ_VALUE { return x <= p ? q : x; }
  KZ_GRAD { return s <= p ? T(0) : dy; }
};

#undef KZ_VALUE
#undef KZ_GRAD

// The one list: names as Python passes them. Codes are positions here; bindings.cpp hands them out.
#define KZ_ACTIVATIONS(X)    \
  X(none, None)              \
  X(relu, Relu)              \
  X(relu6, Relu6)            \
  X(leaky_relu, LeakyRelu)   \
  X(elu, Elu)                \
  X(selu, Selu)              \
  X(celu, Celu)              \
  X(gelu, Gelu)              \
  X(gelu_tanh, GeluTanh)     \
  X(silu, Silu)              \
  X(mish, Mish)              \
  X(sigmoid, Sigmoid)        \
  X(logsigmoid, LogSigmoid)  \
  X(hardsigmoid, Hardsigmoid)\
  X(hardswish, Hardswish)    \
  X(hardtanh, Hardtanh)      \
  X(tanh, Tanh)              \
  X(tanhshrink, Tanhshrink)  \
  X(softplus, Softplus)      \
  X(softsign, Softsign)      \
  X(softshrink, Softshrink)  \
  X(hardshrink, Hardshrink)  \
  X(threshold, Threshold)

enum class Act : int {
#define KZ_CODE(name, Type) name,
  KZ_ACTIVATIONS(KZ_CODE)
#undef KZ_CODE
};

// v[i] = act(v[i]). The activation is a uniform run-time switch around a whole tile of registers, not a
// template of the kernel: one branch for 4 to 8 elements is lost beside their memory traffic, and 23 kernels
// a dtype, pass and architecture become one. All of them take nvcc 50 s of one core for three architectures.
template <typename C, int N, typename T = typename C::T>
KZ_FN void apply_value(Act act, T (&v)[N], T p, T q) {
  switch (act) {
#define KZ_CASE(name, Type)                                   \
  case Act::name:                                             \
    KZ_UNROLL for (int i = 0; i < N; ++i) v[i] = Type::template value<C>(v[i], p, q); \
    break;
    KZ_ACTIVATIONS(KZ_CASE)
#undef KZ_CASE
  }
}

// dy[i] = dy[i] * act'(s[i])
template <typename C, int N, typename T = typename C::T>
KZ_FN void apply_grad(Act act, T (&dy)[N], const T (&s)[N], T p, T q) {
  switch (act) {
#define KZ_CASE(name, Type)                                          \
  case Act::name:                                                    \
    KZ_UNROLL for (int i = 0; i < N; ++i) dy[i] = Type::template grad<C>(dy[i], s[i], p, q); \
    break;
    KZ_ACTIVATIONS(KZ_CASE)
#undef KZ_CASE
  }
}

}  // namespace kz
