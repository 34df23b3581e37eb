// Value and derivative of every activation, on scalars, and the functions they need.
//
// Included once per instruction set, inside its namespace. The float functions have no branch, table or
// call, so that a loop over them becomes vector code; they are exact at ±0, ±inf and nan and within 2 ulp or
// so elsewhere. Selects are written with the comparison torch uses: a nan falls to the same side as there.
namespace math {

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float pow2(int32_t n) { return from_bits(static_cast<uint32_t>(n + 127) << 23); }

template <class T>
inline T abs(T x) {
  return x < 0 ? -x : x;
}
inline float abs(float x) { return from_bits(to_bits(x) & 0x7fffffff); }
inline float copysign(float magnitude, float sign) {
  return from_bits(to_bits(magnitude) | (to_bits(sign) & 0x80000000));
}

// x = n ln2 + r, |r| <= ln2/2; exp(r) = 1 + r + r^2 q(r) (Cephes, S. Moshier). ln2 in two parts, the first of
// 10 bits so that its product with n is exact; adding 1.5 * 2^23 rounds to an integer held in the low bits.
struct Reduced {
  int32_t n;
  float r, r2q;
};

inline Reduced reduce(float x) {
  constexpr float MAGIC = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + MAGIC;
  const float n = shifted - MAGIC;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float q = 1.9875691500e-4f;
  q = q * r + 1.3981999507e-3f;
  q = q * r + 8.3334519073e-3f;
  q = q * r + 4.1665795894e-2f;
  q = q * r + 1.6666665459e-1f;
  q = q * r + 5.0000001201e-1f;
  return {static_cast<int32_t>(to_bits(shifted) - 0x4b400000u), r, r * r * q};
}

inline float exp(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const Reduced e = reduce(x);
  const int32_t half = e.n >> 1;  // 2^n in two factors: n reaches 128, and -150 for denormal results
  return (e.r2q + e.r + 1.0f) * pow2(half) * pow2(e.n - half);
}

// exp(x) for x <= 0, with denormal results 0: on many processors each would cost 100 cycles.
inline float exp_flushed(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const Reduced e = reduce(clamped);
  const float y = (e.r2q + e.r + 1.0f) * pow2(e.n);
  return x < -87.0f ? 0.0f : y;
}

inline float expm1(float x) {
  x = x < -30.0f ? -30.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const Reduced e = reduce(x);
  const float half = pow2(e.n - 1);  // half of 2^n, which for n = 128 is no float
  return 2.0f * ((e.r2q + e.r) * half + (half - 0.5f));
}

// log(2^n (1 + f)), 1 + f in [sqrt(1/2), sqrt(2)): Cephes' polynomial.
inline float log_reduced(float n, float f) {
  float q = 7.0376836292e-2f;
  q = q * f + -1.1514610310e-1f;
  q = q * f + 1.1676998740e-1f;
  q = q * f + -1.2420140846e-1f;
  q = q * f + 1.4249322787e-1f;
  q = q * f + -1.6668057665e-1f;
  q = q * f + 2.0000714765e-1f;
  q = q * f + -2.4999993993e-1f;
  q = q * f + 3.3333331174e-1f;
  const float f2 = f * f;
  const float y = q * f * f2 + n * -2.12194440e-4f - 0.5f * f2 + f;
  return y + n * 0.693359375f;
}

inline float log(float x) {
  const float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;  // denormals by 2^23
  const float offset = x < 1.17549435e-38f ? -23.0f : 0.0f;
  const int32_t n = static_cast<int32_t>(to_bits(scaled) - 0x3f3504f3u) >> 23;
  const float f = from_bits(to_bits(scaled) - (static_cast<uint32_t>(n) << 23)) - 1.0f;
  const float finite = log_reduced(static_cast<float>(n) + offset, f);
  const float positive = x > 3.4028234e38f ? x : finite;
  const float zero = x == 0.0f ? -INFINITY : NAN;
  return x > 0.0f ? positive : (x != x ? x : zero);
}

// log(1 + x) for x >= 0; `lost`: what rounding took of 1 + x.
inline float log1p(float x) {
  const float w = 1.0f + x;
  const float lost = x < 1.0f ? x - (w - 1.0f) : 1.0f - (w - x);
  const int32_t n = static_cast<int32_t>(to_bits(w) - 0x3f3504f3u) >> 23;
  const float m = from_bits(to_bits(w) - (static_cast<uint32_t>(n) << 23));
  const float f = (m - 1.0f) + lost * from_bits(static_cast<uint32_t>(127 - n) << 23);
  const float result = log_reduced(static_cast<float>(n), f);
  return x > 3.4e38f ? x : result;
}

// With e = exp(-2|x|): (1 - e) / (1 + e) keeps small results exact, 1 - 2e / (1 + e) those near 1, which the
// derivative 1 - y^2 needs to the last bit.
inline float tanh(float x) {
  const float twice = -2.0f * abs(x);
  const Reduced reduced = reduce(twice < -30.0f ? -30.0f : twice);
  const float scale = pow2(reduced.n), part = (reduced.r2q + reduced.r) * scale;
  const float e = part + scale, minus_expm1 = (1.0f - scale) - part;
  const float ratio = (twice < -1.0f ? 2.0f * e : minus_expm1) / (1.0f + e);
  return copysign(twice < -1.0f ? 1.0f - ratio : ratio, x);
}

struct Normal {
  float cdf, pdf;
};

// Standard normal, both tails to full relative accuracy: cdf(-|x|) = exp(-x^2/2) t p(t), t = 1 / (1 + |x|/4),
// p a minimax fit of our own for |x| <= 13.5 (relative error 8e-9).
inline Normal normal(float x) {
  const float t = 1.0f / (1.0f + 0.25f * abs(x));
  const float e = exp_flushed(-0.5f * x * x);
  float p = 0.016235660761594772f;
  p = p * t + -0.060863953083753586f;
  p = p * t + 0.046956948935985565f;
  p = p * t + 0.034944385290145874f;
  p = p * t + 0.007061856798827648f;
  p = p * t + 0.08983679860830307f;
  p = p * t + 0.0708409920334816f;
  p = p * t + 0.09577871859073639f;
  p = p * t + 0.09945883601903915f;
  p = p * t + 0.09974976629018784f;
  const float tail = p * t * e;
  return {x < 0.0f ? tail : 1.0f - tail, 0.3989422804014327f * e};
}

// x - tanh(x); below 0.6 the difference would cancel, and a fit of (x - tanh x) / x^3 in x^2 takes its place.
inline float tanhshrink(float x) {
  const float u = x * x;
  float p = -0.002368094865232706f;
  p = p * u + 0.008407650515437126f;
  p = p * u + -0.021787552163004875f;
  p = p * u + 0.05396145209670067f;
  p = p * u + -0.13333311676979065f;
  p = p * u + 0.3333333432674408f;
  const float small = p * u * x;
  const float large = x - tanh(x);
  return u < 0.36f ? small : large;
}

struct NormalDouble {
  double cdf, pdf;
};

inline double exp(double x) { return std::exp(x); }
inline double exp_flushed(double x) { return std::exp(x); }
inline double expm1(double x) { return std::expm1(x); }
inline double log(double x) { return std::log(x); }
inline double log1p(double x) { return std::log1p(x); }
inline double tanh(double x) { return std::tanh(x); }
inline double tanhshrink(double x) { return x - std::tanh(x); }
inline NormalDouble normal(double x) {
  return {0.5 * (1.0 + std::erf(x * 0.70710678118654752440)), 0.39894228040143267794 * std::exp(-0.5 * x * x)};
}

}  // namespace math

