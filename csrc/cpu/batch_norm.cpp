#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"

namespace kernelzoo {
namespace {

using Bytes = std::unique_ptr<char[]>;

int acc_of(int dtype) { return dtype == F64 ? F64 : F32; }

double get(const void* p, int dtype, int64_t i) {
  return dtype == F64 ? static_cast<const double*>(p)[i] : static_cast<const float*>(p)[i];
}

void set(void* p, int dtype, int64_t i, double value) {
  if (dtype == F64)
    static_cast<double*>(p)[i] = value;
  else
    static_cast<float*>(p)[i] = static_cast<float>(value);
}

// What there is one of a channel, as the kernels take it.
struct Channels {
  int acc;
  int64_t C;
  Bytes w, b, scale, shift, g_mean, x_factor;

  Channels(int dtype, int w_dtype, const void* w_, const void* b_, int64_t I, int64_t C_, bool backward)
      : acc(acc_of(dtype)), C(C_), w(widened(w_, w_dtype)), b(widened(b_, w_dtype)) {
    for (Bytes* one : {&scale, &shift}) one->reset(new char[I * C * ITEM[acc]]);
    if (backward)
      for (Bytes* one : {&g_mean, &x_factor}) one->reset(new char[I * C * ITEM[acc]]);
  }

  Bytes widened(const void* values, int dtype) const {
    if (!values) return nullptr;
    Bytes wide(new char[C * ITEM[acc]]);
    base(dtype).load(values, wide.get(), C);
    return wide;
  }

  void into(BatchNorm& a) const {
    a.scale = scale.get(), a.shift = shift.get(), a.g_mean = g_mean.get(), a.x_factor = x_factor.get();
    a.value = base(acc).act_fwd, a.grad = base(acc).act_bwd;
  }

  // From the variance as it is kept: the backward's scale is the forward's to the last bit.
  double rstd(const BatchNorm& a, int64_t unit) const { return 1 / std::sqrt(get(a.var, acc, unit) + a.eps); }

  void normalising(const BatchNorm& a, int64_t unit) const {
    set(scale.get(), acc, unit, w ? get(w.get(), acc, unit % C) * rstd(a, unit) : rstd(a, unit));
    set(shift.get(), acc, unit, b ? get(b.get(), acc, unit % C) : 0);
  }

  // gx: Σ g x̂
  void differentiating(const BatchNorm& a, int64_t unit, double g, double gx, double count) const {
    set(g_mean.get(), acc, unit, g / count);
    set(x_factor.get(), acc, unit, gx / count * rstd(a, unit));
  }
};

// Whether each unit of planes goes to one thread, from its sums to its results: read the second time from a near cache.
bool whole(const BatchNorm& a, int threads) { return a.I * a.C >= 4 * threads; }

// fwd or bwd of all planes or rows, inside a parallel region.
template <class Unit, class Rows>
void elementwise(const BatchNorm& a, Unit unit, Rows rows) {
  // at least 16 KB a task, of one unit's planes, or of one instance's rows; in the order of memory
  if (a.L > 1) {
    const int64_t m = std::max<int64_t>(1, 4096 / a.L), tasks = ceil_div(a.N, m);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a.I * tasks * a.C; ++t) {
      const int64_t n = t / a.C % tasks * m;
      unit(t / (tasks * a.C) * a.C + t % a.C, n, std::min(a.N, n + m));
    }
    return;
  }
  const int64_t m = std::max<int64_t>(8, 4096 / a.C), tasks = ceil_div(a.N, m);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < a.I * tasks; ++t) {
    const int64_t first = t / tasks * a.N;
    rows(first + t % tasks * m, first + std::min(a.N, (t % tasks + 1) * m));
  }
}

// For each stripe of each instance of rows, function(first, last, index), inside a parallel region.
template <class F>
void striped(const BatchNorm& a, int64_t stripes, F function) {
  const int64_t m = ceil_div(a.N, stripes);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < a.I * stripes; ++t) {
    const int64_t first = t / stripes * a.N, s = t % stripes;
    function(first + std::min(a.N, s * m), first + std::min(a.N, (s + 1) * m), t);
  }
}

