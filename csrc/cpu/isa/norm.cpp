// Rows that are normalised: layer_norm, rms_norm (without a mean) and group_norm.
//
// A row is read from memory once, and lies in a near cache when it is read again: the mean, the squares about it, the
// result. Sums run in vectors of T over NORM_BLOCK elements, and the blocks' in double.
#include "../norm.h"
#include "begin.h"

// 64 bytes of T at any address. Two such accumulators hide an addition's latency.
template <class T>
struct Lanes {
  typedef T V __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int64_t W = 64 / sizeof(T);
};

template <class T>
inline T fold(typename Lanes<T>::V sum) {
  T lanes[Lanes<T>::W];
  std::memcpy(lanes, &sum, sizeof lanes);
  for (int64_t half = Lanes<T>::W / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// sum(x - mean), or of the squares
template <bool SQUARE, class T>
inline T block_sum(const T* x, T mean, int64_t n) {
  using V = typename Lanes<T>::V;
  constexpr int64_t W = Lanes<T>::W;
  V a[2] = {}, c[2] = {};
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {
    const V* v = reinterpret_cast<const V*>(x + j);
    for (int k = 0; k < 2; ++k) {
      const V p = v[2 * k] - mean, q = v[2 * k + 1] - mean;
      a[k] += SQUARE ? p * p : p;
      c[k] += SQUARE ? q * q : q;
    }
  }
  T total = fold<T>((a[0] + a[1]) + (c[0] + c[1]));
  for (; j < n; ++j) total += SQUARE ? (x[j] - mean) * (x[j] - mean) : x[j] - mean;
  return total;
}

struct Moments {
  double mean, squares;  // squares: the mean of those about `mean`, or about 0 where it is not centred
};

// Block by block, each twice while it lies in L1; joined as by Chan, Golub, LeVeque (Updating formulae and a pairwise
// algorithm for computing sample variances, 1979).
template <class T>
inline Moments moments(const T* x, int64_t n, bool centred) {
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < n; i += NORM_BLOCK) {
    const int64_t m = n - i < NORM_BLOCK ? n - i : NORM_BLOCK;
    if (!centred) {
      squares += block_sum<true>(x + i, T(0), m);
      continue;
    }
    const double block = block_sum<false>(x + i, T(0), m) / double(m);
    const T pivot = T(block);
    squares += block_sum<true>(x + i, pivot, m) - (pivot - block) * (pivot - block) * m;
    const double delta = block - mean, share = double(m) / double(i + m);
    mean += i ? delta * share : delta;
    if (i) squares += delta * delta * share * i;
  }
  return {mean, squares / n};
}

template <class T>
inline void normalise(const T* x, const T* w, const T* b, T* y, int64_t n, T mean, T rstd) {
  if (w && b) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * rstd * w[j] + b[j];
  } else if (w) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * rstd * w[j];
  } else if (b) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * rstd + b[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * rstd;
  }
}

// s = x + other, rounded as it is stored; the sum as T.
template <class S, class O, class T>
inline const T* add(const S* x, const O* other, S* s, T* row, T* addend, int64_t n) {
  const T* a = loaded(x, row, n);
  const T* c = loaded(other, addend, n);
  if constexpr (sizeof(S) == sizeof(T)) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) s[j] = a[j] + c[j];
    return s;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) row[j] = a[j] + c[j];
    store(row, s, n);
    load(s, row, n);
    return row;
  }
}

template <class S, class T>
inline const T* added(const NormRows& a, int64_t i, T* row, T* addend) {
  const S* x = static_cast<const S*>(a.x) + i;
  S* s = static_cast<S*>(a.s) + i;
  if constexpr (sizeof(S) == 4) {
    if (a.other_dtype == BF16) return add(x, static_cast<const Bf16*>(a.other) + i, s, row, addend, a.n);
    if (a.other_dtype == F16) return add(x, static_cast<const Fp16*>(a.other) + i, s, row, addend, a.n);
  }
  return add(x, static_cast<const S*>(a.other) + i, s, row, addend, a.n);
}

template <class S, class T>
void rows_fwd(const NormRows& a, int64_t first, int64_t last, void* scratch) {
  const int64_t n = a.n;
  T* row = static_cast<T*>(scratch);
  T* addend = row + padded<T>(n);
  const T* w = static_cast<const T*>(a.w);
  const T* b = static_cast<const T*>(a.b);
  for (int64_t r = first; r < last; ++r) {
    const T* x = a.other ? added<S>(a, r * n, row, addend) : loaded(static_cast<const S*>(a.x) + r * n, row, n);
    const Moments found = moments(x, n, a.mean);
    const T mean = T(found.mean), rstd = T(1 / std::sqrt(found.squares + a.eps));
    if (a.mean) static_cast<T*>(a.mean)[r] = mean;
    static_cast<T*>(a.rstd)[r] = rstd;
    S* y = static_cast<S*>(a.y) + r * n;
    if constexpr (sizeof(S) == sizeof(T)) {
      normalise(x, w, b, y, n, mean, rstd);
    } else {
      normalise(x, w, b, row, n, mean, rstd);
      store(row, y, n);
    }
  }
}

