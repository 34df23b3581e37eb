// Max-pooling.
#include "../pool.h"
#include "begin.h"

#include "../tile.h"

#include "vectors.h"

struct Place {
  int64_t offset;  // of an element, L = 0
  int64_t choice;  // what index holds where it was taken, for POOL_TAP and POOL_FLAT
};

// The taps of output (od, oh, ow), in order.
inline int64_t taps_of(const Pool& a, int64_t od, int64_t oh, int64_t ow, Place* places) {
  const int32_t* d = a.reach + 3 * od;
  const int32_t* h = a.reach + 3 * (a.out[0] + oh);
  const int32_t* w = a.reach + 3 * (a.out[0] + a.out[1] + ow);
  int64_t n = 0;
  for (int64_t p = d[1]; p < d[2]; ++p)
    for (int64_t q = h[1]; q < h[2]; ++q) {
      const int64_t row = ((d[0] + p * a.dilation[0]) * a.in[1] + h[0] + q * a.dilation[1]) * a.in[2];
      const int64_t tap = (p * a.kernel[1] + q) * a.kernel[2];
      for (int64_t r = w[1]; r < w[2]; ++r) {
        const int64_t flat = row + w[0] + r * a.dilation[2];
        places[n++] = {flat * a.lanes, a.index_kind == POOL_FLAT ? flat : tap + r};
      }
    }
  if (n == 0) places[0].choice = 0;  // a window with no input inside, by dilation: -inf
  return n;
}

// The tap by which an output whose window begins at `start` holds position i, or -1.
inline int64_t tap_at(int64_t i, int64_t start, int64_t dilation) {
  if (dilation == 1) return i - start;
  return (i - start) % dilation ? -1 : (i - start) / dilation;
}

// The outputs whose windows hold input (d, h, w).
inline int64_t covers_of(const Pool& a, int64_t d, int64_t h, int64_t w, Place* places) {
  const int32_t* cd = a.covers + 2 * d;
  const int32_t* ch = a.covers + 2 * (a.in[0] + h);
  const int32_t* cw = a.covers + 2 * (a.in[0] + a.in[1] + w);
  const int64_t flat = (d * a.in[1] + h) * a.in[2] + w;
  int64_t n = 0;
  for (int64_t od = cd[0]; od < cd[1]; ++od) {
    const int64_t p = tap_at(d, a.reach[3 * od], a.dilation[0]);
    for (int64_t oh = ch[0]; oh < ch[1]; ++oh) {
      const int64_t q = tap_at(h, a.reach[3 * (a.out[0] + oh)], a.dilation[1]);
      for (int64_t ow = cw[0]; ow < cw[1]; ++ow) {
        const int64_t r = tap_at(w, a.reach[3 * (a.out[0] + a.out[1] + ow)], a.dilation[2]);
        if (p < 0 || q < 0 || r < 0) continue;
        const int64_t tap = (p * a.kernel[1] + q) * a.kernel[2] + r;
        places[n++] = {((od * a.out[1] + oh) * a.out[2] + ow) * a.lanes, a.index_kind == POOL_FLAT ? flat : tap};
      }
    }
  }
  return n;
}

template <class T, class I>
inline void put_choices(IVec<T> choice, I* to) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(I) == 1 && sizeof(T) == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)choice));
    return;
  }
#endif
  for (int64_t i = 0; i < WIDTH<T>; ++i) to[i] = static_cast<I>(choice[i]);
}

template <class T, class I>
inline IVec<T> get_choices(const I* from) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(I) == 1 && sizeof(T) == 4)
    return (IVec<T>)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
  Choice<T> own[WIDTH<T>];
  for (int64_t i = 0; i < WIDTH<T>; ++i) own[i] = static_cast<Choice<T>>(from[i]);
  return loadi<T>(own);
}

// ---- along the lanes

