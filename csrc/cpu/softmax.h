// Softmax along contiguous elements (row_*) and along the rows of a tile (tile_*).
//
// exp is computed twice, for the sum and for the result: storing it between would cost a write and a read.
// nan and inf need no care: a nan or +inf makes the sum nan, a row of -inf has x - max = nan.

// A probability or gradient that is denormal slows the product it enters up to 25 times.
inline float flushed(float x) { return math::abs(x) < 1.17549435e-38f ? 0.0f : x; }
inline double flushed(double x) { return x; }

// The quotient by the inverse, and one correction: with fma as exact as a division, and cheaper.
template <class T>
inline T softmax_value(T x, T max, T sum, T inverse) {
  const T e = math::exp_flushed(x - max), q = e * inverse;
  return flushed(q + (e - q * sum) * inverse);
}

template <class T>
inline T softmax_grad(T dy, T y, T total, bool log) {
  return flushed(log ? dy - math::exp_flushed(y) * total : y * (dy - total));
}

// The elements as T, up to a whole number of vectors: the memory itself where it serves, else a padded copy.
template <class S, class T>
inline const T* whole_block(const S* s, T* buffer, int64_t n, T pad) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (n == whole<T>(n)) return s;
  }
  load(s, buffer, n);
  for (int64_t i = n; i < padded<T>(n); ++i) buffer[i] = pad;
  return buffer;
}

// Where to compute n results for s, up to a whole number of vectors.
template <class S, class T>
inline T* whole_target(S* s, T* buffer, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (n == whole<T>(n)) return s;
  }
  return buffer;
}

template <class S, class T>
inline void finish(const T* target, S* s, int64_t n) {
  if (static_cast<const void*>(target) != s) store(target, s, n);
}

// One running result a lane: a compiler may not reorder a sum, and so the order is ours whatever the vectors.
template <class T>
inline T fold_max(const T* lanes) {
  T result = lanes[0];
  for (int64_t l = 1; l < LANES<T>; ++l) result = lanes[l] > result ? lanes[l] : result;
  return result;
}

template <class T>
inline T fold_sum(T* lanes) {
  for (int64_t half = LANES<T> / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <class S, class T>
double row_max(const void* x_, int64_t n) {
  const S* x = static_cast<const S*>(x_);
  T buffer[BLOCK], lanes[LANES<T>];
  for (T& lane : lanes) lane = T(-INFINITY);
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const T* block = whole_block(x + i, buffer, m, T(-INFINITY));
    for (int64_t j = 0; j < padded<T>(m); j += LANES<T>)
      for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] = block[j + l] > lanes[l] ? block[j + l] : lanes[l];
  }
  return fold_max(lanes);
}

template <class S, class T>
double row_sum(const void* x_, int64_t n, double max_) {
  const S* x = static_cast<const S*>(x_);
  const T max = T(max_);
  T buffer[BLOCK], lanes[LANES<T>] = {};
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const T* block = whole_block(x + i, buffer, m, T(-INFINITY));
    for (int64_t j = 0; j < padded<T>(m); j += LANES<T>)
      for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] += math::exp_flushed(block[j + l] - max);
  }
  return fold_sum(lanes);
}

template <class S, class T>
void row_fwd(const void* x_, void* y_, int64_t n, double max_, double sum, bool log) {
  const S* x = static_cast<const S*>(x_);
  S* y = static_cast<S*>(y_);
  const T max = T(max_), total = T(log ? std::log(sum) : sum), inverse = T(1 / sum);
  T buffer[BLOCK];
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const T* block = whole_block(x + i, buffer, m, T(0));
    T* target = whole_target(y + i, buffer, m);
    if (log) {
#pragma omp simd
      for (int64_t j = 0; j < padded<T>(m); ++j) target[j] = block[j] - max - total;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < padded<T>(m); ++j) target[j] = softmax_value(block[j], max, total, inverse);
    }
    finish(target, y + i, m);
  }
}

