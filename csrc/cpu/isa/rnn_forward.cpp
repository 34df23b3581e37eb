// The forward of recurrent layers, step by step: the recurrent product of the thread's own cells, gates and state from
// the tile it leaves, then h to where every thread reads it for the next step.
#include "../rnn.h"

#include "begin.h"

#include "../tile.h"

#include "../pack.h"

#include "../rnn_panels.h"

#include "../rnn_layer.h"

template <class P, class S, int MODE>
struct Forward {
  using T = typename P::T;
  static constexpr int64_t U = UNIT<T>, G = gates_of(MODE);

  const Rnn& a;
  const Blocks<T> cells, features;
  Arena arena;
  const Panels<P> w_hh, w_hr;
  Operands<P> h_in[2], m_in;  // h_in: of this step and the next, in turn
  const Kept<T> h, c, gh, c_new, o;
  const Vectors<T> b_hn, peephole, ln_weight, ln_cell;
  const Exchange<T> gh_moments, cell_moments;

  Share mine{0, 0, 1}, mine_h{0, 0, 1};
  int64_t phase = 0;
  int64_t at = 0, n = 0, ends = 0;  // this step's first row, its rows, and the first of them that is its sequence's last
  Operands<P>* next = nullptr;

  explicit Forward(const Rnn& a)
      : a(a),
        cells(a.H, a.heads),
        features(a.P, a.heads),
        arena{a.workspace},
        w_hh(arena, cells, ceil_div(features.size, P::PAIR), G),
        w_hr(arena, features, a.w_hr ? ceil_div(a.H, P::PAIR) : 0, 1),
        h_in{{arena, a.B, a.heads, features.size}, {arena, a.B, a.heads, features.size}},
        m_in(arena, a.w_hr ? a.B : 0, 1, a.H),
        h(arena, MODE == RNN_GRU || a.zone_h ? a.B : 0, features.count, U),
        c(arena, MODE == RNN_LSTM ? a.B : 0, cells.count, U),
        gh(arena, a.ln_weight ? a.B : 0, cells.count, G * U),
        c_new(arena, a.ln_cell ? a.B : 0, cells.count, U),
        o(arena, a.ln_cell ? a.B : 0, cells.count, U),
        b_hn(arena, a.b_hn, 1, cells),
        peephole(arena, a.peephole, 3, cells),
        ln_weight(arena, a.ln_weight, G, cells),
        ln_cell(arena, a.ln_cell, 2, cells),
        gh_moments(arena, a.ln_weight ? a.B : 0, cells.count),
        cell_moments(arena, a.ln_cell ? a.B : 0, cells.count) {}

  void wait() { rnn_wait(*a.barrier, phase); }

  void prepare(int64_t thread, int64_t team) {
    mine = Share(cells.count, thread, team);
    mine_h = Share(features.count, thread, team);
    pack_forward<P, S>(w_hh, mine, a);
    if (a.w_hr)
      w_hr.each(mine_h, false, [&](int64_t first, int64_t count, T* panel, int64_t columns) {
        for (int64_t i = 0; i < count; ++i) {
          const Block block = features[first + i];
          pack_rows_as_columns<P>(element<S>(a.w_hr, block.first * a.H), a.H, block.n, a.H, panel + i * U, columns);
        }
      });
    b_hn.template fill<S>(cells, mine, a.H);
    peephole.template fill<S>(cells, mine, a.H);
    ln_weight.template fill<S>(cells, mine, a.H);
    ln_cell.template fill<S>(cells, mine, a.H);
    for (int64_t b = 0; b < a.B; ++b) {
      if (MODE == RNN_LSTM)
        for (int64_t k = mine.begin; k < mine.end; ++k)
          get(element<S>(a.c0, b * a.H + cells[k].first), c.at(b, k), cells[k].n);
      if (h.p)
        for (int64_t k = mine_h.begin; k < mine_h.end; ++k)
          get(element<S>(a.h0, b * a.P + features[k].first), h.at(b, k), features[k].n);
    }
    const Share rows(a.B, thread, team);
    h_in[0].clear(rows.begin, rows.end);
    h_in[1].clear(rows.begin, rows.end);
    if (a.w_hr) m_in.clear(rows.begin, rows.end);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      for (int64_t k = 0; k < features.count; ++k) {
        alignas(64) T block[U];
        get(element<S>(a.h0, b * a.P + features[k].first), block, features[k].n);
        // a row that is not active yet keeps h0 in both
        offer(h_in[0], b, k, block);
        offer(h_in[1], b, k, block);
      }
    wait();
  }

