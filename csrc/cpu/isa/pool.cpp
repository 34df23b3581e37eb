// Max-pooling.
#include "../pool.h"
#include "begin.h"

#include "../tile.h"

#include "vectors.h"

// Where something lies, and its share of what index holds: a row's and a position's share add up, to the tap's number
// for POOL_TAP, to the place in the plane for POOL_FLAT.
struct Place {
  int64_t offset;  // of an element, lane 0
  int64_t choice;
};

// The rows of x in the windows of output row (od, oh), in order.
inline int64_t rows_in(const Pool& a, int64_t od, int64_t oh, Place* rows) {
  const int32_t* d = a.reach + 3 * od;
  const int32_t* h = a.reach + 3 * (a.out[0] + oh);
  int64_t n = 0;
  for (int64_t p = d[1]; p < d[2]; ++p)
    for (int64_t q = h[1]; q < h[2]; ++q) {
      const int64_t row = ((d[0] + p * a.dilation[0]) * a.in[1] + h[0] + q * a.dilation[1]) * a.in[2];
      const int64_t tap = (p * a.kernel[1] + q) * a.kernel[2];
      rows[n++] = {row * a.lanes, a.index_kind == POOL_FLAT ? row : tap};
    }
  return n;
}

// The tap by which an output whose window begins at `start` holds position i, or -1.
inline int64_t tap_at(int64_t i, int64_t start, int64_t dilation) {
  if (dilation == 1) return i - start;
  return (i - start) % dilation ? -1 : (i - start) / dilation;
}

// The rows of y whose windows hold row (d, h) of x.
inline int64_t rows_over(const Pool& a, int64_t d, int64_t h, Place* rows) {
  const int32_t* cd = a.covers + 2 * d;
  const int32_t* ch = a.covers + 2 * (a.in[0] + h);
  int64_t n = 0;
  for (int64_t od = cd[0]; od < cd[1]; ++od) {
    const int64_t p = tap_at(d, a.reach[3 * od], a.dilation[0]);
    for (int64_t oh = ch[0]; oh < ch[1]; ++oh) {
      const int64_t q = tap_at(h, a.reach[3 * (a.out[0] + oh)], a.dilation[1]);
      if (p < 0 || q < 0) continue;
      const int64_t choice = a.index_kind == POOL_FLAT ? (d * a.in[1] + h) * a.in[2] : (p * a.kernel[1] + q) * a.kernel[2];
      rows[n++] = {(od * a.out[1] + oh) * a.out[2] * a.lanes, choice};
    }
  }
  return n;
}

// The outputs of a row whose windows hold position w.
inline int64_t outputs_over(const Pool& a, int64_t w, Place* outputs) {
  const int32_t* cw = a.covers + 2 * (a.in[0] + a.in[1] + w);
  int64_t n = 0;
  for (int64_t ow = cw[0]; ow < cw[1]; ++ow) {
    const int64_t r = tap_at(w, a.reach[3 * (a.out[0] + a.out[1] + ow)], a.dilation[2]);
    if (r >= 0) outputs[n++] = {ow * a.lanes, a.index_kind == POOL_FLAT ? w : r};
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
#elif defined(KERNELZOO_ISA_avx2)
  if constexpr (sizeof(I) == 1 && sizeof(T) == 4) {
    const __m256i c = (__m256i)choice, halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(c, c), 0x08);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm_setzero_si128());
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
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
#elif defined(KERNELZOO_ISA_avx2)
  if constexpr (sizeof(I) == 1 && sizeof(T) == 4)
    return (IVec<T>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#endif
  Choice<T> own[WIDTH<T>];
  for (int64_t i = 0; i < WIDTH<T>; ++i) own[i] = static_cast<Choice<T>>(from[i]);
  return loadi<T>(own);
}

// ---- along the lanes

// A window: its rows, and of each the positions.
struct Window {
  const Place* rows;
  int64_t count;
  Place first;        // of the positions
  Place step;         // from one to the next
  int64_t positions;  // in a row
  int64_t earliest;   // the choice where all is -inf
};

// NV vectors of lanes of one output.
template <class S, class T, class I, int NV>
inline void lanes_max(const S* x, const Window& w, S* y, I* index) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> best[NV];
  IVec<T> choice[NV];
  for (int v = 0; v < NV; ++v) {
    best[v] = splat(T(-INFINITY));
    choice[v] = Choice<T>(w.earliest) - IVec<T>{};
  }
  for (int64_t i = 0; i < w.count; ++i) {
    const S* from = x + w.rows[i].offset + w.first.offset;
    Choice<T> own = static_cast<Choice<T>>(w.rows[i].choice + w.first.choice);
    for (int64_t c = 0; c < w.positions; ++c) {
      for (int v = 0; v < NV; ++v) {
        const Vec<T> value = widened(from + v * W);
        const IVec<T> up = (value > best[v]) | (value != value);  // the last nan stays, as in torch
        best[v] = up ? value : best[v];
        if (index) choice[v] = up ? own - IVec<T>{} : choice[v];
      }
      from += w.step.offset;
      own += static_cast<Choice<T>>(w.step.choice);
    }
  }
  for (int v = 0; v < NV; ++v) {
    narrowed(best[v], y + v * W);
    if (index) put_choices<T, I>(choice[v], index + v * W);
  }
}

// The same of one lane.
template <class S, class T, class I>
inline void lane_max(const S* x, const Window& w, S* y, I* index) {
  T best = -INFINITY;
  int64_t choice = w.earliest;
  for (int64_t i = 0; i < w.count; ++i)
    for (int64_t c = 0; c < w.positions; ++c) {
      const T value = widened_one(x + w.rows[i].offset + w.first.offset + c * w.step.offset);
      const bool up = value > best || value != value;
      best = up ? value : best;
      choice = up ? w.rows[i].choice + w.first.choice + c * w.step.choice : choice;
    }
  narrowed_one(best, y);
  if (index) *index = static_cast<I>(choice);
}

