// Losses element by element, each with its derivatives to the input and the target.
#include "../loss.h"
#include "../kernels.h"
#include "begin.h"

#include "../softmax.h"

// ln(1 - x), x <= 1
template <class T>
inline T log_of_rest(T x) {
  const T y = math::log1p(-x);
  return x == 1 ? T(-INFINITY) : y;
}

namespace losses {

struct mse {
  template <class T>
  static T value(T x, T t, T) {
    return (x - t) * (x - t);
  }
  template <class T>
  static T dx(T x, T t, T) {
    return 2 * (x - t);
  }
  template <class T>
  static T dt(T x, T t, T) {
    return 2 * (t - x);
  }
};

struct l1 {
  template <class T>
  static T value(T x, T t, T) {
    return math::abs(x - t);
  }
  template <class T>
  static T dx(T x, T t, T) {  // 0 for nan, as torch's sign
    const T up = x > t ? T(1) : T(0);
    return x < t ? T(-1) : up;
  }
  template <class T>
  static T dt(T x, T t, T p) {
    return -dx(x, t, p);
  }
};

struct huber {
  template <class T>
  static T value(T x, T t, T delta) {
    const T z = math::abs(x - t), near = T(0.5) * z * z, far = delta * (z - T(0.5) * delta);
    return z < delta ? near : far;
  }
  template <class T>
  static T dx(T x, T t, T delta) {
    const T d = x - t, upper = d > delta ? delta : d;
    return d < -delta ? -delta : upper;
  }
  template <class T>
  static T dt(T x, T t, T p) {
    return -dx(x, t, p);
  }
};

struct smooth_l1 {
  template <class T>
  static T value(T x, T t, T beta) {
    const T z = math::abs(x - t), near = T(0.5) * z * z / beta, far = z - T(0.5) * beta;
    return z < beta ? near : far;
  }
  template <class T>
  static T dx(T x, T t, T beta) {
    const T d = x - t, inside = d / beta, upper = d >= beta ? T(1) : inside;
    return d <= -beta ? T(-1) : upper;
  }
  template <class T>
  static T dt(T x, T t, T p) {
    return -dx(x, t, p);
  }
};

struct bce {
  template <class T>
  static T bounded(T x) {
    return x < -100 ? T(-100) : x;
  }
  template <class T>
  static T value(T x, T t, T) {
    return (t - 1) * bounded(log_of_rest(x)) - t * bounded(math::log(x));
  }
  template <class T>
  static T dx(T x, T t, T) {
    const T width = (1 - x) * x;
    return (x - t) / (width < T(1e-12) ? T(1e-12) : width);
  }
  template <class T>
  static T dt(T x, T, T) {
    return log_of_rest(x) - math::log(x);
  }
};

struct bce_logits {
  template <class T>
  static T value(T x, T t, T) {
    return (1 - t) * x - ((x < 0 ? x : 0) - math::log1p(math::exp(-math::abs(x))));
  }
  template <class T>
  static T dx(T x, T t, T) {
    return 1 / (1 + math::exp(-x)) - t;
  }
  template <class T>
  static T dt(T x, T, T) {
    return -x;
  }
};

struct kl {
  template <class T>
  static T value(T x, T t, T) {
    const T entropy = t * math::log(t);
    return (t == 0 ? 0 : entropy) - t * x;
  }
  template <class T>
  static T dx(T, T t, T) {
    return -t;
  }
  template <class T>
  static T dt(T x, T t, T) {  // nan at 0, as the derivative of torch's xlogy(t, t)
    return math::log(t) + t / t - x;
  }
};

struct kl_log {
  template <class T>
  static T value(T x, T t, T) {
    return math::exp(t) * (t - x);
  }
  template <class T>
  static T dx(T, T t, T) {
    return -math::exp(t);
  }
  template <class T>
  static T dt(T x, T t, T) {
    const T e = math::exp(t);
    return e * (t - x) + e;
  }
};

}  // namespace losses

