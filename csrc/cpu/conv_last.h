// Convolutions of one channel each, the channels being neighbours.

// x's lines, rows of C channels, that a unit's outputs see: one for the plane and row of taps number `at`.
template <class S>
struct Lines {
  const S** line;
  int64_t* at;
  int64_t count = 0;
  int64_t q0, from = 0;  // u's first column, and the lines' in x
};

template <class S>
Lines<S> take_lines(const Depthwise& a, const DepthwisePart& u, char*& scratch) {
  const int64_t all = a.kernel[0] * a.kernel[1];
  Lines<S> lines;
  lines.line = reinterpret_cast<const S**>(scratch);
  lines.at = reinterpret_cast<int64_t*>(lines.line + all);
  scratch = reinterpret_cast<char*>(lines.at + all);
  lines.q0 = u.w * a.stride[2] - a.padding[2];
  lines.from = lines.q0 > 0 ? ceil_div(lines.q0, a.up[2]) : 0;
  const S* x = static_cast<const S*>(a.x) + u.n * a.in[0] * a.in[1] * a.in[2] * a.C;
  for (int64_t k = 0; k < all; ++k) {
    const int64_t d = u.d * a.stride[0] - a.padding[0] + k / a.kernel[1] * a.dilation[0];
    const int64_t h = u.h * a.stride[1] - a.padding[1] + k % a.kernel[1] * a.dilation[1];
    if (d < 0 || d % a.up[0] || d / a.up[0] >= a.in[0] || h < 0 || h % a.up[1] || h / a.up[1] >= a.in[1]) continue;
    lines.at[lines.count] = k;
    lines.line[lines.count++] = x + ((d / a.up[0] * a.in[1] + h / a.up[1]) * a.in[2] + lines.from) * a.C;
  }
  return lines;
}

// What an output sees: rows of channels, x's and the weights' (or their sums').
template <class S>
struct Taps {
  const S** x;
  int64_t* at;  // which tap
  int64_t count = 0;

  Taps(char*& scratch, int64_t taps) : x(reinterpret_cast<const S**>(scratch)) {
    at = reinterpret_cast<int64_t*>(x + taps);
    scratch = reinterpret_cast<char*>(at + taps);
  }

  // Those of the output in column `column` of the unit.
  void find(const Depthwise& a, const Lines<S>& lines, int64_t column) {
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
// share those of x: half as many at stride 2, where twice as many columns are seen, and L1 has no room for more where
// rows of x lie whole pages apart (3x3, 8x128x56x56, one thread of AVX2: forward 2.8 ms instead of 3.8, dw 3.2 of 4.6).
constexpr int64_t TOGETHER = 4, WINDOW = 8;

// The outputs of a unit, columns begin ... end - 1, whose rows of taps all lie inside u.
struct Inside {
  int64_t begin = 0, end = 0;

  Inside(const Depthwise& a, const DepthwisePart& u, int64_t q0) {
    const int64_t room = a.in[2] * a.up[2] - a.span(2) - q0;
    if (room < 0) return;
    begin = q0 < 0 ? ceil_div(-q0, a.stride[2]) : 0;
    end = at_most(u.columns, room / a.stride[2] + 1);
    if (end < begin) begin = end = 0;
  }
};

// f<S, T, K, STEP>, a kernel for windows of K taps STEP columns apart, or null.
#define KERNELZOO_WINDOW(f, a)                                           \
  if ((a).dilation[2] != 1 || (a).up[2] != 1 || (a).C < WIDTH<T>) return nullptr; \
  if ((a).stride[2] == 1) switch ((a).kernel[2]) {                       \
      case 3: return f<S, T, 3, 1>;                                         \
      case 4: return f<S, T, 4, 1>;                                         \
      case 5: return f<S, T, 5, 1>;                                         \
      case 7: return f<S, T, 7, 1>;                                         \
    }                                                                    \
  if ((a).stride[2] == 2) switch ((a).kernel[2]) {                       \
      case 3: return f<S, T, 3, 2>;                                         \
      case 5: return f<S, T, 5, 2>;                                         \
    }                                                                    \
  return nullptr;

// Outputs, rows of C `apart` elements apart in y and `step` in x: of one vector of channels or two.
template <class S, class T, int OUT, int NV>
inline void fwd_vectors(const Taps<S>& taps, const T* w, const T* b, int64_t step, int64_t C, int64_t c, S* y,
                        int64_t apart) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> acc[OUT][NV];
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) acc[o][v] = loadv(b + c + v * W);
  for (int64_t t = 0; t < taps.count; ++t) {
    Vec<T> by[NV];
    for (int v = 0; v < NV; ++v) by[v] = loadv(w + taps.at[t] * C + c + v * W);
    const S* x = taps.x[t] + c;
    for (int o = 0; o < OUT; ++o)
      for (int v = 0; v < NV; ++v) acc[o][v] += by[v] * widened(x + o * step + v * W);
  }
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) narrowed(acc[o][v], y + o * apart + c + v * W);
}

