// What happens to a tile of scores between the products. Tiles are transposed, (key, query) with BLOCK_M queries a
// row: queries lie along the lanes, so that a row's maximum and sum are lanewise and need no exchange of lanes.

// 2^t for t <= 0 as float's softmax needs it: denormal results are 0 (math.h's exp_flushed), nan stays. t = n + r,
// |r| <= 1/2, 2^r by minimax fits of our own: relative error 9e-8, and 3e-6 for what is rounded to bf16 (2e-3).
template <class P>
inline Vec<float> exp_scaled(Vec<float> t) {
  constexpr float MAGIC = 12582912.0f;
  const Vec<float> shifted = t + MAGIC, r = t - (shifted - MAGIC);
  Vec<float> q;
  if constexpr (P::DOT) {
    q = r * 0.009582852944731712f + 0.055906426161527634f;
    q = q * r + 0.24024099111557007f;
    q = q * r + 0.6931241750717163f;
  } else {
    q = r * 0.001326472731307149f + 0.009671512991189957f;
    q = q * r + 0.05550733581185341f;
    q = q * r + 0.24022242426872253f;
    q = q * r + 0.6931470036506653f;
  }
  const IVec<float> n = (IVec<float>)shifted - (0x4b400000 - 127);
  const Vec<float> y = (q * r + 1.0f) * (Vec<float>)(n << 23);
  return t < -126.0f ? Vec<float>{} : y;
}

// e^t by libm.
template <class P>
inline Vec<double> exp_scaled(Vec<double> t) {
  for (int64_t l = 0; l < WIDTH<double>; ++l) t[l] = std::exp(t[l]);
  return t;
}

// exp_scaled(LOG * x) = e^x
template <class T>
constexpr T LOG = sizeof(T) == 4 ? T(1.44269504088896340736) : T(1);

// x, a rounded product: no compiler fuses it into what follows. Of a large score, s c - m with one rounding and m =
// s c with its own may differ by more than exp can take.
template <class T>
inline Vec<T> settled(Vec<T> x) {
#if defined(KERNELZOO_ISA_avx512)
  asm("" : "+v"(x));
#elif KERNELZOO_X86
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  return b > a ? b : a;
}

inline Vec<float> flushed(Vec<float> x) {
  const Vec<float> magnitude = (Vec<float>)((IVec<float>)x & 0x7fffffff);
  return magnitude < 1.17549435e-38f ? Vec<float>{} : x;
}
inline Vec<double> flushed(Vec<double> x) { return x; }

// One sequence of the batch.
struct Sequence {
  int64_t q0, k0, lq, lk, keys, offset;  // first rows, lengths, keys that count, position of query 0

  Sequence(const Attention& a, int64_t b) : q0(0), k0(0), lq(a.Lq), lk(a.Lk) {
    if (a.cu_q) {
      q0 = a.cu_q[b];
      k0 = a.cu_k[b];
      lq = a.cu_q[b + 1] - q0;
      lk = a.cu_k[b + 1] - k0;
    }
    keys = lk;
    if (a.key_lengths && a.key_lengths[b] < keys) keys = a.key_lengths[b] < 0 ? 0 : a.key_lengths[b];
    offset = a.align_end ? lk - lq : 0;
  }
};

template <class S>
inline S* row_of(const Rows& rows, const Attention& a, int64_t b, int64_t h, int64_t i) {
  return static_cast<S*>(rows.p) + (a.cu_q ? 0 : b) * rows.batch + h * rows.head + i * rows.row;
}

// A block of at most BLOCK_M queries: what differs from lane to lane.
template <class T>
struct Queries {
  using Int = typename Lanes<T>::Int;
  int64_t count, first, last;  // positions of the first and last query
  alignas(64) Int position[BLOCK_M];
  alignas(64) T slope[BLOCK_M];
};

// The keys j0 to j0 + n that a block of queries meets, among all `keys` of them.
struct Span {
  int64_t begin, end;
};

template <class T>
inline Span visible(const Attention& a, const Queries<T>& q, int64_t keys) {
  int64_t begin = q.first - a.left, end = q.last + a.right + 1;
  if (begin < 0) begin = 0;
  if (end > keys) end = keys;
  return {begin & ~int64_t{3}, end};  // dropout draws for four keys at once
}

template <class T>
struct Tile {
  T* s;     // scores
  T* cap;   // derivative of the cap, with softcap in the backward
  T* bias;  // (key, query): the float bias, or 0 and -inf
  typename Lanes<T>::Int* keep;  // all ones where dropout keeps
  T* rows;  // BLOCK_M rows of bias as they lie
};

