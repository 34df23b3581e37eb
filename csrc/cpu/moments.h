// Sums and moments of a row in vectors, and how a row is read ahead. Included once per
// instruction set, inside its namespace.

#include "isa/stream.h"

// Terms of a sum added up in T before they join it in double: the error of a long row stays that of a short one.
constexpr int64_t NORM_BLOCK = 1024;

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

// A row begins where the processor's own prefetch, which stays within a page, may not have looked: what comes next is
// asked for piece by piece, while the row before it is written.
constexpr int64_t AHEAD = 256;

template <class S>
inline void prefetch(const S* next, int64_t j, int64_t n) {
  if (!next) return;
  const int64_t end = n - j < AHEAD ? n : j + AHEAD;
  for (int64_t i = j; i < end; i += 64 / sizeof(S)) __builtin_prefetch(next + i, 0, 2);
}
