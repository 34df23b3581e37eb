// The backward of recurrent layers, from each sequence's last step to its first: the gradients before the gates'
// functions for the thread's own cells, then dh_{t-1} of its own features from all of them. The sums over all rows that
// make the weights' gradients are left to the launcher.
#include "../rnn.h"

#include "begin.h"

#include "../tile.h"

#include "../pack.h"

#include "../rnn_panels.h"

#include "../rnn_layer.h"

// Gradients fade along a sequence, and each denormal costs many processors 100 cycles in the products that follow.
inline float flushed(float x) { return math::abs(x) < std::numeric_limits<float>::min() ? 0.0f : x; }
inline double flushed(double x) { return x; }

template <class P, class S, int MODE>
struct Backward {
  using T = typename P::T;
  static constexpr int64_t U = UNIT<T>, G = gates_of(MODE);

  const Rnn& a;
  const Blocks<T> cells, features;
  Arena arena;
  const Panels<P> w_hh, w_hr;
  Operands<P> gates_in[2], h_in;  // gates_in: of this step and the next, in turn
  const Kept<T> dh, dc;           // what the step before receives, or its last h and c, or h0 and c0
  const Kept<T> dm, dgh, normal, dcell;
  const Vectors<T> b_hn, peephole, ln_weight, ln_cell;
  const Exchange<T> gh_sums, cell_moments, cell_sums;

  Share mine{0, 0, 1}, mine_h{0, 0, 1};
  int64_t phase = 0;
  int64_t at = 0, n = 0, before = 0, continued = 0;  // first row, rows; those of the step before, and how many are there
  Operands<P>* in = nullptr;

  explicit Backward(const Rnn& a)
      : a(a),
        cells(a.H, a.heads),
        features(a.P, a.heads),
        arena{a.workspace},
        w_hh(arena, features, G * ceil_div(cells.size, P::PAIR), 1),
        w_hr(arena, cells, a.w_hr ? ceil_div(a.P, P::PAIR) : 0, 1),
        gates_in{{arena, a.B, a.heads * G, cells.size}, {arena, a.B, a.heads * G, cells.size}},
        h_in(arena, a.w_hr ? a.B : 0, 1, a.P),
        dh(arena, a.B, features.count, U),
        dc(arena, MODE == RNN_LSTM ? a.B : 0, cells.count, U),
        dm(arena, staged() ? a.B : 0, cells.count, U),
        dgh(arena, a.ln_weight ? a.B : 0, cells.count, G * U),
        normal(arena, a.ln_cell ? a.B : 0, cells.count, U),
        dcell(arena, a.ln_cell ? a.B : 0, cells.count, U),
        b_hn(arena, a.b_hn, 1, cells),
        peephole(arena, a.peephole, 3, cells),
        ln_weight(arena, a.ln_weight, G, cells),
        ln_cell(arena, a.ln_cell, 2, cells),
        gh_sums(arena, a.ln_weight ? a.B : 0, cells.count),
        cell_moments(arena, a.ln_cell ? a.B : 0, cells.count),
        cell_sums(arena, a.ln_cell ? a.B : 0, cells.count) {}

  // Whether every block's m must have its gradient before any cell's is computed.
  bool staged() const { return a.w_hr || a.ln_cell; }

  void wait() { rnn_wait(*a.barrier, phase); }

