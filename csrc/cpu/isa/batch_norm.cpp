// Channels that are normalised over a batch: batch_norm and instance_norm, of planes and of rows.
//
// Everything runs on pieces of at most BLOCK elements, which lie in L1 between the steps; z = bn(x) + residual is
// computed anew in the backward, by the very steps of the forward, so that it has the same sign.
#include "../batch_norm.h"

#include "../kernels.h"
#include "begin.h"

#include "../moments.h"

// What there is one of a channel: the same for a whole plane, or one for each element of a row.
template <class T>
struct Same {
  T value;
  T operator[](int64_t) const { return value; }
  Same operator+(int64_t) const { return *this; }
};

template <class P>
struct Channel {
  P mean, scale, shift, g_mean, x_factor;
  Channel operator+(int64_t j) const { return {mean + j, scale + j, shift + j, g_mean + j, x_factor + j}; }
};

template <class T>
inline Channel<Same<T>> channel_of(const BatchNorm& a, int64_t unit) {
  const auto read = [unit](const void* p) { return Same<T>{p ? static_cast<const T*>(p)[unit] : T(0)}; };
  return {read(a.mean), read(a.scale), read(a.shift), read(a.g_mean), read(a.x_factor)};
}

template <class T>
inline Channel<const T*> channels_of(const BatchNorm& a, int64_t instance) {
  // the forward has neither g_mean nor x_factor, and reads neither
  const auto read = [&](const void* p) { return static_cast<const T*>(p ? p : a.mean) + instance * a.C; };
  return {read(a.mean), read(a.scale), read(a.shift), read(a.g_mean), read(a.x_factor)};
}

// `runs` runs of `run` elements, `stride` apart, the first at `at`; in all rows * n <= BLOCK elements, which are rows
// of n channels, or one row of a plane's.
struct Piece {
  int64_t at, run, runs, stride, rows, n;
  int64_t size() const { return rows * n; }
};

template <class S, class T>
inline const T* get(const void* memory, const Piece& p, T* buffer) {
  const S* s = static_cast<const S*>(memory) + p.at;
  if (p.runs == 1) return loaded(s, buffer, p.run);
  for (int64_t r = 0; r < p.runs; ++r) load(s + r * p.stride, buffer + r * p.run, p.run);
  return buffer;
}

// Whether a piece goes past the caches.
template <class S>
inline bool streamed(const BatchNorm& a, const void* memory, const Piece& p) {
  return p.runs == 1 && streams(a.streamed, static_cast<const S*>(memory) + p.at, p.run * sizeof(S));
}

// Where to compute what is to be put into memory: there, or in the buffer.
template <class S, class T>
inline T* place(const BatchNorm& a, void* memory, const Piece& p, T* buffer) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (p.runs == 1 && !streamed<S>(a, memory, p)) return static_cast<S*>(memory) + p.at;
  }
  return buffer;
}

template <class S, class T>
inline void put(const BatchNorm& a, const T* values, void* memory, const Piece& p) {
  S* s = static_cast<S*>(memory) + p.at;
  if (static_cast<const void*>(values) == s) return;
  if (streamed<S>(a, memory, p)) {
    if constexpr (sizeof(S) == sizeof(T)) {
      stream(s, values, p.run * sizeof(S));
    } else {
      S narrow[BLOCK];
      store(values, narrow, p.run);
      stream(s, narrow, p.run * sizeof(S));
    }
    return;
  }
  for (int64_t r = 0; r < p.runs; ++r) store(values + r * p.run, s + r * p.stride, p.run);
}

enum Kind { NONE, RELU };

// z = (x - mean) scale + shift + r, or relu of it.
template <int KIND, class P, class T>
inline void normalise(const T* x, const T* r, T* z, const Piece& p, const Channel<P>& c) {
  for (int64_t row = 0; row < p.rows; ++row, x += p.n, z += p.n) {
    if (r) {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j) {
        const T value = (x[j] - c.mean[j]) * c.scale[j] + c.shift[j] + r[j];
        z[j] = KIND == RELU ? acts::relu::value(value, T(0), T(0)) : value;
      }
      r += p.n;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j) {
        const T value = (x[j] - c.mean[j]) * c.scale[j] + c.shift[j];
        z[j] = KIND == RELU ? acts::relu::value(value, T(0), T(0)) : value;
      }
    }
  }
}

