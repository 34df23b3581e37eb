// Convolutions of one channel each.
//
// Where a channel's elements are neighbours (`first`), a unit's x is copied to a tile, padded and sorted by the phases of
// the stride, so that one loop over all of the unit's outputs, and one load a tap, do for every size, stride and
// dilation. Where the channels are neighbours, x serves as it lies: an output's taps are a list of rows of channels.
#include "../conv.h"

#include "begin.h"

#include "../tile.h"

template <class T>
inline void zero(T* t, int64_t n) {
  std::memset(t, 0, n * sizeof(T));
}

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- a channel's elements as neighbours

// One line of u from column q0 on, the columns sorted by phase, `phases` apart; s: x's line. row: scratch of in[2].
template <class S, class T>
void fill_line(const Depthwise& a, const S* s, int64_t q0, int64_t columns, T* tile, int64_t phases, T* row) {
  const int64_t width = a.in[2], up = a.up[2], step = a.stride[2];
  if (up == 1 && step == 1) {
    const int64_t lo = at_least(0, -q0), hi = at_most(columns, width - q0);
    if (lo >= hi) return zero(tile, a.pitch);
    zero(tile, lo);
    load(s + q0 + lo, tile + lo, hi - lo);
    return zero(tile + hi, a.pitch - hi);
  }
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
      zero(tile, plane);
      continue;
    }
    for (int64_t j = 0; j < lines; ++j) {
      T* to = tile + j % a.stride[1] * a.stride[2] * phase + j / a.stride[1] * a.pitch;
      const int64_t h = u.h * a.stride[1] - a.padding[1] + j;
      if (h < 0 || h % a.up[1] || h / a.up[1] >= a.in[1]) {
        for (int64_t p = 0; p < a.stride[2]; ++p) zero(to + p * phase, a.pitch);
      } else {
        const S* line = x + (d / a.up[0] * a.in[1] + h / a.up[1]) * a.in[2];
        fill_line(a, line, u.w * a.stride[2] - a.padding[2], columns, to, phase, row);
      }
    }
  }
  zero(tile, CONV_SLACK);
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
  correlate(tile, a.offsets, static_cast<const T*>(a.w) + u.c * taps, taps, b ? b[u.c] : T(0), y,
            (u.rows - 1) * a.pitch + u.columns);
  for (int64_t r = 0; r < u.rows; ++r) store(y + r * a.pitch, z + u.first + r * u.columns, u.columns);
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
    load(dz_ + u.first + r * u.columns, line, u.columns);
    zero(line + u.columns, padded<T>(u.columns) - u.columns);
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

// x's rows of C channels that a unit's outputs see: for each plane and row of taps one line, of u's columns from q0 on
// as far as x has them, or none.
template <class T>
struct Lines {
  const T** line;
  int64_t q0, from, end;  // x's columns
};

template <class S, class T>
Lines<T> take_lines(const Depthwise& a, const DepthwisePart& u, T*& scratch) {
  Lines<T> lines = {reinterpret_cast<const T**>(scratch), u.w * a.stride[2] - a.padding[2], 0, 0};
  const int64_t count = a.kernel[0] * a.kernel[1], end = lines.q0 + (u.columns - 1) * a.stride[2] + a.span(2);
  scratch += padded<T>(count * int64_t(sizeof(T*) / sizeof(T)));
  lines.from = lines.q0 > 0 ? ceil_div(lines.q0, a.up[2]) : 0;
  lines.end = end > 0 ? at_most(a.in[2], ceil_div(end, a.up[2])) : 0;
  const int64_t size = at_least(0, lines.end - lines.from) * a.C;
  const S* x = static_cast<const S*>(a.x) + u.n * a.in[0] * a.in[1] * a.in[2] * a.C;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t d = u.d * a.stride[0] - a.padding[0] + k / a.kernel[1] * a.dilation[0];
    const int64_t h = u.h * a.stride[1] - a.padding[1] + k % a.kernel[1] * a.dilation[1];
    lines.line[k] = nullptr;
    if (d < 0 || d % a.up[0] || d / a.up[0] >= a.in[0] || h < 0 || h % a.up[1] || h / a.up[1] >= a.in[1]) continue;
    const S* s = x + ((d / a.up[0] * a.in[1] + h / a.up[1]) * a.in[2] + lines.from) * a.C;
    lines.line[k] = loaded(s, scratch, size);
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
    for (int64_t k = 0; k < a.kernel[0] * a.kernel[1]; ++k) {
      const T* line = lines.line[k];
      if (!line) continue;
      for (int64_t t = 0; t < a.kernel[2]; ++t) {
        const int64_t q = lines.q0 + column * a.stride[2] + t * a.dilation[2];
        if (q < 0 || q % a.up[2]) continue;
        const int64_t i = q / a.up[2];
        if (i >= a.in[2]) break;
        x[count] = line + (i - lines.from) * a.C;
        at[count++] = k * a.kernel[2] + t;
      }
    }
  }
};

constexpr int64_t TOGETHER = 4;  // outputs that share a load of the weights

// How many outputs from `column` on see all taps of their rows, in steps of whole groups; else 1.
template <class T>
inline int64_t together(const Depthwise& a, const Lines<T>& lines, int64_t column, int64_t columns) {
  const int64_t q = lines.q0 + column * a.stride[2];
  const bool all = a.up[2] == 1 && column + TOGETHER <= columns && q >= 0 &&
                   q + (TOGETHER - 1) * a.stride[2] + a.span(2) <= a.in[2];
  return all ? TOGETHER : 1;
}

// y (OUT, C) of one vector of channels or two.
template <class T, int OUT, int NV>
inline void fwd_vectors(const Taps<T>& taps, const T* w, const T* b, int64_t step, int64_t C, int64_t c, T* y) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> acc[OUT][NV];
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) acc[o][v] = b ? loadv(b + c + v * W) : Vec<T>{};
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
      T acc = b ? b[c] : T(0);
      for (int64_t t = 0; t < taps.count; ++t) acc += w[taps.at[t] * C + c] * taps.x[t][o * step + c];
      y[o * C + c] = acc;
    }
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
  for (int64_t j = 0; j < u.columns;) {
    const int64_t n = together(a, lines, j, u.columns);
    taps.find(a, lines, j);
    if (n == TOGETHER) fwd_outputs<T, TOGETHER>(taps, w, b, step, a.C, y + j * a.C);
    else fwd_outputs<T, 1>(taps, w, b, step, a.C, y + j * a.C);
    j += n;
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

template <class S, class T>
void bwd_weight_last(const Depthwise& a, const DepthwisePart& u, const S* dz_, T* sums, T* scratch) {
  Taps<T> taps(scratch, a.taps());
  const T* dz = loaded(dz_ + u.first, scratch, u.count);
  if (sizeof(S) != sizeof(T)) scratch += padded<T>(u.count);
  const Lines<T> lines = take_lines<S>(a, u, scratch);
  T* const total = sums + a.taps() * a.C;
  const int64_t step = a.stride[2] * a.C;
  for (int64_t j = 0; j < u.columns;) {
    const int64_t n = together(a, lines, j, u.columns);
    taps.find(a, lines, j);
    if (n == TOGETHER) sum_outputs<T, TOGETHER>(taps, dz + j * a.C, step, a.C, sums, total);
    else sum_outputs<T, 1>(taps, dz + j * a.C, step, a.C, sums, total);
    j += n;
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