template <class S, class T>
double row_dot(const void* dy_, const void* y_, int64_t n, bool log) {
  const S* dy = static_cast<const S*>(dy_);
  const S* y = static_cast<const S*>(y_);
  T buffer[BLOCK], buffer_y[BLOCK], lanes[LANES<T>] = {};
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const T* block = whole_block(dy + i, buffer, m, T(0));
    if (log) {
      for (int64_t j = 0; j < padded<T>(m); j += LANES<T>)
        for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] += block[j + l];
    } else {
      const T* block_y = whole_block(y + i, buffer_y, m, T(0));
      for (int64_t j = 0; j < padded<T>(m); j += LANES<T>)
        for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] += block[j + l] * block_y[j + l];
    }
  }
  return fold_sum(lanes);
}

template <class S, class T>
void row_bwd(const void* dy_, const void* y_, void* dx_, int64_t n, double total_, bool log) {
  const S* dy = static_cast<const S*>(dy_);
  const S* y = static_cast<const S*>(y_);
  S* dx = static_cast<S*>(dx_);
  const T total = T(total_);
  T buffer[BLOCK], buffer_y[BLOCK];
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const T* block = whole_block(dy + i, buffer, m, T(0));
    const T* block_y = whole_block(y + i, buffer_y, m, T(0));
    T* target = whole_target(dx + i, buffer, m);
#pragma omp simd
    for (int64_t j = 0; j < padded<T>(m); ++j) target[j] = softmax_grad(block[j], block_y[j], total, log);
    finish(target, dx + i, m);
  }
}

// Sums down a tile: RUN rows at once, GROUP runs to a partial sum, and these to the total, so that none is long.
// A run of 8 rows is still in L1 for a second look.
constexpr int64_t RUN = 8, GROUP = 64;

template <class T>
inline void flush(T* group, T* total, int64_t p) {
  for (int64_t j = 0; j < p; ++j) {
    total[j] += group[j];
    group[j] = 0;
  }
}

// Maximum and sum in one sweep: a run's maximum first, then its exponentials, the sum so far being rescaled once
// a run. While all is -inf the maximum subtracted is 0, or the sum would be nan before a finite element comes.
template <class S, class T>
void tile_fwd(const void* x_, void* y_, int64_t n, int64_t stride, int64_t w, bool log) {
  const S* x = static_cast<const S*>(x_);
  S* y = static_cast<S*>(y_);
  T buffer[TILE], max[TILE], before[TILE], run[TILE], group[TILE], total[TILE], inverse[TILE];
  const int64_t p = padded<T>(w);
  for (int64_t j = 0; j < p; ++j) {
    max[j] = T(-INFINITY);
    group[j] = total[j] = 0;
  }
  for (int64_t first = 0; first < n; first += RUN) {
    const int64_t end = n - first < RUN ? n : first + RUN;
    for (int64_t j = 0; j < p; ++j) {
      before[j] = max[j];
      run[j] = 0;
    }
    for (int64_t i = first; i < end; ++i) {
      const T* block = whole_block(x + i * stride, buffer, w, T(0));
#pragma omp simd
      for (int64_t j = 0; j < p; ++j) max[j] = block[j] > max[j] ? block[j] : max[j];
    }
    for (int64_t i = first; i < end; ++i) {
      const T* block = whole_block(x + i * stride, buffer, w, T(0));
#pragma omp simd
      for (int64_t j = 0; j < p; ++j) {
        const T finite = max[j] == T(-INFINITY) ? T(0) : max[j];
        run[j] += math::exp_flushed(block[j] - finite);
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < p; ++j) {
      const T finite = max[j] == T(-INFINITY) ? T(0) : max[j];
      const T scale = math::exp_flushed(before[j] - finite);
      group[j] = group[j] * scale + run[j];
      total[j] *= scale;
    }
    if (first / RUN % GROUP == GROUP - 1) flush(group, total, p);
  }
  flush(group, total, p);
  if (log) {
#pragma omp simd
    for (int64_t j = 0; j < p; ++j) total[j] = math::log1p(total[j] - 1);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < p; ++j) inverse[j] = 1 / total[j];
  }
  for (int64_t i = 0; i < n; ++i) {
    const T* block = whole_block(x + i * stride, buffer, w, T(0));
    T* target = whole_target(y + i * stride, buffer, w);
    if (log) {
#pragma omp simd
      for (int64_t j = 0; j < p; ++j) target[j] = block[j] - max[j] - total[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < p; ++j) target[j] = softmax_value(block[j], max[j], total[j], inverse[j]);
    }
    finish(target, y + i * stride, w);
  }
}