struct Means {
  double g, gx;  // of g = w dy, and of g x̂
};

// One read of a row of dy and x: g, the sums of g and g x̂, and the row's share of dw and db. g may lie where dy does.
template <class T, bool DX, bool DW, bool DB>
Means gather(const T* dy, const T* x, const T* w, T* g, T* dw, T* db, int64_t n, T mean, T rstd) {
  Means total = {0, 0};
  for (int64_t i = 0; i < n; i += NORM_BLOCK) {
    const int64_t end = n - i < NORM_BLOCK ? n : i + NORM_BLOCK;
    T g_part = 0, gx_part = 0;
#pragma omp simd reduction(+ : g_part, gx_part)
    for (int64_t j = i; j < end; ++j) {
      const T d = dy[j], normal = (x[j] - mean) * rstd;
      if constexpr (DX) {
        g[j] = d * w[j];
        g_part += g[j];
        gx_part += g[j] * normal;
      }
      if constexpr (DW) dw[j] += d * normal;
      if constexpr (DB) db[j] += d;
    }
    total.g += g_part;
    total.gx += gx_part;
  }
  return total;
}

// g was rounded when it was stored: a product fused into this difference would leave its error for a row of one.
template <class T>
inline void scatter(const T* g, const T* x, const T* ds, T* dx, int64_t n, T mean, T rstd, T g_mean, T gx_mean) {
  if (ds) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) dx[j] = rstd * (g[j] - g_mean - (x[j] - mean) * rstd * gx_mean) + ds[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) dx[j] = rstd * (g[j] - g_mean - (x[j] - mean) * rstd * gx_mean);
  }
}

template <class T>
inline void flush(T* sum, double* total, int64_t n, bool fresh) {
  if (fresh) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) total[j] = sum[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) total[j] += sum[j];
  }
  std::memset(sum, 0, n * sizeof(T));
}

template <class S, class T>
void rows_bwd(const NormRows& a, int64_t first, int64_t last, double* dw, double* db, void* scratch) {
  using Gather = Means (*)(const T*, const T*, const T*, T*, T*, T*, int64_t, T, T);
  static constexpr Gather GATHER[8] = {
      gather<T, false, false, false>, gather<T, false, false, true>, gather<T, false, true, false>,
      gather<T, false, true, true>,   gather<T, true, false, false>, gather<T, true, false, true>,
      gather<T, true, true, false>,   gather<T, true, true, true>};
  const Gather of = GATHER[(a.dx ? 4 : 0) + (dw ? 2 : 0) + (db ? 1 : 0)];
  const int64_t n = a.n;
  T* row = static_cast<T*>(scratch);
  T* dy_row = row + padded<T>(n);
  T* dw_sum = dy_row + padded<T>(n);
  T* db_sum = dw_sum + padded<T>(n);
  const T* w = static_cast<const T*>(a.w);
  if (dw) std::memset(dw_sum, 0, n * sizeof(T));
  if (db) std::memset(db_sum, 0, n * sizeof(T));
  bool fresh = true;
  for (int64_t r = first; r < last; ++r) {
    const T* x = loaded(static_cast<const S*>(a.x) + r * n, row, n);
    const T* dy = loaded(static_cast<const S*>(a.dy) + r * n, dy_row, n);
    const T mean = a.mean ? static_cast<const T*>(a.mean)[r] : T(0), rstd = static_cast<const T*>(a.rstd)[r];
    T* g = dy_row;
    if constexpr (sizeof(S) == sizeof(T)) g = a.dx ? static_cast<T*>(a.dx) + r * n : nullptr;
    const Means sums = of(dy, x, w, g, dw_sum, db_sum, n, mean, rstd);
    if (a.dx) {
      const T g_mean = a.mean ? T(sums.g / n) : T(0), gx_mean = T(sums.gx / n);
      const S* ds = a.ds ? static_cast<const S*>(a.ds) + r * n : nullptr;
      S* dx = static_cast<S*>(a.dx) + r * n;
      if constexpr (sizeof(S) == sizeof(T)) {
        scatter(g, x, ds, dx, n, mean, rstd, g_mean, gx_mean);
      } else {
        scatter<T>(g, x, nullptr, row, n, mean, rstd, g_mean, gx_mean);
        if (ds) {
          load(ds, dy_row, n);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) row[j] += dy_row[j];
        }
        store(row, dx, n);
      }
    }
    if ((r - first) % NORM_ROWS == NORM_ROWS - 1 || r == last - 1) {
      if (dw) flush(dw_sum, dw, n, fresh);
      if (db) flush(db_sum, db, n, fresh);
      fresh = false;
    }
  }
}

