// Attention: blocks of queries against blocks of keys, with the online softmax of T. Dao et al., FlashAttention,
// arXiv:2205.14135; the backward recomputes p from the logarithm of each row's sum.
#include "../attention.h"

#include "begin.h"

#include "../attention_gemm.h"

#include "../attention_score.h"

// This thread's scratch, at least what the largest kernel takes at D = Dv = 256 in double.
struct Arena {
  char* p = static_cast<char*>(attention_scratch());

  template <class T>
  T* take(int64_t n) {
    T* taken = reinterpret_cast<T*>(p);
    p += ceil_div(n * int64_t{sizeof(T)}, 64) * 64;
    return taken;
  }
};

template <class T>
Tile<T> take_tile(Arena& arena, const Attention& a, bool backward) {
  using Int = typename Lanes<T>::Int;
  constexpr int64_t SIZE = BLOCK_M * BLOCK_N;
  Tile<T> tile = {arena.take<T>(SIZE), nullptr, nullptr, nullptr, nullptr};
  if (backward && a.softcap != 0) tile.cap = arena.take<T>(SIZE);
  if (a.bias_kind) {
    tile.bias = arena.take<T>(SIZE);
    tile.rows = arena.take<T>(SIZE);
  }
  if (a.dropout_p > 0) tile.keep = arena.take<Int>(SIZE);
  return tile;
}

template <class T>
void place(const Attention& a, const Sequence& s, int64_t b, int64_t h, int64_t i0, int64_t m, Queries<T>& q) {
  q.count = m;
  q.first = i0 + s.offset;
  q.last = q.first + m - 1;
  const float slope = a.slopes ? a.slopes[b * a.slopes_batch + h * a.slopes_head] : 0.0f;
  for (int64_t i = 0; i < BLOCK_M; ++i) {
    q.position[i] = static_cast<typename Lanes<T>::Int>(q.first + i);
    q.slope[i] = slope;
  }
}

// Packed rows and their transpose, as operand B of a product along their columns.
template <class P, class S>
void pack_both(const S* s, int64_t stride, int64_t m, int64_t n, typename P::T* rows, typename P::T* transposed) {
  pack<P>(s, stride, m, n, rows, padded_columns(m));
  transpose(rows, row_units<P>(n), transposed, BLOCK_M, padded_columns(m), row_units<P>(n));
}

// n rows as operand A: where they lie, if they hold what the product multiplies, else packed.
template <class P, class S>
Operand<typename P::T> as_rows(const S* s, int64_t stride, int64_t rows, int64_t n, typename P::T* packed) {
  using T = typename P::T;
  if constexpr (P::DOT) {
    if (n % 2 == 0 && stride % 2 == 0) return {reinterpret_cast<const T*>(s), stride / 2, 1, BLOCK_N};
  } else if constexpr (sizeof(S) == sizeof(T)) {
    return {reinterpret_cast<const T*>(s), stride, 1, BLOCK_N};
  }
  pack<P>(s, stride, rows, n, packed, rows);
  return {packed, row_units<P>(n), 1};
}

// What a block of queries has gathered.
template <class P, class T = typename P::T>
struct Forward {
  Queries<T> q;
  Running<T> run;
  Tile<T> tile;
  T *queries, *rows, *pairs, *keys, *values, *inter, *o;
  int64_t ldo;

  Forward(Arena& arena, const Attention& a) {
    const int64_t d = row_units<P>(a.D), dv = row_units<P>(a.Dv);
    ldo = padded_columns(a.Dv);
    tile = take_tile<T>(arena, a, false);
    queries = arena.take<T>(d * BLOCK_M);
    rows = arena.take<T>(d * BLOCK_M);
    pairs = P::DOT ? arena.take<T>(BLOCK_N / 2 * BLOCK_M) : nullptr;
    keys = arena.take<T>(d * BLOCK_N);
    values = arena.take<T>(dv * BLOCK_N);
    inter = P::DOT ? arena.take<T>(ldo * BLOCK_N / 2) : nullptr;
    o = arena.take<T>(ldo * BLOCK_M);
  }

  void start() {
    for (int64_t i = 0; i < BLOCK_M; ++i) {
      run.max[i] = T(-INFINITY);
      run.sum[i] = 0;
    }
    std::memset(o, 0, q.count * ldo * sizeof(T));
  }

