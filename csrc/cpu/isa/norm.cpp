// Rows that are normalised: layer_norm, rms_norm (without a mean) and group_norm.
//
// A row is read from memory once, and lies in a near cache when it is read again: the moments, then the result. Sums
// run in vectors of T over NORM_BLOCK elements, and the blocks' in double.
#include "../norm.h"
#include "begin.h"

// 64 bytes of T at any address. Four such accumulators hide an addition's latency.
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

template <class T>
struct Sums {
  T x, squares;
};

// The sums of x - pivot and of its squares, over n > 0 elements.
template <class T>
inline Sums<T> sums(const T* x, T pivot, int64_t n) {
  using V = typename Lanes<T>::V;
  constexpr int64_t W = Lanes<T>::W;
  V a[4] = {}, c[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {
    const V* v = reinterpret_cast<const V*>(x + j);
    for (int k = 0; k < 4; ++k) {
      const V p = v[k] - pivot;
      a[k] += p;
      c[k] += p * p;
    }
  }
  for (int k = 0; j < n; j += W, ++k) {
    V v = V{} + pivot;  // what lies beyond the row adds nothing
    std::memcpy(&v, x + j, (n - j < W ? n - j : W) * sizeof(T));
    const V p = v - pivot;
    a[k] += p;
    c[k] += p * p;
  }
  return {fold<T>((a[0] + a[1]) + (a[2] + a[3])), fold<T>((c[0] + c[1]) + (c[2] + c[3]))};
}

struct Moments {
  double mean, squares;  // squares: the mean of those about `mean`, or about 0 where it is not centred
};

// One read of a block about the mean of its first elements, and another about its own mean where the first was so far
// off that the difference of squares loses a digit. Blocks are joined as by Chan, Golub, LeVeque (Updating formulae
// and a pairwise algorithm for computing sample variances, 1979).
template <class T>
inline Moments moments(const T* x, int64_t n, bool centred) {
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < n; i += NORM_BLOCK) {
    const int64_t m = n - i < NORM_BLOCK ? n - i : NORM_BLOCK;
    if (!centred) {
      squares += sums(x + i, T(0), m).squares;
      continue;
    }
    const int64_t head = m < Lanes<T>::W ? m : Lanes<T>::W;
    T pivot = sums(x + i, T(0), head).x / T(head);
    Sums<T> found = sums(x + i, pivot, m);
    double off = found.x / double(m);
    if (off * off * m > 0.5 * found.squares) {
      pivot = T(pivot + off);
      found = sums(x + i, pivot, m);
      off = found.x / double(m);
    }
    const double block = pivot + off;
    const double about = found.squares - off * off * m;
    squares += about > 0 || about != about ? about : 0;
    const double delta = block - mean, share = double(m) / double(i + m);
    mean += i ? delta * share : delta;
    if (i) squares += delta * delta * share * i;
  }
  return {mean, squares / n};
}

// A row begins where the processor's own prefetch, which stays within a page, may not have looked: what comes next is
// asked for piece by piece, while the row before it is written.
constexpr int64_t AHEAD = 256;

template <class S>
inline void prefetch(const S* next, int64_t j, int64_t n) {
  if (!next) return;
  const int64_t end = n - j < AHEAD ? n : j + AHEAD;
  for (int64_t i = j; i < end; i += 64 / sizeof(S)) __builtin_prefetch(next + i, 0, 2);
}

// Whether a row goes past the caches, by whole lines: nothing then reads it from memory before it is written.
inline bool streams(bool wanted, const void* row, int64_t bytes) {
#if KERNELZOO_X86
  return wanted && ((reinterpret_cast<uintptr_t>(row) | bytes) & 63) == 0;
#else
  return false;
#endif
}