// The keys of a tile of n, from `begin` to before `end`, that count for the group of lanes that l is of: those that its
// queries may see (query r: r + band.low to r + band.high), and as far beyond as a product, whose rows are taken by
// TILE_ROWS, reads zeros. Causal, of a block of 256 queries and keys that leaves out a quarter.
struct Reach {
  int64_t begin, end;
};

// Lanes that a tile is worked on together: two vectors hide an exponential's latency.
template <class T>
constexpr int64_t GROUP = 2 * WIDTH<T>;

template <class T>
inline Reach reach(Band band, int64_t l, int64_t n) {
  l -= l % GROUP<T>;
  const int64_t begin = l + band.low - TILE_ROWS, end = l + GROUP<T> + band.high + TILE_ROWS;
  const int64_t last = end < n ? end : n;
  return {begin > 0 ? begin & ~int64_t{1} : 0, last < n ? (last + 1) & ~int64_t{1} : n};
}

template <class S, class T>
void load_bias(const Attention& a, const Tile<T>& tile, int64_t b, int64_t h, int64_t i0, int64_t m, int64_t j0,
               int64_t n) {
  const int64_t si = a.bias_stride[2], sj = a.bias_stride[3];
  const int64_t rows = si ? m : 1, columns = sj ? n : 1;
  const int64_t from = b * a.bias_stride[0] + h * a.bias_stride[1] + i0 * si + j0 * sj;
  for (int64_t r = 0; r < rows; ++r) {
    T* t = tile.rows + r * BLOCK_N;
    const int64_t at = from + r * si;
    if (a.bias_kind == BOOL_BIAS) {
      const uint8_t* s = static_cast<const uint8_t*>(a.bias) + at;
      if (sj <= 1) {
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) t[c] = s[c] ? T(0) : T(-INFINITY);
      } else {
        for (int64_t c = 0; c < columns; ++c) t[c] = s[c * sj] ? T(0) : T(-INFINITY);
      }
    } else {
      const S* s = static_cast<const S*>(a.bias) + at;
      if (sj <= 1) {
        load(s, t, columns);
      } else {
        for (int64_t c = 0; c < columns; ++c) load(s + c * sj, t + c, 1);
      }
    }
    if (!sj)
      for (int64_t c = 1; c < n; ++c) t[c] = t[0];
  }
  if (si) {
    const int64_t lanes = padded_columns(m);
    for (int64_t r = m; r < lanes; ++r) std::memset(tile.rows + r * BLOCK_N, 0, BLOCK_N * sizeof(T));
    transpose(tile.rows, BLOCK_N, tile.bias, BLOCK_M, lanes, padded_columns(n));
  } else {
    for (int64_t c = 0; c < n; ++c)
      for (int64_t l = 0; l < BLOCK_M; l += WIDTH<T>) storev(tile.bias + c * BLOCK_M + l, splat(tile.rows[c]));
  }
}

template <class T>
void draw(const Attention& a, const Tile<T>& tile, int64_t b, int64_t h, int64_t i0, int64_t m, int64_t j0, int64_t n) {
  using Int = typename Lanes<T>::Int;
  const double dropped = __builtin_nearbyint(a.dropout_p * 4294967296.0);
  const uint32_t threshold = dropped > 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(dropped);
  const uint64_t seed = static_cast<uint64_t>(*a.seed), quads = static_cast<uint64_t>(ceil_div(a.Lk, 4));
  const uint64_t row = static_cast<uint64_t>((b * a.H + h) * a.Lq + i0);
  const int64_t lanes = padded_columns(m);
  for (int64_t j = 0; j < n; j += 4) {
    Int* t = tile.keep + j * BLOCK_M;
    const uint64_t first = row * quads + static_cast<uint64_t>((j0 + j) / 4);
#pragma omp simd
    for (int64_t i = 0; i < lanes; ++i) {
      const Words words = philox(seed, first + static_cast<uint64_t>(i) * quads);
      t[i] = words.w[0] >= threshold ? -1 : 0;
      t[i + BLOCK_M] = words.w[1] >= threshold ? -1 : 0;
      t[i + 2 * BLOCK_M] = words.w[2] >= threshold ? -1 : 0;
      t[i + 3 * BLOCK_M] = words.w[3] >= threshold ? -1 : 0;
    }
  }
}

// Whether scores need no more than a positive factor, of which softmax takes care itself.
inline bool is_plain(const Attention& a) {
  return a.softcap == 0 && !a.slopes && !a.bias_kind && a.scale > 1e-30 && a.scale < 1e30;
}