  // h of a row and block, under the mask, to where the next product reads it.
  void offer(Operands<P>& to, int64_t b, int64_t k, const T* value) const {
    const Block block = features[k];
    if (!a.h_mask) return to.set(b, block.head, block.offset, value, block.n);
    alignas(64) T masked[U];
    get(element<S>(a.h_mask, b * a.P + block.first), masked, block.n);
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) masked[l] *= value[l];
    to.set(b, block.head, block.offset, masked, block.n);
  }

  void run(int64_t thread, int64_t team) {
    prepare(thread, team);
    at = a.reverse ? a.R : 0;
    for (int64_t s = 0; s < a.T; ++s) {
      const int64_t t = a.reverse ? a.T - 1 - s : s;
      n = rows_of(a, t);
      if (a.reverse) at -= n;
      ends = s == a.T - 1 ? 0 : a.reverse ? n : rows_of(a, t + 1);
      next = &h_in[(s + 1) & 1];
      step(h_in[s & 1], s & 1);
      if (!a.reverse) at += n;
    }
  }

  void step(const Operands<P>& in, bool odd) {
    alignas(64) T tile[TILE_ROWS * PANEL * U];
    w_hh.each(mine, odd, [&](int64_t first, int64_t count, const T* panel, int64_t columns) {
      for (int64_t b = 0; b < n; b += TILE_ROWS) {
        const int64_t m = n - b < TILE_ROWS ? n - b : TILE_ROWS;
        fetch(b, m, first, count);
        multiply<P>(m, w_hh.K, in.p + b * in.row + cells[first].head * in.run, in.row, panel, columns, tile);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t i = 0; i < count; ++i) {
            const T* product = tile + r * columns + i * U;
            if (a.ln_weight) {
              T* kept = gh.at(b + r, first + i);
              for (int64_t g = 0; g < G; ++g) std::memcpy(kept + g * U, product + g * count * U, U * sizeof(T));
              gh_moments.moments(b + r, first + i, kept, G, U, cells[first + i].n);
            } else {
              cell(b + r, first + i, product, count * U);
            }
          }
      }
    });
    if (a.ln_weight) {
      wait();
      for (int64_t b = 0; b < n; ++b) {
        const auto found = gh_moments.statistics(b, cells, G, a.eps);
        if (a.rstd && mine.begin == 0) element<T>(a.rstd, at + b)[0] = found.rstd;
        for (int64_t k = mine.begin; k < mine.end; ++k) normalise(b, k, found.mean, found.rstd);
      }
    }
    if (a.ln_cell) {
      wait();
      for (int64_t b = 0; b < n; ++b) {
        const auto found = cell_moments.statistics(b, cells, 1, a.eps);
        for (int64_t k = mine.begin; k < mine.end; ++k) normalise_cell(b, k, found.mean, found.rstd);
      }
    }
    if (a.w_hr) {
      wait();
      w_hr.each(mine_h, odd, [&](int64_t first, int64_t count, const T* panel, int64_t columns) {
        for (int64_t b = 0; b < n; b += TILE_ROWS) {
          const int64_t m = n - b < TILE_ROWS ? n - b : TILE_ROWS;
          multiply<P>(m, w_hr.K, m_in.p + b * m_in.row, m_in.row, panel, columns, tile);
          for (int64_t r = 0; r < m; ++r)
            for (int64_t i = 0; i < count; ++i) finish(b + r, first + i, tile + r * columns + i * U);
        }
      });
    }
    wait();
  }

  // The tile's part of gx comes while its product is computed.
  void fetch(int64_t b, int64_t m, int64_t first, int64_t count) const {
    const int64_t bytes = count * U * sizeof(S);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t g = 0; g < G; ++g) {
        const char* line = reinterpret_cast<const char*>(element<S>(a.gx, ((at + b + r) * G + g) * a.H + cells[first].first));
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i);
      }
  }

  KERNELZOO_FLATTEN void normalise(int64_t b, int64_t k, T mean, T rstd) {
    const T *x = gh.at(b, k), *w = ln_weight.of(k);
    alignas(64) T normal[G * U], scaled[G * U];
#pragma omp simd
    for (int64_t l = 0; l < G * U; ++l) {
      normal[l] = (x[l] - mean) * rstd;
      scaled[l] = normal[l] * w[l];
    }
    if (a.gh)
      for (int64_t g = 0; g < G; ++g)
        put(normal + g * U, element<S>(a.gh, ((at + b) * G + g) * a.H + cells[k].first), cells[k].n);
    cell(b, k, scaled, U);
  }

  KERNELZOO_FLATTEN void normalise_cell(int64_t b, int64_t k, T mean, T rstd) {
    const T *w = ln_cell.of(k), *x = c_new.at(b, k), *gate = o.at(b, k);
    alignas(64) T m[U];
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) m[l] = gate[l] * math::tanh((x[l] - mean) * rstd * w[l] + w[U + l]);
    finish_cell(b, k, m);
  }

  // One row and block, from the recurrent product's gates, `stride` apart.
  KERNELZOO_FLATTEN void cell(int64_t b, int64_t k, const T* product, int64_t stride) {
    const Block block = cells[k];
    alignas(64) T z[G * U];
    for (int64_t g = 0; g < G; ++g)
      get(element<S>(a.gx, ((at + b) * G + g) * a.H + block.first), z + g * U, block.n);
    if constexpr (MODE == RNN_LSTM) {
      lstm(b, k, block, z, product, stride);
    } else if constexpr (MODE == RNN_GRU) {
      gru(b, k, block, z, product, stride);
    } else {
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        const T x = z[l] + product[l];
        z[l] = MODE == RNN_TANH ? math::tanh(x) : acts::relu::value(x, x, x);
      }
      finish(b, k, z);
    }
  }

  static T sigmoid(T x) { return acts::sigmoid::value(x, x, x); }

  KERNELZOO_FLATTEN void lstm(int64_t b, int64_t k, Block block, T* z, const T* product, int64_t stride) {
    T* state = c.at(b, k);
    const T* p = peephole.of(k);
    alignas(64) T fresh[U];
    for (int64_t g = 0; g < 4; ++g)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) z[g * U + l] += product[g * stride + l];
    if (p)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) {
        z[l] += p[l] * state[l];
        z[U + l] += p[U + l] * state[l];
      }
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) {
      z[l] = sigmoid(z[l]);
      z[U + l] = sigmoid(z[U + l]);
      z[2 * U + l] = math::tanh(z[2 * U + l]);
      fresh[l] = z[U + l] * state[l] + z[l] * z[2 * U + l];
    }
    if (p)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) z[3 * U + l] += p[2 * U + l] * fresh[l];
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) z[3 * U + l] = sigmoid(z[3 * U + l]);
    if (a.gates)
      for (int64_t g = 0; g < 4; ++g)
        put(z + g * U, element<S>(a.gates, ((at + b) * 4 + g) * a.H + block.first), block.n);
    if (a.zone_c) {
      alignas(64) T zone[U];
      get(element<S>(a.zone_c, (at + b) * a.H + block.first), zone, block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) state[l] = zone[l] * state[l] + (1 - zone[l]) * fresh[l];
    } else {
      std::memcpy(state, fresh, sizeof fresh);
    }
    if (a.cells) put(state, element<T>(a.cells, (at + b) * a.H + block.first), block.n);
    if (b >= ends) put(state, element<S>(a.cn, b * a.H + block.first), block.n);
    if (a.ln_cell) {
      std::memcpy(c_new.at(b, k), fresh, sizeof fresh);
      std::memcpy(o.at(b, k), z + 3 * U, sizeof fresh);
      cell_moments.moments(b, k, fresh, 1, U, block.n);
      return;
    }
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) fresh[l] = z[3 * U + l] * math::tanh(fresh[l]);
    finish_cell(b, k, fresh);
  }

  // m = o tanh(...), which is h~ unless it is projected.
  void finish_cell(int64_t b, int64_t k, T* m) {
    if (!a.w_hr) return finish(b, k, m);
    m_in.set(b, 0, cells[k].first, m, cells[k].n);
  }

  KERNELZOO_FLATTEN void gru(int64_t b, int64_t k, Block block, T* z, const T* product, int64_t stride) {
    const T *bias = b_hn.of(k), *old = h.at(b, k);
    alignas(64) T inner[U];
    std::memcpy(inner, product + 2 * stride, sizeof inner);
    if (bias)
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) inner[l] += bias[l];
    if (a.gh && !a.ln_weight) put(inner, element<S>(a.gh, (at + b) * a.H + block.first), block.n);
