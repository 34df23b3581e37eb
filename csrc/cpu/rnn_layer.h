// What the forward and the backward share: how a call's memory and steps are laid out, and layer norm over blocks.

inline int64_t rows_of(const Rnn& a, int64_t t) { return a.batch_sizes ? a.batch_sizes[t] : a.B; }

template <class S>
inline S* element(void* p, int64_t i) {
  return static_cast<S*>(p) + i;
}
template <class S>
inline const S* element(const void* p, int64_t i) {
  return static_cast<const S*>(p) + i;
}

// (rows, count, width): what threads keep of each row and block.
template <class T>
struct Kept {
  int64_t count, width;
  T* p;

  Kept(Arena& arena, int64_t rows, int64_t count, int64_t width)
      : count(count), width(width), p(arena.take<T>(rows * count * width)) {}

  T* at(int64_t b, int64_t block) const { return p + (b * count + block) * width; }
};

// `parts` vectors of weights over the blocks' features, widened and padded; empty where the call has none.
template <class T>
struct Vectors : Kept<T> {
  const void* source;
  int64_t parts;

  Vectors(Arena& arena, const void* source, int64_t parts, const Blocks<T>& blocks)
      : Kept<T>(arena, source ? 1 : 0, blocks.count, parts * UNIT<T>), source(source), parts(parts) {}

  template <class S>
  void fill(const Blocks<T>& blocks, Share share, int64_t size) const {
    if (!source) return;
    for (int64_t k = share.begin; k < share.end; ++k)
      for (int64_t part = 0; part < parts; ++part)
        get(element<S>(source, part * size + blocks[k].first), this->at(0, k) + part * UNIT<T>, blocks[k].n);
  }

  // Part 0 of the block's, or null.
  const T* of(int64_t block) const { return source ? this->at(0, block) : nullptr; }
};

// Sums over a row's blocks, two a block, which threads exchange. Each block's own, then in the blocks' order: the result
// does not depend on who computed what.
template <class T>
struct Exchange : Kept<T> {
  Exchange(Arena& arena, int64_t rows, int64_t count) : Kept<T>(arena, rows, count, 2) {}

  // The mean of n lanes of `parts` vectors, `stride` apart, and the sum of squares about it.
  void moments(int64_t b, int64_t block, const T* x, int64_t parts, int64_t stride, int64_t n) const {
    T sum = 0, squares = 0;
    for (int64_t part = 0; part < parts; ++part)
#pragma omp simd reduction(+ : sum)
      for (int64_t l = 0; l < n; ++l) sum += x[part * stride + l];
    const T mean = sum / T(parts * n);
    for (int64_t part = 0; part < parts; ++part)
#pragma omp simd reduction(+ : squares)
      for (int64_t l = 0; l < n; ++l) squares += (x[part * stride + l] - mean) * (x[part * stride + l] - mean);
    T* own = this->at(b, block);
    own[0] = mean;
    own[1] = squares;
  }

  // The sums of dy and of dy x.
  void products(int64_t b, int64_t block, const T* dy, const T* x, int64_t parts, int64_t n) const {
    T sum = 0, product = 0;
    for (int64_t part = 0; part < parts; ++part)
#pragma omp simd reduction(+ : sum, product)
      for (int64_t l = 0; l < n; ++l) {
        sum += dy[part * UNIT<T> + l];
        product += dy[part * UNIT<T> + l] * x[part * UNIT<T> + l];
      }
    T* own = this->at(b, block);
    own[0] = sum;
    own[1] = product;
  }

  struct Statistics {
    T mean, rstd;
  };

  // Of row b, from its blocks' moments (Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing
  // sample variances, 1979); every block counts `parts` times its features.
  Statistics statistics(int64_t b, const Blocks<T>& blocks, int64_t parts, double eps) const {
    double sum = 0, squares = 0;
    const double all = double(blocks.count ? parts * blocks.size * (blocks.count / blocks.per_head) : 1);
    for (int64_t k = 0; k < this->count; ++k) sum += double(this->at(b, k)[0]) * double(parts * blocks[k].n);
    const double mean = sum / all;
    for (int64_t k = 0; k < this->count; ++k) {
      const double off = double(this->at(b, k)[0]) - mean;
      squares += double(this->at(b, k)[1]) + off * off * double(parts * blocks[k].n);
    }
    return {T(mean), T(1 / std::sqrt(squares / all + eps))};
  }

  struct Means {
    T dy, dy_x;
  };

  Means means(int64_t b, int64_t n) const {
    double sum = 0, product = 0;
    for (int64_t k = 0; k < this->count; ++k) {
      sum += this->at(b, k)[0];
      product += this->at(b, k)[1];
    }
    return {T(sum / double(n)), T(product / double(n))};
  }
};

// w_hh (G H, P / heads) as the columns of gh = hm W_hhT: a block's cells, gate by gate.
template <class P, class S>
void pack_forward(const Panels<P>& panels, Share share, const Rnn& a) {
  const int64_t slice = a.P / a.heads;
  panels.each(share, false, [&](int64_t first, int64_t n, typename P::T* panel, int64_t columns) {
    for (int64_t g = 0; g < panels.gates; ++g)
      for (int64_t i = 0; i < n; ++i) {
        const Block block = panels.blocks[first + i];
        pack_rows_as_columns<P>(element<S>(a.w_hh, (g * a.H + block.first) * slice), slice, block.n, slice,
                                panel + (g * n + i) * UNIT<typename P::T>, columns);
      }
  });
}

// w_hh as the columns of dhm = dgh W_hh: a block of a head's features, the head's cells gate by gate along k.
template <class P, class S>
void pack_backward(const Panels<P>& panels, Share share, const Rnn& a, int64_t gates) {
  const int64_t slice = a.P / a.heads, cells = a.H / a.heads, run = ceil_div(cells, P::PAIR);
  panels.each(share, false, [&](int64_t first, int64_t n, typename P::T* panel, int64_t columns) {
    for (int64_t i = 0; i < n; ++i) {
      const Block block = panels.blocks[first + i];
      for (int64_t g = 0; g < gates; ++g)
        pack_columns<P>(element<S>(a.w_hh, (g * a.H + block.head * cells) * slice + block.offset), slice, block.n,
                        cells, panel + g * run * columns + i * UNIT<typename P::T>, columns);
    }
  });
}