// The factor that finish_scores leaves to the softmax.
template <class T>
inline T unit(const Attention& a) {
  return is_plain(a) ? T(a.scale) : T(1);
}

// Scores as the softmax takes them: scaled but for `unit`, capped, biased; -inf where a query does not see a key.
template <class T, bool CAP>
void finish_scores(const Attention& a, const Queries<T>& q, const Tile<T>& tile, int64_t j0, int64_t n, bool edge,
                   Band band) {
  constexpr int64_t W = WIDTH<T>;
  using Int = typename Lanes<T>::Int;
  const T scale = is_plain(a) ? T(1) : T(a.scale), cap = T(a.softcap);
  const Vec<T> hidden = splat(T(-INFINITY));
  for (int64_t l = 0; l < padded_columns(q.count); l += W) {
    const IVec<T> position = loadi<T>(q.position + l);
    const Reach keys = reach<T>(band, l, n);
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const Int key = static_cast<Int>(j0 + j);
      const int64_t at = j * BLOCK_M + l;
      Vec<T> x = loadv(tile.s + at) * scale;
      Vec<T> derivative = {};
      if (CAP) {
        Vec<T> u = x / cap;
        T lanes[W];
        storev(lanes, u);
#pragma omp simd
        for (int64_t i = 0; i < W; ++i) lanes[i] = math::tanh(lanes[i]);
        u = loadv(lanes);
        x = u * cap;
        derivative = T(1) - u * u;
      }
      if (a.slopes) {
        const IVec<T> distance = position > key ? position - key : key - position;
        x -= loadv(q.slope + l) * __builtin_convertvector(distance, Vec<T>);
      }
      if (a.bias_kind == BOOL_BIAS) {
        x = loadv(tile.bias + at) < T(0) ? hidden : x;
      } else if (a.bias_kind == FLOAT_BIAS) {
        x += loadv(tile.bias + at);
      }
      if (edge) {
        const IVec<T> sees =
            (position + static_cast<Int>(a.right) >= key) & (position - static_cast<Int>(a.left) <= key);
        x = sees ? x : hidden;
        if (CAP) derivative = sees ? derivative : Vec<T>{};  // there s may be anything
      }
      if (CAP && tile.cap) storev(tile.cap + at, derivative);
      storev(tile.s + at, x);
    }
  }
}

// Whether some query of the block does not see some key from j0 to j0 + n.
template <class T>
bool on_edge(const Attention& a, const Queries<T>& q, int64_t j0, int64_t n) {
  return j0 < q.last - a.left || j0 + n - 1 > q.first + a.right;
}

// The queries, as lanes, all of whose keys are from j0 to j0 + n, among `keys` of them; none: first > last.
struct Lane {
  int64_t first, last;
};

template <class T>
Lane whole(const Attention& a, const Queries<T>& q, int64_t j0, int64_t n, int64_t keys) {
  const int64_t first = j0 ? j0 + a.left - q.first : 0;
  const int64_t last = j0 + n < keys ? j0 + n - 1 - a.right - q.first : q.count - 1;
  return {first > 0 ? first : 0, last < q.count - 1 ? last : q.count - 1};
}

template <class S, class T>
void finish(const Attention& a, const Queries<T>& q, const Tile<T>& tile, int64_t b, int64_t h, int64_t i0, int64_t j0,
           int64_t n, bool edge, Band band) {
  if (!edge && is_plain(a)) return;
  if (a.bias_kind) load_bias<S>(a, tile, b, h, i0, q.count, j0, n);
  if (a.softcap != 0) {
    finish_scores<T, true>(a, q, tile, j0, n, edge, band);
  } else {
    finish_scores<T, false>(a, q, tile, j0, n, edge, band);
  }
}

#ifdef KERNELZOO_ISA_avx512
// (second rounded to bf16, first rounded to bf16), 16 of each; denormals become 0.
inline __m512i rounded(Vec<float> first, Vec<float> second) {
  __m512i both;
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second), "v"(first));
  return both;
}

// Lane l: the pair (first[l], second[l]).
inline __m512i paired(__m512i both) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}
#endif

// Running maximum and sum of a query's scores, which lack `unit`, and the factor for what was summed before.
template <class T>
struct Running {
  alignas(64) T max[BLOCK_M];
  alignas(64) T sum[BLOCK_M];
  alignas(64) T factor[BLOCK_M];
};