inline void stream(void* to, const void* from, int64_t bytes) {
#if KERNELZOO_X86
  for (int64_t i = 0; i < bytes; i += 64) {
    const char* f = static_cast<const char*>(from) + i;
    char* t = static_cast<char*>(to) + i;
#ifdef KERNELZOO_ISA_avx512
    _mm512_stream_si512(reinterpret_cast<__m512i*>(t), _mm512_loadu_si512(f));
#else
    for (int k = 0; k < 64; k += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(t + k), _mm_loadu_si128(reinterpret_cast<const __m128i*>(f + k)));
#endif
  }
#endif
}

// Streamed stores are in no order with others until here.
inline void drain() {
#if KERNELZOO_X86
  _mm_sfence();
#endif
}

template <class T>
inline void normalise(const T* x, const T* w, const T* b, T* y, int64_t begin, int64_t end, T mean, T rstd) {
  if (w && b) {
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) y[j] = (x[j] - mean) * rstd * w[j] + b[j];
  } else if (w) {
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) y[j] = (x[j] - mean) * rstd * w[j];
  } else if (b) {
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) y[j] = (x[j] - mean) * rstd + b[j];
  } else {
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) y[j] = (x[j] - mean) * rstd;
  }
}

// s = x + other, rounded as it is stored; the sum as T.
template <class S, class O, class T>
inline const T* add(const S* x, const O* other, S* s, T* row, T* addend, int64_t n, bool streaming) {
  const T* a = loaded(x, row, n);
  const T* c = loaded(other, addend, n);
  if constexpr (sizeof(S) == sizeof(T)) {
    T* const sum = streaming ? row : s;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sum[j] = a[j] + c[j];
    if (streaming) stream(s, sum, n * sizeof(S));
    return sum;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) row[j] = a[j] + c[j];
    S* const rounded = streaming ? reinterpret_cast<S*>(addend) : s;  // what was added is not needed again
    store(row, rounded, n);
    if (streaming) stream(s, rounded, n * sizeof(S));
    load(rounded, row, n);
    return row;
  }
}

template <class S, class T>
inline const T* added(const NormRows& a, int64_t i, T* row, T* addend) {
  const S* x = static_cast<const S*>(a.x) + i;
  S* s = static_cast<S*>(a.s) + i;
  const bool streaming = streams(a.streamed, s, a.n * sizeof(S));
  if constexpr (sizeof(S) == 4) {
    if (a.other_dtype == BF16) return add(x, static_cast<const Bf16*>(a.other) + i, s, row, addend, a.n, streaming);
    if (a.other_dtype == F16) return add(x, static_cast<const Fp16*>(a.other) + i, s, row, addend, a.n, streaming);
  }
  return add(x, static_cast<const S*>(a.other) + i, s, row, addend, a.n, streaming);
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
    const bool streaming = streams(a.streamed, y, n * sizeof(S));
    const S* next = r + 1 < last ? static_cast<const S*>(a.x) + (r + 1) * n : nullptr;
    const S* other = next && a.other && sizeof(S) == ITEM[a.other_dtype]
                         ? static_cast<const S*>(a.other) + (r + 1) * n
                         : nullptr;
    for (int64_t j = 0; j < n; j += AHEAD) {
      const int64_t end = n - j < AHEAD ? n : j + AHEAD;
      prefetch(next, j, n);
      prefetch(other, j, n);
      T out[AHEAD];
      if (streaming) {
        S narrow[AHEAD];
        normalise(x + j, w ? w + j : nullptr, b ? b + j : nullptr, out, 0, end - j, mean, rstd);
        if constexpr (sizeof(S) != sizeof(T)) store(out, narrow, end - j);
        stream(y + j, sizeof(S) == sizeof(T) ? static_cast<const void*>(out) : narrow, (end - j) * sizeof(S));
      } else if constexpr (sizeof(S) == sizeof(T)) {
        normalise(x, w, b, y, j, end, mean, rstd);
      } else {
        normalise(x, w, b, row, j, end, mean, rstd);
        store(row + j, y + j, end - j);
      }
    }
  }
  if (a.streamed) drain();
}

struct Means {
  double g, gx;  // of g = w dy, and of g x̂
};

