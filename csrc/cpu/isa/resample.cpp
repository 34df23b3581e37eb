// Averages, interpolation and their transposes.
#include "../resample.h"
#include "begin.h"

#include "../tile.h"

#include "vectors.h"

// Terms that are added up in T before they join a sum in double: the error of a large window stays a small one's.
constexpr int64_t TERMS = 32;

inline int64_t inside(int64_t i, int64_t size) { return i < size ? i : size - 1; }

// Row i of the window behind (od, oh): of sample b's x, and its weight.
template <class S, class T>
struct Row {
  const S* x;
  T by;

  Row(const Resample& a, int64_t b, const int32_t* d, const int32_t* h, int64_t i) {
    const int64_t p = i / h[1], q = i % h[1];
    const T* weights = static_cast<const T*>(a.weights);
    const int64_t row = (b * a.in[0] + inside(d[0] + p, a.in[0])) * a.in[1] + inside(h[0] + q, a.in[1]);
    x = static_cast<const S*>(a.x) + row * a.in[2] * a.lanes;
    by = weights[d[2] + p] * weights[h[2] + q];
  }
};

// The weighted sum of the rows of x, of n = W L elements, behind (od, oh): a row of x itself, or `sum`.
template <class S, class T>
const T* rows_sum(const Resample& a, int64_t b, const int32_t* d, const int32_t* h, T* buffer, T* sum, double* total) {
  const int64_t n = a.in[2] * a.lanes, rows = static_cast<int64_t>(d[1]) * h[1];
  if (rows == 0) std::memset(sum, 0, n * sizeof(T));
  for (int64_t i = 0; i < rows; ++i) {
    const Row<S, T> row(a, b, d, h, i);
    const T by = row.by;
    const T* x = loaded(row.x, buffer, n);
    if (rows == 1 && by == 1 && a.lanes > 1) return x;
    if (i % TERMS == 0) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) sum[j] = by * x[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) sum[j] += by * x[j];
    }
    if (rows > TERMS && (i % TERMS == TERMS - 1 || i == rows - 1)) {
      const bool begins = i < TERMS;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) total[j] = begins ? sum[j] : total[j] + sum[j];
    }
  }
  if (rows > TERMS) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sum[j] = static_cast<T>(total[j]);
  }
  return sum;
}

// NV vectors of lanes of an output with n taps, `stride` elements apart; those past the edge are at `edge`.
template <class S, class T, int NV>
inline void lanes_taps(const T* x, const T* edge, int64_t stride, const T* by, int64_t n, T divisor, S* y) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> sum[NV] = {};
  if (n <= TERMS) {
    for (int64_t c = 0; c < n; ++c, x = x < edge ? x + stride : edge)
      for (int v = 0; v < NV; ++v) sum[v] += by[c] * loadv(x + v * W);
  } else {
    double total[NV * W] = {};
    T own[NV * W];
    for (int64_t c = 0; c < n; c += TERMS) {
      Vec<T> part[NV] = {};
      for (int64_t i = c; i < n && i < c + TERMS; ++i, x = x < edge ? x + stride : edge)
        for (int v = 0; v < NV; ++v) part[v] += by[i] * loadv(x + v * W);
      for (int v = 0; v < NV; ++v) storev(own + v * W, part[v]);
#pragma omp simd
      for (int64_t l = 0; l < NV * W; ++l) total[l] += own[l];
    }
#pragma omp simd
    for (int64_t l = 0; l < NV * W; ++l) own[l] = static_cast<T>(total[l]);
    for (int v = 0; v < NV; ++v) sum[v] = loadv(own + v * W);
  }
  for (int v = 0; v < NV; ++v) narrowed(divisor == 1 ? sum[v] : sum[v] / divisor, y + v * W);
}

// NV vectors of lanes of an output: its taps of the rows that it takes, `at` elements from where they begin.
template <class S, class T, int NV>
inline void window_taps(const S* const* rows, const T* by_row, int64_t count, const int64_t* at, const T* by, int64_t n,
                        int64_t l, T divisor, S* y) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> sum[NV] = {};
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < n; ++c) {
      const S* x = rows[i] + at[c] + l;
      const T weight = by_row[i] * by[c];
      for (int v = 0; v < NV; ++v) sum[v] += weight * widened(x + v * W);
    }
  for (int v = 0; v < NV; ++v) narrowed(divisor == 1 ? sum[v] : sum[v] / divisor, y + l + v * W);
}

// y = a row of outputs of at most WINDOW taps each, in whole vectors of lanes: x is read as it lies, once for each tap.
constexpr int64_t WINDOW = 9;