template <class S, class T, class I>
void lanes_fwd_of(const Pool& a, int64_t first, int64_t last, Place* rows) {
  constexpr int64_t W = WIDTH<T>;
  const int64_t L = a.lanes, plane = a.in[0] * a.in[1] * a.in[2] * L;
  const bool flat = a.index_kind == POOL_FLAT;
  Window w = {};
  w.rows = rows;
  w.step = {a.dilation[2] * L, flat ? a.dilation[2] : 1};
  for (int64_t row = first; row < last; ++row) {
    const int64_t oh = row % a.out[1], od = row / a.out[1] % a.out[0];
    const int32_t* reach = a.reach + 3 * (a.out[0] + a.out[1]);
    const S* x = static_cast<const S*>(a.x) + row / a.out[1] / a.out[0] * plane;
    w.count = rows_in(a, od, oh, rows);
    for (int64_t ow = 0; ow < a.out[2]; ++ow, reach += 3) {
      const int64_t position = reach[0] + reach[1] * a.dilation[2], at = (row * a.out[2] + ow) * L;
      w.first = {position * L, flat ? position : reach[1]};
      w.positions = reach[2] - reach[1];
      w.earliest = w.count ? rows[0].choice + w.first.choice : 0;  // by dilation a window may hold no input: -inf
      S* y = static_cast<S*>(a.y) + at;
      I* index = a.index ? static_cast<I*>(a.index) + at : nullptr;
      int64_t l = 0;
      for (; l + 4 * W <= L; l += 4 * W) lanes_max<S, T, I, 4>(x + l, w, y + l, index ? index + l : nullptr);
      for (; l + W <= L; l += W) lanes_max<S, T, I, 1>(x + l, w, y + l, index ? index + l : nullptr);
      for (; l < L; ++l) lane_max<S, T, I>(x + l, w, y + l, index ? index + l : nullptr);
    }
  }
}

// What may have taken an input: outputs of `rows` rows, `outputs` of each.
struct Covers {
  const Place *rows, *outputs;
  int64_t row_count, output_count;
};

// NV vectors of lanes of one input.
template <class S, class T, class I, int NV>
inline void lanes_collect(const S* dy, const I* index, const Covers& covers, S* dx) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> sum[NV] = {};
  for (int64_t i = 0; i < covers.row_count; ++i)
    for (int64_t k = 0; k < covers.output_count; ++k) {
      const int64_t offset = covers.rows[i].offset + covers.outputs[k].offset;
      const IVec<T> own = static_cast<Choice<T>>(covers.rows[i].choice + covers.outputs[k].choice) - IVec<T>{};
      for (int v = 0; v < NV; ++v) {
        const IVec<T> taken = get_choices<T, I>(index + offset + v * W) == own;
        sum[v] = taken ? sum[v] + widened(dy + offset + v * W) : sum[v];
      }
    }
  for (int v = 0; v < NV; ++v) narrowed(sum[v], dx + v * W);
}

template <class S, class T, class I>
inline void lane_collect(const S* dy, const I* index, const Covers& covers, S* dx) {
  T sum = 0;
  for (int64_t i = 0; i < covers.row_count; ++i)
    for (int64_t k = 0; k < covers.output_count; ++k) {
      const int64_t offset = covers.rows[i].offset + covers.outputs[k].offset;
      if (static_cast<int64_t>(index[offset]) == covers.rows[i].choice + covers.outputs[k].choice)
        sum += widened_one(dy + offset);
    }
  narrowed_one(sum, dx);
}

template <class S, class T, class I>
void lanes_bwd_of(const Pool& a, int64_t first, int64_t last, Place* scratch) {
  constexpr int64_t W = WIDTH<T>;
  const int64_t L = a.lanes, plane = a.out[0] * a.out[1] * a.out[2] * L;
  Place* const rows = scratch;
  Place* const outputs = rows + a.most[0] * a.most[1];  // most[2] for each position
  int64_t* const counts = reinterpret_cast<int64_t*>(outputs + a.most[2] * a.in[2]);
  for (int64_t w = 0; w < a.in[2]; ++w) counts[w] = outputs_over(a, w, outputs + a.most[2] * w);
  Covers covers = {};
  covers.rows = rows;
  for (int64_t row = first; row < last; ++row) {
    const int64_t h = row % a.in[1], d = row / a.in[1] % a.in[0], b = row / a.in[1] / a.in[0];
    const S* dy = static_cast<const S*>(a.dy) + b * plane;
    const I* index = static_cast<const I*>(a.index) + b * plane;
    covers.row_count = rows_over(a, d, h, rows);
    for (int64_t w = 0; w < a.in[2]; ++w) {
      covers.outputs = outputs + a.most[2] * w;
      covers.output_count = counts[w];
      S* dx = static_cast<S*>(a.dx) + (row * a.in[2] + w) * L;
      int64_t l = 0;
      for (; l + 4 * W <= L; l += 4 * W) lanes_collect<S, T, I, 4>(dy + l, index + l, covers, dx + l);
      for (; l + W <= L; l += W) lanes_collect<S, T, I, 1>(dy + l, index + l, covers, dx + l);
      for (; l < L; ++l) lane_collect<S, T, I>(dy + l, index + l, covers, dx + l);
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
    const T* const sums = phases - p.lowest;
    if constexpr (sizeof(S) == sizeof(T)) {
      interleave(sums, p.length, stride, dx, width);
    } else {
      interleave(sums, p.length, stride, whole_row, width);
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