#pragma omp simd
    for (int64_t l = 0; l < U; ++l) {
      z[l] = sigmoid(z[l] + product[l]);
      z[U + l] = sigmoid(z[U + l] + product[stride + l]);
      z[2 * U + l] = math::tanh(z[2 * U + l] + z[l] * inner[l]);
      inner[l] = (1 - z[U + l]) * z[2 * U + l] + z[U + l] * old[l];
    }
    if (a.gates)
      for (int64_t g = 0; g < 3; ++g)
        put(z + g * U, element<S>(a.gates, ((at + b) * 3 + g) * a.H + block.first), block.n);
    finish(b, k, inner);
  }

  // h_t of h~ (in `value`): the output, the state, the last h, and the next product's operand.
  KERNELZOO_FLATTEN void finish(int64_t b, int64_t k, T* value) {
    const Block block = features[k];
    const int64_t column = block.first;
    if (a.zone_h) {
      const T* old = h.at(b, k);
      alignas(64) T zone[U];
      get(element<S>(a.zone_h, (at + b) * a.P + column), zone, block.n);
      if (G == 1 && a.gates) put(value, element<S>(a.gates, (at + b) * a.P + column), block.n);
#pragma omp simd
      for (int64_t l = 0; l < U; ++l) value[l] = zone[l] * old[l] + (1 - zone[l]) * value[l];
    }
    S* out = element<S>(a.out, (at + b) * a.P + column);
    put(value, out, block.n);
    if (b >= ends) put(value, element<S>(a.hn, b * a.P + column), block.n);
    if constexpr (sizeof(S) != sizeof(T)) get(out, value, block.n);
    if (h.p) std::memcpy(h.at(b, k), value, U * sizeof(T));
    offer(*next, b, k, value);
  }
};

template <class P, class S, int MODE>
int64_t size_of(const Rnn& a) {
  return Forward<P, S, MODE>(a).arena.used;
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
    case RNN_LSTM: return Forward<P, S, RNN_LSTM>(a).run(thread, team);
    case RNN_GRU: return Forward<P, S, RNN_GRU>(a).run(thread, team);
    case RNN_TANH: return Forward<P, S, RNN_TANH>(a).run(thread, team);
    default: return Forward<P, S, RNN_RELU>(a).run(thread, team);
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

KERNELZOO_EXPORT(RnnKernels, rnn_forward, TABLES)
