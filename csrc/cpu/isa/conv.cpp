// Convolutions of one channel each.
//
// Where a channel's elements are neighbours (`first`), a unit's x is copied to a tile, padded and sorted by the phases of
// the stride, so that one loop over all of the unit's outputs, and one load a tap, do for every size, stride and
// dilation. Where the channels are neighbours, x serves as it lies: an output's taps are a list of rows of channels.
#include "../conv.h"

#include "begin.h"

#include "../tile.h"

// Of functions whose sums must stay in registers whatever the compiler thinks of their size.
#if defined(__GNUC__)
#define KERNELZOO_INLINE inline __attribute__((always_inline))
#else
#define KERNELZOO_INLINE inline
#endif

template <class T>
inline void zero(T* t, int64_t n) {
  std::memset(t, 0, n * sizeof(T));
}

// The same as load and store, without a call for the few elements that a line often has.
template <class From, class To>
inline void copy(const From* s, To* t, int64_t n) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(From) == 4 && sizeof(To) == 4) {
    if (n <= 64) {
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) _mm512_storeu_ps(t + i, _mm512_loadu_ps(s + i));
      const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1);
      _mm512_mask_storeu_ps(t + i, rest, _mm512_maskz_loadu_ps(rest, s + i));
      return;
    }
  }
#endif
  if constexpr (sizeof(From) < sizeof(To)) load(s, t, n);
  else store(s, t, n);
}

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- a channel's elements as neighbours

// One line of u from column q0 on, the columns sorted by phase, `phases` apart; s: x's line. row: scratch of in[2].
// Where units are whole planes, every unit's zeros are at the same places, and there from the start.
template <class S, class T>
void fill_line(const Depthwise& a, const S* s, int64_t q0, int64_t columns, T* tile, int64_t phases, T* row) {
  const int64_t width = a.in[2], up = a.up[2], step = a.stride[2];
  if (up == 1 && step == 1) {
    const int64_t lo = at_least(0, -q0), hi = at_most(columns, width - q0);
    if (!a.whole) zero(tile, lo < hi ? lo : a.pitch);
    if (lo >= hi) return;
    copy(s + q0 + lo, tile + lo, hi - lo);
    if (!a.whole) zero(tile + hi, a.pitch - hi);
    return;
  }
  if (!a.whole)
    for (int64_t p = 0; p < step; ++p) zero(tile + p * phases, a.pitch);
  // of x's elements those from `from` on, before `end`, are in the tile
  const int64_t from = q0 > 0 ? ceil_div(q0, up) : 0, end = at_most(width, ceil_div(q0 + columns, up));
  if (from >= end) return;
  const T* t = loaded(s + from, row, end - from);
  if (step == 1) {
    for (int64_t i = from; i < end; ++i) tile[i * up - q0] = t[i - from];
    return;
  }
  for (int64_t p = 0; p < step; ++p) {
    const int64_t first = from - q0 > p ? ceil_div(from - q0 - p, step) : 0;
    const T* line = t - from + q0 + p;
    T* to = tile + p * phases;
    for (int64_t i = first; i * step + p < end - q0; ++i) to[i] = line[i * step];
  }
}

template <class S, class T>
void fill_tile(const Depthwise& a, const DepthwisePart& u, T* tile, T* row) {
  const S* x = static_cast<const S*>(a.x) + (u.n * a.C + u.c) * a.in[0] * a.in[1] * a.in[2];
  const int64_t phase = a.tile_rows * a.pitch, plane = a.stride[1] * a.stride[2] * phase;
  const int64_t lines = (u.rows - 1) * a.stride[1] + a.span(1), columns = (u.columns - 1) * a.stride[2] + a.span(2);
  for (int64_t k = 0; k < a.kernel[0]; ++k, tile += plane) {
    const int64_t d = u.d * a.stride[0] - a.padding[0] + k * a.dilation[0];
    if (d < 0 || d % a.up[0] || d / a.up[0] >= a.in[0]) {
      if (!a.whole) zero(tile, plane);
      continue;
    }
    for (int64_t j = 0; j < lines; ++j) {
      T* to = tile + j % a.stride[1] * a.stride[2] * phase + j / a.stride[1] * a.pitch;
      const int64_t h = u.h * a.stride[1] - a.padding[1] + j;
      if (h < 0 || h % a.up[1] || h / a.up[1] >= a.in[1]) {
        for (int64_t p = 0; p < (a.whole ? 0 : a.stride[2]); ++p) zero(to + p * phase, a.pitch);
      } else {
        const S* line = x + (d / a.up[0] * a.in[1] + h / a.up[1]) * a.in[2];
        fill_line(a, line, u.w * a.stride[2] - a.padding[2], columns, to, phase, row);
      }
    }
  }
  if (!a.whole) zero(tile, CONV_SLACK);
}