template <class S, class P, class T>
void forward(const BatchNorm& a, const Piece& p, const Channel<P>& c) {
  T buffer[2][BLOCK];
  const T* x = get<S>(a.x, p, buffer[0]);
  const T* r = a.residual ? get<S>(a.residual, p, buffer[1]) : nullptr;
  T* y = place<S>(a, a.y, p, buffer[0]);
  if (a.act == ACT_relu) {
    normalise<RELU>(x, r, y, p, c);
  } else {
    normalise<NONE>(x, r, y, p, c);
    if (a.act != ACT_none) a.value(a.act, y, y, p.size(), a.p0, a.p1);
  }
  put<S>(a, y, a.y, p);
}

// How g = dy act'(z) is had: it is ready in memory; from dy, by relu's own comparison of z, computed anew, or of y.
enum Incoming { READY, BY_Z, BY_Y };

template <class S>
inline Incoming incoming_of(const BatchNorm& a) {
  if (a.act != ACT_relu || a.dr) return READY;
  return a.from_output ? BY_Y : a.saved ? READY : BY_Z;
}

// g, ready: dy itself, or in `buffer`; written to dr where there is one, and as it was rounded there.
template <class S, class P, class T>
inline const T* ready(const BatchNorm& a, const Piece& p, const Channel<P>& c, const T* x, T* buffer, T* other) {
  const T* dy = get<S>(a.dy, p, buffer);
  if (a.act == ACT_none) return dy;
  T* g = buffer;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (a.dr && p.runs == 1) g = static_cast<S*>(a.dr) + p.at;
  }
  if (a.from_output) {
    a.grad(a.act, dy, get<S>(a.saved, p, other), g, p.size(), a.p0, a.p1);
  } else {
    const T* r = a.saved ? get<S>(a.saved, p, other) : nullptr;
    normalise<NONE>(x, r, other, p, c);
    if (a.act == ACT_sigmoid || a.act == ACT_tanh) a.value(a.act, other, other, p.size(), a.p0, a.p1);
    a.grad(a.act, dy, other, g, p.size(), a.p0, a.p1);
  }
  if (a.dr && g == buffer) {
    S* dr = static_cast<S*>(a.dr) + p.at;
    for (int64_t r = 0; r < p.runs; ++r) store(g + r * p.run, dr + r * p.stride, p.run);
    if constexpr (sizeof(S) != sizeof(T)) return get<S>(a.dr, p, g);
  }
  return g;
}

// What g is computed of: dy and x, and y (BY_Y).
template <class T>
struct Terms {
  const T *dy, *x, *y;
  Terms operator+(int64_t j) const { return {dy + j, x + j, y + j}; }
};

template <int G, class S, class P, class T>
inline Terms<T> terms(const BatchNorm& a, const Piece& p, const Channel<P>& c, T (*buffer)[BLOCK]) {
  const T* x = get<S>(a.x, p, buffer[0]);
  if (G == READY) return {ready<S>(a, p, c, x, buffer[1], buffer[2]), x, x};
  const T* dy = get<S>(a.dy, p, buffer[1]);
  return {dy, x, G == BY_Y ? get<S>(a.saved, p, buffer[2]) : x};
}

template <int G, class P, class T>
inline T gradient(const Terms<T>& t, const Channel<P>& c, int64_t j) {
  if (G == READY) return t.dy[j];
  if (G == BY_Y) return acts::relu::grad(t.dy[j], t.y[j], T(0), T(0));
  return acts::relu::grad(t.dy[j], (t.x[j] - c.mean[j]) * c.scale[j] + c.shift[j], T(0), T(0));
}

