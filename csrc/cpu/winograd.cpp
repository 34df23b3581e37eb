#include "winograd.h"

#include <algorithm>
#include <atomic>

namespace kernelzoo {
namespace {

int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// A part of scratch, in T; with a null base it only counts.
struct Arena {
  char* base;
  int64_t item, used = 0;

  void* take(int64_t n) {
    void* taken = base + used;
    used += round_up(n * item, 64);
    return taken;
  }
};

// Either x has few tiles: a CHUNK of them is kept transformed while y is made FEW channels at a time, whose filters need
// then not be written to memory and read; or the filters are transformed once, and a thread makes all of y's channels of
// a block of tiles, or MOST of them lest they leave the nearer caches.
struct Forward {
  static constexpr int64_t KEPT = 4 << 20, CHUNK = 5 << 19;  // bytes
  static constexpr int64_t FEW = 32, MOST = 256;             // channels
  bool few;
  int64_t made, parts;       // channels of a part
  int64_t chunk;             // blocks
  int64_t v_block, m_block;  // T
  void *u, *v, *m, *own;     // v and m are a chunk's where tiles are few, else a thread's block's
  int64_t each, bytes;

  Forward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    v_block = round_up(ELEMENTS * a.plane(a.tiles(), a.in.C), 16);
    few = v_block * a.blocks() * item <= KEPT;
    made = few ? std::min(FEW, a.out.C) : round_up(ceil_div(a.out.C, ceil_div(a.out.C, MOST)), STRIP);
    parts = ceil_div(a.out.C, made);
    chunk = std::clamp<int64_t>(CHUNK / (v_block * item), 1, a.blocks());
    m_block = round_up(ELEMENTS * a.plane(a.tiles(), made), 16);
    u = arena.take(ELEMENTS * a.in.C * (few ? made : a.out.C));
    v = arena.take(v_block * (few ? chunk : threads));
    m = arena.take(m_block * (few ? chunk : threads));
    each = round_up(a.staged(), 64);
    own = arena.take(each * threads);
    bytes = arena.used;
  }
};

// The products go through a chunk of tiles at once, of x and dy together. Where x's tiles are one chunk, as the small
// images in a network's depth whose filters are large, dy's are transformed, and summed, a part of its channels at a time.
struct Backward {
  static constexpr int64_t CHUNK = 5 << 19, PART = 1 << 20;  // bytes
  int64_t blocks, tiles;  // of a chunk
  int64_t made;           // channels of a part
  void *du, *d, *v, *own;
  int64_t each, bytes;

  Backward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    const int64_t all = a.blocks() * a.tiles(), of_x = ELEMENTS * a.in.C * item, both = of_x + ELEMENTS * a.out.C * item;
    const bool whole = all * of_x <= CHUNK;
    blocks = whole ? a.blocks() : std::clamp<int64_t>(CHUNK / (both * a.tiles()), 1, a.blocks());
    tiles = blocks * a.tiles();
    const int64_t channel = of_x + ELEMENTS * all * item;  // of dy
    made = whole ? std::clamp<int64_t>(PART / channel / CHANNELS * CHANNELS, CHANNELS, a.out.C) : a.out.C;
    du = arena.take(ELEMENTS * a.in.C * made);
    d = arena.take(ELEMENTS * a.plane(tiles, made));
    v = arena.take(ELEMENTS * a.plane(tiles, a.in.C));
    each = round_up(a.staged(), 64);
    own = arena.take(each * threads);
    bytes = arena.used;
  }
};

// use(i, thread) for i in [0, items) by all threads of a parallel region, each a run of them, and waits.
template <class Use>
void share(int64_t items, int64_t threads, Use use) {
#pragma omp for schedule(static)
  for (int64_t thread = 0; thread < threads; ++thread)
    for (int64_t i = thread * items / threads; i < (thread + 1) * items / threads; ++i) use(i, thread);
}

}  // namespace

int64_t winograd_scratch(int dtype, const Winograd& a, bool weight, int threads) {
  return weight ? Backward(a, ITEM[dtype], nullptr, threads).bytes : Forward(a, ITEM[dtype], nullptr, threads).bytes;
}