// y[i] = bias + sum of w[t] x[offsets[t] + i], up to a whole number of steps of four vectors.
template <class T>
void correlate(const T* x, const int64_t* offsets, const T* w, int64_t taps, T bias, T* y, int64_t n) {
  constexpr int64_t W = WIDTH<T>, NV = 4;
  for (int64_t i = 0; i < n; i += NV * W) {
    Vec<T> acc[NV];
    for (int64_t v = 0; v < NV; ++v) acc[v] = splat(bias);
    for (int64_t t = 0; t < taps; ++t) {
      const T* from = x + offsets[t] + i;
      const Vec<T> by = splat(w[t]);
      for (int64_t v = 0; v < NV; ++v) acc[v] += by * loadv(from + v * W);
    }
    for (int64_t v = 0; v < NV; ++v) storev(y + i + v * W, acc[v]);
  }
}

// How many elements of T the tile takes.
inline int64_t tile_size(const Depthwise& a) {
  return a.kernel[0] * a.stride[1] * a.stride[2] * a.tile_rows * a.pitch + CONV_SLACK;
}

template <class S, class T>
void fwd_first(const Depthwise& a, const DepthwisePart& u, S* z, T* tile) {
  T* const y = tile + tile_size(a);
  T* const row = y + a.rows * a.pitch + CONV_SLACK;
  fill_tile<S>(a, u, tile, row);
  const int64_t taps = a.taps();
  const T* const b = static_cast<const T*>(a.b);
  correlate(tile, a.offsets, static_cast<const T*>(a.w) + u.c * taps, taps, b[u.c], y,
            (u.rows - 1) * a.pitch + u.columns);
  for (int64_t r = 0; r < u.rows; ++r) copy(y + r * a.pitch, z + u.first + r * u.columns, u.columns);
}