// p = 2^(c (s - max)): the difference first, as c s may overflow, and rounds. In place, or as pairs of keys in `pairs` (n / 2, BLOCK_M). Returns whether a factor is not 1.
template <class P, bool DROP, int G, class T>
bool softmax_part(const Tile<T>& tile, int64_t l, Reach keys, T c, Running<T>& run, T* pairs) {
  constexpr int64_t W = WIDTH<T>;
  T* s = tile.s + l;
  const typename Lanes<T>::Int* keep = tile.keep + l;
  Vec<T> top[G], sum[G];
  for (int g = 0; g < G; ++g) {
    top[g] = splat(T(-INFINITY));
    sum[g] = Vec<T>{};
  }
  for (int64_t j = keys.begin; j < keys.end; ++j)
    for (int g = 0; g < G; ++g) top[g] = larger<T>(top[g], loadv(s + j * BLOCK_M + g * W));
  bool moved = false;
  Vec<T> before[G];
  for (int g = 0; g < G; ++g) {
    before[g] = loadv(run.max + l + g * W);
    const Vec<T> max = larger<T>(before[g], top[g]);
    storev(run.max + l + g * W, max);
    top[g] = max == T(-INFINITY) ? Vec<T>{} : max;
    const IVec<T> changed = max > before[g];
    for (int64_t i = 0; i < W; ++i) moved |= changed[i] != 0;
  }
  const auto weight = [&](int64_t j, int g) {
    const Vec<T> p = exp_scaled<P>((loadv(s + j * BLOCK_M + g * W) - top[g]) * c);
    sum[g] += p;
    return DROP ? (Vec<T>)((IVec<T>)p & loadi<T>(keep + j * BLOCK_M + g * W)) : p;
  };
  if constexpr (P::DOT) {
#ifdef KERNELZOO_ISA_avx512
    for (int64_t j = keys.begin; j < keys.end; j += 2)
      for (int g = 0; g < G; ++g) {
        const Vec<T> first = weight(j, g), second = j + 1 < keys.end ? weight(j + 1, g) : Vec<T>{};
        _mm512_storeu_si512(pairs + j / 2 * BLOCK_M + l + g * W, paired(rounded(first, second)));
      }
#endif
  } else {
    for (int64_t j = keys.begin; j < keys.end; ++j)
      for (int g = 0; g < G; ++g) storev(s + j * BLOCK_M + g * W, weight(j, g));
  }
  for (int g = 0; g < G; ++g) {
    const Vec<T> factor = moved ? exp_scaled<P>((before[g] - top[g]) * c) : splat(T(1));
    storev(run.factor + l + g * W, factor);
    storev(run.sum + l + g * W, loadv(run.sum + l + g * W) * factor + sum[g]);
  }
  return moved;
}

template <class P, bool DROP, class T>
bool softmax_step(const Tile<T>& tile, int64_t m, int64_t n, Band band, T c, Running<T>& run, T* pairs) {
  bool moved = false;
  int64_t l = 0;
  for (; l + GROUP<T> <= padded_columns(m); l += GROUP<T>)
    moved |= softmax_part<P, DROP, 2>(tile, l, reach<T>(band, l, n), c, run, pairs);
  for (; l < m; l += WIDTH<T>) moved |= softmax_part<P, DROP, 1>(tile, l, reach<T>(band, l, n), c, run, pairs);
  return moved;
}

// Of one tile in the backward: dp, and where p and ds go: in place of s and dp, or rounded.
template <class T>
struct Gradients {
  T* dp;
  T *p_rows, *ds_rows, *ds_pairs;  // (key, pair of queries) twice, (pair of keys, query)
  T* dbias;  // where ds is added up, before the cap's derivative and any rounding; or null
};

// exp(unit s - lse - rest / LOG)
template <class P, class T>
inline Vec<T> weight(const T* s, T unit, Vec<T> lse, Vec<T> rest) {
  return exp_scaled<P>((settled<T>(loadv(s) * unit) - lse) * LOG<T> - rest);
}

// Of each query: p = exp(unit s - lse - rest / LOG), ds = p (dp - delta - residual).
template <class T>
struct Terms {
  alignas(64) T lse[BLOCK_M];
  alignas(64) T rest[BLOCK_M];
  alignas(64) T delta[BLOCK_M];
  alignas(64) T residual[BLOCK_M];
};

