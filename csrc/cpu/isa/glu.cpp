// Gated activations.
#include "../glu.h"
#include "begin.h"

// Whether the derivative is had from the output.
template <class A>
constexpr bool FROM_OUTPUT = false;
template <>
constexpr bool FROM_OUTPUT<acts::sigmoid> = true;

template <class A, class T>
void fwd_whole(const T* gate, const T* up, T* y, int64_t n) {
  n = whole<T>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = A::value(gate[i], T(0), T(0)) * up[i];
}

template <class A, class T>
void bwd_whole(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  n = whole<T>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T g = gate[i], d = dy[i], du = d * up[i], v = A::value(g, T(0), T(0));
    dup[i] = d * v;
    dgate[i] = A::grad(du, FROM_OUTPUT<A> ? v : g, T(0), T(0));
  }
}

template <class A, class T>
void fwd_act(const T* gate, const T* up, T* y, int64_t n) {
  const int64_t main = whole<T>(n);
  fwd_whole<A, T>(gate, up, y, main);
  if (main < n) {
    T g[LANES<T>] = {}, u[LANES<T>] = {};
    std::memcpy(g, gate + main, (n - main) * sizeof(T));
    std::memcpy(u, up + main, (n - main) * sizeof(T));
    fwd_whole<A, T>(g, u, g, LANES<T>);
    std::memcpy(y + main, g, (n - main) * sizeof(T));
  }
}

template <class A, class T>
void bwd_act(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  const int64_t main = whole<T>(n);
  bwd_whole<A, T>(dy, gate, up, dgate, dup, main);
  if (main < n) {
    T d[LANES<T>] = {}, g[LANES<T>] = {}, u[LANES<T>] = {};
    std::memcpy(d, dy + main, (n - main) * sizeof(T));
    std::memcpy(g, gate + main, (n - main) * sizeof(T));
    std::memcpy(u, up + main, (n - main) * sizeof(T));
    bwd_whole<A, T>(d, g, u, g, u, LANES<T>);
    std::memcpy(dgate + main, g, (n - main) * sizeof(T));
    std::memcpy(dup + main, u, (n - main) * sizeof(T));
  }
}

template <class S, class T>
void fwd(int act, const void* gate_, const void* up_, void* y_, int64_t n) {
  const S* gate = static_cast<const S*>(gate_);
  const S* up = static_cast<const S*>(up_);
  S* y = static_cast<S*>(y_);
  void (*f)(const T*, const T*, T*, int64_t) = nullptr;
#define X(name) \
  if (act == ACT_##name) f = fwd_act<acts::name, T>;
  KERNELZOO_GATES(X)
#undef X
  if constexpr (sizeof(S) == sizeof(T)) {
    f(gate, up, y, n);
  } else {
    T g[BLOCK], u[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
      const int64_t m = n - i < BLOCK ? n - i : BLOCK;
      load(gate + i, g, m);
      load(up + i, u, m);
      f(g, u, g, m);
      store(g, y + i, m);
    }
  }
}

template <class S, class T>
void bwd(int act, const void* dy_, const void* gate_, const void* up_, void* dgate_, void* dup_, int64_t n) {
  const S* dy = static_cast<const S*>(dy_);
  const S* gate = static_cast<const S*>(gate_);
  const S* up = static_cast<const S*>(up_);
  S* dgate = static_cast<S*>(dgate_);
  S* dup = static_cast<S*>(dup_);
  void (*f)(const T*, const T*, const T*, T*, T*, int64_t) = nullptr;
#define X(name) \
  if (act == ACT_##name) f = bwd_act<acts::name, T>;
  KERNELZOO_GATES(X)
#undef X
  if constexpr (sizeof(S) == sizeof(T)) {
    f(dy, gate, up, dgate, dup, n);
  } else {
    T d[BLOCK], g[BLOCK], u[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
      const int64_t m = n - i < BLOCK ? n - i : BLOCK;
      load(dy + i, d, m);
      load(gate + i, g, m);
      load(up + i, u, m);
      f(d, g, u, g, u, m);
      store(g, dgate + i, m);
      store(u, dup + i, m);
    }
  }
}

const GluKernels TABLES[DTYPES] = {{fwd<double, double>, bwd<double, double>},
                                   {fwd<float, float>, bwd<float, float>},
                                   {fwd<Bf16, float>, bwd<Bf16, float>},
                                   {fwd<Fp16, float>, bwd<Fp16, float>}};

KERNELZOO_EXPORT(GluKernels, glu, TABLES)