// The last channels go through the last whole vector, of which some are computed twice; fewer than a vector one by one.
template <class S, class T, int OUT>
void fwd_outputs(const Taps<S>& taps, const T* w, const T* b, int64_t step, int64_t C, S* y, int64_t apart) {
  constexpr int64_t W = WIDTH<T>;
  int64_t c = 0;
  for (; c + 2 * W <= C; c += 2 * W) fwd_vectors<S, T, OUT, 2>(taps, w, b, step, C, c, y, apart);
  for (; c + W <= C; c += W) fwd_vectors<S, T, OUT, 1>(taps, w, b, step, C, c, y, apart);
  if (c == C) return;
  if (C >= W) return fwd_vectors<S, T, OUT, 1>(taps, w, b, step, C, C - W, y, apart);
  for (int o = 0; o < OUT; ++o)
    for (c = 0; c < C; ++c) {
      T acc = b[c];
      for (int64_t t = 0; t < taps.count; ++t) acc += w[taps.at[t] * C + c] * widened_one(taps.x[t] + o * step + c);
      store(&acc, y + o * apart + c, 1);
    }
}

// y (N, C), N = WINDOW / STEP, of a vector of channels: each of x's columns is loaded once a row of taps, and meets all
// taps there.
template <class S, class T, int K, int STEP>
KERNELZOO_INLINE void fwd_window(const Depthwise& a, const Lines<S>& lines, int64_t column, int64_t c, S* y) {
  const T* const w = static_cast<const T*>(a.w) + c;
  const T* const b = static_cast<const T*>(a.b);
  constexpr int N = WINDOW / STEP;
  const int64_t C = a.C, shift = (lines.q0 + column * STEP - lines.from) * C + c;
  Vec<T> acc[N];
  for (int o = 0; o < N; ++o) acc[o] = loadv(b + c);
  for (int64_t k = 0; k < lines.count; ++k) {
    const S* x = lines.line[k] + shift;
    Vec<T> by[K];
    for (int t = 0; t < K; ++t) by[t] = loadv(w + (lines.at[k] * K + t) * C);
#pragma GCC unroll 32
    for (int j = 0; j < (N - 1) * STEP + K; ++j) {
      const Vec<T> v = widened(x + j * C);
#pragma GCC unroll 8
      for (int t = 0; t < K; ++t)
        if (j >= t && (j - t) % STEP == 0 && (j - t) / STEP < N) acc[(j - t) / STEP] += by[t] * v;
    }
  }
  for (int o = 0; o < N; ++o) narrowed(acc[o], y + o * C + c);
}

template <class S, class T, int K, int STEP>
void fwd_windows(const Depthwise& a, const Lines<S>& lines, int64_t column, S* y) {
  constexpr int64_t W = WIDTH<T>, N = WINDOW / STEP, LINE = 64 / sizeof(S);
  // a window goes back and forth between its columns, which the processor's own prefetch does not follow: the next row
  // of x and y is asked for here (8x128x56x56, 3x3: 0.95 ms instead of 1.55; 8x384x14x14, from L2: 0.16 instead of 0.12),
  // at stride 2 both rows that the next outputs see more (one thread of AVX2: 3.1 ms instead of 3.8)
  const S* const x = lines.line[lines.count - 1] + (column * STEP + a.in[2]) * a.C;
  S* const below = y + a.out[2] * a.C;
  int64_t c = 0;
  for (; c + W <= a.C; c += W) {
    if (a.ahead && c % LINE == 0) {
      for (int64_t s = 0; s < STEP; ++s)
        for (int64_t o = 0; o < N * STEP; ++o) __builtin_prefetch(x + (s * a.in[2] + o) * a.C + c, 0, 2);
      for (int64_t o = 0; o < N; ++o) __builtin_prefetch(below + o * a.C + c, 1, 2);
    }
    fwd_window<S, T, K, STEP>(a, lines, column, c, y);
  }
  if (c < a.C) fwd_window<S, T, K, STEP>(a, lines, column, a.C - W, y);
}

