// A cross entropy's rows: what a walk over the classes sums up, and the gradient.
#include "../cross_entropy.h"
#include "../kernels.h"
#include "begin.h"

#include "../softmax.h"

template <class T>
inline T block_max(const T* x, int64_t n) {
  T lanes[LANES<T>];
  for (T& lane : lanes) lane = T(-INFINITY);
  for (int64_t j = 0; j < n; j += LANES<T>)
    for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] = x[j + l] > lanes[l] ? x[j + l] : lanes[l];
  return fold_max(lanes);
}

template <class T>
inline T block_exp(const T* x, int64_t n, T max) {
  T lanes[LANES<T>] = {};
  for (int64_t j = 0; j < n; j += LANES<T>)
    for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] += math::exp_flushed(x[j + l] - max);
  return fold_sum(lanes);
}

// One walk: a block's maximum, then its exponentials, from L1; a new maximum rescales what was summed before.
template <class S, class T>
RowSums row_sums(const void* x_, const void* q_, const void* w_, int64_t n, bool sums) {
  const S* x = static_cast<const S*>(x_);
  const S* q = static_cast<const S*>(q_);
  const T* w = static_cast<const T*>(w_);
  T buffer[BLOCK], buffer_q[BLOCK], buffer_w[BLOCK];
  double max = -INFINITY, exp = 0, sum_q = 0, sum_qx = 0, sum_x = 0;
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK, whole_m = padded<T>(m);
    const T* block = whole_block(x + i, buffer, m, T(-INFINITY));
    const double highest = block_max(block, whole_m);
    if (highest > max) {
      if (i) exp *= std::exp(max - highest);
      max = highest;
    }
    // where everything so far is -inf its exponentials are 0
    const double base = max == -INFINITY ? 0 : max;
    exp += block_exp(block, whole_m, T(base));
    if (!sums) continue;
    const T* weights = w ? whole_block(w + i, buffer_w, m, T(0)) : nullptr;
    const T* target = q ? whole_block(q + i, buffer_q, m, T(0)) : nullptr;
    T part_q = 0, part_qx = 0, part_x = 0;
    T lanes_q[LANES<T>] = {}, lanes_qx[LANES<T>] = {}, lanes_x[LANES<T>] = {};
    for (int64_t j = 0; j < whole<T>(m); j += LANES<T>) {
      for (int64_t l = 0; l < LANES<T>; ++l) {
        const T weight = weights ? weights[j + l] : T(1), shifted = block[j + l] - T(base);
        lanes_x[l] += weight * shifted;
        if (target) {
          lanes_q[l] += weight * target[j + l];
          lanes_qx[l] += weight * target[j + l] * shifted;
        }
      }
    }
    for (int64_t j = whole<T>(m); j < m; ++j) {
      const T weight = weights ? weights[j] : T(1), shifted = block[j] - T(base);
      part_x += weight * shifted;
      if (target) {
        part_q += weight * target[j];
        part_qx += weight * target[j] * shifted;
      }
    }
    const double block_q = part_q + fold_sum(lanes_q);
    sum_q += block_q;
    // relative to 0 in double, as the maximum may still move
    sum_qx += part_qx + fold_sum(lanes_qx) + block_q * base;
    double total_weight = double(m);
    if (weights) {
      total_weight = 0;
      for (int64_t j = 0; j < m; ++j) total_weight += weights[j];
    }
    sum_x += part_x + fold_sum(lanes_x) + total_weight * base;
  }
  return {max, exp, sum_q, sum_qx, sum_x};
}

template <class T, class F>
inline void for_block(T* target, int64_t n, F f) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) target[j] = f(j);
}

template <class S, class T>
void row_grad(const void* x_, const void* q_, const void* w_, void* dx_, int64_t n, const RowGrad& g, int64_t index,
              double one_hot) {
  const S* x = static_cast<const S*>(x_);
  const S* q = static_cast<const S*>(q_);
  const T* w = static_cast<const T*>(w_);
  S* dx = static_cast<S*>(dx_);
  const T max = T(g.max), log_sum = T(g.log_sum), p = T(g.p), scale_q = T(g.q), uniform = T(g.uniform);
  T buffer[BLOCK], buffer_q[BLOCK], buffer_w[BLOCK], result[BLOCK];
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK, whole_m = padded<T>(m);
    const T* block = whole_block(x + i, buffer, m, T(0));
    const bool holds = index >= i && index < i + m;
    T* target = result;
    if constexpr (sizeof(S) == sizeof(T)) {
      if (whole_m == m && !holds) target = dx + i;
    }
    if (!q && uniform == 0) {
      for_block(target, whole_m,
                [&](int64_t j) { return flushed(math::exp_flushed(block[j] - max - log_sum) * p); });
    } else {
      const T* weights = w ? whole_block(w + i, buffer_w, m, T(0)) : nullptr;
      const T* probabilities = q ? whole_block(q + i, buffer_q, m, T(0)) : nullptr;
      if (!weights) {
        for (int64_t j = 0; j < whole_m; ++j) buffer_w[j] = 1;
        weights = buffer_w;
      }
      if (!probabilities) {
        for (int64_t j = 0; j < whole_m; ++j) buffer_q[j] = 0;
        probabilities = buffer_q;
      }
      for_block(target, whole_m, [&](int64_t j) {
        const T e = math::exp_flushed(block[j] - max - log_sum) * p;
        return flushed(e - weights[j] * (probabilities[j] * scale_q + uniform));
      });
    }
    if (holds) target[index - i] -= T(one_hot);
    if (target == result) store(result, dx + i, m);
  }
}

template <class S, class T>
void fill(void* dx_, int64_t n, double value) {
  S* dx = static_cast<S*>(dx_);
  if (value == 0) {
    std::memset(dx_, 0, n * sizeof(S));
    return;
  }
  const T one = T(value);
  for (int64_t i = 0; i < n; ++i) store(&one, dx + i, 1);
}

template <class S, class T>
constexpr CrossEntropyKernels table() {
  return {row_sums<S, T>, row_grad<S, T>, fill<S, T>};
}

const CrossEntropyKernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                            table<Fp16, float>()};

KERNELZOO_EXPORT(CrossEntropyKernels, cross_entropy, TABLES)