template <class S, class T>
void row_windows(const Resample& a, int64_t b, const int32_t* d, const int32_t* h, T outer, S* y) {
  constexpr int64_t W = WIDTH<T>;
  const int64_t L = a.lanes, count = static_cast<int64_t>(d[1]) * h[1];
  const T* weights = static_cast<const T*>(a.weights);
  const S* rows[WINDOW];
  T by_row[WINDOW];
  for (int64_t i = 0; i < count; ++i) {
    const Row<S, T> row(a, b, d, h, i);
    rows[i] = row.x;
    by_row[i] = row.by;
  }
  const int32_t* table = a.table + 3 * (a.out[0] + a.out[1]);
  const T* inner = a.divisors ? static_cast<const T*>(a.divisors) + a.out[0] + a.out[1] : nullptr;
  for (int64_t ow = 0; ow < a.out[2]; ++ow, table += 3, y += L) {
    int64_t at[WINDOW];
    for (int64_t c = 0; c < table[1]; ++c) at[c] = inside(table[0] + c, a.in[2]) * L;
    const T divisor = inner ? outer * inner[ow] : T(1);
    const T* by = weights + table[2];
    int64_t l = 0;
    for (; l + 4 * W <= L; l += 4 * W) window_taps<S, T, 4>(rows, by_row, count, at, by, table[1], l, divisor, y);
    for (; l < L; l += W) window_taps<S, T, 1>(rows, by_row, count, at, by, table[1], l, divisor, y);
  }
}

// y = the taps of a row of W positions of L lanes; outer: the divisor of depth and height.
template <class S, class T>
void row_lanes(const Resample& a, const T* x, T outer, S* y) {
  constexpr int64_t W = WIDTH<T>;
  const int32_t* table = a.table + 3 * (a.out[0] + a.out[1]);
  const T* inner = a.divisors ? static_cast<const T*>(a.divisors) + a.out[0] + a.out[1] : nullptr;
  const T* edge = x + (a.in[2] - 1) * a.lanes;
  for (int64_t ow = 0; ow < a.out[2]; ++ow, table += 3, y += a.lanes) {
    const T* from = x + table[0] * a.lanes;
    const T* by = static_cast<const T*>(a.weights) + table[2];
    const T divisor = inner ? outer * inner[ow] : T(1);
    const int64_t n = table[1], L = a.lanes;
    int64_t l = 0;
    for (; l + 4 * W <= L; l += 4 * W) lanes_taps<S, T, 4>(from + l, edge + l, L, by, n, divisor, y + l);
    for (; l + W <= L; l += W) lanes_taps<S, T, 1>(from + l, edge + l, L, by, n, divisor, y + l);
    for (; l < L; ++l) {
      double total = 0;
      for (int64_t c = 0; c < n; c += TERMS) {
        T part = 0;
        for (int64_t i = c; i < n && i < c + TERMS; ++i)
          part += by[i] * x[inside(table[0] + i, a.in[2]) * L + l];
        total += part;
      }
      narrowed_one(static_cast<T>(total) / divisor, y + l);
    }
  }
}

// y = the taps of a row along it.
template <class T>
void row_taps(const Resample& a, const T* x, T* y) {
  const int32_t* table = a.table + 3 * (a.out[0] + a.out[1]);
  const T* weights = static_cast<const T*>(a.weights);
  for (int64_t j = 0; j < a.out[2]; ++j) {
    const T* from = x + table[3 * j];
    const T* by = weights + table[3 * j + 2];
    const int64_t n = table[3 * j + 1];
    if (n < 16) {
      T sum = 0;
      for (int64_t c = 0; c < n; ++c) sum += by[c] * from[c];
      y[j] = sum;
      continue;
    }
    double total = 0;
    for (int64_t c = 0; c < n; c += 512) {
      const int64_t last = c + 512 < n ? c + 512 : n;
      T part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = c; i < last; ++i) part += by[i] * from[i];
      total += part;
    }
    y[j] = static_cast<T>(total);
  }
}

