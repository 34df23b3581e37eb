// What the recurrence multiplies by: weights in panels, a thread's own, and the rows of h or of the gates' gradients.

// Cells and features come in blocks of UNIT, a head's own; up to PANEL blocks of one gate make a panel, or one block of
// all gates, so that a panel is as wide as the widest tile.
template <class T>
constexpr int64_t UNIT = LANES<T>;
constexpr int64_t PANEL = 4;

// Of functions that hold a block's arithmetic: a call left in a loop would make it scalar.
#if defined(__GNUC__)
#define KERNELZOO_FLATTEN __attribute__((flatten))
#else
#define KERNELZOO_FLATTEN
#endif

constexpr int64_t gates_of(int mode) { return mode == RNN_LSTM ? 4 : mode == RNN_GRU ? 3 : 1; }

// What a head's last block holds, which may be less than a UNIT: out of line, for a loop over any count, vectors and the
// rest, at each place that reads or writes a block took a third of the compiler's time.
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

struct Block {
  int64_t first, n;      // its features
  int64_t head, offset;  // where in its head it begins
};

// n features in `heads` equal parts, cut into blocks.
template <class T>
struct Blocks {
  int64_t size, per_head, count;  // of a head; blocks

  Blocks(int64_t n, int64_t heads)
      : size(n / heads), per_head(ceil_div(size, UNIT<T>)), count(per_head * heads) {}

  Block operator[](int64_t b) const {
    const int64_t head = b / per_head, offset = b % per_head * UNIT<T>;
    return {head * size + offset, size - offset < UNIT<T> ? size - offset : UNIT<T>, head, offset};
  }

  // How many blocks from b, before `end`, a panel of at most `most` takes.
  int64_t together(int64_t b, int64_t end, int64_t most) const {
    const int64_t rest = per_head - b % per_head, n = end - b < rest ? end - b : rest;
    return n < most ? n : most;
  }
};

struct Share {
  int64_t begin, end;

  Share(int64_t n, int64_t thread, int64_t team) : begin(n * thread / team), end(n * (thread + 1) / team) {}
};

// Memory of a call: with a null base it only counts. Null for no elements.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* taken = base && n ? reinterpret_cast<T*>(base + used) : nullptr;
    used += ceil_div(n * int64_t{sizeof(T)}, 64) * 64;
    return taken;
  }
};

// The left operand: B rows of `parts` runs of `size` elements, each run padded with zeros to whole units of the product.
// A row is a line longer than it must be, lest the rows of a tile fall onto the same sets of the cache.
template <class P>
struct Operands {
  using T = typename P::T;
  int64_t run, row;  // units
  T* p;

  Operands(Arena& arena, int64_t B, int64_t parts, int64_t size)
      : run(ceil_div(size, P::PAIR)),
        row(ceil_div(parts * run, 64 / sizeof(T)) * (64 / sizeof(T)) + 64 / sizeof(T)),
        p(arena.take<T>(B * row)) {}

  void clear(int64_t first, int64_t last) {
    if (last > first) std::memset(p + first * row, 0, (last - first) * row * sizeof(T));
  }

  // n elements of row b's run `part` from `offset`.
  void set(int64_t b, int64_t part, int64_t offset, const T* t, int64_t n) {
    T* to = p + b * row + part * run;
    if constexpr (P::DOT) {
      put(t, reinterpret_cast<Bf16*>(to) + offset, n);
    } else {
      put(t, to + offset, n);
    }
  }
};

// One unit of the product, from element k of a row on.
template <class P, class S>
inline void units_of(const S* row, int64_t n, typename P::T* t) {
  using T = typename P::T;
  constexpr int64_t MOST = 16;
  if constexpr (P::DOT) {
    std::memset(t, 0, MOST * sizeof(T));
    std::memcpy(t, row, (n < 2 * MOST ? n : 2 * MOST) * sizeof(S));
  } else {
    for (int64_t l = 0; l < MOST; ++l) t[l] = 0;
    load(row, t, n < MOST ? n : MOST);
  }
}

// to[k][l] = s[l][k], k in units: rows of weights, n <= UNIT of K elements each, as a block's columns.
template <class P, class S>
void pack_rows_as_columns(const S* s, int64_t stride, int64_t n, int64_t K, typename P::T* to, int64_t ld) {
  using T = typename P::T;
  alignas(64) T rows[16 * 16] = {}, columns[16 * 16];
  const int64_t units = ceil_div(K, P::PAIR);
  for (int64_t k = 0; k < units; k += 16) {
    for (int64_t l = 0; l < n; ++l) units_of<P>(s + l * stride + k * P::PAIR, K - k * P::PAIR, rows + l * 16);
    transpose(rows, 16, columns, 16, 16, 16);
    const int64_t m = units - k < 16 ? units - k : 16;
    for (int64_t i = 0; i < m; ++i) std::memcpy(to + (k + i) * ld, columns + i * 16, UNIT<T> * sizeof(T));
  }
}

// to[k][l] = s[k][l], k in units: K rows of weights, n <= UNIT of their elements as a block's columns.
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

// c (m, columns) = a b, m <= TILE_ROWS, of K units; b's and c's rows lie `columns` apart.
template <class P>
inline void multiply(int64_t m, int64_t K, const typename P::T* a, int64_t row, const typename P::T* b, int64_t columns,
                     typename P::T* c) {
  constexpr int64_t W = WIDTH<typename P::T>;
  const int64_t vectors = columns / W;
  for (int64_t v = 0; v < vectors; v += TILE_VECTORS) {
    const int64_t some = vectors - v < TILE_VECTORS ? vectors - v : TILE_VECTORS;
    MICRO<P>[m - 1][some - 1](K, a, row, 1, b + v * W, columns, c + v * W, columns, false);
  }
}

// The right operand: panels of a thread's share of `blocks`, of `gates` columns a block and feature. Memory is laid out
// by blocks, so that threads pack where they read.
template <class P>
struct Panels {
  using T = typename P::T;
  Blocks<T> blocks;
  int64_t K, gates, most;  // K in units
  T* p;

  Panels(Arena& arena, Blocks<T> blocks, int64_t K, int64_t gates)
      : blocks(blocks),
        K(K),
        gates(gates),
        most(gates > 1 ? 1 : PANEL),
        p(arena.take<T>(blocks.count * K * gates * UNIT<T>)) {}

  T* panel(int64_t block) const { return p + block * K * gates * UNIT<T>; }

  // use(first block, number of blocks, panel, columns), over the share's panels; `backwards` begins at what was used
  // last, and is therefore still in the cache.
  template <class Use>
  void each(Share share, bool backwards, Use use) const {
    if (!backwards) {
      for (int64_t b = share.begin; b < share.end;) {
        const int64_t n = blocks.together(b, share.end, most);
        use(b, n, panel(b), n * gates * UNIT<T>);
        b += n;
      }
      return;
    }
    for (int64_t b = share.end; b > share.begin;) {
      // the panel that ends at b: those of a head begin at its first block of the share
      const int64_t head = (b - 1) / blocks.per_head * blocks.per_head;
      const int64_t start = head > share.begin ? head : share.begin;
      const int64_t first = start + (b - 1 - start) / most * most;
      use(first, b - first, panel(first), (b - first) * gates * UNIT<T>);
      b = first;
    }
  }
};
