// Averages, interpolation and their transposes.
#include "../resample.h"
#include "begin.h"

#include "../tile.h"

#include "vectors.h"

// Terms that are added up in T before they join a sum in double: the error of a large window stays a small one's.
constexpr int64_t TERMS = 32;

template <class T>
struct Term {
  int64_t offset;  // of an element, L = 0
  T weight;
};

inline int64_t inside(int64_t i, int64_t size) { return i < size ? i : size - 1; }

template <class T>
int64_t terms_of(const Resample& a, int64_t od, int64_t oh, int64_t ow, Term<T>* terms) {
  const int32_t* d = a.table + 3 * od;
  const int32_t* h = a.table + 3 * (a.out[0] + oh);
  const int32_t* w = a.table + 3 * (a.out[0] + a.out[1] + ow);
  const T* weights = static_cast<const T*>(a.weights);
  int64_t n = 0;
  for (int64_t p = 0; p < d[1]; ++p)
    for (int64_t q = 0; q < h[1]; ++q) {
      const int64_t row = (inside(d[0] + p, a.in[0]) * a.in[1] + inside(h[0] + q, a.in[1])) * a.in[2];
      const T by = weights[d[2] + p] * weights[h[2] + q];
      for (int64_t r = 0; r < w[1]; ++r)
        terms[n++] = {(row + inside(w[0] + r, a.in[2])) * a.lanes, by * weights[w[2] + r]};
    }
  return n;
}

template <class T>
inline T divisor_of(const Resample& a, int64_t od, int64_t oh, int64_t ow) {
  const T* by = static_cast<const T*>(a.divisors);
  return by ? by[od] * by[a.out[0] + oh] * by[a.out[0] + a.out[1] + ow] : T(1);
}

// NV vectors of lanes of one output.
template <class S, class T, int NV>
inline void lanes_sum(const S* x, const Term<T>* terms, int64_t n, T divisor, S* y) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> sum[NV] = {};
  if (n <= TERMS) {
    for (int64_t i = 0; i < n; ++i)
      for (int v = 0; v < NV; ++v) sum[v] += terms[i].weight * widened(x + terms[i].offset + v * W);
  } else {
    double total[NV * W] = {};
    T own[NV * W];
    for (int64_t i = 0; i < n; i += TERMS) {
      Vec<T> part[NV] = {};
      for (int64_t j = i; j < n && j < i + TERMS; ++j)
        for (int v = 0; v < NV; ++v) part[v] += terms[j].weight * widened(x + terms[j].offset + v * W);
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

template <class S, class T>
void lanes(const Resample& a, int64_t begin, int64_t end, void* scratch) {
  constexpr int64_t W = WIDTH<T>;
  Term<T>* terms = static_cast<Term<T>*>(scratch);
  const int64_t plane = a.in[0] * a.in[1] * a.in[2] * a.lanes;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0];
    const S* x = static_cast<const S*>(a.x) + row / a.out[1] / a.out[0] * plane;
    for (int64_t ow = 0; ow < a.out[2]; ++ow) {
      const int64_t n = terms_of(a, od, oh, ow, terms);
      const T divisor = divisor_of<T>(a, od, oh, ow);
      S* y = static_cast<S*>(a.y) + (row * a.out[2] + ow) * a.lanes;
      int64_t l = 0;
      for (; l + 4 * W <= a.lanes; l += 4 * W) lanes_sum<S, T, 4>(x + l, terms, n, divisor, y + l);
      for (; l + W <= a.lanes; l += W) lanes_sum<S, T, 1>(x + l, terms, n, divisor, y + l);
      for (; l < a.lanes; ++l) {
        double total = 0;
        for (int64_t i = 0; i < n; i += TERMS) {
          T part = 0;
          for (int64_t j = i; j < n && j < i + TERMS; ++j)
            part += terms[j].weight * widened_one(x + l + terms[j].offset);
          total += part;
        }
        narrowed_one(static_cast<T>(total) / divisor, y + l);
      }
    }
  }
}

// sum = the weighted rows of x behind (od, oh), and its last element 64 times more for taps past the edge.
template <class S, class T>
void rows_sum(const Resample& a, int64_t b, const int32_t* d, const int32_t* h, T* buffer, T* sum, double* total) {
  const T* weights = static_cast<const T*>(a.weights);
  const int64_t n = a.in[2], rows = static_cast<int64_t>(d[1]) * h[1];
  if (rows == 0) std::memset(sum, 0, n * sizeof(T));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t p = i / h[1], q = i % h[1];
    const S* row = static_cast<const S*>(a.x) +
                   ((b * a.in[0] + inside(d[0] + p, a.in[0])) * a.in[1] + inside(h[0] + q, a.in[1])) * n;
    const T by = weights[d[2] + p] * weights[h[2] + q];
    const T* x = loaded(row, buffer, n);
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
  if (rows > TERMS)
    for (int64_t j = 0; j < n; ++j) sum[j] = static_cast<T>(total[j]);
  for (int64_t j = n; j < n + 64; ++j) sum[j] = sum[n - 1];
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
#endif

template <class S, class T>
void rows(const Resample& a, int64_t begin, int64_t end, void* scratch) {
  T* const buffer = static_cast<T*>(scratch);
  T* const sum = buffer + a.in[2] + 64;
  double* const total = reinterpret_cast<double*>(scratch) + 2 * (a.in[2] + 64);
  T* const result = reinterpret_cast<T*>(total + a.in[2] + 64);
  const T* const by = static_cast<const T*>(a.divisors);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0], b = row / a.out[1] / a.out[0];
    const int32_t* d = a.table + 3 * od;
    const int32_t* h = a.table + 3 * (a.out[0] + oh);
    S* y = static_cast<S*>(a.y) + row * a.out[2];
    if (row > begin && oh > 0 && !by && std::memcmp(h, h - 3, 3 * sizeof *h) == 0) {  // as nearest repeats rows
      std::memcpy(y, y - a.out[2], a.out[2] * sizeof(S));
      continue;
    }
    rows_sum<S, T>(a, b, d, h, buffer, sum, total);
#ifdef KERNELZOO_ISA_avx512
    if constexpr (sizeof(T) == 4) {
      if (a.spread)
        row_taps_spread(a, sum, result);
      else
        row_taps(a, sum, result);
    } else {
      row_taps(a, sum, result);
    }
#else
    row_taps(a, sum, result);
#endif
    if (by) {
      const T outer = by[od] * by[a.out[0] + oh];
      const T* inner = by + a.out[0] + a.out[1];
#pragma omp simd
      for (int64_t j = 0; j < a.out[2]; ++j) result[j] /= outer * inner[j];
    }
    store(result, y, a.out[2]);
  }
}

const ResampleKernels TABLES[DTYPES] = {{lanes<double, double>, rows<double, double>},
                                        {lanes<float, float>, rows<float, float>},
                                        {lanes<Bf16, float>, rows<Bf16, float>},
                                        {lanes<Fp16, float>, rows<Fp16, float>}};

KERNELZOO_EXPORT(ResampleKernels, resample, TABLES)