#ifdef KERNELZOO_ISA_avx512
// The same, 16 outputs at once: their taps lie in two neighbouring vectors, from which a permutation picks them.
void row_taps_spread(const Resample& a, const float* x, float* y) {
  const int64_t n = ceil_div(a.out[2], 16) * 16;
  for (int64_t j = 0; j < n; j += 16) {
    const float* from = x + a.first[j];
    const __m512i pick = _mm512_sub_epi32(_mm512_loadu_si512(a.first + j), _mm512_set1_epi32(a.first[j]));
    const __m512i count = _mm512_loadu_si512(a.count + j);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t c = 0; c < a.most[2]; ++c) {
      const __m512 value = _mm512_permutex2var_ps(_mm512_loadu_ps(from + c), pick, _mm512_loadu_ps(from + c + 16));
      const __mmask16 has = _mm512_cmpgt_epi32_mask(count, _mm512_set1_epi32(c));
      sum = _mm512_mask3_fmadd_ps(value, _mm512_loadu_ps(a.spread + c * n + j), sum, has);
    }
    _mm512_storeu_ps(y + j, sum);
  }
}
#elif defined(KERNELZOO_ISA_avx2)
// 8 outputs at once: a permutation a vector, of which the place chooses one.
void row_taps_spread(const Resample& a, const float* x, float* y) {
  const int64_t n = ceil_div(a.out[2], 16) * 16;
  for (int64_t j = 0; j < n; j += 8) {
    const float* from = x + a.first[j];
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.first + j));
    const __m256i pick = _mm256_sub_epi32(first, _mm256_set1_epi32(a.first[j]));
    const __m256 second = _mm256_castsi256_ps(_mm256_cmpgt_epi32(pick, _mm256_set1_epi32(7)));
    const __m256i count = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a.count + j));
    __m256 sum = _mm256_setzero_ps();
    for (int32_t c = 0; c < a.most[2]; ++c) {
      const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + c), pick);
      const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + c + 8), pick);
      const __m256 has = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_set1_epi32(c)));
      const __m256 value = _mm256_and_ps(_mm256_blendv_ps(low, high, second), has);
      sum = _mm256_fmadd_ps(value, _mm256_loadu_ps(a.spread + c * n + j), sum);
    }
    _mm256_storeu_ps(y + j, sum);
  }
}
#endif

// The same of L = 1: y, in vectors of outputs. x is followed by 64 elements more for taps past the edge.
template <class S, class T>
void row_ones(const Resample& a, T* x, T outer, T* result, S* y) {
  for (int64_t j = a.in[2]; j < a.in[2] + 64; ++j) x[j] = x[a.in[2] - 1];
  bool done = false;
#if defined(KERNELZOO_ISA_avx512) || defined(KERNELZOO_ISA_avx2)
  if constexpr (sizeof(T) == 4) {
    if (a.spread) {
      row_taps_spread(a, x, result);
      done = true;
    }
  }
#endif
  if (!done) row_taps(a, x, result);
  if (a.divisors) {
    const T* inner = static_cast<const T*>(a.divisors) + a.out[0] + a.out[1];
#pragma omp simd
    for (int64_t j = 0; j < a.out[2]; ++j) result[j] /= outer * inner[j];
  }
  store(result, y, a.out[2]);
}

template <class S, class T>
void rows(const Resample& a, int64_t begin, int64_t end, void* scratch) {
  const int64_t n = a.in[2] * a.lanes, m = a.out[2] * a.lanes;
  double* const total = static_cast<double*>(scratch);
  T* const buffer = reinterpret_cast<T*>(total + n);
  T* const sum = buffer + n;
  T* const result = sum + n + 64;
  const T* const by = static_cast<const T*>(a.divisors);
  const bool windows = a.lanes > 1 && a.lanes % WIDTH<T> == 0 && a.most[0] * a.most[1] * a.most[2] <= WINDOW;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0], b = row / a.out[1] / a.out[0];
    const int32_t* d = a.table + 3 * od;
    const int32_t* h = a.table + 3 * (a.out[0] + oh);
    S* const y = static_cast<S*>(a.y) + row * m;
    if (row > begin && oh > 0 && !by && std::memcmp(h, h - 3, 3 * sizeof *h) == 0) {  // as nearest repeats rows
      std::memcpy(y, y - m, m * sizeof(S));
      continue;
    }
    const T outer = by ? by[od] * by[a.out[0] + oh] : T(1);
    if (windows) {
      row_windows<S, T>(a, b, d, h, outer, y);
      continue;
    }
    const T* x = rows_sum<S, T>(a, b, d, h, buffer, sum, total);
    if (a.lanes > 1)
      row_lanes<S, T>(a, x, outer, y);
    else
      row_ones<S, T>(a, sum, outer, result, y);
  }
}

const ResampleKernels TABLES[DTYPES] = {{rows<double, double>}, {rows<float, float>}, {rows<Bf16, float>},
                                        {rows<Fp16, float>}};

KERNELZOO_EXPORT(ResampleKernels, resample, TABLES)