  // The keys j0 to j0 + n, whose values are packed (with an even number of rows). `ordered`: positions count up.
  template <class S>
  void step(const Attention& a, int64_t b, int64_t h, int64_t i0, int64_t j0, int64_t n, Operand<T> k, const T* v,
            bool ordered) {
    const bool edge = on_edge(a, q, j0, n);
    const int64_t m = q.count, lanes = padded_columns(m), back = j0 - q.first;
    const bool trim = edge && ordered;
    const Band by_query = trim ? Band{-back - a.left, -back + a.right} : EVERYTHING;
    product<P, false>(n, lanes, a.D, k, queries, BLOCK_M, tile.s, BLOCK_M,
                      trim ? Band{back - a.right, back + a.left} : EVERYTHING, false);
    finish<S>(a, q, tile, b, h, i0, j0, n, edge, by_query);
    const T c = unit<T>(a) * LOG<T>;
    bool moved;
    if (a.dropout_p > 0) {
      draw(a, tile, b, h, i0, m, j0, n);
      moved = softmax_step<P, true>(tile, m, n, by_query, c, run, pairs);
    } else {
      moved = softmax_step<P, false>(tile, m, n, by_query, c, run, pairs);
    }
    if (moved)
      for (int64_t i = 0; i < m; ++i) {
        const T factor = run.factor[i];
        if (factor == 1) continue;
        for (int64_t l = 0; l < ldo; l += WIDTH<T>) storev(o + i * ldo + l, loadv(o + i * ldo + l) * factor);
      }
    const T* p = P::DOT ? pairs : tile.s;
    product<P, true>(m, ldo, n, {p, 1, BLOCK_M}, interleaved<P>(v, ceil_div(n, P::PAIR) * P::PAIR, a.Dv, inter), ldo,
                     o, ldo, by_query, true);
  }
};

template <class P, class S>
void fwd(const Attention& a, int64_t b, int64_t h, int64_t block) {
  using T = typename P::T;
  const Sequence s(a, b);
  const int64_t i0 = block * BLOCK_M, hk = h / (a.H / a.Hkv);
  if (i0 >= s.lq) return;
  const int64_t m = s.lq - i0 < BLOCK_M ? s.lq - i0 : BLOCK_M;
  Arena arena;
  Forward<P> f(arena, a);
  place(a, s, b, h, i0, m, f.q);
  f.start();
  pack_both<P>(row_of<const S>(a.q, a, b, h, s.q0 + i0), a.q.row, m, a.D, f.rows, f.queries);
  const Span span = visible(a, f.q, s.keys);
  for (int64_t j = span.begin; j < span.end; j += BLOCK_N) {
    const int64_t n = span.end - j < BLOCK_N ? span.end - j : BLOCK_N;
    const Operand<T> k = as_rows<P>(row_of<const S>(a.k, a, b, hk, s.k0 + j), a.k.row, n, a.D, f.keys);
    const T* v = packed<P>(row_of<const S>(a.v, a, b, hk, s.k0 + j), a.v.row, n, a.Dv, f.values,
                           ceil_div(n, P::PAIR) * P::PAIR);
    f.template step<S>(a, b, h, i0, j, n, k, v, true);
  }
  T* lse = row_of<T>(a.lse, a, b, h, s.q0 + i0);
  for (int64_t i = 0; i < m; ++i) {
    const T sum = f.run.sum[i], inverse = T(1) / (sum * T(1 - a.dropout_p));
    T* o = f.o + i * f.ldo;
    for (int64_t l = 0; l < f.ldo; ++l) o[l] = sum == 0 ? 0 : o[l] * inverse;
    store(o, row_of<S>(a.o, a, b, h, s.q0 + i0 + i), a.Dv);
    lse[i] = sum == 0 ? T(-INFINITY) : T(double(f.run.max[i]) * unit<T>(a) + std::log(double(sum)));
  }
}

// A block of queries in the backward, and its tiles.
template <class P, class T = typename P::T>
struct Backward {
  Queries<T> q;
  Tile<T> tile;
  Gradients<T> g;
  T *rows, *queries, *grad_rows, *grads, *rows_b, *grad_rows_b, *keys, *keys_b, *values, *dq, *line;
  int64_t ldk, ldv;
  Terms<T> terms;

