// Loads and stores of the types in memory: bf16 and fp16 are widened exactly, and rounded to nearest even.

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

template <class T>
void load(const T* s, T* t, int64_t n) {
  std::memcpy(t, s, n * sizeof(T));
}

template <class T>
void store(const T* t, T* s, int64_t n) {
  std::memcpy(s, t, n * sizeof(T));
}

inline void load(const Bf16* s, float* t, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) t[i] = math::from_bits(static_cast<uint32_t>(s[i].bits) << 16);
}

// Not vcvtneps2bf16: it takes denormals for 0.
inline void store(const float* t, Bf16* s, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = math::to_bits(t[i]);
    const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    s[i].bits = static_cast<uint16_t>(t[i] != t[i] ? 0x7fc0 : rounded);
  }
}

// 2^112 moves fp16's exponent, and its denormals, to where float has them.
inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const float finite = math::from_bits(magnitude << 13) * 5.192296858534828e33f;
  const uint32_t bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000u : math::to_bits(finite);
  return math::from_bits(bits | static_cast<uint32_t>(half & 0x8000) << 16);
}

inline uint16_t float_to_half(float x) {
  const uint32_t u = math::to_bits(x), magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // adding 0.5 shifts the bits of a denormal to the bottom of the mantissa, rounded
  const uint32_t denormal = math::to_bits(math::from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  return static_cast<uint16_t>((magnitude >= 0x47800000u ? special : finite) | (u >> 16 & 0x8000));
}

inline void load(const Fp16* s, float* t, int64_t n) {
  int64_t i = 0;
#ifdef KERNELZOO_F16C
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i));
    _mm256_storeu_ps(t + i, _mm256_cvtph_ps(half));
  }
#endif
#pragma omp simd
  for (int64_t j = i; j < n; ++j) t[j] = half_to_float(s[j].bits);
}

inline void store(const float* t, Fp16* s, int64_t n) {
  int64_t i = 0;
#ifdef KERNELZOO_F16C
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(t + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(s + i), half);
  }
#endif
#pragma omp simd
  for (int64_t j = i; j < n; ++j) s[j].bits = float_to_half(t[j]);
}