  void prepare(int64_t thread, int64_t team) {
    mine = Share(cells.count, thread, team);
    mine_h = Share(features.count, thread, team);
    pack_backward<P, S>(w_hh, mine_h, a, G);
    if (a.w_hr)
      w_hr.each(mine, false, [&](int64_t first, int64_t count, T* panel, int64_t columns) {
        for (int64_t i = 0; i < count; ++i)
          pack_columns<P>(element<S>(a.w_hr, cells[first + i].first), a.H, cells[first + i].n, a.P, panel + i * U, columns);
      });
    b_hn.template fill<S>(cells, mine, a.H);
    peephole.template fill<S>(cells, mine, a.H);
    ln_weight.template fill<S>(cells, mine, a.H);
    ln_cell.template fill<S>(cells, mine, a.H);
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t k = mine_h.begin; k < mine_h.end; ++k) start(a.dhn, dh.at(b, k), b * a.P, features[k]);
      if (MODE == RNN_LSTM)
        for (int64_t k = mine.begin; k < mine.end; ++k) start(a.dcn, dc.at(b, k), b * a.H, cells[k]);
    }
    const Share rows(a.B, thread, team);
    gates_in[0].clear(rows.begin, rows.end);
    gates_in[1].clear(rows.begin, rows.end);
    if (a.w_hr) h_in.clear(rows.begin, rows.end);
    wait();
  }

  static void start(const void* given, T* to, int64_t row, Block block) {
    if (given) {
      get(element<S>(given, row + block.first), to, block.n);
    } else {
      std::memset(to, 0, U * sizeof(T));
    }
  }

  void run(int64_t thread, int64_t team) {
    prepare(thread, team);
    at = a.reverse ? 0 : a.R;
    for (int64_t s = 0; s < a.T; ++s) {
      const int64_t t = a.reverse ? s : a.T - 1 - s, earlier = a.reverse ? t + 1 : t - 1;
      n = rows_of(a, t);
      if (!a.reverse) at -= n;
      const int64_t rows = s == a.T - 1 ? 0 : rows_of(a, earlier);
      continued = rows < n ? rows : n;
      before = a.reverse ? at + n : at - rows;
      in = &gates_in[s & 1];
      step(s & 1);
      if (a.reverse) at += n;
    }
    for (int64_t b = 0; b < a.B; ++b) {
      if (a.dh0)
        for (int64_t k = mine_h.begin; k < mine_h.end; ++k)
          put(dh.at(b, k), element<S>(a.dh0, b * a.P + features[k].first), features[k].n);
      if (MODE == RNN_LSTM && a.dc0)
        for (int64_t k = mine.begin; k < mine.end; ++k)
          put(dc.at(b, k), element<S>(a.dc0, b * a.H + cells[k].first), cells[k].n);
    }
  }

  void step(bool odd) {
    alignas(64) T tile[TILE_ROWS * PANEL * U];
    if (!staged()) {
      for (int64_t b = 0; b < n; ++b)
        for (int64_t k = mine.begin; k < mine.end; ++k) {
          alignas(64) T d[U];
          begin(b, k, d);
          cell(b, k, d);
        }
    } else {
      to_cells(odd, tile);
    }
    if (a.ln_weight) {
      wait();
      for (int64_t b = 0; b < n; ++b) {
        const auto means = gh_sums.means(b, G * a.H);
        for (int64_t k = mine.begin; k < mine.end; ++k) from_normal(b, k, means.dy, means.dy_x);
      }
    }
    wait();
    w_hh.each(mine_h, odd, [&](int64_t first, int64_t count, const T* panel, int64_t columns) {
      for (int64_t b = 0; b < n; b += TILE_ROWS) {
        const int64_t m = n - b < TILE_ROWS ? n - b : TILE_ROWS;
        multiply<P>(m, w_hh.K, in->p + b * in->row + features[first].head * G * in->run, in->row, panel, columns, tile);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t i = 0; i < count; ++i) receive(b + r, first + i, tile + r * columns + i * U);
      }
    });
  }

  // The recurrent product's share of dh_{t-1}.
  KERNELZOO_FLATTEN void receive(int64_t b, int64_t k, const T* product) const {
    T* to = dh.at(b, k);
    alignas(64) T mask[U];
    if (a.h_mask) {
      get(element<S>(a.h_mask, b * a.P + features[k].first), mask, features[k].n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) to[l] += product[l] * mask[l];
    } else {
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) to[l] += product[l];
    }
  }

  // d: of h~. What passes h~ by stays in dh.
  KERNELZOO_FLATTEN void begin(int64_t b, int64_t k, T* d) const {
    const Block block = features[k];
    T* kept = dh.at(b, k);
    alignas(64) T given[U];
    if (a.dout) {
      get(element<S>(a.dout, (at + b) * a.P + block.first), given, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) d[l] = kept[l] + given[l];
    } else {
      std::memcpy(d, kept, sizeof given);
    }
    if (a.zone_h) {
      get(element<S>(a.zone_h, (at + b) * a.P + block.first), given, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        kept[l] = given[l] * d[l];
        d[l] *= 1 - given[l];
      }
    } else {
      std::memset(kept, 0, sizeof given);
    }
    if (a.dh_new) put(d, element<S>(a.dh_new, (at + b) * a.P + block.first), block.n);
  }

  // What the step before left, or where the sequence begins.
  void previous(const void* rows, const void* first, int64_t b, int64_t width, Block block, T* to) const {
    if (b < continued) {
      get(element<S>(rows, (before + b) * width + block.first), to, block.n);
    } else {
      get(element<S>(first, b * width + block.first), to, block.n);
    }
  }

  void previous_c(int64_t b, Block block, T* to) const {
    if (b < continued) {
      get(element<T>(a.cells, (before + b) * a.H + block.first), to, block.n);
    } else {
      get(element<S>(a.c0, b * a.H + block.first), to, block.n);
    }
  }

  void gates_of_row(int64_t b, Block block, T* z) const {
    for (int64_t g = 0; g < G; ++g)
      get(element<S>(a.gates, ((at + b) * G + g) * a.H + block.first), z + g * U, block.n);
  }

  // c~, before zoneout.
  void fresh_c(int64_t b, Block block, const T* z, const T* old, T* c) const {
    if (a.zone_c) {
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) c[l] = z[U + l] * old[l] + z[l] * z[2 * U + l];
    } else {
      get(element<T>(a.cells, (at + b) * a.H + block.first), c, block.n);
    }
  }

  // Of an LSTM: dm through the projection, and through the cell's layer norm, for all of the thread's cells.
  void to_cells(bool odd, T* tile) {
    for (int64_t b = 0; b < n; ++b)
      for (int64_t k = mine_h.begin; k < mine_h.end; ++k) {
        if (!a.w_hr) {
          begin(b, k, dm.at(b, k));
          continue;
        }
        alignas(64) T d[U];
        begin(b, k, d);
        h_in.set(b, 0, features[k].first, d, features[k].n);
      }
    if (a.w_hr) {
      wait();
      w_hr.each(mine, odd, [&](int64_t first, int64_t count, const T* panel, int64_t columns) {
        for (int64_t b = 0; b < n; b += TILE_ROWS) {
          const int64_t m = n - b < TILE_ROWS ? n - b : TILE_ROWS;
          multiply<P>(m, w_hr.K, h_in.p + b * h_in.row, h_in.row, panel, columns, tile);
          for (int64_t r = 0; r < m; ++r)
            for (int64_t i = 0; i < count; ++i)
              std::memcpy(dm.at(b + r, first + i), tile + r * columns + i * U, U * sizeof(T));
        }
      });
    }
    if (a.ln_cell) cell_norm();
    for (int64_t b = 0; b < n; ++b)
      for (int64_t k = mine.begin; k < mine.end; ++k) cell(b, k, dm.at(b, k));
  }

  // dm becomes the output gate's gradient o' = dm tanh(LN(c~)), and dcell that of c~ through the norm.
  void cell_norm() {
    for (int64_t b = 0; b < n; ++b)
      for (int64_t k = mine.begin; k < mine.end; ++k) {
        alignas(64) T z[G * U], old[U];
        if (a.zone_c) {
          gates_of_row(b, cells[k], z);
          previous_c(b, cells[k], old);
        }
        fresh_c(b, cells[k], z, old, normal.at(b, k));
        cell_moments.moments(b, k, normal.at(b, k), 1, U, cells[k].n);
      }
    wait();
    for (int64_t b = 0; b < n; ++b) {
      const auto found = cell_moments.statistics(b, cells, 1, a.eps);
      for (int64_t k = mine.begin; k < mine.end; ++k) through_norm(b, k, found.mean, found.rstd);
    }
    wait();
    for (int64_t b = 0; b < n; ++b) {
      const auto means = cell_sums.means(b, a.H);
      const T rstd = cell_moments.statistics(b, cells, 1, a.eps).rstd;
      for (int64_t k = mine.begin; k < mine.end; ++k) {
        const T* x = normal.at(b, k);
        T* dy = dcell.at(b, k);
#pragma omp simd
        for (int64_t l = 0; l < U; ++l) dy[l] -= rstd * (means.dy + x[l] * means.dy_x);
      }
    }
  }

  KERNELZOO_FLATTEN void through_norm(int64_t b, int64_t k, T mean, T rstd) const {
    const T* w = ln_cell.of(k);
    T *x = normal.at(b, k), *d = dm.at(b, k), *dy = dcell.at(b, k);
    alignas(64) T o[U];
    get(element<S>(a.gates, ((at + b) * G + G - 1) * a.H + cells[k].first), o, cells[k].n);
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) {
      x[l] = (x[l] - mean) * rstd;
      const T y = math::tanh(x[l] * w[l] + w[U + l]);
      dy[l] = d[l] * o[l] * (1 - y * y) * w[l];
      d[l] *= y;
    }
    cell_sums.products(b, k, dy, x, 1, cells[k].n);
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) dy[l] *= rstd;
  }

  // d: of h~, of m where h is projected, of the output gate after a cell's norm.
  KERNELZOO_FLATTEN void cell(int64_t b, int64_t k, const T* d) {
    const Block block = cells[k];
    alignas(64) T dz[G * U], inner[U];
    if constexpr (MODE == RNN_LSTM) {
      lstm(b, k, block, d, dz);
    } else if constexpr (MODE == RNN_GRU) {
      gru(b, k, block, d, dz, inner);
    } else {
      // with zoneout h~ was kept, else it is the output
      get(element<S>(a.zone_h ? a.gates : a.out, (at + b) * a.H + block.first), inner, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l)
        dz[l] = MODE == RNN_TANH ? acts::tanh::grad(d[l], inner[l], T(0), T(0)) : acts::relu::grad(d[l], inner[l], T(0), T(0));
    }
#pragma omp simd
    for (int64_t l = 0; l < G * U; ++l) dz[l] = flushed(dz[l]);
    for (int64_t g = 0; g < G; ++g)
      put(dz + g * U, element<S>(a.dgx, ((at + b) * G + g) * a.H + block.first), block.n);
    if constexpr (MODE == RNN_GRU) std::memcpy(dz + 2 * U, inner, sizeof inner);
    if (!a.ln_weight) return offer(b, k, block, dz);
    const T* w = ln_weight.of(k);
    T* kept = dgh.at(b, k);
    alignas(64) T x[G * U];
    for (int64_t g = 0; g < G; ++g)
      get(element<S>(a.gh, ((at + b) * G + g) * a.H + block.first), x + g * U, block.n);
#pragma omp simd
    for (int64_t l = 0; l < G * U; ++l) kept[l] = dz[l] * w[l];
    gh_sums.products(b, k, kept, x, G, block.n);
  }

  void from_normal(int64_t b, int64_t k, T mean, T mean_x) {
    const Block block = cells[k];
    T* d = dgh.at(b, k);
    const T rstd = element<T>(a.rstd, at + b)[0];
    alignas(64) T x[G * U];
    for (int64_t g = 0; g < G; ++g)
      get(element<S>(a.gh, ((at + b) * G + g) * a.H + block.first), x + g * U, block.n);
#pragma omp simd
    for (int64_t l = 0; l < G * U; ++l) d[l] = flushed(rstd * (d[l] - mean - x[l] * mean_x));
    offer(b, k, block, d);
  }

  // The gradients of the recurrent product, to where the next product reads them.
  void offer(int64_t b, int64_t k, Block block, const T* d) {
    for (int64_t g = 0; g < G; ++g) {
      in->set(b, block.head * G + g, block.offset, d + g * U, block.n);
      if (a.dgh) put(d + g * U, element<S>(a.dgh, ((at + b) * G + g) * a.H + block.first), block.n);
    }
  }

  KERNELZOO_FLATTEN void lstm(int64_t b, int64_t k, Block block, const T* d, T* dz) {
    const T* p = peephole.of(k);
    T* state = dc.at(b, k);
    alignas(64) T z[4 * U], old[U], fresh[U], total[U], passed[U] = {};
    gates_of_row(b, block, z);
    previous_c(b, block, old);
    fresh_c(b, block, z, old, fresh);
    if (a.zone_c) {
      alignas(64) T zone[U];
      get(element<S>(a.zone_c, (at + b) * a.H + block.first), zone, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        passed[l] = zone[l] * state[l];
        total[l] = (1 - zone[l]) * state[l];
      }
    } else {
      std::memcpy(total, state, sizeof total);
    }
    const T *i = z, *f = z + U, *g = z + 2 * U, *o = z + 3 * U;
    if (a.ln_cell) {
      const T* through = dcell.at(b, k);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        dz[3 * U + l] = d[l] * o[l] * (1 - o[l]);
        total[l] += through[l];
      }
    } else {
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        const T y = math::tanh(fresh[l]);
        dz[3 * U + l] = d[l] * y * o[l] * (1 - o[l]);
        total[l] += d[l] * o[l] * (1 - y * y);
      }
    }
    if (p)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) total[l] += p[2 * U + l] * dz[3 * U + l];
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) {
      dz[l] = total[l] * g[l] * i[l] * (1 - i[l]);
      dz[U + l] = total[l] * old[l] * f[l] * (1 - f[l]);
      dz[2 * U + l] = total[l] * i[l] * (1 - g[l] * g[l]);
      state[l] = passed[l] + total[l] * f[l];
    }
    if (p)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) state[l] += p[l] * dz[l] + p[U + l] * dz[U + l];
  }

  // inner: of gh_n + b_hn, which differs from n's in dz by the reset gate.
  KERNELZOO_FLATTEN void gru(int64_t b, int64_t k, Block block, const T* d, T* dz, T* inner) {
    T* kept = dh.at(b, k);
    alignas(64) T z[3 * U], old[U], gh[U];
    gates_of_row(b, block, z);
    previous(a.out, a.h0, b, a.P, block, old);
    if (a.ln_weight) {
      const T *w = ln_weight.of(k) + 2 * U, *bias = b_hn.of(k);
      get(element<S>(a.gh, ((at + b) * 3 + 2) * a.H + block.first), gh, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) gh[l] = gh[l] * w[l] + (bias ? bias[l] : 0);
    } else {
      get(element<S>(a.gh, (at + b) * a.H + block.first), gh, block.n);
    }
    const T *r = z, *u = z + U, *c = z + 2 * U;
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) {
      const T dn = d[l] * (1 - u[l]) * (1 - c[l] * c[l]);
      dz[l] = dn * gh[l] * r[l] * (1 - r[l]);
      dz[U + l] = d[l] * (old[l] - c[l]) * u[l] * (1 - u[l]);
      dz[2 * U + l] = dn;
      inner[l] = flushed(dn * r[l]);
      kept[l] += d[l] * u[l];
    }
  }
};

