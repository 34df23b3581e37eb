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
#else
  float wide[WIDTH<float>];
  load(p, wide, WIDTH<float>);
  return loadv(wide);
#endif
}

inline Vec<float> widened(const Fp16* p) {
#ifdef KERNELZOO_ISA_avx512
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
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
#else
  float wide[WIDTH<float>];
  storev(wide, v);
  store(wide, p, WIDTH<float>);
#endif
}

inline void narrowed(Vec<float> v, Fp16* p) {
  float wide[WIDTH<float>];
  storev(wide, v);
  store(wide, p, WIDTH<float>);
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
