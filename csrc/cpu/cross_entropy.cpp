#include "cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace kernelzoo {
namespace {

template <class T>
struct Rows {
  struct Stats {
    T max, log_sum, mass;  // mass: Σ w q'
  };

  const CrossEntropyRows& r;
  const int dtype;
  const CrossEntropyKernels& k = cross_entropy(dtype);
  const Kernels& memory = base(dtype);
  const T* weights = static_cast<const T*>(r.weights);
  double total = r.n;  // Σ w

  Rows(int dtype, const CrossEntropyRows& r) : r(r), dtype(dtype) {
    if (!weights) return;
    total = 0;
    for (int64_t c = 0; c < r.n; ++c) total += weights[c];
  }

  double share() const { return r.smoothing / r.n; }
  double weight_of(int64_t target) const { return weights ? weights[target] : 1; }
  const void* x(int64_t row) const { return at(r.x, dtype, row * r.n); }
  const void* q(int64_t row) const { return at(r.probabilities, dtype, row * r.n); }

  Stats forward(int64_t row, T* loss, T* count) const {
    const bool smooth = r.smoothing > 0, probabilities = r.probabilities;
    const RowSums s = k.row_sums(x(row), q(row), weights, r.n, smooth || probabilities);
    const double log_sum = std::log(s.exp), lse = s.max + log_sum;
    double value = 0, rows = 1, mass = s.q;
    if (probabilities) {
      value = (1 - r.smoothing) * (s.q * lse - s.qx);
    } else if (r.targets[row] >= 0) {
      T picked;
      memory.load(at(x(row), dtype, r.targets[row]), &picked, 1);
      mass = rows = weight_of(r.targets[row]);
      value = (1 - r.smoothing) * rows * (lse - picked);
    } else {
      *loss = *count = 0;
      return {T(s.max), T(log_sum), T(0)};
    }
    if (smooth) value += share() * (total * lse - s.x);
    *loss = T(value);
    *count = T(rows);
    return {T(s.max), T(log_sum), T((1 - r.smoothing) * mass + share() * total)};
  }

  void backward(int64_t row, const Stats& s, double g, void* dx) const {
    RowGrad grad = {s.max, s.log_sum, g * s.mass, 0, g * share()};
    int64_t index = -1;
    double one_hot = 0;
    if (r.probabilities) {
      grad.q = g * (1 - r.smoothing);
    } else if ((index = r.targets[row]) >= 0) {
      one_hot = g * (1 - r.smoothing) * weight_of(index);
    } else {  // torch's is 0 times the probabilities
      k.fill(at(dx, dtype, row * r.n), r.n, std::isfinite(s.log_sum) ? 0 : NAN);
      return;
    }
    k.row_grad(x(row), q(row), weights, at(dx, dtype, row * r.n), r.n, grad, index, one_hot);
  }
};

template <class T>
void forward_rows(int dtype, const CrossEntropyRows& r, void* loss_, void* counts_, void* stats_, int threads) {
  const Rows<T> rows(dtype, r);
  T *loss = static_cast<T*>(loss_), *counts = static_cast<T*>(counts_), *stats = static_cast<T*>(stats_);
#pragma omp parallel for num_threads(threads) if (r.rows * r.n > SERIAL)
  for (int64_t row = 0; row < r.rows; ++row) {
    const auto s = rows.forward(row, loss + row, counts + row);
    stats[row] = s.max;
    stats[r.rows + row] = s.log_sum;
    stats[2 * r.rows + row] = s.mass;
  }
}

template <class T>
void backward_rows(int dtype, const CrossEntropyRows& r, const void* stats_, const void* g_, int64_t stride_g, void* dx,
                   int threads) {
  const Rows<T> rows(dtype, r);
  const T *stats = static_cast<const T*>(stats_), *g = static_cast<const T*>(g_);
#pragma omp parallel for num_threads(threads) if (r.rows * r.n > SERIAL)
  for (int64_t row = 0; row < r.rows; ++row)
    rows.backward(row, {stats[row], stats[r.rows + row], stats[2 * r.rows + row]}, g[row * stride_g], dx);
}

template <class T>
void both_rows(int dtype, const CrossEntropyRows& r, const void* g_, int64_t stride_g, void* loss_, void* counts_,
               void* dx, int threads) {
  const Rows<T> rows(dtype, r);
  const T* g = static_cast<const T*>(g_);
  T *loss = static_cast<T*>(loss_), *counts = static_cast<T*>(counts_);
#pragma omp parallel for num_threads(threads) if (r.rows * r.n > SERIAL)
  for (int64_t row = 0; row < r.rows; ++row) {
    rows.backward(row, rows.forward(row, loss + row, counts + row), g[row * stride_g], dx);
  }
}

}  // namespace

void cross_entropy_fwd(int dtype, const CrossEntropyRows& r, void* loss, void* counts, void* stats, int threads) {
  (dtype == F64 ? forward_rows<double> : forward_rows<float>)(dtype, r, loss, counts, stats, threads);
}

void cross_entropy_bwd(int dtype, const CrossEntropyRows& r, const void* stats, const void* g, int64_t stride_g, void* dx,
                       int threads) {
  (dtype == F64 ? backward_rows<double> : backward_rows<float>)(dtype, r, stats, g, stride_g, dx, threads);
}

void cross_entropy_both(int dtype, const CrossEntropyRows& r, const void* g, int64_t stride_g, void* loss, void* counts,
                        void* dx, int threads) {
  (dtype == F64 ? both_rows<double> : both_rows<float>)(dtype, r, g, stride_g, loss, counts, dx, threads);
}

}  // namespace kernelzoo
