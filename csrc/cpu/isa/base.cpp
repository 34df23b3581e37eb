// Activations, what surrounds a linear layer, softmax.
#include "../kernels.h"
#include "begin.h"

// ---- activations

template <class A, class T>
void value_whole(const T* x, T* y, int64_t n, T p0, T p1) {
  n = whole<T>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = A::value(x[i], p0, p1);
}

template <class A, class T>
void grad_whole(const T* dy, const T* saved, T* dx, int64_t n, T p0, T p1) {
  n = whole<T>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = A::grad(dy[i], saved[i], p0, p1);
}

template <class T>
void value(int act, const T* x, T* y, int64_t n, T p0, T p1) {
  using Function = void (*)(const T*, T*, int64_t, T, T);
  static constexpr Function TABLE[ACTS] = {
#define X(name) value_whole<acts::name, T>,
      KERNELZOO_ACTS(X)
#undef X
  };
  const int64_t main = whole<T>(n);
  TABLE[act](x, y, main, p0, p1);
  if (main < n) {
    T tail[LANES<T>] = {};
    std::memcpy(tail, x + main, (n - main) * sizeof(T));
    TABLE[act](tail, tail, LANES<T>, p0, p1);
    std::memcpy(y + main, tail, (n - main) * sizeof(T));
  }
}

template <class T>
void grad(int act, const T* dy, const T* saved, T* dx, int64_t n, T p0, T p1) {
  using Function = void (*)(const T*, const T*, T*, int64_t, T, T);
  static constexpr Function TABLE[ACTS] = {
#define X(name) grad_whole<acts::name, T>,
      KERNELZOO_ACTS(X)
#undef X
  };
  const int64_t main = whole<T>(n);
  TABLE[act](dy, saved, dx, main, p0, p1);
  if (main < n) {
    T tail[LANES<T>] = {}, tail_saved[LANES<T>] = {};
    std::memcpy(tail, dy + main, (n - main) * sizeof(T));
    std::memcpy(tail_saved, saved + main, (n - main) * sizeof(T));
    TABLE[act](tail, tail_saved, tail, LANES<T>, p0, p1);
    std::memcpy(dx + main, tail, (n - main) * sizeof(T));
  }
}

template <class S, class T>
void act_fwd(int act, const void* x_, void* y_, int64_t n, double p0, double p1) {
  const S* x = static_cast<const S*>(x_);
  S* y = static_cast<S*>(y_);
  if constexpr (sizeof(S) == sizeof(T)) {
    value<T>(act, x, y, n, T(p0), T(p1));
  } else {
    T block[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
      const int64_t m = n - i < BLOCK ? n - i : BLOCK;
      load(x + i, block, m);
      value<T>(act, block, block, m, T(p0), T(p1));
      store(block, y + i, m);
    }
  }
}

template <class S, class T>
void act_bwd(int act, const void* dy_, const void* saved_, void* dx_, int64_t n, double p0, double p1) {
  const S* dy = static_cast<const S*>(dy_);
  const S* saved = static_cast<const S*>(saved_);
  S* dx = static_cast<S*>(dx_);
  if constexpr (sizeof(S) == sizeof(T)) {
    grad<T>(act, dy, saved, dx, n, T(p0), T(p1));
  } else {
    T block[BLOCK], block_saved[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
      const int64_t m = n - i < BLOCK ? n - i : BLOCK;
      load(dy + i, block, m);
      load(saved + i, block_saved, m);
      grad<T>(act, block, block_saved, block, m, T(p0), T(p1));
      store(block, dx + i, m);
    }
  }
}

template <class S, class T>
void bias_act(int act, void* z_, const void* bias_, void* y_, int64_t n, bool save_z, double p0, double p1) {
  S* z = static_cast<S*>(z_);
  S* y = static_cast<S*>(y_);
  const T* bias = static_cast<const T*>(bias_);
  T block[BLOCK];
  const T* before = loaded(z, block, n);
  if (bias) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) block[i] = before[i] + bias[i];
    before = block;
    if (save_z) store(block, z, n);
  }
  if constexpr (sizeof(S) == sizeof(T)) {
    value<T>(act, before, y, n, T(p0), T(p1));
  } else {
    value<T>(act, before, block, n, T(p0), T(p1));
    store(block, y, n);
  }
}

template <class S, class T>
void act_bwd_sum(int act, const void* dy_, const void* saved_, void* dz_, double* sum, int64_t n,
                 double p0, double p1) {
  const S* dy = static_cast<const S*>(dy_);
  const S* saved = static_cast<const S*>(saved_);
  S* dz = static_cast<S*>(dz_);
  T block[BLOCK], block_saved[BLOCK];
  const T* result = loaded(dy, block, n);
  if (act != ACT_none) {
    const T* before = loaded(saved, block_saved, n);
    T* target = block;
    if constexpr (sizeof(S) == sizeof(T)) target = dz ? dz : block;
    grad<T>(act, result, before, target, n, T(p0), T(p1));
    result = target;
  }
  if constexpr (sizeof(S) != sizeof(T)) {
    if (dz) store(result, dz, n);
  }
  if (sum) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] += result[i];
  }
}

template <class S, class T>
void load_any(const void* s, void* t, int64_t n) {
  load(static_cast<const S*>(s), static_cast<T*>(t), n);
}

template <class S, class T>
void store_any(const void* t, void* s, int64_t n) {
  store(static_cast<const T*>(t), static_cast<S*>(s), n);
}

#include "../softmax.h"

template <class S, class T>
constexpr Kernels table() {
  return {load_any<S, T>, store_any<S, T>, act_fwd<S, T>, act_bwd<S, T>, bias_act<S, T>, act_bwd_sum<S, T>,
          row_max<S, T>,  row_sum<S, T>,   row_fwd<S, T>, row_dot<S, T>, row_bwd<S, T>,  tile_fwd<S, T>,
          tile_bwd<S, T>, short_fwd<S, T>, short_bwd<S, T>};
}

const Kernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                    table<Fp16, float>()};

KERNELZOO_EXPORT(Kernels, base, TABLES)