  Backward(Arena& arena, const Attention& a) {
    const int64_t d = row_units<P>(a.D), dv = row_units<P>(a.Dv);
    ldk = padded_columns(a.D);
    ldv = padded_columns(a.Dv);
    tile = take_tile<T>(arena, a, true);
    g.dp = arena.take<T>(BLOCK_M * BLOCK_N);
    rows = rows_b = arena.take<T>(d * BLOCK_M);
    queries = arena.take<T>(d * BLOCK_M);
    grad_rows = grad_rows_b = arena.take<T>(dv * BLOCK_M);
    grads = arena.take<T>(dv * BLOCK_M);
    keys = keys_b = arena.take<T>(d * BLOCK_N);
    values = arena.take<T>(dv * BLOCK_N);
    dq = arena.take<T>(ldk * BLOCK_M);
    line = arena.take<T>(2 * ldv);
    g.p_rows = tile.s;
    g.ds_rows = g.ds_pairs = g.dp;
    g.dbias = nullptr;
    if (P::DOT) {
      rows_b = arena.take<T>(ldk * BLOCK_M / 2);
      grad_rows_b = arena.take<T>(ldv * BLOCK_M / 2);
      keys_b = arena.take<T>(ldk * BLOCK_N / 2);
      g.p_rows = arena.take<T>(BLOCK_M * BLOCK_N / 2);
      g.ds_rows = arena.take<T>(BLOCK_M * BLOCK_N / 2);
      g.ds_pairs = arena.take<T>(BLOCK_M * BLOCK_N / 2);
    }
  }

  template <class S>
  void start(const Attention& a, const Sequence& s, int64_t b, int64_t h, int64_t i0) {
    const int64_t m = s.lq - i0 < BLOCK_M ? s.lq - i0 : BLOCK_M, i = s.q0 + i0;
    place(a, s, b, h, i0, m, q);
    const S* grad = row_of<const S>(a.grad, a, b, h, i);
    pack_both<P>(row_of<const S>(a.q, a, b, h, i), a.q.row, m, a.D, rows, queries);
    pack_both<P>(grad, a.grad.row, m, a.Dv, grad_rows, grads);
    interleaved<P>(rows, padded_columns(m), a.D, rows_b);
    interleaved<P>(grad_rows, padded_columns(m), a.Dv, grad_rows_b);
    const T* stored = row_of<const T>(a.lse, a, b, h, i);
    for (int64_t r = 0; r < BLOCK_M; ++r) {
      T sum = 0;
      if (r < m) {
        T *x = line, *y = line + ldv;
        fetch<false>(row_of<const S>(a.o, a, b, h, i + r + AHEAD), a.Dv);
        load(grad + r * a.grad.row, x, a.Dv);
        load(row_of<const S>(a.o, a, b, h, i + r), y, a.Dv);
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a.Dv; ++c) sum += x[c] * y[c];
      }
      terms.delta[r] = sum;
      terms.rest[r] = terms.residual[r] = 0;
      terms.lse[r] = r < m && stored[r] != T(-INFINITY) ? stored[r] : T(INFINITY);
    }
  }

  // p and ds of the keys j0 to j0 + n of `keys`. CAP: ds with respect to the scores before the cap.
  template <class S, bool CAP>
  void step(const Attention& a, int64_t b, int64_t h, int64_t i0, int64_t j0, int64_t n, int64_t keys, Operand<T> k,
            Operand<T> v, bool edge, Band by_key, Band by_query) {
    const int64_t m = q.count, lanes = padded_columns(m);
    // where the products leave gaps p is 0, but 0 times what an earlier tile left must be 0 too
    if (edge) std::memset(g.dp, 0, n * BLOCK_M * sizeof(T));
    product<P, false>(n, lanes, a.D, k, queries, BLOCK_M, tile.s, BLOCK_M, by_key, false);
    product<P, false>(n, lanes, a.Dv, v, grads, BLOCK_M, g.dp, BLOCK_M, by_key, false);
    finish<S>(a, q, tile, b, h, i0, j0, n, edge, by_query);
    const T left = unit<T>(a), kept = T(1 / (1 - a.dropout_p));
    const Lane own = whole(a, q, j0, n, keys);
    if (a.dropout_p > 0) {
      draw(a, tile, b, h, i0, m, j0, n);
      whole_step<P, true>(tile, g.dp, own, n, by_query, left, terms, kept);
      gradient_step<P, true, CAP>(tile, g, m, n, by_query, left, terms, kept);
    } else {
      whole_step<P, false>(tile, g.dp, own, n, by_query, left, terms, T(1));
      gradient_step<P, false, CAP>(tile, g, m, n, by_query, left, terms, T(1));
    }
  }
};