template <class L, class T>
void value_block(const T* x, const T* t, T* y, int64_t n, T p) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = L::value(x[i], t[i], p);
}

template <class L, class T>
void dx_block(const T* x, const T* t, const T* g, T* dx, int64_t n, T p) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = g[i] * L::dx(x[i], t[i], p);
}

template <class L, class T>
void dt_block(const T* x, const T* t, const T* g, T* dt, int64_t n, T p) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dt[i] = g[i] * L::dt(x[i], t[i], p);
}

// Padding with 1/2 keeps every formula finite.
template <class S, class T>
double loss_value(int kind, const void* x_, const void* t_, void* out_, int64_t n, double p, int64_t* outside) {
  using Function = void (*)(const T*, const T*, T*, int64_t, T);
  static constexpr Function TABLE[LOSSES] = {
#define X(name) value_block<losses::name, T>,
      KERNELZOO_LOSSES(X)
#undef X
  };
  const S* x = static_cast<const S*>(x_);
  const S* t = static_cast<const S*>(t_);
  S* out = static_cast<S*>(out_);
  T buffer[BLOCK], buffer_t[BLOCK], y[BLOCK];
  double total = 0;
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK, whole_m = padded<T>(m);
    const T* block = whole_block(x + i, buffer, m, T(0.5));
    const T* target = whole_block(t + i, buffer_t, m, T(0.5));
    TABLE[kind](block, target, y, whole_m, T(p));
    if (out) store(y, out + i, m);
    T lanes[LANES<T>] = {};
    for (int64_t j = m; j < whole_m; ++j) y[j] = 0;
    for (int64_t j = 0; j < whole_m; j += LANES<T>)
      for (int64_t l = 0; l < LANES<T>; ++l) lanes[l] += y[j + l];
    total += fold_sum(lanes);
    if (kind == LOSS_bce) {
      int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (int64_t j = 0; j < m; ++j)
        count += !((block[j] >= 0) & (block[j] <= 1) & (target[j] >= 0) & (target[j] <= 1));
      *outside += count;
    }
  }
  return total;
}

template <class S, class T>
void loss_grad(int kind, const void* x_, const void* t_, const void* dy_, double g, void* dx_, void* dt_, int64_t n,
               double p) {
  using Function = void (*)(const T*, const T*, const T*, T*, int64_t, T);
  static constexpr Function TABLE[2][LOSSES] = {{
#define X(name) dx_block<losses::name, T>,
                                                    KERNELZOO_LOSSES(X)
#undef X
                                                },
                                                {
#define X(name) dt_block<losses::name, T>,
                                                    KERNELZOO_LOSSES(X)
#undef X
                                                }};
  const S* x = static_cast<const S*>(x_);
  const S* t = static_cast<const S*>(t_);
  const S* dy = static_cast<const S*>(dy_);
  S* results[2] = {static_cast<S*>(dx_), static_cast<S*>(dt_)};
  T buffer[BLOCK], buffer_t[BLOCK], buffer_dy[BLOCK], y[BLOCK];
  for (T& one : buffer_dy) one = T(g);
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t m = n - i < BLOCK ? n - i : BLOCK, whole_m = padded<T>(m);
    const T* block = whole_block(x + i, buffer, m, T(0.5));
    const T* target = whole_block(t + i, buffer_t, m, T(0.5));
    const T* grad = dy ? whole_block(dy + i, buffer_dy, m, T(0)) : buffer_dy;
    for (int which = 0; which < 2; ++which) {
      if (!results[which]) continue;
      T* to = whole_target(results[which] + i, y, m);
      TABLE[which][kind](block, target, grad, to, whole_m, T(p));
      finish(to, results[which] + i, m);
    }
  }
}

template <class S, class T>
constexpr LossKernels table() {
  return {loss_value<S, T>, loss_grad<S, T>};
}

const LossKernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                    table<Fp16, float>()};

KERNELZOO_EXPORT(LossKernels, loss, TABLES)
