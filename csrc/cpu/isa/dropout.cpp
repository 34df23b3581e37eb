// Dropout.
#include "../dropout.h"
#include "begin.h"

constexpr int64_t GROUP = 64;    // elements whose words are made at once: 16 blocks
constexpr int64_t PIECE = 1024;  // elements whose factors lie in L1

#ifdef KERNELZOO_ISA_avx512

// A word stands in the low half of a 64-bit lane; what stands above it is never looked at, as vpmuludq reads the low
// halves only. So a round is two products, two shifts and two three-way xors for 8 blocks.
struct Lanes {
  __m512i c0, c1, c2, c3;
};

inline __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

inline void philox_round(Lanes& s, __m512i k0, __m512i k1) {
  const __m512i a = _mm512_mul_epu32(s.c0, _mm512_set1_epi64(0xD2511F53));
  const __m512i b = _mm512_mul_epu32(s.c2, _mm512_set1_epi64(0xCD9E8D57));
  s.c0 = xor3(_mm512_srli_epi64(b, 32), s.c1, k0);
  s.c2 = xor3(_mm512_srli_epi64(a, 32), s.c3, k1);
  s.c1 = b;
  s.c3 = a;
}

// The words of 8 blocks, whose order in the lanes is 0 4 1 5 2 6 3 7, as two vectors in the elements' order.
inline void in_order(const Lanes& s, __m512i* words) {
  const __m512i low = _mm512_mask_blend_epi32(0xAAAA, s.c0, _mm512_slli_epi64(s.c1, 32));
  const __m512i high = _mm512_mask_blend_epi32(0xAAAA, s.c2, _mm512_slli_epi64(s.c3, 32));
  words[0] = _mm512_unpacklo_epi64(low, high);
  words[1] = _mm512_unpackhi_epi64(low, high);
}

inline void put(__mmask16 kept, float scale, float* factors) {
  _mm512_storeu_ps(factors, _mm512_maskz_mov_ps(kept, _mm512_set1_ps(scale)));
}

inline void put(__mmask16 kept, double scale, double* factors) {
  _mm512_storeu_pd(factors, _mm512_maskz_mov_pd(static_cast<__mmask8>(kept), _mm512_set1_pd(scale)));
  _mm512_storeu_pd(factors + 8, _mm512_maskz_mov_pd(static_cast<__mmask8>(kept >> 8), _mm512_set1_pd(scale)));
}

template <class T>
void draw(uint64_t seed, uint64_t block, int64_t groups, uint32_t threshold, T scale, T* factors) {
  const __m512i least = _mm512_set1_epi32(static_cast<int>(threshold));
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  __m512i keys[7][2];
  for (int round = 0; round < 7; ++round) {
    keys[round][0] = _mm512_set1_epi64(k0);
    keys[round][1] = _mm512_set1_epi64(k1);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const __m512i zero = _mm512_setzero_si512();
  __m512i counter = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(block)),
                                     _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  for (int64_t g = 0; g < groups; ++g, factors += GROUP) {
    const __m512i next = _mm512_add_epi64(counter, _mm512_set1_epi64(8));
    Lanes s{counter, _mm512_srli_epi64(counter, 32), zero, zero};
    Lanes t{next, _mm512_srli_epi64(next, 32), zero, zero};
    counter = _mm512_add_epi64(counter, _mm512_set1_epi64(16));
    for (int round = 0; round < 7; ++round) {
      philox_round(s, keys[round][0], keys[round][1]);
      philox_round(t, keys[round][0], keys[round][1]);
    }
    __m512i words[4];
    in_order(s, words);
    in_order(t, words + 2);
    for (int i = 0; i < 4; ++i) put(_mm512_cmpge_epu32_mask(words[i], least), scale, factors + 16 * i);
  }
}

#else

template <class T>
void draw(uint64_t seed, uint64_t block, int64_t groups, uint32_t threshold, T scale, T* factors) {
  const int64_t blocks = groups * (GROUP / 4);
#pragma omp simd
  for (int64_t i = 0; i < blocks; ++i) {
    const Words words = philox(seed, block + i);
    for (int j = 0; j < 4; ++j) factors[4 * i + j] = words.w[j] < threshold ? T(0) : scale;
  }
}

#endif

template <class S, class T>
void fwd(const void* x_, const void* residual_, void* y_, int64_t first, int64_t n, uint64_t seed,
         uint32_t threshold, double scale) {
  const S* x = static_cast<const S*>(x_);
  const S* residual = static_cast<const S*>(residual_);
  S* y = static_cast<S*>(y_);
  T factors[PIECE], block[PIECE], other[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    const int64_t m = n - i < PIECE ? n - i : PIECE;
    draw<T>(seed, static_cast<uint64_t>(first + i) / 4, (m + GROUP - 1) / GROUP, threshold, T(scale), factors);
    const T* in = loaded(x + i, block, m);
    T* out = block;
    if constexpr (sizeof(S) == sizeof(T)) out = y + i;
    // a dropped NaN or infinity gives NaN: torch multiplies with 0
    if (residual) {
      const T* add = loaded(residual + i, other, m);
#pragma omp simd
      for (int64_t j = 0; j < m; ++j) out[j] = add[j] + in[j] * factors[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < m; ++j) out[j] = in[j] * factors[j];
    }
    if constexpr (sizeof(S) != sizeof(T)) store(out, y + i, m);
  }
}

const DropoutKernels TABLES[DTYPES] = {{fwd<double, double>}, {fwd<float, float>}, {fwd<Bf16, float>},
                                       {fwd<Fp16, float>}};

KERNELZOO_EXPORT(DropoutKernels, dropout, TABLES)