template <class T>
inline T fold(Vec<T> sum) {
  constexpr int64_t W = WIDTH<T>;
  T lanes[W];
  storev(lanes, sum);
  for (int64_t half = W / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// sums[t] += sum of dz x[offsets[t] + ...] over rows of `columns` elements; dz is 0 from there to the vector's end. What
// x has there is no part of the sum, but may be infinite.
template <class T, int TAPS>
void correlate_sums(const T* x, const int64_t* offsets, const T* dz, int64_t rows, int64_t columns, int64_t pitch,
                    int64_t dz_pitch, T* sums) {
  constexpr int64_t W = WIDTH<T>;
  using Int = typename Lanes<T>::Int;
  const int64_t last = (columns - 1) / W * W;
  IVec<T> inside;
  for (int64_t l = 0; l < W; ++l) inside[l] = last + l < columns ? Int(-1) : Int(0);
  Vec<T> acc[TAPS] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = x + r * pitch;
    const T* by = dz + r * dz_pitch;
    for (int64_t i = 0; i < last; i += W) {
      const Vec<T> d = loadv(by + i);
      for (int t = 0; t < TAPS; ++t) acc[t] += d * loadv(from + offsets[t] + i);
    }
    const Vec<T> d = loadv(by + last);
    for (int t = 0; t < TAPS; ++t) {
      const Vec<T> v = loadv(from + offsets[t] + last);
      acc[t] += d * (inside ? v : Vec<T>{});
    }
  }
  for (int t = 0; t < TAPS; ++t) sums[t] += fold<T>(acc[t]);
}

template <class S, class T>
void bwd_weight_first(const Depthwise& a, const DepthwisePart& u, const S* dz_, T* sums, T* tile) {
  const int64_t dz_pitch = padded<T>(a.columns);
  T* const dz = tile + tile_size(a);
  T* const row = dz + a.rows * dz_pitch;
  fill_tile<S>(a, u, tile, row);
  Vec<T> total = {};
  for (int64_t r = 0; r < u.rows; ++r) {
    T* line = dz + r * dz_pitch;
    copy(dz_ + u.first + r * u.columns, line, u.columns);
    if (!a.whole) zero(line + u.columns, padded<T>(u.columns) - u.columns);
    for (int64_t i = 0; i < u.columns; i += WIDTH<T>) total += loadv(line + i);
  }
  const int64_t taps = a.taps();
  int64_t t = 0;
  const auto next = [&](int64_t count, auto kernel) {
    for (; t + count <= taps; t += count)
      kernel(tile, a.offsets + t, dz, u.rows, u.columns, a.pitch, dz_pitch, sums + t);
  };
  next(9, correlate_sums<T, 9>);
  next(4, correlate_sums<T, 4>);
  next(1, correlate_sums<T, 1>);
  sums[taps] += fold<T>(total);
}

// ---- the channels as neighbours

// x's lines, rows of C channels, that a unit's outputs see: for plane and row of taps number `at` one, of u's columns
// from q0 on as far as x has them.
template <class T>
struct Lines {
  const T** line;
  int64_t* at;
  int64_t count = 0;
  int64_t q0, from = 0, end = 0;  // x's columns
};

template <class S, class T>
Lines<T> take_lines(const Depthwise& a, const DepthwisePart& u, T*& scratch) {
  const int64_t all = a.kernel[0] * a.kernel[1];
  Lines<T> lines;
  lines.line = reinterpret_cast<const T**>(scratch);
  lines.at = reinterpret_cast<int64_t*>(lines.line + all);
  scratch += padded<T>(2 * all * int64_t(sizeof(int64_t) / sizeof(T)));
  lines.q0 = u.w * a.stride[2] - a.padding[2];
  const int64_t end = lines.q0 + (u.columns - 1) * a.stride[2] + a.span(2);
  lines.from = lines.q0 > 0 ? ceil_div(lines.q0, a.up[2]) : 0;
  lines.end = end > 0 ? at_most(a.in[2], ceil_div(end, a.up[2])) : 0;
  const int64_t size = at_least(0, lines.end - lines.from) * a.C;
  const S* x = static_cast<const S*>(a.x) + u.n * a.in[0] * a.in[1] * a.in[2] * a.C;
  for (int64_t k = 0; k < all; ++k) {
    const int64_t d = u.d * a.stride[0] - a.padding[0] + k / a.kernel[1] * a.dilation[0];
    const int64_t h = u.h * a.stride[1] - a.padding[1] + k % a.kernel[1] * a.dilation[1];
    if (d < 0 || d % a.up[0] || d / a.up[0] >= a.in[0] || h < 0 || h % a.up[1] || h / a.up[1] >= a.in[1]) continue;
    const S* s = x + ((d / a.up[0] * a.in[1] + h / a.up[1]) * a.in[2] + lines.from) * a.C;
    lines.at[lines.count] = k;
    lines.line[lines.count++] = loaded(s, scratch, size);
    if (sizeof(S) != sizeof(T)) scratch += padded<T>(size);
  }
  return lines;
}

// What an output sees: rows of channels, x's and the weights' (or their sums').
template <class T>
struct Taps {
  const T** x;
  int64_t* at;  // which tap
  int64_t count = 0;

  Taps(T*& scratch, int64_t taps) : x(reinterpret_cast<const T**>(scratch)) {
    at = reinterpret_cast<int64_t*>(x + taps);
    scratch += padded<T>(2 * taps * int64_t(sizeof(int64_t) / sizeof(T)));
  }

  // Those of the output in column `column` of the unit.
  void find(const Depthwise& a, const Lines<T>& lines, int64_t column) {
    count = 0;
    for (int64_t k = 0; k < lines.count; ++k) {
      for (int64_t t = 0; t < a.kernel[2]; ++t) {
        int64_t i = lines.q0 + column * a.stride[2] + t * a.dilation[2];
        if (i < 0) continue;
        if (a.up[2] > 1) {
          if (i % a.up[2]) continue;
          i /= a.up[2];
        }
        if (i >= a.in[2]) break;
        x[count] = lines.line[k] + (i - lines.from) * a.C;
        at[count++] = lines.at[k] * a.kernel[2] + t;
      }
    }
  }
};

// Outputs that are computed together: of a list of taps, which share a load of the weights, and of a window, which also
// share those of x.
constexpr int64_t TOGETHER = 4, WINDOW = 8;

// The outputs of a unit, columns begin ... end - 1, that see all taps of their rows; none where u is not x.
struct Inside {
  int64_t begin = 0, end = 0;

  Inside(const Depthwise& a, const DepthwisePart& u, int64_t q0) {
    const int64_t room = a.in[2] - a.span(2) - q0;
    if (a.up[2] > 1 || room < 0) return;
    begin = q0 < 0 ? ceil_div(-q0, a.stride[2]) : 0;
    end = at_most(u.columns, room / a.stride[2] + 1);
    if (end < begin) begin = end = 0;
  }
};

// f<T, K, STEP>, a kernel for windows of K taps STEP columns apart, or null.
#define KERNELZOO_WINDOW(f, a)                                           \
  if ((a).dilation[2] != 1 || (a).up[2] != 1 || (a).C < WIDTH<T>) return nullptr; \
  if ((a).stride[2] == 1) switch ((a).kernel[2]) {                       \
      case 3: return f<T, 3, 1>;                                         \
      case 4: return f<T, 4, 1>;                                         \
      case 5: return f<T, 5, 1>;                                         \
      case 7: return f<T, 7, 1>;                                         \
    }                                                                    \
  if ((a).stride[2] == 2) switch ((a).kernel[2]) {                       \
      case 3: return f<T, 3, 2>;                                         \
      case 5: return f<T, 5, 2>;                                         \
      case 7: return f<T, 7, 2>;                                         \
    }                                                                    \
  return nullptr;

// y (OUT, C) of one vector of channels or two.
template <class T, int OUT, int NV>
inline void fwd_vectors(const Taps<T>& taps, const T* w, const T* b, int64_t step, int64_t C, int64_t c, T* y) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> acc[OUT][NV];
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) acc[o][v] = loadv(b + c + v * W);
  for (int64_t t = 0; t < taps.count; ++t) {
    Vec<T> by[NV];
    for (int v = 0; v < NV; ++v) by[v] = loadv(w + taps.at[t] * C + c + v * W);
    const T* x = taps.x[t] + c;
    for (int o = 0; o < OUT; ++o)
      for (int v = 0; v < NV; ++v) acc[o][v] += by[v] * loadv(x + o * step + v * W);
  }
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) storev(y + o * C + c + v * W, acc[o][v]);
}

