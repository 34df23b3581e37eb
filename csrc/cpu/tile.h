// Tiles of matrix products that lie in registers, C (M, N) (+)= A (M, K) B (K, N), on vectors of the compiler's.
//
// A's elements are broadcast, wherever they lie (strides row and k), B's and C's rows are whole vectors. On AVX-512 a
// tile has 6 rows of 4 vectors: 24 sums, 4 vectors of B and the broadcast fill the 32 registers, and 10 loads serve
// 24 multiply-adds.

constexpr int64_t TILE_VECTORS = VECTOR_BYTES == 64 ? 4 : 2, TILE_ROWS = 6;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
  using Int = int32_t;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
  using Int = int64_t;
};
template <class T>
using Vec = typename Lanes<T>::V;
template <class T>
using IVec = typename Lanes<T>::I;
template <class T>
constexpr int64_t WIDTH = VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> loadv(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void storev(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
inline IVec<T> loadi(const typename Lanes<T>::Int* p) {
  IVec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// How a product multiplies: T's own arithmetic, a unit of memory being one element of k.
template <class Type>
struct Plain {
  using T = Type;
  static constexpr bool DOT = false;
  static constexpr int64_t PAIR = 1;
  static Vec<T> dot(const T* a, Vec<T> b, Vec<T> acc) { return *a * b + acc; }
  static Vec<T> dots(Vec<T> a, Vec<T> b, Vec<T> acc) { return a * b + acc; }
};

// Pairs of bf16 along k, a unit of memory being a pair; sums in float.
struct Dot {
  using T = float;
  static constexpr bool DOT = true;
  static constexpr int64_t PAIR = 2;
#ifdef KERNELZOO_ISA_avx512
  // By name, not by intrinsic: the file is not compiled for avx512_bf16, which the driver asks the processor for.
  static Vec<float> dot(const float* a, Vec<float> b, Vec<float> acc) {
    int32_t bits;
    std::memcpy(&bits, a, sizeof bits);
    return dots((Vec<float>)_mm512_set1_epi32(bits), b, acc);
  }
  static Vec<float> dots(Vec<float> a, Vec<float> b, Vec<float> acc) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }
#endif
};

// The sums must live in registers: where GCC does not unroll the loops over them first of all, they are an array on the
// stack, cleared, written and read again in each call (attention at 8x6x256x64, two AVX2 cores: +10 %).
template <class P, int MR, int NV>
__attribute__((noinline)) void micro(int64_t K, const typename P::T* a, int64_t row, int64_t k_stride,
                                     const typename P::T* b, int64_t ldb, typename P::T* c, int64_t ldc, bool add) {
  using T = typename P::T;
  constexpr int64_t W = WIDTH<T>;
  Vec<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
  // c, dk's or dv's of a long sequence, may lie in L3: on its way while the sums are made (the backward at L 4096: -4 %)
  if (add)
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(c + r * ldc + v * W);
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = loadv(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = P::dot(a + r * row, bv[v], acc[r][v]);
    a += k_stride;
    b += ldb;
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* to = c + r * ldc + v * W;
      storev(to, add ? loadv(to) + acc[r][v] : acc[r][v]);
    }
}

template <class P>
using Micro = void (*)(int64_t, const typename P::T*, int64_t, int64_t, const typename P::T*, int64_t,
                       typename P::T*, int64_t, bool);

template <class P>
constexpr Micro<P> MICRO[TILE_ROWS][4] = {
    {micro<P, 1, 1>, micro<P, 1, 2>, micro<P, 1, TILE_VECTORS - 1>, micro<P, 1, TILE_VECTORS>},
    {micro<P, 2, 1>, micro<P, 2, 2>, micro<P, 2, TILE_VECTORS - 1>, micro<P, 2, TILE_VECTORS>},
    {micro<P, 3, 1>, micro<P, 3, 2>, micro<P, 3, TILE_VECTORS - 1>, micro<P, 3, TILE_VECTORS>},
    {micro<P, 4, 1>, micro<P, 4, 2>, micro<P, 4, TILE_VECTORS - 1>, micro<P, 4, TILE_VECTORS>},
    {micro<P, 5, 1>, micro<P, 5, 2>, micro<P, 5, TILE_VECTORS - 1>, micro<P, 5, TILE_VECTORS>},
    {micro<P, 6, 1>, micro<P, 6, 2>, micro<P, 6, TILE_VECTORS - 1>, micro<P, 6, TILE_VECTORS>},
};

#ifdef KERNELZOO_ISA_avx512
// 16x16 elements of 32 bits: pairs, quarters, then halves of a register are exchanged.
inline void transpose16(const float* s, int64_t lds, float* t, int64_t ldt) {
  __m512i r[16], x[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(s + i * lds);
  for (int i = 0; i < 16; i += 2) {
    x[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    x[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(x[i], x[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(x[i + 1], x[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(x[i + 1], x[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    x[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_si512(t + i * ldt, _mm512_shuffle_i32x4(x[i], x[i + 8], 0x88));
    _mm512_storeu_si512(t + (i + 8) * ldt, _mm512_shuffle_i32x4(x[i], x[i + 8], 0xdd));
  }
}
#endif

#ifdef KERNELZOO_ISA_avx2
// 8x8: pairs and quarters within halves of a register, then the halves.
inline void transpose8(const float* s, int64_t lds, float* t, int64_t ldt) {
  __m256 r[8], x[8];
  for (int i = 0; i < 4; ++i) {
    const float *low = s + i * lds, *high = low + 4 * lds;
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    r[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = i; j < i + 4; j += 2) {
      x[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
      x[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
    }
    _mm256_storeu_ps(t + i * ldt, _mm256_shuffle_ps(x[i], x[i + 2], 0x44));
    _mm256_storeu_ps(t + (i + 1) * ldt, _mm256_shuffle_ps(x[i], x[i + 2], 0xee));
    _mm256_storeu_ps(t + (i + 2) * ldt, _mm256_shuffle_ps(x[i + 1], x[i + 3], 0x44));
    _mm256_storeu_ps(t + (i + 3) * ldt, _mm256_shuffle_ps(x[i + 1], x[i + 3], 0xee));
  }
}
#endif

// t (n, m) = s (m, n)ᵀ, both counted in blocks of 16.
template <class T>
void transpose(const T* s, int64_t lds, T* t, int64_t ldt, int64_t m, int64_t n) {
  for (int64_t i = 0; i < m; i += 16)
    for (int64_t j = 0; j < n; j += 16) {
#ifdef KERNELZOO_ISA_avx512
      if constexpr (sizeof(T) == 4) {
        transpose16(s + i * lds + j, lds, t + j * ldt + i, ldt);
        continue;
      }
#elif defined(KERNELZOO_ISA_avx2)
      if constexpr (sizeof(T) == 4) {
        for (int64_t r = i; r < i + 16; r += 8)
          for (int64_t c = j; c < j + 16; c += 8) transpose8(s + r * lds + c, lds, t + c * ldt + r, ldt);
        continue;
      }
#endif
      for (int64_t c = j; c < j + 16; ++c)
        for (int64_t r = i; r < i + 16; ++r) t[c * ldt + r] = s[r * lds + c];
    }
}