template <class T>
struct Sums {
  T *dk, *dv;
};

template <class T>
Sums<T> sums_of(const Attention& a, int64_t slot) {
  const int64_t ldk = padded_columns(a.D), ldv = padded_columns(a.Dv);
  T* p = static_cast<T*>(a.acc) + slot * a.Lk * (ldk + ldv);
  return {p, p + a.Lk * ldk};
}

// Where the sums of dbias lie of a part, and of one of its heads' queries.
template <class T>
T* strip_of(const Attention& a, const Sharing& share, int64_t part, int64_t head, int64_t row) {
  return static_cast<T*>(a.acc) + a.strips + (part * share.strips + head * share.rows + row) * share.strip;
}

template <class P, class S>
void bwd(const Attention& a, int64_t b, int64_t hk, int64_t chunk, int64_t slot, int64_t part) {
  using T = typename P::T;
  const Sequence s(a, b);
  const int64_t group = a.H / a.Hkv, blocks = ceil_div(s.lq, BLOCK_M);
  Arena arena;
  Backward<P> w(arena, a);
  const Sums<T> sums = sums_of<T>(a, slot);
  const bool need_dq = a.dq.p, need_dk = a.dk.p, need_dv = a.dv.p;
  if (need_dk) std::memset(sums.dk, 0, s.keys * w.ldk * sizeof(T));
  if (need_dv) std::memset(sums.dv, 0, s.keys * w.ldv * sizeof(T));
  const Sharing share(a, a.chunks);
  for (int64_t item = 0; item < group * blocks; ++item) {
    const int64_t head = item / blocks, h = hk * group + head, block = item % blocks, i0 = block * BLOCK_M;
    if ((share.h ? block : item) % a.chunks != chunk) continue;  // share.h: one task owns a block of all heads
    T* strip = a.dbias ? strip_of<T>(a, share, part, share.h ? 0 : head, share.i ? chunk : block) : nullptr;
    w.template start<S>(a, s, b, h, i0);
    const int64_t m = w.q.count;
    std::memset(w.dq, 0, m * w.ldk * sizeof(T));
    const Span span = visible(a, w.q, s.keys);
    for (int64_t j = span.begin; j < span.end; j += BLOCK_N) {
      const int64_t n = span.end - j < BLOCK_N ? span.end - j : BLOCK_N, even = ceil_div(n, P::PAIR) * P::PAIR;
      const S* k = row_of<const S>(a.k, a, b, hk, s.k0 + j);
      const T* keys = packed<P>(k, a.k.row, n, a.D, w.keys, even);
      const Operand<T> v = as_rows<P>(row_of<const S>(a.v, a, b, hk, s.k0 + j), a.v.row, n, a.Dv, w.values);
      const bool edge = on_edge(a, w.q, j, n);
      const int64_t back = j - w.q.first;
      w.g.dbias = strip && !share.j ? strip + j * BLOCK_M : strip;
      const Band by_key = edge ? Band{back - a.right, back + a.left} : EVERYTHING;
      const Band by_query = edge ? Band{-back - a.left, -back + a.right} : EVERYTHING;
      const Operand<T> k_rows = {keys, row_units<P>(a.D), 1, keys == w.keys ? 0 : BLOCK_N};
      if (a.softcap != 0) {
        w.template step<S, true>(a, b, h, i0, j, n, s.keys, k_rows, v, edge, by_key, by_query);
      } else {
        w.template step<S, false>(a, b, h, i0, j, n, s.keys, k_rows, v, edge, by_key, by_query);
      }
      constexpr int64_t LD = BLOCK_M / P::PAIR;
      if (need_dv)
        product<P, true>(n, w.ldv, m, {w.g.p_rows, LD, 1}, w.grad_rows_b, w.ldv, sums.dv + j * w.ldv, w.ldv, by_key,
                         true);
      if (need_dk)
        product<P, true>(n, w.ldk, m, {w.g.ds_rows, LD, 1}, w.rows_b, w.ldk, sums.dk + j * w.ldk, w.ldk, by_key, true);
      if (need_dq)
        product<P, true>(m, w.ldk, n, {w.g.ds_pairs, 1, BLOCK_M}, interleaved<P>(keys, even, a.D, w.keys_b), w.ldk,
                         w.dq, w.ldk, by_query, true);
    }
    if (!need_dq) continue;
    const T scale = T(a.scale);
    for (int64_t i = 0; i < m; ++i) {
      T* row = w.dq + i * w.ldk;
      fetch<true>(row_of<S>(a.dq, a, b, h, s.q0 + i0 + i + AHEAD), a.D);
      for (int64_t l = 0; l < w.ldk; l += WIDTH<T>) storev(row + l, loadv(row + l) * scale);
      store(row, row_of<S>(a.dq, a, b, h, s.q0 + i0 + i), a.D);
    }
  }
}