template <class S, class T>
void tile_bwd(const void* dy_, const void* y_, void* dx_, int64_t n, int64_t stride, int64_t w, bool log) {
  const S* dy = static_cast<const S*>(dy_);
  const S* y = static_cast<const S*>(y_);
  S* dx = static_cast<S*>(dx_);
  T buffer[TILE], buffer_y[TILE], run[TILE], group[TILE], total[TILE];
  const int64_t p = padded<T>(w);
  for (int64_t j = 0; j < p; ++j) group[j] = total[j] = 0;
  for (int64_t first = 0; first < n; first += RUN) {
    const int64_t end = n - first < RUN ? n : first + RUN;
    for (int64_t j = 0; j < p; ++j) run[j] = 0;
    for (int64_t i = first; i < end; ++i) {
      const T* block = whole_block(dy + i * stride, buffer, w, T(0));
      const T* block_y = log ? nullptr : whole_block(y + i * stride, buffer_y, w, T(0));
      if (log) {
#pragma omp simd
        for (int64_t j = 0; j < p; ++j) run[j] += block[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < p; ++j) run[j] += block[j] * block_y[j];
      }
    }
    for (int64_t j = 0; j < p; ++j) group[j] += run[j];
    if (first / RUN % GROUP == GROUP - 1) flush(group, total, p);
  }
  flush(group, total, p);
  for (int64_t i = 0; i < n; ++i) {
    const T* block = whole_block(dy + i * stride, buffer, w, T(0));
    const T* block_y = whole_block(y + i * stride, buffer_y, w, T(0));
    T* target = whole_target(dx + i * stride, buffer, w);
#pragma omp simd
    for (int64_t j = 0; j < p; ++j) target[j] = softmax_grad(block[j], block_y[j], total[j], log);
    finish(target, dx + i * stride, w);
  }
}

// Rows too short for vectors along them: a block of rows is turned, so that the vectors run across the rows.
template <class S, class T>
inline void turn(const S* s, T* turned, int64_t rows, int64_t n) {
  T buffer[SHORT * SHORT_ROWS];
  const T* block = loaded(s, buffer, rows * n);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) turned[j * SHORT_ROWS + i] = block[i * n + j];
}

template <class S, class T>
inline void turn_back(const T* turned, S* s, int64_t rows, int64_t n) {
  T buffer[SHORT * SHORT_ROWS];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) buffer[i * n + j] = turned[j * SHORT_ROWS + i];
  store(buffer, s, rows * n);
}

template <class S, class T>
void short_fwd(const void* x, void* y, int64_t rows, int64_t n, bool log) {
  T turned[SHORT * SHORT_ROWS];
  turn(static_cast<const S*>(x), turned, rows, n);
  tile_fwd<T, T>(turned, turned, n, SHORT_ROWS, rows, log);
  turn_back(turned, static_cast<S*>(y), rows, n);
}

template <class S, class T>
void short_bwd(const void* dy, const void* y, void* dx, int64_t rows, int64_t n, bool log) {
  T turned[SHORT * SHORT_ROWS], turned_y[SHORT * SHORT_ROWS];
  turn(static_cast<const S*>(dy), turned, rows, n);
  turn(static_cast<const S*>(y), turned_y, rows, n);
  tile_bwd<T, T>(turned, turned_y, turned, n, SHORT_ROWS, rows, log);
  turn_back(turned, static_cast<S*>(dx), rows, n);
}