template <class T>
struct Row {
  const T* x;
  const T* dy;
  T mean, rstd;
};

// One read of a row of dy and x, or of two: the sums of g and g x̂, and the rows' share of dw and db, which two rows
// load and store once.
template <class T, bool TWO, bool DX, bool DW, bool DB>
void gather(const Row<T>* rows, const T* w, T* dw, T* db, int64_t n, Means* total) {
  const Row<T> p = rows[0], q = rows[TWO];
  total[0] = total[TWO] = {0, 0};
  for (int64_t i = 0; i < n; i += NORM_BLOCK) {
    const int64_t end = n - i < NORM_BLOCK ? n : i + NORM_BLOCK;
    T p_g = 0, p_gx = 0, q_g = 0, q_gx = 0;
#pragma omp simd reduction(+ : p_g, p_gx, q_g, q_gx)
    for (int64_t j = i; j < end; ++j) {
      const T p_d = p.dy[j], p_normal = (p.x[j] - p.mean) * p.rstd;
      T dw_j = p_d * p_normal, db_j = p_d;
      if constexpr (DX) {
        const T g = p_d * w[j];
        p_g += g;
        p_gx += g * p_normal;
      }
      if constexpr (TWO) {
        const T q_d = q.dy[j], q_normal = (q.x[j] - q.mean) * q.rstd;
        dw_j += q_d * q_normal;
        db_j += q_d;
        if constexpr (DX) {
          const T g = q_d * w[j];
          q_g += g;
          q_gx += g * q_normal;
        }
      }
      if constexpr (DW) dw[j] += dw_j;
      if constexpr (DB) db[j] += db_j;
    }
    total[0].g += p_g;
    total[0].gx += p_gx;
    if constexpr (TWO) {
      total[1].g += q_g;
      total[1].gx += q_gx;
    }
  }
}