template <class S, class T>
void store_sum(const Rows& to, const Attention& a, const Sequence& s, int64_t b, int64_t hk, int64_t j, const T* sum,
               int64_t ld, int64_t n, int64_t slot_size, int64_t count, T factor) {
  T line[256];
  fetch<true>(row_of<S>(to, a, b, hk, s.k0 + j + AHEAD), n);
  for (int64_t l = 0; l < ld; l += WIDTH<T>) {
    Vec<T> total = {};
    if (j < s.keys)
      for (int64_t c = 0; c < count; ++c) total += loadv(sum + c * slot_size + j * ld + l);
    storev(line + l, total * factor);
  }
  store(line, row_of<S>(to, a, b, hk, s.k0 + j), n);
}

template <class P, class S>
void bwd_sum(const Attention& a, int64_t b, int64_t hk, int64_t block, int64_t slot, int64_t count) {
  using T = typename P::T;
  const Sequence s(a, b);
  const int64_t ldk = padded_columns(a.D), ldv = padded_columns(a.Dv), size = a.Lk * (ldk + ldv);
  const Sums<T> sums = sums_of<T>(a, slot);
  const int64_t end = (block + 1) * BLOCK_N < s.lk ? (block + 1) * BLOCK_N : s.lk;
  for (int64_t j = block * BLOCK_N; j < end; ++j) {
    if (a.dk.p) store_sum<S>(a.dk, a, s, b, hk, j, sums.dk, ldk, a.D, size, count, T(a.scale));
    if (a.dv.p) store_sum<S>(a.dv, a, s, b, hk, j, sums.dv, ldv, a.Dv, size, count, T(1 / (1 - a.dropout_p)));
  }
}

// One block of dbias: the sum over all parts, and all queries or keys that it was broadcast to, in order.
template <class P, class S>
void bwd_bias(const Attention& a, int64_t b, int64_t h, int64_t i, int64_t j) {
  using T = typename P::T;
  const Sharing share(a, a.chunks);
  const int64_t heads = a.H / a.Hkv, part = share.group(a, b, h / heads) * a.splits, head = share.h ? 0 : h % heads;
  const int64_t m = a.Lq - i * BLOCK_M < BLOCK_M ? a.Lq - i * BLOCK_M : BLOCK_M;
  const int64_t n = !share.j && a.Lk - j * BLOCK_N < BLOCK_N ? a.Lk - j * BLOCK_N : BLOCK_N;
  Arena arena;
  T *sum = arena.take<T>(BLOCK_M * BLOCK_N), *rows = arena.take<T>(BLOCK_M * BLOCK_N);
  std::memset(sum, 0, BLOCK_M * BLOCK_N * sizeof(T));
  for (int64_t p = part; p < part + a.splits; ++p)
    for (int64_t row = share.i ? 0 : i; row < (share.i ? share.rows : i + 1); ++row) {
      const T* s = strip_of<T>(a, share, p, head, row) + j * BLOCK_N * BLOCK_M;
#pragma omp simd
      for (int64_t l = 0; l < n * BLOCK_M; ++l) sum[l] += s[l];
    }
  if (share.i)
    for (int64_t r = 0; r < n; ++r)
      for (int64_t l = 1; l < m; ++l) sum[r * BLOCK_M] += sum[r * BLOCK_M + l];
  if (share.j)
    for (int64_t r = 1; r < n; ++r)
      for (int64_t l = 0; l < m; ++l) sum[l] += sum[r * BLOCK_M + l];
  transpose(sum, BLOCK_M, rows, BLOCK_N, BLOCK_N, BLOCK_M);
  const int64_t* shape = a.dbias_shape;
  S* to = static_cast<S*>(a.dbias) + ((b * shape[1] + h) * shape[2] + i * BLOCK_M) * shape[3] + j * BLOCK_N;
  for (int64_t l = 0; l < (share.i ? 1 : m); ++l) store(rows + l * BLOCK_N, to + l * shape[3], share.j ? 1 : n);
}