// NV vectors of lanes of one output.
template <class S, class T, class I, int NV>
inline void lanes_max(const S* x, const Place* places, int64_t n, S* y, I* index) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> best[NV];
  IVec<T> choice[NV];
  for (int v = 0; v < NV; ++v) {
    best[v] = splat(T(-INFINITY));
    choice[v] = Choice<T>(places[0].choice) - IVec<T>{};
  }
  for (int64_t i = 0; i < n; ++i) {
    const IVec<T> own = Choice<T>(places[i].choice) - IVec<T>{};
    for (int v = 0; v < NV; ++v) {
      const Vec<T> value = widened(x + places[i].offset + v * W);
      const IVec<T> up = (value > best[v]) | (value != value);  // the last nan stays, as in torch
      best[v] = up ? value : best[v];
      if (index) choice[v] = up ? own : choice[v];
    }
  }
  for (int v = 0; v < NV; ++v) {
    narrowed(best[v], y + v * W);
    if (index) put_choices<T, I>(choice[v], index + v * W);
  }
}

template <class S, class T, class I>
void lanes_fwd_of(const Pool& a, int64_t first, int64_t last, Place* places) {
  constexpr int64_t W = WIDTH<T>;
  const int64_t plane = a.in[0] * a.in[1] * a.in[2] * a.lanes;
  for (int64_t row = first; row < last; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0];
    const S* x = static_cast<const S*>(a.x) + row / a.out[1] / a.out[0] * plane;
    for (int64_t ow = 0; ow < a.out[2]; ++ow) {
      const int64_t n = taps_of(a, od, oh, ow, places), at = (row * a.out[2] + ow) * a.lanes;
      S* y = static_cast<S*>(a.y) + at;
      I* index = a.index ? static_cast<I*>(a.index) + at : nullptr;
      int64_t l = 0;
      for (; l + 4 * W <= a.lanes; l += 4 * W)
        lanes_max<S, T, I, 4>(x + l, places, n, y + l, index ? index + l : nullptr);
      for (; l + W <= a.lanes; l += W)
        lanes_max<S, T, I, 1>(x + l, places, n, y + l, index ? index + l : nullptr);
      for (; l < a.lanes; ++l) {
        T best = -INFINITY;
        int64_t choice = places[0].choice;
        for (int64_t i = 0; i < n; ++i) {
          const T value = widened_one(x + l + places[i].offset);
          const bool up = value > best || value != value;
          best = up ? value : best;
          choice = up ? places[i].choice : choice;
        }
        narrowed_one(best, y + l);
        if (index) index[l] = static_cast<I>(choice);
      }
    }
  }
}

template <class S, class T, class I, int NV>
inline void lanes_collect(const S* dy, const I* index, const Place* places, int64_t n, S* dx) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> sum[NV] = {};
  for (int64_t i = 0; i < n; ++i) {
    const IVec<T> own = Choice<T>(places[i].choice) - IVec<T>{};
    for (int v = 0; v < NV; ++v) {
      const Vec<T> value = widened(dy + places[i].offset + v * W);
      const IVec<T> taken = get_choices<T, I>(index + places[i].offset + v * W) == own;
      sum[v] = taken ? sum[v] + value : sum[v];
    }
  }
  for (int v = 0; v < NV; ++v) narrowed(sum[v], dx + v * W);
}

template <class S, class T, class I>
void lanes_bwd_of(const Pool& a, int64_t first, int64_t last, Place* places) {
  constexpr int64_t W = WIDTH<T>;
  const int64_t plane = a.out[0] * a.out[1] * a.out[2] * a.lanes;
  for (int64_t row = first; row < last; ++row) {
    const int64_t h = row % a.in[1], d = row / a.in[1] % a.in[0], b = row / a.in[1] / a.in[0];
    const S* dy = static_cast<const S*>(a.dy) + b * plane;
    const I* index = static_cast<const I*>(a.index) + b * plane;
    for (int64_t w = 0; w < a.in[2]; ++w) {
      const int64_t n = covers_of(a, d, h, w, places);
      S* dx = static_cast<S*>(a.dx) + (row * a.in[2] + w) * a.lanes;
      int64_t l = 0;
      for (; l + 4 * W <= a.lanes; l += 4 * W) lanes_collect<S, T, I, 4>(dy + l, index + l, places, n, dx + l);
      for (; l + W <= a.lanes; l += W) lanes_collect<S, T, I, 1>(dy + l, index + l, places, n, dx + l);
      for (; l < a.lanes; ++l) {
        T sum = 0;
        for (int64_t i = 0; i < n; ++i)
          if (static_cast<int64_t>(index[l + places[i].offset]) == places[i].choice)
            sum += widened_one(dy + l + places[i].offset);
        narrowed_one(sum, dx + l);
      }
    }
  }
}