template <class T>
inline void scatter(const Row<T>& row, const T* w, const T* ds, T* dx, int64_t n, T g_mean, T gx_mean) {
  const T *x = row.x, *dy = row.dy, mean = row.mean, rstd = row.rstd;
  if (ds) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j)
      dx[j] = rstd * (dy[j] * w[j] - g_mean - (x[j] - mean) * rstd * gx_mean) + ds[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j)
      dx[j] = rstd * (dy[j] * w[j] - g_mean - (x[j] - mean) * rstd * gx_mean);
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
  using Gather = void (*)(const Row<T>*, const T*, T*, T*, int64_t, Means*);
  static constexpr Gather GATHER[16] = {
      gather<T, false, false, false, false>, gather<T, false, false, false, true>,
      gather<T, false, false, true, false>,  gather<T, false, false, true, true>,
      gather<T, false, true, false, false>,  gather<T, false, true, false, true>,
      gather<T, false, true, true, false>,   gather<T, false, true, true, true>,
      gather<T, true, false, false, false>,  gather<T, true, false, false, true>,
      gather<T, true, false, true, false>,   gather<T, true, false, true, true>,
      gather<T, true, true, false, false>,   gather<T, true, true, false, true>,
      gather<T, true, true, true, false>,    gather<T, true, true, true, true>};
  const int needs = (a.dx ? 4 : 0) + (dw ? 2 : 0) + (db ? 1 : 0);
  const int64_t n = a.n;
  T* buffers = static_cast<T*>(scratch);
  T* dw_sum = buffers + 4 * padded<T>(n);
  T* db_sum = dw_sum + padded<T>(n);
  const T* w = static_cast<const T*>(a.w);
  const S* const x = static_cast<const S*>(a.x);
  const S* const dy = static_cast<const S*>(a.dy);
  if (dw) std::memset(dw_sum, 0, n * sizeof(T));
  if (db) std::memset(db_sum, 0, n * sizeof(T));
  bool fresh = true;
  for (int64_t r = first; r < last; r += 2) {
    const bool two = r + 1 < last;
    Row<T> rows[2];
    Means means[2];
    for (int k = 0; k < 1 + two; ++k) {
      T* buffer = buffers + 2 * k * padded<T>(n);
      rows[k].x = loaded(x + (r + k) * n, buffer, n);
      rows[k].dy = loaded(dy + (r + k) * n, buffer + padded<T>(n), n);
      rows[k].mean = a.mean ? static_cast<const T*>(a.mean)[r + k] : T(0);
      rows[k].rstd = static_cast<const T*>(a.rstd)[r + k];
    }
    GATHER[needs + 8 * two](rows, w, dw_sum, db_sum, n, means);
    for (int k = 0; a.dx && k < 1 + two; ++k) {
      const T g_mean = a.mean ? T(means[k].g / n) : T(0), gx_mean = T(means[k].gx / n);
      const S* ds = a.ds ? static_cast<const S*>(a.ds) + (r + k) * n : nullptr;
      S* dx = static_cast<S*>(a.dx) + (r + k) * n;
      const bool streaming = streams(a.streamed, dx, n * sizeof(S));
      const S* next_x = r + k + 2 < last ? x + (r + k + 2) * n : nullptr;
      const S* next_dy = next_x ? dy + (r + k + 2) * n : nullptr;
      const S* next_ds = next_x && ds ? ds + 2 * n : nullptr;
      for (int64_t j = 0; j < n; j += AHEAD) {
        const int64_t end = n - j < AHEAD ? n : j + AHEAD;
        prefetch(next_x, j, n);
        prefetch(next_dy, j, n);
        prefetch(next_ds, j, n);
        T out[AHEAD];
        const Row<T> piece = {rows[k].x + j, rows[k].dy + j, rows[k].mean, rows[k].rstd};
        if constexpr (sizeof(S) == sizeof(T)) {
          scatter(piece, w + j, ds ? ds + j : nullptr, streaming ? out : dx + j, end - j, g_mean, gx_mean);
          if (streaming) stream(dx + j, out, (end - j) * sizeof(S));
        } else {
          T addend[AHEAD];
          S narrow[AHEAD];
          if (ds) load(ds + j, addend, end - j);
          scatter<T>(piece, w + j, ds ? addend : nullptr, out, end - j, g_mean, gx_mean);
          store(out, streaming ? narrow : dx + j, end - j);
          if (streaming) stream(dx + j, narrow, (end - j) * sizeof(S));
        }
      }
    }
    if ((r + 2 - first) % NORM_ROWS == 0 || r + 2 >= last) {
      if (dw) flush(dw_sum, dw, n, fresh);
      if (db) flush(db_sum, db, n, fresh);
      fresh = false;
    }
  }
  if (a.streamed) drain();
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

// The sums of dy and dy x̂.
template <class T>
inline void share(const T* dy, const T* x, int64_t n, T mean, T rstd, T* sum, T* x_sum) {
  using V = typename Lanes<T>::V;
  constexpr int64_t W = Lanes<T>::W;
  V a[4] = {}, c[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {
    const V* d = reinterpret_cast<const V*>(dy + j);
    const V* v = reinterpret_cast<const V*>(x + j);
    for (int k = 0; k < 4; ++k) {
      a[k] += d[k];
      c[k] += d[k] * ((v[k] - mean) * rstd);
    }
  }
  for (int k = 0; j < n; j += W, ++k) {
    V d = {}, v = V{} + mean;
    const int64_t bytes = (n - j < W ? n - j : W) * sizeof(T);
    std::memcpy(&d, dy + j, bytes);
    std::memcpy(&v, x + j, bytes);
    a[k] += d;
    c[k] += d * ((v - mean) * rstd);
  }
  *sum = fold<T>((a[0] + a[1]) + (a[2] + a[3]));
  *x_sum = fold<T>((c[0] + c[1]) + (c[2] + c[3]));
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
      share(dy + i, x + i, end - i, mean, rstd, &part, &x_part);
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
