// What the recurrence multiplies by: weights in panels, a thread's own, and the rows of h or of the gates' gradients.

// Cells and features come in blocks of UNIT, a head's own; up to PANEL blocks of one gate make a panel, or one block of
// all gates, so that a panel is as wide as the widest tile.
constexpr int64_t PANEL = 4;

// Of functions that hold a block's arithmetic: a call left in a loop would make it scalar.
#if defined(__GNUC__)
#define KERNELZOO_FLATTEN __attribute__((flatten))
#else
#define KERNELZOO_FLATTEN
#endif

constexpr int64_t gates_of(int mode) { return mode == RNN_LSTM ? 4 : mode == RNN_GRU ? 3 : 1; }

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