// ---- along rows

// TAPS taps more of whole vectors of outputs; tap t is numbered k + t.
template <int TAPS, bool INDEX, class T>
void row_max(const T* const* taps, T* best, Choice<T>* choice, Choice<T> k, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    T m = best[j];
    Choice<T> c = choice[j];
    for (int t = 0; t < TAPS; ++t) {
      const T value = taps[t][j];
      const bool up = (value > m) | (value != value);
      m = up ? value : m;
      c = up ? Choice<T>(k + t) : c;
    }
    best[j] = m;
    if (INDEX) choice[j] = c;
  }
}

template <bool INDEX, class T>
void row_max_by(int taps_here, const T* const* taps, T* best, Choice<T>* choice, int64_t k, int64_t n) {
  const auto run = taps_here == 3 ? row_max<3, INDEX, T> : taps_here == 2 ? row_max<2, INDEX, T> : row_max<1, INDEX, T>;
  run(taps, best, choice, static_cast<Choice<T>>(k), n);
}

// Element j * stride + f of a row to element j of array f, arrays `length` apart.
template <class T>
void split(const T* row, int64_t n, int64_t stride, T* phases, int64_t length) {
  if (stride == 1) {
    std::memcpy(phases, row, n * sizeof(T));
  } else if (stride == 2) {
    T* odd = phases + length;
    const int64_t pairs = n / 2;
#pragma omp simd
    for (int64_t j = 0; j < pairs; ++j) {
      phases[j] = row[2 * j];
      odd[j] = row[2 * j + 1];
    }
    if (n % 2) phases[pairs] = row[n - 1];
  } else {
    for (int64_t f = 0; f < stride; ++f)
      for (int64_t j = 0; j * stride + f < n; ++j) phases[f * length + j] = row[j * stride + f];
  }
}

// The reverse.
template <class T>
void interleave(const T* phases, int64_t length, int64_t stride, T* row, int64_t n) {
  if (stride == 1) {
    std::memcpy(row, phases, n * sizeof(T));
  } else if (stride == 2) {
    const T* odd = phases + length;
    const int64_t pairs = n / 2;
#pragma omp simd
    for (int64_t j = 0; j < pairs; ++j) {
      row[2 * j] = phases[j];
      row[2 * j + 1] = odd[j];
    }
    if (n % 2) row[n - 1] = phases[pairs];
  } else {
    for (int64_t f = 0; f < stride; ++f)
      for (int64_t j = 0; j * stride + f < n; ++j) row[j * stride + f] = phases[f * length + j];
  }
}

// Positions of a row that its arrays hold: the rest is in no window.
inline int64_t held(const Pool& a, const PoolPhases& p) {
  const int64_t reachable = (p.length + p.lowest) * a.stride;
  return reachable < a.in[2] ? reachable : a.in[2];
}