template <class S>
using FwdWindows = void (*)(const Depthwise&, const Lines<S>&, int64_t, S*);

template <class S, class T>
FwdWindows<S> fwd_windows_of(const Depthwise& a) {
  KERNELZOO_WINDOW(fwd_windows, a)
}

template <class S, class T>
void fwd_last(const Depthwise& a, const DepthwisePart& u, S* z, char* scratch) {
  Taps<S> taps(scratch, a.taps());
  const Lines<S> lines = take_lines<S>(a, u, scratch);
  S* const y = z + u.first;
  const T* const w = static_cast<const T*>(a.w);
  const T* const b = static_cast<const T*>(a.b);
  const int64_t step = a.stride[2] * a.C;
  const FwdWindows<S> windows = lines.count ? fwd_windows_of<S, T>(a) : nullptr;
  const Inside inside(a, u, lines.q0);
  const int64_t window = WINDOW / a.stride[2];
  const int64_t up = a.up[2], group = TOGETHER * up;  // of `up` neighbours each sees other taps
  for (int64_t j = 0; j < u.columns;) {
    const int64_t rest = inside.end - j;
    if (j < inside.begin || rest <= 0 || inside.end - inside.begin < group) {
      taps.find(a, lines, j);
      fwd_outputs<S, T, 1>(taps, w, b, step, a.C, y + j * a.C, a.C);
      ++j;
    } else if (windows && inside.end - inside.begin >= window) {
      if (rest < window) j = inside.end - window;  // some are computed twice
      windows(a, lines, j, y + j * a.C);
      j += window;
    } else {
      if (rest < group) j = inside.end - group;
      for (const int64_t end = j + up; j < end; ++j) {
        taps.find(a, lines, j);
        fwd_outputs<S, T, TOGETHER>(taps, w, b, step, a.C, y + j * a.C, up * a.C);
      }
      j += group - up;
    }
  }
}

// sums (taps + 1, C) += dz x of one vector of channels or two, in their first `from` lanes not at all.
template <class S, class T, int OUT, int NV>
inline void sum_vectors(const Taps<S>& taps, const S* dz, int64_t step, int64_t C, int64_t c, int64_t from, T* sums,
                        T* total) {
  constexpr int64_t W = WIDTH<T>;
  using Int = typename Lanes<T>::Int;
  Vec<T> d[OUT][NV], all[NV];
  for (int v = 0; v < NV; ++v) all[v] = loadv(total + c + v * W);
  IVec<T> wanted;
  for (int64_t l = 0; l < W; ++l) wanted[l] = l >= from ? Int(-1) : Int(0);
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < NV; ++v) {
      d[o][v] = widened(dz + o * C + c + v * W);
      all[v] += from ? (wanted ? d[o][v] : Vec<T>{}) : d[o][v];
    }
  for (int v = 0; v < NV; ++v) storev(total + c + v * W, all[v]);
  for (int64_t t = 0; t < taps.count; ++t) {
    const S* x = taps.x[t] + c;
    T* sum = sums + taps.at[t] * C + c;
    for (int v = 0; v < NV; ++v) {
      Vec<T> acc = loadv(sum + v * W);
      for (int o = 0; o < OUT; ++o) {
        const Vec<T> term = d[o][v] * widened(x + o * step + v * W);
        acc += from ? (wanted ? term : Vec<T>{}) : term;
      }
      storev(sum + v * W, acc);
    }
  }
}

template <class S, class T, int OUT>
void sum_outputs(const Taps<S>& taps, const S* dz, int64_t step, int64_t C, T* sums, T* total) {
  constexpr int64_t W = WIDTH<T>;
  int64_t c = 0;
  for (; c + 2 * W <= C; c += 2 * W) sum_vectors<S, T, OUT, 2>(taps, dz, step, C, c, 0, sums, total);
  for (; c + W <= C; c += W) sum_vectors<S, T, OUT, 1>(taps, dz, step, C, c, 0, sums, total);
  if (c == C) return;
  if (C >= W) return sum_vectors<S, T, OUT, 1>(taps, dz, step, C, C - W, c - (C - W), sums, total);
  for (int o = 0; o < OUT; ++o)
    for (c = 0; c < C; ++c) {
      const T d = widened_one(dz + o * C + c);
      total[c] += d;
      for (int64_t t = 0; t < taps.count; ++t) {
        sums[taps.at[t] * C + c] += d * widened_one(taps.x[t] + o * step + c);
      }
    }
}