template <int G, class S, class P, class T>
void backward(const BatchNorm& a, const Piece& p, const Channel<P>& c) {
  T buffer[3][BLOCK];
  Terms<T> t = terms<G, S>(a, p, c, buffer);
  if (!a.dx) return;
  T* dx = place<S>(a, a.dx, p, buffer[G == READY ? 2 : 0]);
  T* to = dx;
  for (int64_t row = 0; row < p.rows; ++row, t = t + p.n, to += p.n) {
    if (a.training) {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j)
        to[j] = c.scale[j] * (gradient<G>(t, c, j) - c.g_mean[j] - (t.x[j] - c.mean[j]) * c.x_factor[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < p.n; ++j) to[j] = c.scale[j] * gradient<G>(t, c, j);
    }
  }
  put<S>(a, dx, a.dx, p);
}

// Calls function(Incoming's value, known to the compiler).
template <int G>
struct Constant {
  static constexpr int value = G;
};
template <class F>
inline void with(Incoming g, F function) {
  if (g == READY) function(Constant<READY>{});
  if (g == BY_Z) function(Constant<BY_Z>{});
  if (g == BY_Y) function(Constant<BY_Y>{});
}

// ---- planes

// Calls piece(Piece) for planes first ... last - 1 of a unit; short ones are taken together.
template <class F>
inline void planes(const BatchNorm& a, int64_t unit, int64_t first, int64_t last, F piece) {
  const int64_t together = a.L >= BLOCK ? 1 : BLOCK / a.L, stride = a.C * a.L;
  const int64_t start = (unit / a.C * a.N * a.C + unit % a.C) * a.L;
  for (int64_t n = first; n < last; n += together) {
    const int64_t runs = last - n < together ? last - n : together;
    for (int64_t l = 0; l < a.L; l += BLOCK) {
      const int64_t run = a.L - l < BLOCK ? a.L - l : BLOCK;
      piece(Piece{start + n * stride + l, run, runs, stride, 1, runs * run});
    }
  }
}

template <class S, class T>
void unit_moments(const BatchNorm& a, int64_t unit, double* mean_out, double* var) {
  double mean = 0, squares = 0;
  int64_t count = 0;
  planes(a, unit, 0, a.N, [&](const Piece& p) {
    T buffer[BLOCK];
    const Moments found = moments(get<S>(a.x, p, buffer), p.n, true);
    const double delta = found.mean - mean, share = double(p.n) / double(count + p.n);
    mean += count ? delta * share : delta;
    squares += found.squares * p.n + (count ? delta * delta * share * count : 0);
    count += p.n;
  });
  *mean_out = mean;
  *var = squares / count;
}

template <class S, class T>
void unit_fwd(const BatchNorm& a, int64_t unit, int64_t first, int64_t last) {
  const auto c = channel_of<T>(a, unit);
  planes(a, unit, first, last, [&](const Piece& p) { forward<S, Same<T>, T>(a, p, c); });
}

template <class S, class T>
void unit_sums(const BatchNorm& a, int64_t unit, double* g_out, double* gx_out) {
  const auto c = channel_of<T>(a, unit);
  double g_total = 0, gx_total = 0;
  with(incoming_of<S>(a), [&](auto how) {
    planes(a, unit, 0, a.N, [&](const Piece& p) {
      T buffer[3][BLOCK], g_sum = 0, gx_sum = 0;
      const Terms<T> t = terms<how.value, S>(a, p, c, buffer);
      if constexpr (how.value == READY) {
        share(t.dy, t.x, p.n, c.mean.value, T(1), &g_sum, &gx_sum);
      } else {
#pragma omp simd reduction(+ : g_sum, gx_sum)
        for (int64_t j = 0; j < p.n; ++j) {
          const T g = gradient<how.value>(t, c, j);
          g_sum += g;
          gx_sum += g * (t.x[j] - c.mean.value);
        }
      }
      g_total += g_sum;
      gx_total += gx_sum;
    });
  });
  *g_out = g_total;
  *gx_out = gx_total;
}

template <class S, class T>
void unit_bwd(const BatchNorm& a, int64_t unit, int64_t first, int64_t last) {
  const auto c = channel_of<T>(a, unit);
  with(incoming_of<S>(a), [&](auto how) {
    planes(a, unit, first, last, [&](const Piece& p) { backward<how.value, S, Same<T>, T>(a, p, c); });
  });
  if (a.streamed) drain();
}

// ---- rows

