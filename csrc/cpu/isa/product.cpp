// The serial kernels of matrix products: packing, and a tile of sums from two panels.
#include "../product.h"

#include "begin.h"

#include "../tile.h"

#include "../pack.h"

#include "vectors.h"

constexpr int64_t W = WIDTH<float>, NV = TILE_VECTORS * W < UNIT<float> ? UNIT<float> / W : TILE_VECTORS;
constexpr int64_t COLUMNS = NV * W;

// ---- packing

constexpr int64_t EARLY_ROWS = 4, EARLY_BYTES = 256;  // what is asked for ahead of its use

template <class S>
inline void fetch(const S* row, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / sizeof(S)) __builtin_prefetch(row + c);
}

// to (count, n) = s: n <= TILE_ROWS rows, contiguous along k.
template <class S>
void turn(const S* s, int64_t row, int64_t n, int64_t count, float* to) {
  int64_t k = 0;
#ifdef KERNELZOO_ISA_avx2
  for (; n == 6 && k + 8 <= count; k += 8, to += 48) {  // pairs of rows, fours and the last two, from either half
    __m256 x[6], y[6];
    for (int r = 0; r < 6; ++r) {
      __builtin_prefetch(s + r * row + k + EARLY_BYTES / sizeof(S));
      x[r] = (__m256)widened(s + r * row + k);
    }
    for (int r = 0; r < 6; r += 2) {
      y[r] = _mm256_unpacklo_ps(x[r], x[r + 1]);
      y[r + 1] = _mm256_unpackhi_ps(x[r], x[r + 1]);
    }
    const __m256 four[4] = {_mm256_shuffle_ps(y[0], y[2], 0x44), _mm256_shuffle_ps(y[0], y[2], 0xee),
                            _mm256_shuffle_ps(y[1], y[3], 0x44), _mm256_shuffle_ps(y[1], y[3], 0xee)};
    const auto two = [&](int64_t i, __m128 pairs) {
      _mm_storel_pi(reinterpret_cast<__m64*>(to + i * 6 + 4), pairs);
      _mm_storeh_pi(reinterpret_cast<__m64*>(to + i * 6 + 10), pairs);
    };
    for (int64_t i = 0; i < 4; ++i) {
      _mm_storeu_ps(to + i * 6, _mm256_castps256_ps128(four[i]));
      _mm_storeu_ps(to + (i + 4) * 6, _mm256_extractf128_ps(four[i], 1));
    }
    two(0, _mm256_castps256_ps128(y[4])), two(4, _mm256_extractf128_ps(y[4], 1));
    two(2, _mm256_castps256_ps128(y[5])), two(6, _mm256_extractf128_ps(y[5], 1));
  }
#endif
  for (; k < count; ++k, to += TILE_ROWS)
    for (int64_t r = 0; r < n; ++r) to[r] = widened_one(s + r * row + k);
}

template <class S>
void left(const Product& p, int64_t i, int64_t m, int64_t k, int64_t count, float* to) {
  const S* s = static_cast<const S*>(p.a) + i * p.a_row + k * p.a_k;
  if (p.a_row == 1) {  // whole lines of the cache, to all panels
    float buffer[MOST_ROWS];
    for (int64_t c = 0; c < count; ++c, s += p.a_k, to += TILE_ROWS) {
      fetch(s + EARLY_ROWS * p.a_k, m);
      const float* const line = loaded(s, buffer, m);
      int64_t r = 0;
      for (; r + TILE_ROWS <= m; r += TILE_ROWS) std::memcpy(to + r * count, line + r, TILE_ROWS * sizeof(float));
      std::memcpy(to + r * count, line + r, (m - r) * sizeof(float));
    }
    return;
  }
  for (int64_t r = 0; r < m; r += TILE_ROWS, s += TILE_ROWS * p.a_row, to += TILE_ROWS * count) {
    const int64_t n = m - r < TILE_ROWS ? m - r : TILE_ROWS;
    if (p.a_k == 1) {
      turn(s, p.a_row, n, count, to);
    } else {
      for (int64_t c = 0; c < count; ++c)
        for (int64_t l = 0; l < n; ++l) to[c * TILE_ROWS + l] = widened_one(s + l * p.a_row + c * p.a_k);
    }
  }
}

template <class S>
void right(const Product& p, int64_t j, int64_t n, int64_t k, int64_t count, float* to) {
  const S* s = static_cast<const S*>(p.b) + k * p.b_k + j * p.b_column;
  for (int64_t c = 0; c < COLUMNS; c += UNIT<float>) {
    const int64_t some = n - c < 0 ? 0 : n - c < UNIT<float> ? n - c : UNIT<float>;
    if (p.b_column == 1) {
      pack_columns<Plain<float>>(s + c, p.b_k, some, count, to + c, COLUMNS);
    } else if (p.b_k == 1) {
      pack_rows_as_columns<Plain<float>>(s + c * p.b_column, p.b_column, some, count, to + c, COLUMNS);
    } else {
      for (int64_t r = 0; r < count; ++r)
        for (int64_t l = 0; l < UNIT<float>; ++l)
          to[r * COLUMNS + c + l] = l < some ? widened_one(s + r * p.b_k + (c + l) * p.b_column) : 0;
    }
  }
}

// ---- tiles

inline void multiply_add(Vec<float>& c, Vec<float> a, Vec<float> b) {
#ifdef KERNELZOO_ISA_avx2
  // by name: of its own GCC copies sums around here, and 12 of them, 2 vectors and 1 element leave it one register
  asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
#else
  c += a * b;
#endif
}