template <class S, class T, class I, bool INDEX>
void rows_fwd_of(const Pool& a, int64_t first, int64_t last, T* scratch) {
  const PoolPhases p(a);
  const int64_t n = ceil_div(a.out[2], 16) * 16, stride = a.stride, width = held(a, p);
  T* const phases = scratch;
  T* const best = phases + stride * p.length;
  Choice<T>* const choice = reinterpret_cast<Choice<T>*>(best + n);
  Choice<T>* const begin = choice + n;
  T* const buffer = reinterpret_cast<T*>(begin + n);
  const int32_t* reach_w = a.reach + 3 * (a.out[0] + a.out[1]);
  for (int64_t i = 0; i < stride * p.length; ++i) phases[i] = T(-INFINITY);
  for (int64_t j = 0; j < n; ++j) begin[j] = j < a.out[2] ? reach_w[3 * j + 1] : 0;
  for (int64_t row = first; row < last; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0], b = row / a.out[1] / a.out[0];
    const int32_t* d = a.reach + 3 * od;
    const int32_t* h = a.reach + 3 * (a.out[0] + oh);
    const int64_t earliest = (d[1] * a.kernel[1] + h[1]) * a.kernel[2];
    for (int64_t j = 0; j < n; ++j) {
      best[j] = T(-INFINITY);
      if (INDEX) choice[j] = static_cast<Choice<T>>(earliest + begin[j]);
    }
    for (int64_t q = d[1]; q < d[2]; ++q)
      for (int64_t r = h[1]; r < h[2]; ++r) {
        const int64_t at = ((b * a.in[0] + d[0] + q * a.dilation[0]) * a.in[1] + h[0] + r * a.dilation[1]) * a.in[2];
        split(loaded(static_cast<const S*>(a.x) + at, buffer, width), width, stride, phases - p.lowest, p.length);
        for (int64_t c = 0; c < a.kernel[2]; c += 3) {
          const T* taps[3];
          const int here = static_cast<int>(a.kernel[2] - c < 3 ? a.kernel[2] - c : 3);
          for (int t = 0; t < here; ++t)
            taps[t] = phases + PoolPhases::phase(a, c + t) * p.length + PoolPhases::shift(a, c + t) - p.lowest;
          row_max_by<INDEX, T>(here, taps, best, choice, (q * a.kernel[1] + r) * a.kernel[2] + c, n);
        }
      }
    store(best, static_cast<S*>(a.y) + row * a.out[2], a.out[2]);
    if constexpr (INDEX) {
      I* index = static_cast<I*>(a.index) + row * a.out[2];
      if constexpr (sizeof(I) == 1) {
#pragma omp simd
        for (int64_t j = 0; j < a.out[2]; ++j) index[j] = static_cast<I>(choice[j]);
      } else {
        for (int64_t j = 0; j < a.out[2]; ++j) {
          const int64_t c = choice[j] % a.kernel[2], r = choice[j] / a.kernel[2] % a.kernel[1];
          const int64_t q = choice[j] / a.kernel[2] / a.kernel[1];
          index[j] = ((d[0] + q * a.dilation[0]) * a.in[1] + h[0] + r * a.dilation[1]) * a.in[2] + j * stride -
                     a.padding + c * a.dilation[2];
        }
      }
    }
  }
}