// Calls piece(Piece, first column) for rows first ... last - 1.
template <class F>
inline void rows(const BatchNorm& a, int64_t first, int64_t last, F piece) {
  const int64_t C = a.C, together = C >= BLOCK ? 1 : BLOCK / C;
  for (int64_t r = first; r < last; r += together) {
    const int64_t m = last - r < together ? last - r : together;
    for (int64_t j = 0; j < C; j += BLOCK) {
      const int64_t n = C - j < BLOCK ? C - j : BLOCK;
      piece(Piece{r * C + j, m * n, 1, 0, m, n}, j);
    }
  }
}

// Columns side by side that are summed in registers: K vectors, each whole, or the columns that are left in one.
template <class T, int K>
struct Whole {
  static constexpr int vectors = K;
  static constexpr int64_t bytes = sizeof(typename Lanes<T>::V);
};
struct Part {
  static constexpr int vectors = 1;
  int64_t bytes;
};

// Not by memcpy where the vector is whole: GCC 12 takes 32 bytes in halves, through the stack (16x64x56x56 channels-last
// on AVX2, the sums of the backward: 12.2 ms of one thread instead of 2.9).
template <class T, int K>
inline typename Lanes<T>::V taken(const T* p, Whole<T, K>) {
  return *reinterpret_cast<const typename Lanes<T>::V*>(p);
}
template <class T>
inline typename Lanes<T>::V taken(const T* p, Part some) {
  typename Lanes<T>::V v = {};
  std::memcpy(&v, p, some.bytes);
  return v;
}
template <class T, int K>
inline void given(typename Lanes<T>::V v, T* p, Whole<T, K>) {
  *reinterpret_cast<typename Lanes<T>::V*>(p) = v;
}
template <class T>
inline void given(typename Lanes<T>::V v, T* p, Part some) {
  std::memcpy(p, &v, some.bytes);
}

// Calls body(first column, columns) for n columns: four vectors at once, so that a row's lines are read in their order.
template <class T, class F>
inline void columns(int64_t n, F body) {
  constexpr int64_t W = Lanes<T>::W;
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) body(j, Whole<T, 4>{});
  for (; j + W <= n; j += W) body(j, Whole<T, 1>{});
  if (j < n) body(j, Part{(n - j) * int64_t(sizeof(T))});
}

// The moments of a block of m rows, in two reads of it, joined to those of the `before` rows before it.
template <class T>
inline void join_moments(const T* x, int64_t m, int64_t C, int64_t before, double* mean, double* squares) {
  using V = typename Lanes<T>::V;
  constexpr int64_t W = Lanes<T>::W;
  const double share = double(m) / double(before + m), cross = share * before;
  columns<T>(C, [&](int64_t j, auto some) __attribute__((always_inline)) {
    constexpr int K = some.vectors;
    V pivot[K] = {}, off[K] = {}, about[K] = {};
    for (int64_t r = 0; r < m; ++r) {
      const T* const row = x + r * C + j;
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) pivot[k] += taken(row + k * W, some);
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) pivot[k] /= T(m);
    for (int64_t r = 0; r < m; ++r) {
      const T* const row = x + r * C + j;
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const V v = taken(row + k * W, some) - pivot[k];
        off[k] += v;
        about[k] += v * v;
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) off[k] /= T(m);
    T pivots[K * W], rests[K * W], found[K * W];
    std::memcpy(pivots, pivot, sizeof pivots);
    std::memcpy(rests, off, sizeof rests);
    std::memcpy(found, about, sizeof found);
    const int64_t n = K * some.bytes / int64_t(sizeof(T));
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      const double delta = double(pivots[l]) + rests[l] - mean[j + l];
      squares[j + l] += found[l] - double(rests[l]) * rests[l] * m + delta * delta * cross;
      mean[j + l] += delta * share;
    }
  });
}

template <class S, class T>
void rows_moments(const BatchNorm& a, int64_t first, int64_t last, double* mean, double* squares, void* scratch) {
  const int64_t C = a.C, together = batch_norm_rows(C);
  std::memset(mean, 0, C * sizeof(double));
  std::memset(squares, 0, C * sizeof(double));
  for (int64_t r = first; r < last; r += together) {
    const int64_t m = last - r < together ? last - r : together;
    const T* x = loaded(static_cast<const S*>(a.x) + r * C, static_cast<T*>(scratch), m * C);
    join_moments(x, m, C, r - first, mean, squares);
  }
}

