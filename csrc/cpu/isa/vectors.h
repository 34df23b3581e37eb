// Vectors of the arithmetic's type, loaded from and stored to the types in memory. After tile.h.

template <class T>
using Choice = typename Lanes<T>::Int;

template <class T>
inline Vec<T> widened(const T* p) {
  return loadv(p);
}

// By name where GCC takes a conversion between vectors of different lengths apart, element by element.
inline Vec<float> widened(const Bf16* p) {
#ifdef KERNELZOO_ISA_avx512
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(KERNELZOO_ISA_avx2)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
  float wide[WIDTH<float>];
  load(p, wide, WIDTH<float>);
  return loadv(wide);
#endif
}

inline Vec<float> widened(const Fp16* p) {
#ifdef KERNELZOO_ISA_avx512
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(KERNELZOO_ISA_avx2)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  float wide[WIDTH<float>];
  load(p, wide, WIDTH<float>);
  return loadv(wide);
#endif
}

template <class T>
inline void narrowed(Vec<T> v, T* p) {
  storev(p, v);
}

// Rounded to nearest even, as convert.h does.
inline void narrowed(Vec<float> v, Bf16* p) {
#ifdef KERNELZOO_ISA_avx512
  const __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_srli_epi32(rounded, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
#elif defined(KERNELZOO_ISA_avx2)
  const __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  rounded = _mm256_srli_epi32(rounded, 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#else
  float wide[WIDTH<float>];
  storev(wide, v);
  store(wide, p, WIDTH<float>);
#endif
}

inline void narrowed(Vec<float> v, Fp16* p) {
#ifdef KERNELZOO_ISA_avx512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(KERNELZOO_ISA_avx2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  float wide[WIDTH<float>];
  storev(wide, v);
  store(wide, p, WIDTH<float>);
#endif
}

inline double widened_one(const double* p) { return *p; }
inline float widened_one(const float* p) { return *p; }
template <class S>
inline float widened_one(const S* p) {
  float x;
  load(p, &x, 1);
  return x;
}

template <class S, class T>
inline void narrowed_one(T x, S* p) {
  store(&x, p, 1);
}
