// Register-tiled matrix products on packed blocks, C (M, N) (+)= A (M, K) B (K, N), on vectors of the compiler's.
//
// A's elements are broadcast, wherever they lie (strides row and k), B's and C's rows are whole vectors. On AVX-512 a
// tile has 6 rows of 4 vectors: 24 sums, 4 vectors of B and the broadcast fill the 32 registers, and 10 loads serve
// 24 multiply-adds.

#if defined(KERNELZOO_ISA_avx512)
constexpr int64_t VECTOR_BYTES = 64, TILE_VECTORS = 4;
#elif defined(KERNELZOO_ISA_avx2)
constexpr int64_t VECTOR_BYTES = 32, TILE_VECTORS = 2;
#else
constexpr int64_t VECTOR_BYTES = 16, TILE_VECTORS = 2;
#endif
constexpr int64_t TILE_ROWS = 6;

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

template <class P, int MR, int NV>
__attribute__((noinline)) void micro(int64_t K, const typename P::T* a, int64_t row, int64_t k_stride,
                                     const typename P::T* b, int64_t ldb, typename P::T* c, int64_t ldc, bool add) {
  using T = typename P::T;
  constexpr int64_t W = WIDTH<T>;
  Vec<T> acc[MR][NV] = {};
  // c, dk's or dv's of a long sequence, may lie in L3: on its way while the sums are made (the backward at L 4096: -4 %)
  if (add)
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(c + r * ldc + v * W);
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> bv[NV];
    for (int v = 0; v < NV; ++v) bv[v] = loadv(b + v * W);
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = P::dot(a + r * row, bv[v], acc[r][v]);
    a += k_stride;
    b += ldb;
  }
  for (int r = 0; r < MR; ++r)
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

// What row r of a product may meet: columns, or elements of k, from r + low to r + high.
struct Band {
  int64_t low, high;
};
constexpr Band EVERYTHING = {-UNLIMITED, UNLIMITED};

template <class T>
struct Operand {
  const T* p;
  int64_t row, k;
  int64_t ahead = 0;  // rows to those that the next product takes, which are fetched into L2 (at L 4096: -2 %)
};

// c (M, N) = a b, or c += a b. K counts elements, N columns rounded up to vectors; b's and c's rows are ldb and ldc
// units apart. TRIM_K: elements of k outside the band are known to be 0; otherwise: columns outside it are not wanted.
template <class P, bool TRIM_K>
void product(int64_t M, int64_t N, int64_t K, Operand<typename P::T> a, const typename P::T* b, int64_t ldb,
             typename P::T* c, int64_t ldc, Band band, bool add) {
  constexpr int64_t W = WIDTH<typename P::T>;
  const int64_t vectors = ceil_div(N, W);
  if (!vectors) return;
  const int64_t step = ceil_div(vectors, ceil_div(vectors, TILE_VECTORS));
  for (int64_t v0 = 0; v0 < vectors; v0 += step) {
    for (int64_t r = 0; r < M; r += TILE_ROWS) {
      const int64_t rows = M - r < TILE_ROWS ? M - r : TILE_ROWS;
      int64_t low = r + band.low, high = r + rows + band.high;
      if (low < 0) low = 0;
      int64_t first = v0, last = v0 + step < vectors ? v0 + step : vectors, k0 = 0, k1 = ceil_div(K, P::PAIR);
      if (a.ahead && !v0)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t k = 0; k * P::PAIR < K; k += 64 / sizeof(*b))
            __builtin_prefetch(a.p + (r + i + a.ahead) * a.row + k, 0, 2);
      if (TRIM_K) {
        if (high > K) high = K;
        if (low >= high) continue;
        k0 = low / P::PAIR;
        k1 = ceil_div(high, P::PAIR);
      } else {
        if (high <= low) continue;
        if (first < low / W) first = low / W;
        if (last > ceil_div(high, W)) last = ceil_div(high, W);
        if (first >= last) continue;
      }
      MICRO<P>[rows - 1][last - first - 1](k1 - k0, a.p + r * a.row + k0 * a.k, a.row, a.k,
                                           b + k0 * ldb + first * W, ldb, c + r * ldc + first * W, ldc, add);
    }
  }
}

// ---- packing

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
#endif
      for (int64_t c = j; c < j + 16; ++c)
        for (int64_t r = i; r < i + 16; ++r) t[c * ldt + r] = s[r * lds + c];
    }
}

// Units that a row of n columns takes, as operand A.
template <class P>
inline int64_t row_units(int64_t n) {
  return ceil_div(n, 16 * P::PAIR) * 16;
}

// t: rows of row_units(n) units, padded with zeros, and zero rows up to `padded`.
template <class P, class S>
void pack(const S* s, int64_t stride, int64_t rows, int64_t n, typename P::T* t, int64_t padded_rows) {
  const int64_t units = row_units<P>(n);
  for (int64_t r = 0; r < rows; ++r, t += units) {
    if constexpr (P::DOT) {
      char* bytes = reinterpret_cast<char*>(t);
      std::memcpy(bytes, s + r * stride, n * 2);
      std::memset(bytes + n * 2, 0, units * 4 - n * 2);
    } else {
      load(s + r * stride, t, n);
      for (int64_t c = n; c < units; ++c) t[c] = 0;
    }
  }
  if (padded_rows > rows) std::memset(t, 0, (padded_rows - rows) * units * sizeof(*t));
}

// The rows themselves where pack would change nothing, else packed.
template <class P, class S>
const typename P::T* packed(const S* s, int64_t stride, int64_t rows, int64_t n, typename P::T* t, int64_t padded_rows) {
  if constexpr (!P::DOT && sizeof(S) == sizeof(*t))
    if (n == stride && n == row_units<P>(n) && rows == padded_rows) return reinterpret_cast<const typename P::T*>(s);
  pack<P>(s, stride, rows, n, t, padded_rows);
  return t;
}

// B for a product whose k runs along s's rows: s itself as pack leaves it, or pairs of its rows interleaved, from an
// even number of packed rows (of row_units(n)) to rows of padded_columns(n) units.
template <class P>
const typename P::T* interleaved(const typename P::T* packed, int64_t rows, int64_t n, typename P::T* t) {
  if constexpr (!P::DOT) {
    return packed;
  } else {
#ifdef KERNELZOO_ISA_avx512
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const int64_t units = row_units<P>(n), ld = padded_columns(n);
    for (int64_t r = 0; r < rows; r += 2) {
      const float *even = packed + r * units, *odd = even + units;
      float* target = t + r / 2 * ld;
      for (int64_t c = 0; c < ld; c += 32) {
        const __m512i x = _mm512_loadu_si512(even + c / 2), y = _mm512_loadu_si512(odd + c / 2);
        _mm512_storeu_si512(target + c, _mm512_permutex2var_epi16(x, low, y));
        if (c + 16 < ld) _mm512_storeu_si512(target + c + 16, _mm512_permutex2var_epi16(x, high, y));
      }
    }
#endif
    return t;
  }
}