// rest and residual, elsewhere 0, of the queries `first` to `last`, all of whose keys are in the tile. lse's rounding
// moves the sum of p off 1 by |lse| eps / 2. And where one key has nearly all the weight dp - delta is rounding and
// nothing else, of which sum p (dp - delta) is the mean: less it, ds is 0 for a key alone, as in torch's softmax.
template <class P, bool DROP, class T>
void whole_step(const Tile<T>& tile, const T* dp, Lane own, int64_t n, Band band, T unit, Terms<T>& terms, T kept) {
  constexpr int64_t W = WIDTH<T>;
  for (int64_t l = own.first / W * W; l <= own.last; l += W) {
    const Reach keys = reach<T>(band, l, n);
    const Vec<T> lse = loadv(terms.lse + l), delta = loadv(terms.delta + l);
    Vec<T> sum = {}, weights = {};
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const int64_t at = j * BLOCK_M + l;
      Vec<T> x = loadv(dp + at);
      if (DROP) x = (Vec<T>)((IVec<T>)(x * kept) & loadi<T>(tile.keep + at));
      const Vec<T> p = weight<P>(tile.s + at, unit, lse, Vec<T>{});
      sum += p * (x - delta);
      weights += p;
    }
    for (int64_t i = 0; i < W; ++i) {
      if (l + i < own.first || l + i > own.last || weights[i] == 0) continue;
      terms.rest[l + i] = T(std::log(double(weights[i]))) * LOG<T>;
      terms.residual[l + i] = sum[i] / weights[i];
    }
  }
}

// p and ds by their terms, both without what dropout took, whose factor 1 / (1 - p) dp still lacks.
template <class P, bool DROP, bool CAP, int G, class T>
void gradient_part(const Tile<T>& tile, const Gradients<T>& g, int64_t l, Reach keys, T unit, const Terms<T>& terms,
                   T kept) {
  constexpr int64_t W = WIDTH<T>;
  Vec<T> lse[G], rest[G], delta[G], residual[G];
  for (int v = 0; v < G; ++v) {
    lse[v] = loadv(terms.lse + l + v * W);
    rest[v] = loadv(terms.rest + l + v * W);
    delta[v] = loadv(terms.delta + l + v * W);
    residual[v] = loadv(terms.residual + l + v * W);
  }
  struct Both {
    Vec<T> p, ds;
  };
  const auto both = [&](int64_t j, int v) {
    const int64_t at = j * BLOCK_M + l + v * W;
    const Vec<T> p = weight<P>(tile.s + at, unit, lse[v], rest[v]);
    Vec<T> dp = loadv(g.dp + at);
    Vec<T> used = p;
    if (DROP) {
      const IVec<T> keep = loadi<T>(tile.keep + at);
      used = (Vec<T>)((IVec<T>)p & keep);
      dp = (Vec<T>)((IVec<T>)(dp * kept) & keep);
    }
    Vec<T> ds = p * (dp - delta[v] - residual[v]);
    if (g.dbias) storev(g.dbias + at, loadv(g.dbias + at) + ds);
    if (CAP) ds *= loadv(tile.cap + at);
    if constexpr (!P::DOT) ds = flushed(ds);
    return Both{used, ds};
  };
  if constexpr (P::DOT) {
#ifdef KERNELZOO_ISA_avx512
    for (int64_t j = keys.begin; j < keys.end; j += 2)
      for (int v = 0; v < G; ++v) {
        const Both first = both(j, v), second = j + 1 < keys.end ? both(j + 1, v) : Both{};
        const int64_t at = (j * BLOCK_M + l + v * W) / 2;
        const __m512i p = rounded(first.p, second.p), ds = rounded(first.ds, second.ds);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g.p_rows + at), _mm512_castsi512_si256(p));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g.p_rows + at + BLOCK_M / 2), _mm512_extracti64x4_epi64(p, 1));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g.ds_rows + at), _mm512_castsi512_si256(ds));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(g.ds_rows + at + BLOCK_M / 2),
                            _mm512_extracti64x4_epi64(ds, 1));
        _mm512_storeu_si512(g.ds_pairs + j / 2 * BLOCK_M + l + v * W, paired(ds));
      }
#endif
  } else {
    for (int64_t j = keys.begin; j < keys.end; ++j)
      for (int v = 0; v < G; ++v) {
        const int64_t at = j * BLOCK_M + l + v * W;
        const Both one = both(j, v);
        storev(tile.s + at, one.p);
        storev(g.dp + at, one.ds);
      }
  }
}

template <class P, bool DROP, bool CAP, class T>
void gradient_step(const Tile<T>& tile, const Gradients<T>& g, int64_t m, int64_t n, Band band, T unit,
                   const Terms<T>& terms, T kept) {
  int64_t l = 0;
  for (; l + GROUP<T> <= padded_columns(m); l += GROUP<T>)
    gradient_part<P, DROP, CAP, 2>(tile, g, l, reach<T>(band, l, n), unit, terms, kept);
  for (; l < padded_columns(m); l += WIDTH<T>)
    gradient_part<P, DROP, CAP, 1>(tile, g, l, reach<T>(band, l, n), unit, terms, kept);
}