template <class P, class S, int MODE>
int64_t size_of(const Rnn& a) {
  return Backward<P, S, MODE>(a).arena.used;
}

template <class P, class S>
int64_t size(const Rnn& given) {
  Rnn a = given;
  a.workspace = nullptr;
  switch (a.mode) {
    case RNN_LSTM: return size_of<P, S, RNN_LSTM>(a);
    case RNN_GRU: return size_of<P, S, RNN_GRU>(a);
    default: return size_of<P, S, RNN_TANH>(a);
  }
}

template <class P, class S>
void run(const Rnn& a, int64_t thread, int64_t team) {
  switch (a.mode) {
    case RNN_LSTM: return Backward<P, S, RNN_LSTM>(a).run(thread, team);
    case RNN_GRU: return Backward<P, S, RNN_GRU>(a).run(thread, team);
    case RNN_TANH: return Backward<P, S, RNN_TANH>(a).run(thread, team);
    default: return Backward<P, S, RNN_RELU>(a).run(thread, team);
  }
}

#ifdef KERNELZOO_ISA_avx512
using Bf16Dot = Dot;
#else
using Bf16Dot = Plain<float>;
#endif

template <class P, class S>
constexpr RnnKernels kernels() {
  return {size<P, S>, run<P, S>};
}

const RnnKernels TABLES[DTYPES + 1] = {kernels<Plain<double>, double>(), kernels<Plain<float>, float>(),
                                       kernels<Plain<float>, Bf16>(), kernels<Plain<float>, Fp16>(),
                                       kernels<Bf16Dot, Bf16>()};

KERNELZOO_EXPORT(RnnKernels, rnn_backward, TABLES)