template <class S, class T>
void groups_fwd(const NormGroups& a, int64_t unit, void* scratch) {
  const int64_t width = a.channels / a.groups, n = width * a.length, first = unit % a.groups * width;
  T* row = static_cast<T*>(scratch);
  const T* x = loaded(static_cast<const S*>(a.x) + unit * n, row, n);
  const Moments found = moments(x, n, true);
  const T mean = T(found.mean), rstd = T(1 / std::sqrt(found.squares + a.eps));
  static_cast<T*>(a.mean)[unit] = mean;
  static_cast<T*>(a.rstd)[unit] = rstd;
  const T* w = static_cast<const T*>(a.w);
  const T* b = static_cast<const T*>(a.b);
  S* memory = static_cast<S*>(a.y) + unit * n;
  T* y = row;
  if constexpr (sizeof(S) == sizeof(T)) y = memory;
  for (int64_t c = 0; c < width; ++c) {
    const T scale = w ? w[first + c] : T(1), shift = b ? b[first + c] : T(0);
    const int64_t end = (c + 1) * a.length;
#pragma omp simd
    for (int64_t j = c * a.length; j < end; ++j) y[j] = (x[j] - mean) * rstd * scale + shift;
  }
  if constexpr (sizeof(S) != sizeof(T)) store(row, memory, n);
}

template <class S, class T>
void groups_bwd(const NormGroups& a, int64_t unit, void* scratch) {
  const int64_t width = a.channels / a.groups, n = width * a.length, first = unit % a.groups * width;
  T* row = static_cast<T*>(scratch);
  T* dy_row = row + padded<T>(n);
  const T* x = loaded(static_cast<const S*>(a.x) + unit * n, row, n);
  const T* dy = loaded(static_cast<const S*>(a.dy) + unit * n, dy_row, n);
  const T mean = static_cast<const T*>(a.mean)[unit], rstd = static_cast<const T*>(a.rstd)[unit];
  const T* w = static_cast<const T*>(a.w);
  Means total = {0, 0};
  for (int64_t c = 0; c < width; ++c) {
    Means sums = {0, 0};
    for (int64_t i = c * a.length; i < (c + 1) * a.length; i += NORM_BLOCK) {
      const int64_t end = (c + 1) * a.length - i < NORM_BLOCK ? (c + 1) * a.length : i + NORM_BLOCK;
      T part = 0, x_part = 0;
#pragma omp simd reduction(+ : part, x_part)
      for (int64_t j = i; j < end; ++j) {
        part += dy[j];
        x_part += dy[j] * ((x[j] - mean) * rstd);
      }
      sums.g += part;
      sums.gx += x_part;
    }
    if (a.dw) a.dw[unit * width + c] = sums.gx;
    if (a.db) a.db[unit * width + c] = sums.g;
    const double scale = w ? w[first + c] : T(1);
    total.g += scale * sums.g;
    total.gx += scale * sums.gx;
  }
  if (!a.dx) return;
  const T g = T(total.g / n), gx = T(total.gx / n);
  S* memory = static_cast<S*>(a.dx) + unit * n;
  T* dx = row;
  if constexpr (sizeof(S) == sizeof(T)) dx = memory;
  for (int64_t c = 0; c < width; ++c) {
    const T scale = w ? w[first + c] : T(1);
    const int64_t end = (c + 1) * a.length;
#pragma omp simd
    for (int64_t j = c * a.length; j < end; ++j)
      dx[j] = rstd * (dy[j] * scale - g - (x[j] - mean) * rstd * gx);
  }
  if constexpr (sizeof(S) != sizeof(T)) store(row, memory, n);
}

template <class S, class T>
constexpr NormKernels norms() {
  return {rows_fwd<S, T>, rows_bwd<S, T>, groups_fwd<S, T>, groups_bwd<S, T>};
}

const NormKernels NORMS[DTYPES] = {norms<double, double>(), norms<float, float>(), norms<Bf16, float>(),
                                   norms<Fp16, float>()};

KERNELZOO_EXPORT(NormKernels, norm, NORMS)