// The last channels go through the last whole vector, of which some are computed twice; fewer than a vector one by one.
template <class T, int OUT>
void fwd_outputs(const Taps<T>& taps, const T* w, const T* b, int64_t step, int64_t C, T* y) {
  constexpr int64_t W = WIDTH<T>;
  int64_t c = 0;
  for (; c + 2 * W <= C; c += 2 * W) fwd_vectors<T, OUT, 2>(taps, w, b, step, C, c, y);
  for (; c + W <= C; c += W) fwd_vectors<T, OUT, 1>(taps, w, b, step, C, c, y);
  if (c == C) return;
  if (C >= W) return fwd_vectors<T, OUT, 1>(taps, w, b, step, C, C - W, y);
  for (int o = 0; o < OUT; ++o)
    for (c = 0; c < C; ++c) {
      T acc = b[c];
      for (int64_t t = 0; t < taps.count; ++t) acc += w[taps.at[t] * C + c] * taps.x[t][o * step + c];
      y[o * C + c] = acc;
    }
}

// y (WINDOW, C) of a vector of channels: each of x's columns is loaded once a row of taps, and meets all taps there.
template <class T, int K, int STEP>
KERNELZOO_INLINE void fwd_window(const Depthwise& a, const Lines<T>& lines, int64_t column, int64_t c, T* y) {
  const T* const w = static_cast<const T*>(a.w) + c;
  const T* const b = static_cast<const T*>(a.b);
  const int64_t C = a.C, shift = (lines.q0 + column * STEP - lines.from) * C + c;
  Vec<T> acc[WINDOW];
  for (int o = 0; o < WINDOW; ++o) acc[o] = loadv(b + c);
  for (int64_t k = 0; k < lines.count; ++k) {
    const T* x = lines.line[k] + shift;
    Vec<T> by[K];
    for (int t = 0; t < K; ++t) by[t] = loadv(w + (lines.at[k] * K + t) * C);
#pragma GCC unroll 32
    for (int j = 0; j < (WINDOW - 1) * STEP + K; ++j) {
      const Vec<T> v = loadv(x + j * C);
#pragma GCC unroll 8
      for (int t = 0; t < K; ++t)
        if (j >= t && (j - t) % STEP == 0 && (j - t) / STEP < WINDOW) acc[(j - t) / STEP] += by[t] * v;
    }
  }
  for (int o = 0; o < WINDOW; ++o) storev(y + o * C + c, acc[o]);
}