// Channels whose stripes are joined together: a stripe's lie side by side.
constexpr int64_t TOGETHER = 64;

// function(first unit, how many, offset of its first stripe) for tiles of an instance's channels, inside a parallel
// region.
template <class F>
void tiled(const BatchNorm& a, int64_t stripes, F function) {
  const int64_t tiles = ceil_div(a.C, TOGETHER);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < a.I * tiles; ++t) {
    const int64_t i = t / tiles, c = t % tiles * TOGETHER;
    function(i * a.C + c, std::min(TOGETHER, a.C - c), i * stripes * a.C + c);
  }
}

// Moments of n <= TOGETHER units from their stripes', in order.
void join(const BatchNorm& a, int64_t unit, int64_t n, const double* mean, const double* squares, int64_t stripes,
          int acc) {
  const int64_t m = ceil_div(a.N, stripes);
  double total[TOGETHER] = {}, about[TOGETHER] = {};
  for (int64_t s = 0, count = 0; s < stripes; ++s, mean += a.C, squares += a.C) {
    const int64_t rows = std::min(a.N, (s + 1) * m) - std::min(a.N, s * m);
    if (!rows) continue;
    const double share = double(rows) / double(count + rows), cross = share * count;
    for (int64_t c = 0; c < n; ++c) {
      const double delta = mean[c] - total[c];
      total[c] += delta * share;
      about[c] += squares[c] + delta * delta * cross;
    }
    count += rows;
  }
  for (int64_t c = 0; c < n; ++c) {
    set(a.mean, acc, unit + c, total[c]);
    set(a.var, acc, unit + c, about[c] / a.N);
  }
}

// Sums of n <= TOGETHER columns over their stripes, in order.
void add_up(const double* partial, int64_t C, int64_t n, int64_t stripes, double* total) {
  std::fill_n(total, n, 0.0);
  for (int64_t s = 0; s < stripes; ++s, partial += C)
    for (int64_t c = 0; c < n; ++c) total[c] += partial[c];
}

}  // namespace

void batch_norm_fwd(int dtype, int w_dtype, BatchNorm a, const void* w, const void* b, bool given, double* partial,
                    int64_t stripes, int threads) {
  const BatchNormKernels& k = batch_norm(dtype);
  const Channels channels(dtype, w_dtype, w, b, a.I, a.C, false);
  channels.into(a);
  const int64_t units = a.I * a.C, elements = units * a.N * a.L;
  double* const squares = partial + a.I * stripes * a.C;
  const bool fused = a.L > 1 && !given && a.y && whole(a, threads);
#pragma omp parallel num_threads(threads) if (elements > SERIAL)
  {
    if (a.L > 1 && !given) {
#pragma omp for schedule(static)
      for (int64_t u = 0; u < units; ++u) {
        double mean, var;
        k.unit_moments(a, u, &mean, &var);
        set(a.mean, channels.acc, u, mean);
        set(a.var, channels.acc, u, var);
        channels.normalising(a, u);
        if (fused) k.unit_fwd(a, u, 0, a.N);
      }
    } else {
      if (!given) {
        const Bytes scratch(new char[batch_norm_scratch(a.C) * ITEM[channels.acc]]);
        striped(a, stripes, [&](int64_t first, int64_t last, int64_t t) {
          k.rows_moments(a, first, last, partial + t * a.C, squares + t * a.C, scratch.get());
        });
        tiled(a, stripes, [&](int64_t u, int64_t n, int64_t at) {
          join(a, u, n, partial + at, squares + at, stripes, channels.acc);
        });
      }
#pragma omp for schedule(static)
      for (int64_t u = 0; u < units; ++u) channels.normalising(a, u);
    }
    if (a.y && !fused)
      elementwise(a, [&](int64_t u, int64_t first, int64_t last) { k.unit_fwd(a, u, first, last); },
                  [&](int64_t first, int64_t last) { k.rows_fwd(a, first, last); });
  }
}

