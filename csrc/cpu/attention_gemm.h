// Matrix products on packed blocks, of the tiles of tile.h.

#include "tile.h"

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

// A row that is soon read, or written. The rows of a head lie far apart, most on a page of their own, where the
// processor's own prefetch does not follow (backward at 8x6x256x64, two AVX2 cores: -11 %).
constexpr int64_t AHEAD = 8;
template <bool WRITE, class S>
inline void fetch(const S* row, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / sizeof(S)) __builtin_prefetch(row + c, WRITE);
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
    fetch<false>(s + (r + AHEAD) * stride, n);
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