template <class T, int K, int STEP>
void fwd_windows(const Depthwise& a, const Lines<T>& lines, int64_t column, T* y) {
  constexpr int64_t W = WIDTH<T>;
  // a window goes back and forth between its columns, which the processor's own prefetch does not follow: the next row
  // of x and y is asked for here (8x128x56x56, 3x3: 0.95 ms instead of 1.55; 8x384x14x14, from L2: 0.16 instead of 0.12)
  const T* const x = lines.line[lines.count - 1] + (column * STEP + a.in[2]) * a.C;
  T* const below = y + a.out[2] * a.C;
  int64_t c = 0;
  for (; c + W <= a.C; c += W) {
    for (int64_t o = 0; a.ahead && o < WINDOW; ++o) {
      __builtin_prefetch(x + o * STEP * a.C + c, 0, 2);
      __builtin_prefetch(below + o * a.C + c, 1, 2);
    }
    fwd_window<T, K, STEP>(a, lines, column, c, y);
  }
  if (c < a.C) fwd_window<T, K, STEP>(a, lines, column, a.C - W, y);
}

template <class T>
using FwdWindows = void (*)(const Depthwise&, const Lines<T>&, int64_t, T*);

template <class T>
FwdWindows<T> fwd_windows_of(const Depthwise& a) {
  KERNELZOO_WINDOW(fwd_windows, a)
}

template <class S, class T>
void fwd_last(const Depthwise& a, const DepthwisePart& u, S* z, T* scratch) {
  Taps<T> taps(scratch, a.taps());
  T* y;
  if constexpr (sizeof(S) == sizeof(T)) {
    y = z + u.first;
  } else {
    y = scratch;
    scratch += padded<T>(u.count);
  }
  const Lines<T> lines = take_lines<S>(a, u, scratch);
  const T* const w = static_cast<const T*>(a.w);
  const T* const b = static_cast<const T*>(a.b);
  const int64_t step = a.stride[2] * a.C;
  const FwdWindows<T> windows = lines.count ? fwd_windows_of<T>(a) : nullptr;
  const Inside inside(a, u, lines.q0);
  for (int64_t j = 0; j < u.columns;) {
    const int64_t rest = inside.end - j;
    if (j < inside.begin || rest <= 0 || inside.end - inside.begin < TOGETHER) {
      taps.find(a, lines, j);
      fwd_outputs<T, 1>(taps, w, b, step, a.C, y + j * a.C);
      ++j;
    } else if (windows && inside.end - inside.begin >= WINDOW) {
      if (rest < WINDOW) j = inside.end - WINDOW;  // some are computed twice
      windows(a, lines, j, y + j * a.C);
      j += WINDOW;
    } else {
      if (rest < TOGETHER) j = inside.end - TOGETHER;
      taps.find(a, lines, j);
      fwd_outputs<T, TOGETHER>(taps, w, b, step, a.C, y + j * a.C);
      j += TOGETHER;
    }
  }
  if constexpr (sizeof(S) != sizeof(T)) store(y, z + u.first, u.count);
}