void batch_norm_bwd(int dtype, int w_dtype, BatchNorm a, const void* w, const void* b, void* sum_g, void* sum_gx,
                    double count, void* dw, void* db, double* partial, int64_t stripes, int threads) {
  const BatchNormKernels& k = batch_norm(dtype);
  const Channels channels(dtype, w_dtype, w, b, a.I, a.C, true);
  channels.into(a);
  const int acc = channels.acc;
  const int64_t units = a.I * a.C, elements = units * a.N * a.L;
  double* const x_partial = partial + a.I * stripes * a.C;
  const bool summed = count == 0 && sum_g, results = a.dx || (a.dr && !summed);
  if (summed) count = double(a.N) * a.L;
  const bool fused = a.L > 1 && summed && results && whole(a, threads);
  a.streamed = 3 * elements * ITEM[dtype] >= STREAMED;
  BatchNorm after = a;
  if (summed && a.dr) after.dy = a.dr, after.dr = nullptr, after.act = ACT_none;  // dr is g
#pragma omp parallel num_threads(threads) if (elements > SERIAL)
  {
#pragma omp for schedule(static)
    for (int64_t u = 0; u < units; ++u) channels.normalising(a, u);
    if (summed) {
      if (a.L > 1) {
#pragma omp for schedule(static)
        for (int64_t u = 0; u < units; ++u) {
          double g, gx;
          k.unit_sums(a, u, &g, &gx);
          gx *= channels.rstd(a, u);
          set(sum_g, acc, u, g);
          set(sum_gx, acc, u, gx);
          channels.differentiating(a, u, g, gx, count);
          if (fused) k.unit_bwd(after, u, 0, a.N);
        }
      } else {
        const Bytes scratch(new char[batch_norm_scratch(a.C) * ITEM[acc]]);
        striped(a, stripes, [&](int64_t first, int64_t last, int64_t t) {
          k.rows_sums(a, first, last, partial + t * a.C, x_partial + t * a.C, scratch.get());
        });
        tiled(a, stripes, [&](int64_t u, int64_t n, int64_t at) {
          double g[TOGETHER], gx[TOGETHER];
          add_up(partial + at, a.C, n, stripes, g);
          add_up(x_partial + at, a.C, n, stripes, gx);
          for (int64_t c = 0; c < n; ++c) {
            gx[c] *= channels.rstd(a, u + c);
            set(sum_g, acc, u + c, g[c]);
            set(sum_gx, acc, u + c, gx[c]);
            channels.differentiating(a, u + c, g[c], gx[c], count);
          }
        });
      }
    } else if (sum_g) {
#pragma omp for schedule(static)
      for (int64_t u = 0; u < units; ++u)
        channels.differentiating(a, u, get(sum_g, acc, u), get(sum_gx, acc, u), count);
    }
    if (results && !fused)
      elementwise(after, [&](int64_t u, int64_t first, int64_t last) { k.unit_bwd(after, u, first, last); },
                  [&](int64_t first, int64_t last) { k.rows_bwd(after, first, last); });
    if (dw || db) {
#pragma omp for schedule(static)
      for (int64_t c = 0; c < a.C; ++c) {
        double g = 0, gx = 0;
        for (int64_t i = 0; i < a.I; ++i) {
          g += get(sum_g, acc, i * a.C + c);
          gx += get(sum_gx, acc, i * a.C + c);
        }
        double wide[2] = {gx, g};
        float narrow[2] = {float(gx), float(g)};
        const void* const values = w_dtype == F64 ? static_cast<const void*>(wide) : narrow;
        const char* const from = static_cast<const char*>(values);
        if (dw) base(w_dtype).store(from, at(dw, w_dtype, c), 1);
        if (db) base(w_dtype).store(from + ITEM[acc_of(w_dtype)], at(db, w_dtype, c), 1);
      }
    }
  }
}

}  // namespace kernelzoo