#include "../attention_decode.h"

// Rows of a part: the queries of the key head's group, all new tokens of each, with their values' sum, maximum and sum
// of weights.
template <class T>
T* part_of(const Attention& a, int64_t b, int64_t hk, int64_t part) {
  const int64_t row = padded_columns(a.Dv) + 2;
  return static_cast<T*>(a.acc) + ((b * a.Hkv + hk) * a.parts + part) * (a.H / a.Hkv) * a.Lq * row;
}

// Keys and values j to j + n of the cache: where they lie where both serve as they are, else packed, to an even number.
template <class P, class S, class T>
void fetch(const Attention& a, int64_t b, int64_t hk, int64_t j, int64_t n, bool whole, const Forward<P>& f,
           Operand<T>& k, const T*& v) {
  const int64_t even = ceil_div(n, P::PAIR) * P::PAIR;
  k = {f.keys, row_units<P>(a.D), 1};
  v = f.values;
  if (!a.page) {
    const S *keys = row_of<const S>(a.k, a, b, hk, j), *values = row_of<const S>(a.v, a, b, hk, j);
    if (whole && a.D % (16 * P::PAIR)) {
      pack<P>(keys, a.k.row, n, a.D, f.keys, n);
    } else {
      k = as_rows<P>(keys, a.k.row, n, a.D, f.keys);
    }
    if constexpr (!P::DOT && sizeof(S) == sizeof(T)) {
      if (a.Dv % 16 == 0 && a.v.row == a.Dv) {
        v = reinterpret_cast<const T*>(values);
        return;
      }
    }
    pack<P>(values, a.v.row, n, a.Dv, f.values, even);
    return;
  }
  for (int64_t done = 0; done < n;) {
    const int64_t row = (j + done) % a.page, block = a.table[b * a.table_row + (j + done) / a.page];
    const int64_t take = a.page - row < n - done ? a.page - row : n - done;
    const int64_t tail = done + take < n ? 0 : even - n;
    pack<P>(row_of<const S>(a.k, a, block, hk, row), a.k.row, take, a.D, f.keys + done * k.row, take);
    pack<P>(row_of<const S>(a.v, a, block, hk, row), a.v.row, take, a.Dv, f.values + done * row_units<P>(a.Dv),
            take + tail);
    done += take;
  }
}

// Queries up to which keys along the lanes are faster than queries.
constexpr int64_t FEW = 8;

// One block of keys for few queries.
template <class P, class T = typename P::T>
void few_step(const Attention& a, Forward<P>& f, Vec<T>* sums, int64_t j, int64_t n, Operand<T> k, const T* v) {
  constexpr int64_t LD = BLOCK_N / P::PAIR;
  const int64_t units = row_units<P>(a.D);
  T* p = P::DOT ? f.pairs : f.tile.s;
  for (int64_t r = 0; r < f.q.count; ++r) {
    T* s = f.tile.s + r * BLOCK_N;
    dot_rows<P>(f.rows + r * units, k.p, k.row, n, units, s);
    const T factor =
        weigh<P>(a, f.q.position[r], f.q.slope[r], j, n, s, p + r * LD, f.run.max[r], sums[r]);
    if (factor != 1)
      for (int64_t l = 0; l < f.ldo; l += WIDTH<T>)
        storev(f.o + r * f.ldo + l, loadv(f.o + r * f.ldo + l) * factor);
  }
  product<P, true>(f.q.count, f.ldo, n, {p, LD, 1}, interleaved<P>(v, ceil_div(n, P::PAIR) * P::PAIR, a.Dv, f.inter),
                   f.ldo, f.o, f.ldo, EVERYTHING, true);
}