// Terms that are added up one after the other. Up to here an error is MKL's; in sums of 384 it was up to three times that.
constexpr int64_t FOLD = 192, UNROLLED = 4;

// out (R, COLUMNS), ld apart, = a b, + sums and bias unless null. What comes after b is fetched, `pace` elements of it for
// every UNROLLED of k.
template <int R, class S>
void tile(int64_t count, const float* a, const float* b, const float* ahead, int64_t pace, const float* sums,
          int64_t sums_ld, const float* bias, S* out, int64_t ld) {
  // On its way while the sums are made: what a tile reads and writes lies on lines of R rows, which no prefetch of the
  // processor's follows.
  for (int r = 0; r < R; ++r)
    for (int64_t c = 0; c < COLUMNS; c += 16) {
      if (sums) __builtin_prefetch(sums + r * sums_ld + c);
      __builtin_prefetch(out + r * ld + c, 1);
    }
  const int64_t folds = ceil_div(count, FOLD), most = ceil_div(ceil_div(count, folds), UNROLLED) * UNROLLED;
  float folded[R * COLUMNS];
  for (int64_t left = count; left > 0; left -= most) {
    Vec<float> acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = Vec<float>{};
    const auto step = [&](int64_t k) __attribute__((always_inline)) {
      Vec<float> bv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) bv[v] = loadv(b + k * COLUMNS + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<float> av = splat(a[k * TILE_ROWS + r]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) multiply_add(acc[r][v], av, bv[v]);
      }
    };
    const int64_t terms = left < most ? left : most;
    int64_t k = 0;
    for (; k + UNROLLED <= terms; k += UNROLLED, a += UNROLLED * TILE_ROWS, b += UNROLLED * COLUMNS, ahead += pace) {
      __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
      for (int64_t u = 0; u < UNROLLED; ++u) step(u);
    }
#pragma GCC unroll 1
    for (; k < terms; ++k, a += TILE_ROWS, b += COLUMNS) step(0);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* const before = folded + r * COLUMNS + v * W;
        if (left < count) acc[r][v] += loadv(before);
        if (left > most) {
          storev(before, acc[r][v]);
          continue;
        }
        if (sums) acc[r][v] += loadv(sums + r * sums_ld + v * W);
        if (bias) acc[r][v] += loadv(bias + v * W);
        narrowed(acc[r][v], out + r * ld + v * W);
      }
  }
}

template <class S>
constexpr decltype(&tile<1, S>) TILES[TILE_ROWS] = {tile<1, S>, tile<2, S>, tile<3, S>,
                                                    tile<4, S>, tile<5, S>, tile<6, S>};

// m rows of a panel of n columns.
template <class S>
void panel_rows(int64_t m, int64_t n, int64_t count, const float* rows, const float* panel, const float* sums,
                int64_t sums_ld, const float* bias, S* out, int64_t ld) {
  // of the next panel every tile fetches its part
  const int64_t parts = ceil_div(m, TILE_ROWS), pace = ceil_div(UNROLLED * COLUMNS, parts);
  const float* ahead = panel + count * COLUMNS;
  for (int64_t r = 0; r < m; r += TILE_ROWS, ahead += ceil_div(count, UNROLLED) * pace) {
    const int64_t some = m - r < TILE_ROWS ? m - r : TILE_ROWS;
    const float* const before = sums ? sums + r * sums_ld : nullptr;
    if (n == COLUMNS) {
      TILES<S>[some - 1](count, rows + r * count, panel, ahead, pace, before, sums_ld, bias, out + r * ld, ld);
      continue;
    }
    float edge[TILE_ROWS * COLUMNS];
    TILES<float>[some - 1](count, rows + r * count, panel, ahead, pace, nullptr, 0, bias, edge, COLUMNS);
    for (int64_t i = 0; i < some; ++i) {
      float* const line = edge + i * COLUMNS;
      for (int64_t c = 0; sums && c < n; ++c) line[c] += before[i * sums_ld + c];
      store(line, out + (r + i) * ld, n);
    }
  }
}

template <class S>
void block(const Product& p, int64_t i, int64_t m, int64_t j, int64_t from, int64_t to, int64_t count,
           const float* rows, const float* panels, const ProductSums& sums) {
  for (int64_t c = from; c < to; c += COLUMNS) {
    const int64_t n = to - c < COLUMNS ? to - c : COLUMNS, at = i * p.N + j + c;
    float* const here = sums.p + i * sums.ld + c;
    const float* const before = sums.first ? nullptr : here;
    const float* const panel = panels + c * count;
    if (!sums.last) {
      panel_rows(m, n, count, rows, panel, before, sums.ld, nullptr, here, sums.ld);
      continue;
    }
    float bias[COLUMNS] = {};
    if (p.bias) load(static_cast<const S*>(p.bias) + j + c, bias, n);
    const float* const last = p.bias ? bias : nullptr;
    if (p.wide) {
      panel_rows(m, n, count, rows, panel, before, sums.ld, last, static_cast<float*>(p.c) + at, p.N);
    } else {
      panel_rows(m, n, count, rows, panel, before, sums.ld, last, static_cast<S*>(p.c) + at, p.N);
    }
  }
}

template <class S>
constexpr ProductKernels kernels() {
  return {TILE_ROWS, COLUMNS, left<S>, right<S>, block<S>};
}

const ProductKernels TABLES[DTYPES] = {{}, kernels<float>(), kernels<Bf16>(), kernels<Fp16>()};

KERNELZOO_EXPORT(ProductKernels, product, TABLES)
