// Convolutions of one channel each, a channel's elements being neighbours.

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