// sums (taps + 1, C) += dz x of one vector of channels or two, in their first `from` lanes not at all.
template <class T, int OUT, int NV>
inline void sum_vectors(const Taps<T>& taps, const T* dz, int64_t step, int64_t C, int64_t c, int64_t from, T* sums,
                        T* total) {
  constexpr int64_t W = WIDTH<T>;
  using Int = typename Lanes<T>::Int;
  Vec<T> d[OUT][NV], all[NV];
  for (int v = 0; v < NV; ++v) all[v] = loadv(total + c + v * W);
  IVec<T> wanted;
  for (int64_t l = 0; l < W; ++l) wanted[l] = l >= from ? Int(-1) : Int(0);
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) {
      d[o][v] = loadv(dz + o * C + c + v * W);
      all[v] += from ? (wanted ? d[o][v] : Vec<T>{}) : d[o][v];
    }
  for (int v = 0; v < NV; ++v) storev(total + c + v * W, all[v]);
  for (int64_t t = 0; t < taps.count; ++t) {
    const T* x = taps.x[t] + c;
    T* sum = sums + taps.at[t] * C + c;
    for (int v = 0; v < NV; ++v) {
      Vec<T> acc = loadv(sum + v * W);
      for (int o = 0; o < OUT; ++o) {
        const Vec<T> term = d[o][v] * loadv(x + o * step + v * W);
        acc += from ? (wanted ? term : Vec<T>{}) : term;
      }
      storev(sum + v * W, acc);
    }
  }
}

template <class T, int OUT>
void sum_outputs(const Taps<T>& taps, const T* dz, int64_t step, int64_t C, T* sums, T* total) {
  constexpr int64_t W = WIDTH<T>;
  int64_t c = 0;
  for (; c + 2 * W <= C; c += 2 * W) sum_vectors<T, OUT, 2>(taps, dz, step, C, c, 0, sums, total);
  for (; c + W <= C; c += W) sum_vectors<T, OUT, 1>(taps, dz, step, C, c, 0, sums, total);
  if (c == C) return;
  if (C >= W) return sum_vectors<T, OUT, 1>(taps, dz, step, C, C - W, c - (C - W), sums, total);
  for (int o = 0; o < OUT; ++o)
    for (c = 0; c < C; ++c) {
      const T d = dz[o * C + c];
      total[c] += d;
      for (int64_t t = 0; t < taps.count; ++t) sums[taps.at[t] * C + c] += d * taps.x[t][o * step + c];
    }
}

// sums (K taps of a row, C) += dz x of a vector of channels, in its first `from` lanes not at all.
template <class T, int K, int STEP>
KERNELZOO_INLINE void sum_window(const Depthwise& a, const Lines<T>& lines, int64_t column, const T* dz, int64_t c, int64_t from,
                       T* sums) {
  using Int = typename Lanes<T>::Int;
  const int64_t C = a.C, shift = (lines.q0 + column * STEP - lines.from) * C + c, taps = a.taps();
  IVec<T> wanted;
  for (int64_t l = 0; l < WIDTH<T>; ++l) wanted[l] = l >= from ? Int(-1) : Int(0);
  const auto add = [&](T* sum, Vec<T> more) { storev(sum, loadv(sum) + (from ? (wanted ? more : Vec<T>{}) : more)); };
  Vec<T> d[WINDOW], all = {};
  for (int o = 0; o < WINDOW; ++o) {
    d[o] = loadv(dz + o * C + c);
    all += d[o];
  }
  add(sums + taps * C + c, all);
  for (int64_t k = 0; k < lines.count; ++k) {
    const T* x = lines.line[k] + shift;
    Vec<T> acc[K] = {};
#pragma GCC unroll 32
    for (int j = 0; j < (WINDOW - 1) * STEP + K; ++j) {
      const Vec<T> v = loadv(x + j * C);
#pragma GCC unroll 8
      for (int t = 0; t < K; ++t)
        if (j >= t && (j - t) % STEP == 0 && (j - t) / STEP < WINDOW) acc[t] += d[(j - t) / STEP] * v;
    }
    for (int t = 0; t < K; ++t) add(sums + (lines.at[k] * K + t) * C + c, acc[t]);
  }
}