template <class P, class S>
void decode(const Attention& a, int64_t b, int64_t hk, int64_t part) {
  using T = typename P::T;
  const int64_t given = a.lengths[b] < 0 ? 0 : a.lengths[b], length = given < a.Lk ? given : a.Lk;
  const int64_t group = a.H / a.Hkv, rows = group * a.Lq, before = length - a.Lq;
  const int64_t units = row_units<P>(a.D);
  Arena arena;
  Forward<P> f(arena, a);
  T* to = part_of<T>(a, b, hk, part);
  for (int64_t r0 = 0; r0 < rows; r0 += BLOCK_M) {
    const int64_t m = rows - r0 < BLOCK_M ? rows - r0 : BLOCK_M;
    const bool few = m <= FEW;
    f.q.count = m;
    f.q.first = before + a.Lq - 1;
    f.q.last = before;
    for (int64_t l = 0; l < padded_columns(m); ++l) {
      const int64_t r = r0 + (l < m ? l : m - 1), h = hk * group + r / a.Lq, position = before + r % a.Lq;
      f.q.position[l] = static_cast<typename Lanes<T>::Int>(position);
      f.q.slope[l] = a.slopes ? a.slopes[b * a.slopes_batch + h * a.slopes_head] : 0.0f;
      if (position < f.q.first) f.q.first = position;
      if (position > f.q.last) f.q.last = position;
      if (l < m) pack<P>(row_of<const S>(a.q, a, b, h, r % a.Lq), 0, 1, a.D, f.rows + l * units, 1);
    }
    f.start();
    Vec<T> sums[FEW] = {};
    if (!few) {
      std::memset(f.rows + m * units, 0, (padded_columns(m) - m) * units * sizeof(T));
      transpose(f.rows, units, f.queries, BLOCK_M, padded_columns(m), units);
    }
    Span span = visible(a, f.q, length);
    const int64_t begin = part * a.part, end = begin + a.part;
    if (span.begin < begin) span.begin = begin;
    if (span.end > end) span.end = end;
    for (int64_t j = span.begin; j < span.end; j += BLOCK_N) {
      const int64_t n = span.end - j < BLOCK_N ? span.end - j : BLOCK_N;
      Operand<T> k;
      const T* v;
      fetch<P, S>(a, b, hk, j, n, few, f, k, v);
      if (few) {
        few_step<P>(a, f, sums, j, n, k, v);
      } else {
        f.template step<S>(a, b, 0, 0, j, n, k, v, false);
      }
    }
    for (int64_t l = 0; l < m; ++l) {
      T* row = to + (r0 + l) * (f.ldo + 2);
      std::memcpy(row, f.o + l * f.ldo, f.ldo * sizeof(T));
      row[f.ldo] = few ? f.run.max[l] : f.run.max[l] * unit<T>(a);
      T sum = f.run.sum[l];
      if (few)
        for (int64_t i = 0; i < WIDTH<T>; ++i) sum += sums[l][i];
      row[f.ldo + 1] = sum;
    }
  }
}

template <class P, class S>
void decode_sum(const Attention& a, int64_t b, int64_t hk) {
  using T = typename P::T;
  const int64_t group = a.H / a.Hkv, rows = group * a.Lq, ldo = padded_columns(a.Dv);
  T line[256];
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = [&](int64_t part) { return part_of<T>(a, b, hk, part) + r * (ldo + 2); };
    T max = T(-INFINITY), sum = 0;
    for (int64_t part = 0; part < a.parts; ++part) max = row(part)[ldo] > max ? row(part)[ldo] : max;
    for (int64_t l = 0; l < ldo; ++l) line[l] = 0;
    for (int64_t part = 0; part < a.parts; ++part) {
      const T* p = row(part);
      if (p[ldo + 1] == 0) continue;
      const T factor = exp_scaled<Plain<T>>(splat((p[ldo] - (max == T(-INFINITY) ? 0 : max)) * LOG<T>))[0];
      sum += p[ldo + 1] * factor;
      for (int64_t l = 0; l < ldo; ++l) line[l] += p[l] * factor;
    }
    for (int64_t l = 0; l < ldo; ++l) line[l] = sum == 0 ? 0 : line[l] / sum;
    store(line, row_of<S>(a.o, a, b, hk * group + r / a.Lq, r % a.Lq), a.Dv);
  }
}

template <class P, class S>
constexpr AttentionKernels kernels() {
  return {fwd<P, S>, bwd<P, S>, bwd_sum<P, S>, bwd_bias<P, S>, decode<P, S>, decode_sum<P, S>};
}

#ifdef KERNELZOO_ISA_avx512
using Bf16Dot = Dot;
#else
using Bf16Dot = Plain<float>;
#endif

const AttentionKernels TABLES[DTYPES + 1] = {kernels<Plain<double>, double>(), kernels<Plain<float>, float>(),
                                             kernels<Plain<float>, Bf16>(), kernels<Plain<float>, Fp16>(),
                                             kernels<Bf16Dot, Bf16>()};

KERNELZOO_EXPORT(AttentionKernels, attention, TABLES)