// Each activation: value(x) and grad(dy, saved), `saved` being x, or for sigmoid and tanh the output.
// grad returns the gradient, not a factor: where torch selects 0, an infinite dy gives 0 as well.
namespace acts {

struct none {
  template <class T>
  static T value(T x, T, T) {
    return x;
  }
  template <class T>
  static T grad(T dy, T, T, T) {
    return dy;
  }
};

struct relu {
  template <class T>
  static T value(T x, T, T) {
    return x <= 0 ? 0 : x;
  }
  template <class T>
  static T grad(T dy, T y, T, T) {
    return y <= 0 ? 0 : dy;
  }
};

struct relu6 {
  template <class T>
  static T value(T x, T, T) {
    x = x < 0 ? 0 : x;
    return x > 6 ? 6 : x;
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    dy = x <= 0 ? 0 : dy;
    return x >= 6 ? 0 : dy;
  }
};

struct leaky_relu {
  template <class T>
  static T value(T x, T slope, T) {
    return x > 0 ? x : x * slope;
  }
  template <class T>
  static T grad(T dy, T x, T slope, T) {
    return x > 0 ? dy : dy * slope;
  }
};

struct elu {
  template <class T>
  static T value(T x, T alpha, T) {
    const T below = alpha * math::expm1(x);
    return x <= 0 ? below : x;
  }
  template <class T>
  static T grad(T dy, T x, T alpha, T) {
    const T below = dy * alpha * math::exp(x);
    return x <= 0 ? below : dy;
  }
};

struct selu {
  static constexpr double ALPHA = 1.6732632423543772848170429916717;
  static constexpr double SCALE = 1.0507009873554804934193349852946;
  template <class T>
  static T value(T x, T, T) {
    const T below = T(ALPHA * SCALE) * math::expm1(x);
    return x <= 0 ? below : x * T(SCALE);
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T below = dy * T(ALPHA * SCALE) * math::exp(x);
    return x <= 0 ? below : dy * T(SCALE);
  }
};

struct celu {
  template <class T>
  static T value(T x, T alpha, T) {
    const T below = alpha * math::expm1(x / alpha);
    return x <= 0 ? below : x;
  }
  template <class T>
  static T grad(T dy, T x, T alpha, T) {
    const T below = dy * math::exp(x / alpha);
    return x <= 0 ? below : dy;
  }
};

struct gelu {
  template <class T>
  static T value(T x, T, T) {
    return x * math::normal(x).cdf;
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const auto p = math::normal(x);
    return dy * (p.cdf + x * p.pdf);
  }
};

// With u = sqrt(2/pi) (x + 0.044715 x^3): 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)), which keeps the lower tail.
struct gelu_tanh {
  static constexpr double K = 0.79788456080286535588, CUBIC = 0.044715;
  template <class T>
  static T value(T x, T, T) {
    return x / (1 + math::exp(T(-2 * K) * (x + T(CUBIC) * x * x * x)));
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T e = math::exp(T(-2 * K) * (x + T(CUBIC) * x * x * x)), s = 1 / (1 + e);
    const T complement = (e > T(1e18) ? T(1e18) : e) * s;  // 1 - s without cancellation, and inf * 0
    const T du = T(K) * (1 + T(3 * CUBIC) * x * x);
    return dy * (s + x * 2 * s * complement * du);
  }
};

struct silu {
  template <class T>
  static T value(T x, T, T) {
    return x / (1 + math::exp(-x));
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T s = 1 / (1 + math::exp(-x));
    return dy * (s * (1 + x * (1 - s)));
  }
};

// tanh(log1p(e)) = n / (n + 2) with n = e (e + 2), e = exp(x): 1 long before the bound on e, which keeps n finite.
struct mish {
  template <class T>
  static T bounded_exp(T x) {
    const T e = math::exp(x);
    return e > T(1e18) ? T(1e18) : e;
  }
  template <class T>
  static T value(T x, T, T) {
    const T e = bounded_exp(x), n = e * (e + 2);
    return x * (n / (n + 2));
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T e = bounded_exp(x), n = e * (e + 2), t = n / (n + 2);
    return dy * (t + x * (e / (1 + e)) * (1 - t * t));
  }
};

struct sigmoid {
  template <class T>
  static T value(T x, T, T) {
    return 1 / (1 + math::exp(-x));
  }
  template <class T>
  static T grad(T dy, T y, T, T) {
    return dy * (1 - y) * y;
  }
};

struct logsigmoid {
  template <class T>
  static T value(T x, T, T) {
    return (x < 0 ? x : 0) - math::log1p(math::exp(-math::abs(x)));
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T z = math::exp(-math::abs(x)), r = z / (1 + z);
    return dy * (x < 0 ? 1 - r : r);
  }
};

struct hardsigmoid {
  template <class T>
  static T value(T x, T, T) {
    return relu6::value(x + 3, x, x) / 6;
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T inside = x > -3 ? dy / 6 : 0;
    return x < 3 ? inside : 0;
  }
};

struct hardswish {
  template <class T>
  static T value(T x, T, T) {
    return x * relu6::value(x + 3, x, x) / 6;
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T inside = dy * (x / 3 + T(0.5));
    const T upper = x >= 3 ? dy : inside;
    return x <= -3 ? 0 : upper;
  }
};

struct hardtanh {
  template <class T>
  static T value(T x, T low, T high) {
    x = x < low ? low : x;
    return x > high ? high : x;
  }
  template <class T>
  static T grad(T dy, T x, T low, T high) {
    dy = x <= low ? 0 : dy;
    return x >= high ? 0 : dy;
  }
};

struct tanh {
  template <class T>
  static T value(T x, T, T) {
    return math::tanh(x);
  }
  template <class T>
  static T grad(T dy, T y, T, T) {
    return dy * (1 - y * y);
  }
};

struct tanhshrink {
  template <class T>
  static T value(T x, T, T) {
    return math::tanhshrink(x);
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T t = math::tanh(x);
    return dy * (t * t) + (dy - dy);  // nan for an infinite dy, as torch's difference of two terms
  }
};

struct softplus {
  template <class T>
  static T value(T x, T beta, T threshold) {
    const T v = x * beta;
    const T soft = math::log1p(math::exp(v)) / beta;
    return v > threshold ? x : soft;
  }
  template <class T>
  static T grad(T dy, T x, T beta, T threshold) {
    const T v = x * beta, z = math::exp(v);
    const T soft = dy * z / (z + 1);
    return v > threshold ? dy : soft;
  }
};

struct softsign {
  template <class T>
  static T value(T x, T, T) {
    return x / (1 + math::abs(x));
  }
  template <class T>
  static T grad(T dy, T x, T, T) {
    const T r = 1 / (1 + math::abs(x));
    return dy * (r * r) + ((x - x) + (dy - dy));  // nan for an infinite x or dy, as torch's quotient rule
  }
};

struct softshrink {
  template <class T>
  static T value(T x, T lambd, T) {
    const T lower = x < -lambd ? x + lambd : x * 0;
    return x > lambd ? x - lambd : lower;
  }
  template <class T>
  static T grad(T dy, T x, T lambd, T) {
    const T upper = x <= lambd ? 0 : dy;
    return x >= -lambd ? upper : dy;
  }
};

struct hardshrink {
  template <class T>
  static T value(T x, T lambd, T) {
    return grad(x, x, lambd, lambd);
  }
  template <class T>
  static T grad(T dy, T x, T lambd, T) {
    const T upper = x <= lambd ? 0 : dy;
    return x >= -lambd ? upper : dy;
  }
};

struct threshold {
  template <class T>
  static T value(T x, T bound, T otherwise) {
    return x <= bound ? otherwise : x;
  }
  template <class T>
  static T grad(T dy, T x, T bound, T) {
    return x <= bound ? 0 : dy;
  }
};

}  // namespace acts