template <class T, int K, int STEP>
void sum_windows(const Depthwise& a, const Lines<T>& lines, int64_t column, const T* dz, T* sums) {
  constexpr int64_t W = WIDTH<T>;
  const T* const x = lines.line[lines.count - 1] + (column * STEP + a.in[2]) * a.C;
  const T* const below = dz + a.out[2] * a.C;
  int64_t c = 0;
  for (; c + W <= a.C; c += W) {
    for (int64_t o = 0; a.ahead && o < WINDOW; ++o) {
      __builtin_prefetch(x + o * STEP * a.C + c, 0, 2);
      __builtin_prefetch(below + o * a.C + c, 0, 2);
    }
    sum_window<T, K, STEP>(a, lines, column, dz, c, 0, sums);
  }
  if (c < a.C) sum_window<T, K, STEP>(a, lines, column, dz, a.C - W, c - (a.C - W), sums);
}

template <class T>
using SumWindows = void (*)(const Depthwise&, const Lines<T>&, int64_t, const T*, T*);

template <class T>
SumWindows<T> sum_windows_of(const Depthwise& a) {
  KERNELZOO_WINDOW(sum_windows, a)
}

template <class S, class T>
void bwd_weight_last(const Depthwise& a, const DepthwisePart& u, const S* dz_, T* sums, T* scratch) {
  Taps<T> taps(scratch, a.taps());
  const T* dz = loaded(dz_ + u.first, scratch, u.count);
  if (sizeof(S) != sizeof(T)) scratch += padded<T>(u.count);
  const Lines<T> lines = take_lines<S>(a, u, scratch);
  T* const total = sums + a.taps() * a.C;
  const int64_t step = a.stride[2] * a.C;
  const SumWindows<T> windows = lines.count ? sum_windows_of<T>(a) : nullptr;
  const Inside inside(a, u, lines.q0);
  for (int64_t j = 0; j < u.columns;) {
    const int64_t rest = j < inside.begin ? 0 : inside.end - j;
    if (windows && rest >= WINDOW) {
      windows(a, lines, j, dz + j * a.C, sums);
      j += WINDOW;
      continue;
    }
    taps.find(a, lines, j);
    if (rest >= TOGETHER) {
      sum_outputs<T, TOGETHER>(taps, dz + j * a.C, step, a.C, sums, total);
      j += TOGETHER;
    } else {
      sum_outputs<T, 1>(taps, dz + j * a.C, step, a.C, sums, total);
      ++j;
    }
  }
}

template <class S, class T>
void fwd(const Depthwise& a, int64_t unit, void* z, void* scratch) {
  const DepthwisePart u(a, unit);
  if (a.first) fwd_first(a, u, static_cast<S*>(z), static_cast<T*>(scratch));
  else fwd_last(a, u, static_cast<S*>(z), static_cast<T*>(scratch));
}

template <class S, class T>
void bwd_weight(const Depthwise& a, int64_t unit, const void* dz, void* sums, void* scratch) {
  const DepthwisePart u(a, unit);
  if (a.first) bwd_weight_first(a, u, static_cast<const S*>(dz), static_cast<T*>(sums), static_cast<T*>(scratch));
  else bwd_weight_last(a, u, static_cast<const S*>(dz), static_cast<T*>(sums), static_cast<T*>(scratch));
}

template <class S, class T>
constexpr ConvKernels table() {
  return {fwd<S, T>, bwd_weight<S, T>};
}

const ConvKernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                    table<Fp16, float>()};

KERNELZOO_EXPORT(ConvKernels, conv, TABLES)