template <class S, class T, class I>
void rows_bwd_of(const Pool& a, int64_t first, int64_t last, T* scratch) {
  const PoolPhases p(a);
  const int64_t n = ceil_div(a.out[2], 16) * 16, stride = a.stride, width = held(a, p);
  T* const phases = scratch;
  T* const buffer = phases + stride * p.length;
  Choice<T>* const choice = reinterpret_cast<Choice<T>*>(buffer + n);
  T* const whole_row = reinterpret_cast<T*>(choice + n);
  for (int64_t j = 0; j < n; ++j) {
    buffer[j] = 0;
    choice[j] = -1;
  }
  for (int64_t row = first; row < last; ++row) {
    const int64_t h = row % a.in[1], d = row / a.in[1] % a.in[0], b = row / a.in[1] / a.in[0];
    const int32_t* cd = a.covers + 2 * d;
    const int32_t* ch = a.covers + 2 * (a.in[0] + h);
    for (int64_t i = 0; i < stride * p.length; ++i) phases[i] = 0;
    for (int64_t od = cd[0]; od < cd[1]; ++od) {
      const int64_t q = tap_at(d, a.reach[3 * od], a.dilation[0]);
      for (int64_t oh = ch[0]; oh < ch[1]; ++oh) {
        const int64_t r = tap_at(h, a.reach[3 * (a.out[0] + oh)], a.dilation[1]);
        if (q < 0 || r < 0) continue;
        const int64_t at = ((b * a.out[0] + od) * a.out[1] + oh) * a.out[2];
        const I* index = static_cast<const I*>(a.index) + at;
        load(static_cast<const S*>(a.dy) + at, buffer, a.out[2]);
        // what is left of a choice: the distance of its tap in this row, or another number
        const int64_t step = sizeof(I) == 1 ? 1 : a.dilation[2];
        if constexpr (sizeof(I) == 1) {
          const Choice<T> tap = static_cast<Choice<T>>((q * a.kernel[1] + r) * a.kernel[2]);
#pragma omp simd
          for (int64_t j = 0; j < a.out[2]; ++j) choice[j] = static_cast<Choice<T>>(index[j]) - tap;
        } else {
          const int64_t begin = (d * a.in[1] + h) * a.in[2] - a.padding;
          for (int64_t j = 0; j < a.out[2]; ++j) choice[j] = static_cast<Choice<T>>(index[j] - begin - j * stride);
        }
        for (int64_t c = 0; c < a.kernel[2]; ++c) {
          T* to = phases + PoolPhases::phase(a, c) * p.length + PoolPhases::shift(a, c) - p.lowest;
          const Choice<T> own = static_cast<Choice<T>>(c * step);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) to[j] = choice[j] == own ? to[j] + buffer[j] : to[j];
        }
      }
    }
    S* dx = static_cast<S*>(a.dx) + row * a.in[2];
    if constexpr (sizeof(S) == sizeof(T)) {
      interleave(phases - p.lowest, p.length, stride, dx, width);
    } else {
      interleave(phases - p.lowest, p.length, stride, whole_row, width);
      store(whole_row, dx, width);
    }
    std::memset(dx + width, 0, (a.in[2] - width) * sizeof(S));
  }
}

// ---- by the kind of index

template <class S, class T>
void lanes_fwd(const Pool& a, int64_t first, int64_t last, void* scratch) {
  const auto run = a.index_kind == POOL_FLAT ? lanes_fwd_of<S, T, int64_t> : lanes_fwd_of<S, T, uint8_t>;
  run(a, first, last, static_cast<Place*>(scratch));
}

template <class S, class T>
void lanes_bwd(const Pool& a, int64_t first, int64_t last, void* scratch) {
  const auto run = a.index_kind == POOL_FLAT ? lanes_bwd_of<S, T, int64_t> : lanes_bwd_of<S, T, uint8_t>;
  run(a, first, last, static_cast<Place*>(scratch));
}

template <class S, class T>
void rows_fwd(const Pool& a, int64_t first, int64_t last, void* scratch) {
  const auto run = a.index_kind == POOL_FLAT  ? rows_fwd_of<S, T, int64_t, true>
                   : a.index_kind == POOL_TAP ? rows_fwd_of<S, T, uint8_t, true>
                                              : rows_fwd_of<S, T, uint8_t, false>;
  run(a, first, last, static_cast<T*>(scratch));
}

template <class S, class T>
void rows_bwd(const Pool& a, int64_t first, int64_t last, void* scratch) {
  const auto run = a.index_kind == POOL_FLAT ? rows_bwd_of<S, T, int64_t> : rows_bwd_of<S, T, uint8_t>;
  run(a, first, last, static_cast<T*>(scratch));
}

template <class S, class T>
constexpr PoolKernels table() {
  return {lanes_fwd<S, T>, lanes_bwd<S, T>, rows_fwd<S, T>, rows_bwd<S, T>};
}

const PoolKernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                    table<Fp16, float>()};

KERNELZOO_EXPORT(PoolKernels, pool, TABLES)
