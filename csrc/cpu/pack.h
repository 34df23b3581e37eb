// Operands of products, rearranged as the tiles of tile.h read them: blocks of UNIT columns, padded with zeros.

template <class T>
constexpr int64_t UNIT = LANES<T>;

// Fewer than a UNIT: out of line, for a loop over any count, vectors and the rest, at each place that reads or writes a
// block took a third of the compiler's time.
template <class S, class T>
__attribute__((noinline)) void get_some(const S* s, T* t, int64_t n) {
  for (int64_t l = 0; l < UNIT<T>; ++l) t[l] = 0;
  load(s, t, n);
}
template <class T, class S>
__attribute__((noinline)) void put_some(const T* t, S* s, int64_t n) {
  store(t, s, n);
}

// n elements at s, and zeros up to a block.
template <class S, class T>
inline void get(const S* s, T* t, int64_t n) {
  if (n == UNIT<T>) return load(s, t, UNIT<T>);
  get_some(s, t, n);
}

template <class T, class S>
inline void put(const T* t, S* s, int64_t n) {
  if (n == UNIT<T>) return store(t, s, UNIT<T>);
  put_some(t, s, n);
}

// One unit of the product, from element k of a row on.
template <class P, class S>
inline void units_of(const S* row, int64_t n, typename P::T* t) {
  using T = typename P::T;
  constexpr int64_t MOST = 16;
  if constexpr (P::DOT) {
    std::memset(t, 0, MOST * sizeof(T));
    std::memcpy(t, row, (n < 2 * MOST ? n : 2 * MOST) * sizeof(S));
  } else {
    if (n >= MOST) return load(row, t, MOST);
    for (int64_t l = 0; l < MOST; ++l) t[l] = 0;
    load(row, t, n);
  }
}

// to[k][l] = s[l][k], k in units: n <= UNIT rows of K elements each, as columns. Rows that lie in L3 are asked for early:
// with two threads there it is what packing takes its time for.
template <class P, class S>
void pack_rows_as_columns(const S* s, int64_t stride, int64_t n, int64_t K, typename P::T* to, int64_t ld) {
  using T = typename P::T;
  alignas(64) T rows[16 * 16] = {}, columns[16 * 16];
  const int64_t units = ceil_div(K, P::PAIR), early = 256 / sizeof(S);
  for (int64_t k = 0; k < units; k += 16) {
    const S* const from = s + k * P::PAIR;
    for (int64_t l = 0; l < n; ++l) __builtin_prefetch(from + l * stride + early);
    if constexpr (sizeof(S) == sizeof(T) && UNIT<T> == 16)
      if (n == 16 && k + 16 <= units) {
        transpose(reinterpret_cast<const T*>(from), stride, to + k * ld, ld, 16, 16);
        continue;
      }
    for (int64_t l = 0; l < n; ++l) units_of<P>(from + l * stride, K - k * P::PAIR, rows + l * 16);
    transpose(rows, 16, columns, 16, 16, 16);
    const int64_t m = units - k < 16 ? units - k : 16;
    for (int64_t i = 0; i < m; ++i) std::memcpy(to + (k + i) * ld, columns + i * 16, UNIT<T> * sizeof(T));
  }
}

// to[k][l] = s[k][l], k in units: n <= UNIT elements of K rows.
template <class P, class S>
void pack_columns(const S* s, int64_t stride, int64_t n, int64_t K, typename P::T* to, int64_t ld) {
  using T = typename P::T;
  for (int64_t k = 0; k < K; k += P::PAIR, s += P::PAIR * stride, to += ld) {
    if constexpr (P::DOT) {
      uint32_t pairs[UNIT<T>] = {};
      for (int64_t l = 0; l < n; ++l) pairs[l] = s[l].bits;
      if (k + 1 < K)
        for (int64_t l = 0; l < n; ++l) pairs[l] |= static_cast<uint32_t>(s[stride + l].bits) << 16;
      std::memcpy(to, pairs, sizeof pairs);
    } else {
      get(s, to, n);
    }
  }
}