bool winograd_fwd(int dtype, const Winograd& a, const WinogradFilter& f, const void* x, const void* bias, void* y,
                  void* scratch, int threads) {
  const WinogradKernels& k = winograd(dtype);
  const Forward s(a, ITEM[dtype], scratch, threads);
  const int64_t blocks = a.blocks(), strips = ceil_div(a.in.C, STRIP), rows = f.rows / CHANNELS;
  const auto u_of = [&](int64_t part) { return at(s.u, dtype, s.few ? 0 : ELEMENTS * a.in.C * part * s.made); };
  const auto end_of = [&](int64_t part) { return std::min((part + 1) * s.made, a.out.C); };
  const auto filter = [&](int64_t row, int64_t column) {
    const int64_t part = column / s.made, from = part * s.made;
    WinogradFilter some = f;  // those of a part of y's channels
    some.w = at(f.w, dtype, from * f.column);
    some.columns = end_of(part) - from;
    k.filter(some, row, column - from, u_of(part));
  };
  std::atomic<bool> finite{true};
  const auto collect = [&](int64_t block, int64_t part, const void* m, void* own) {
    if (!k.collect(a, block, m, bias, y, part * s.made, end_of(part), own)) finite = false;
  };
#pragma omp parallel num_threads(threads)
  if (s.few) {
    for (int64_t first = 0; first < blocks; first += s.chunk) {
      const int64_t here = std::min(s.chunk, blocks - first);
      const auto v_of = [&](int64_t block) { return at(s.v, dtype, block * s.v_block); };
      const auto m_of = [&](int64_t block) { return at(s.m, dtype, block * s.m_block); };
      share(here * strips, threads, [&](int64_t i, int64_t thread) {
        k.input(a, first + i / strips, i % strips * STRIP, x, v_of(i / strips), at(s.own, dtype, thread * s.each));
      });
      for (int64_t part = 0; part < s.parts; ++part) {
        const int64_t from = part * s.made, made = end_of(part) - from;
        share(rows * (made / CHANNELS), threads,
              [&](int64_t i, int64_t) { filter(i % rows * CHANNELS, from + i / rows * CHANNELS); });
        share(ELEMENTS * here, threads, [&](int64_t i, int64_t) {
          k.product(a, first + i % here, i / here, made, v_of(i % here), s.u, m_of(i % here));
        });
        share(here, threads, [&](int64_t i, int64_t thread) {
          collect(first + i, part, m_of(i), at(s.own, dtype, thread * s.each));
        });
      }
    }
  } else {
    share(rows * (f.columns / CHANNELS), threads,
          [&](int64_t i, int64_t) { filter(i % rows * CHANNELS, i / rows * CHANNELS); });
    share(blocks * s.parts, threads, [&](int64_t i, int64_t thread) {
      const int64_t part = i / blocks, block = i % blocks;
      void *const v = at(s.v, dtype, thread * s.v_block), *const m = at(s.m, dtype, thread * s.m_block),
                 *const own = at(s.own, dtype, thread * s.each);
      for (int64_t c = 0; c < a.in.C; c += STRIP) k.input(a, block, c, x, v, own);
      for (int64_t e = 0; e < ELEMENTS; ++e) k.product(a, block, e, end_of(part) - part * s.made, v, u_of(part), m);
      collect(block, part, m, own);
    });
  }
  return finite;
}

bool winograd_bwd_weight(int dtype, const Winograd& a, const void* dz, const void* x, void* dw, void* scratch,
                         int threads) {
  const WinogradKernels& k = winograd(dtype);
  const Backward s(a, ITEM[dtype], scratch, threads);
  const int64_t blocks = a.blocks(), in = ceil_div(a.in.C, STRIP);
  std::atomic<bool> finite{true};
  const auto before = [&](int64_t first, int64_t block) {  // tiles of a chunk before a block's
    int64_t tiles = 0;
    for (int64_t b = first; b < block; ++b) tiles += WinogradBlock(a, b).tiles();
    return tiles;
  };
#pragma omp parallel num_threads(threads)
  for (int64_t from = 0; from < a.out.C; from += s.made) {
    const int64_t to = std::min(from + s.made, a.out.C), out = ceil_div(to - from, STRIP);
    for (int64_t first = 0; first < blocks; first += s.blocks) {
      const int64_t here = std::min(s.blocks, blocks - first), used = before(first, first + here);
      const int64_t of_x = from ? 0 : in;  // further parts are of the same tiles of x
      share(here * (of_x + out), threads, [&](int64_t i, int64_t thread) {
        const int64_t strip = i / here, block = first + i % here, tile = before(first, block);
        void* const own = at(s.own, dtype, thread * s.each);
        if (strip < of_x) k.spread(a, true, block, strip * STRIP, 0, a.in.C, x, s.v, tile, s.tiles, own);
        else k.spread(a, false, block, from + (strip - of_x) * STRIP, from, to, dz, s.d, tile, s.tiles, own);
      });
      share(ELEMENTS * in, threads, [&](int64_t i, int64_t) {
        k.gather(a, i / in, i % in * STRIP, from, to, s.d, s.v, s.du, used, s.tiles, first > 0);
      });
    }
    share(to - from, threads, [&](int64_t i, int64_t) {
      if (!k.finish(a, from + i, from, to, s.du, dw)) finite = false;
    });
  }
  return finite;
}

}  // namespace kernelzoo