// sums (K taps of a row, C) += dz x of a vector of channels, in its first `from` lanes not at all.
template <class S, class T, int K, int STEP>
KERNELZOO_INLINE void sum_window(const Depthwise& a, const Lines<S>& lines, int64_t column, const S* dz, int64_t c, int64_t from,
                       T* sums) {
  using Int = typename Lanes<T>::Int;
  constexpr int N = WINDOW / STEP;
  const int64_t C = a.C, shift = (lines.q0 + column * STEP - lines.from) * C + c, taps = a.taps();
  IVec<T> wanted;
  for (int64_t l = 0; l < WIDTH<T>; ++l) wanted[l] = l >= from ? Int(-1) : Int(0);
  const auto add = [&](T* sum, Vec<T> more) { storev(sum, loadv(sum) + (from ? (wanted ? more : Vec<T>{}) : more)); };
  Vec<T> d[N], all = {};
  for (int o = 0; o < N; ++o) {
    d[o] = widened(dz + o * C + c);
    all += d[o];
  }
  add(sums + taps * C + c, all);
  for (int64_t k = 0; k < lines.count; ++k) {
    const S* x = lines.line[k] + shift;
    Vec<T> acc[K] = {};
#pragma GCC unroll 32
    for (int j = 0; j < (N - 1) * STEP + K; ++j) {
      const Vec<T> v = widened(x + j * C);
#pragma GCC unroll 8
      for (int t = 0; t < K; ++t)
        if (j >= t && (j - t) % STEP == 0 && (j - t) / STEP < N) acc[t] += d[(j - t) / STEP] * v;
    }
    for (int t = 0; t < K; ++t) add(sums + (lines.at[k] * K + t) * C + c, acc[t]);
  }
}

template <class S, class T, int K, int STEP>
void sum_windows(const Depthwise& a, const Lines<S>& lines, int64_t column, const S* dz, T* sums) {
  constexpr int64_t W = WIDTH<T>, N = WINDOW / STEP, LINE = 64 / sizeof(S);
  const S* const x = lines.line[lines.count - 1] + (column * STEP + a.in[2]) * a.C;
  const S* const below = dz + a.out[2] * a.C;
  int64_t c = 0;
  for (; c + W <= a.C; c += W) {
    if (a.ahead && c % LINE == 0) {
      for (int64_t s = 0; s < STEP; ++s)
        for (int64_t o = 0; o < N * STEP; ++o) __builtin_prefetch(x + (s * a.in[2] + o) * a.C + c, 0, 2);
      for (int64_t o = 0; o < N; ++o) __builtin_prefetch(below + o * a.C + c, 0, 2);
    }
    sum_window<S, T, K, STEP>(a, lines, column, dz, c, 0, sums);
  }
  if (c < a.C) sum_window<S, T, K, STEP>(a, lines, column, dz, a.C - W, c - (a.C - W), sums);
}

template <class S, class T>
using SumWindows = void (*)(const Depthwise&, const Lines<S>&, int64_t, const S*, T*);

template <class S, class T>
SumWindows<S, T> sum_windows_of(const Depthwise& a) {
  KERNELZOO_WINDOW(sum_windows, a)
}

template <class S, class T>
void bwd_weight_last(const Depthwise& a, const DepthwisePart& u, const S* dz, T* sums, char* scratch) {
  Taps<S> taps(scratch, a.taps());
  const Lines<S> lines = take_lines<S>(a, u, scratch);
  dz += u.first;
  T* const total = sums + a.taps() * a.C;
  const int64_t step = a.stride[2] * a.C;
  const SumWindows<S, T> windows = lines.count ? sum_windows_of<S, T>(a) : nullptr;
  const Inside inside(a, u, lines.q0);
  const int64_t window = WINDOW / a.stride[2];
  for (int64_t j = 0; j < u.columns;) {
    const int64_t rest = j < inside.begin ? 0 : inside.end - j;
    if (windows && rest >= window) {
      windows(a, lines, j, dz + j * a.C, sums);
      j += window;
      continue;
    }
    taps.find(a, lines, j);
    if (rest >= TOGETHER) {
      sum_outputs<S, T, TOGETHER>(taps, dz + j * a.C, step, a.C, sums, total);
      j += TOGETHER;
    } else {
      sum_outputs<S, T, 1>(taps, dz + j * a.C, step, a.C, sums, total);
      ++j;
    }
  }
}