template <class S, class T>
void rows_fwd(const BatchNorm& a, int64_t first, int64_t last) {
  const auto c = channels_of<T>(a, first / a.N);
  rows(a, first, last, [&](const Piece& p, int64_t j) { forward<S, const T*, T>(a, p, c + j); });
}

// Rows whose sums are added up in T before they join a stripe's in double.
constexpr int64_t FLUSHED = 32;

template <class S, class T>
void rows_sums(const BatchNorm& a, int64_t first, int64_t last, double* g_out, double* gx_out, void* scratch) {
  using V = typename Lanes<T>::V;
  constexpr int64_t W = Lanes<T>::W;
  const auto c = channels_of<T>(a, first / a.N);
  const int64_t C = a.C;
  T* g_sum = static_cast<T*>(scratch);
  T* gx_sum = g_sum + C;
  std::memset(g_sum, 0, 2 * C * sizeof(T));
  std::memset(g_out, 0, C * sizeof(double));
  std::memset(gx_out, 0, C * sizeof(double));
  int64_t waiting = 0;
  with(incoming_of<S>(a), [&](auto how) {
    rows(a, first, last, [&](const Piece& p, int64_t column) {
      T buffer[3][BLOCK];
      const auto here = c + column;
      const Terms<T> t = terms<how.value, S>(a, p, here, buffer);
      columns<T>(p.n, [&](int64_t j, auto some) __attribute__((always_inline)) {
        constexpr int K = some.vectors;
        V mean[K], scale[K], shift[K], sum[K], x_sum[K];
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          mean[k] = taken(here.mean + j + k * W, some);
          scale[k] = taken(here.scale + j + k * W, some);
          shift[k] = taken(here.shift + j + k * W, some);
          sum[k] = taken(g_sum + column + j + k * W, some);
          x_sum[k] = taken(gx_sum + column + j + k * W, some);
        }
        for (int64_t r = 0; r < p.rows; ++r)
#pragma GCC unroll 4
          for (int k = 0; k < K; ++k) {
            const int64_t at = r * p.n + j + k * W;
            const V v = taken(t.x + at, some) - mean[k];
            V d = taken(t.dy + at, some), z = {};
            if constexpr (how.value == BY_Y) z = taken(t.y + at, some);
            if constexpr (how.value == BY_Z) z = v * scale[k] + shift[k];
            if constexpr (how.value != READY) d = z <= 0 ? V{} : d;
            sum[k] += d;
            x_sum[k] += d * v;
          }
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          given(sum[k], g_sum + column + j + k * W, some);
          given(x_sum[k], gx_sum + column + j + k * W, some);
        }
      });
      if (column + p.n < C) return;
      waiting += p.rows;
      if (waiting < FLUSHED && p.at + p.run < last * C) return;
#pragma omp simd
      for (int64_t j = 0; j < C; ++j) {
        g_out[j] += g_sum[j];
        gx_out[j] += gx_sum[j];
      }
      std::memset(g_sum, 0, 2 * C * sizeof(T));
      waiting = 0;
    });
  });
}

template <class S, class T>
void rows_bwd(const BatchNorm& a, int64_t first, int64_t last) {
  const auto c = channels_of<T>(a, first / a.N);
  with(incoming_of<S>(a), [&](auto how) {
    rows(a, first, last, [&](const Piece& p, int64_t j) { backward<how.value, S, const T*, T>(a, p, c + j); });
  });
  if (a.streamed) drain();
}

template <class S, class T>
constexpr BatchNormKernels kernels() {
  return {unit_moments<S, T>, unit_fwd<S, T>, unit_sums<S, T>, unit_bwd<S, T>,
          rows_moments<S, T>, rows_fwd<S, T>, rows_sums<S, T>, rows_bwd<S, T>};
}

const BatchNormKernels BATCH_NORMS[DTYPES] = {kernels<double, double>(), kernels<float, float>(),
                                              kernels<Bf16, float>(), kernels<Fp16, float>()};

KERNELZOO_EXPORT(BatchNormKernels, batch_norm, BATCH_NORMS)
