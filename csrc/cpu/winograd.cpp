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

// Either x has few tiles, and each thread keeps them transformed while it makes y a strip of channels at a time, whose
// filters it transforms itself, so that they needn't be written to memory and read; or the filters are transformed once
// for all threads, and each makes all of y's channels, or MOST of them lest they leave the nearer caches.
struct Forward {
  static constexpr int64_t KEPT = 4 << 20, MOST = 256;  // bytes, channels
  bool few;
  int64_t made, parts;     // channels of a unit
  int64_t u_size, v_size;  // T of a thread's own
  void *u, *own;
  int64_t each, bytes;

  Forward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    const int64_t v = round_up(ELEMENTS * a.plane(a.tiles(), a.in.C), 16);
    few = v * a.blocks() * item <= KEPT;
    made = few ? STRIP : round_up(ceil_div(a.out.C, ceil_div(a.out.C, MOST)), STRIP);
    parts = ceil_div(a.out.C, made);
    u_size = few ? ELEMENTS * a.in.C * made : 0;
    v_size = few ? v * a.blocks() : v;
    u = arena.take(few ? 0 : ELEMENTS * a.in.C * a.out.C);
    each = u_size + v_size + round_up(a.staged() + ELEMENTS * a.plane(a.tiles(), made), 16);
    own = arena.take(each * threads);
    bytes = arena.used;
  }
};

// The products go through a CHUNK of tiles at once, of x and dy together. Where this is all of them, as of the small
// images in a network's depth, whose filters are large, the sums are kept of a part of y's channels at a time.
struct Backward {
  static constexpr int64_t CHUNK = 4 << 20, SUMS = 2 << 20;  // bytes
  int64_t blocks, tiles;  // of a chunk
  int64_t made;           // channels of a part
  void *du, *d, *v, *own;
  int64_t each, bytes;

  Backward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    const int64_t tile = ELEMENTS * (a.in.C + a.out.C) * item, sum = ELEMENTS * a.in.C * item;
    blocks = std::clamp<int64_t>(CHUNK / (tile * a.tiles()), 1, a.blocks());
    tiles = blocks * a.tiles();
    made = blocks < a.blocks() ? a.out.C : std::clamp<int64_t>(SUMS / sum / CHANNELS * CHANNELS, CHANNELS, a.out.C);
    du = arena.take(ELEMENTS * a.in.C * made);
    d = arena.take(ELEMENTS * a.plane(tiles, a.out.C));
    v = arena.take(ELEMENTS * a.plane(tiles, a.in.C));
    each = round_up(a.staged(), 64);
    own = arena.take(each * threads);
    bytes = arena.used;
  }
};

}  // namespace

int64_t winograd_scratch(int dtype, const Winograd& a, bool weight, int threads) {
  return weight ? Backward(a, ITEM[dtype], nullptr, threads).bytes : Forward(a, ITEM[dtype], nullptr, threads).bytes;
}

bool winograd_fwd(int dtype, const Winograd& a, const WinogradFilter& f, const void* x, const void* bias, void* y,
                  void* scratch, int threads) {
  const WinogradKernels& k = winograd(dtype);
  const Forward s(a, ITEM[dtype], scratch, threads);
  const int64_t blocks = a.blocks(), units = blocks * s.parts, rows = f.rows / CHANNELS, v_each = s.v_size / blocks;
  const auto part_of = [&](int64_t part) {  // the filters of a part of y's channels
    WinogradFilter some = f;
    some.w = at(f.w, dtype, part * s.made * f.column);
    some.columns = std::min(s.made, f.columns - part * s.made);
    return some;
  };
  const auto transform = [&](int64_t part, void* u) {
    const WinogradFilter some = part_of(part);
    for (int64_t c = 0; c < some.columns; c += CHANNELS)
      for (int64_t r = 0; r < f.rows; r += CHANNELS) k.filter(some, r, c, u);
  };
  std::atomic<bool> finite{true};
#pragma omp parallel num_threads(threads)
  {
    if (!s.few) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows * (f.columns / CHANNELS); ++i) {
        const int64_t column = i / rows * CHANNELS, part = column / s.made;
        k.filter(part_of(part), i % rows * CHANNELS, column - part * s.made,
                 at(s.u, dtype, ELEMENTS * a.in.C * part * s.made));
      }
    }
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      void* const own = at(s.own, dtype, thread * s.each);
      void* const v = at(own, dtype, s.u_size);
      void* const rest = at(v, dtype, s.v_size);
      const int64_t begin = thread * units / threads, end = (thread + 1) * units / threads;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i / blocks, block = i % blocks, from = part * s.made;
        if (s.few && (i == begin || !block)) transform(part, own);
        void* const here = s.few ? at(v, dtype, block * v_each) : v;
        if (!s.few || i - begin < blocks) k.input(a, block, x, here, rest);
        const void* u = s.few ? own : at(s.u, dtype, ELEMENTS * a.in.C * from);
        if (!k.fwd(a, block, here, u, bias, y, from, std::min(from + s.made, a.out.C), rest)) finite = false;
      }
    }
  }
  return finite;
}

bool winograd_bwd_weight(int dtype, const Winograd& a, const void* dz, const void* x, void* dw, void* scratch,
                         int threads) {
  const WinogradKernels& k = winograd(dtype);
  const Backward s(a, ITEM[dtype], scratch, threads);
  const int64_t in = ceil_div(a.in.C, STRIP), out = ceil_div(a.out.C, STRIP), blocks = a.blocks();
  std::atomic<bool> finite{true};
  const auto before = [&](int64_t first, int64_t block) {  // tiles of a chunk before a block's
    int64_t tiles = 0;
    for (int64_t b = first; b < block; ++b) tiles += WinogradBlock(a, b).tiles();
    return tiles;
  };
  const auto spread = [&](int64_t first, int64_t here) {  // by all threads
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      void* const own = at(s.own, dtype, thread * s.each);
      const int64_t items = here * (in + out);
      for (int64_t i = thread * items / threads; i < (thread + 1) * items / threads; ++i) {
        const int64_t block = first + i / (in + out), part = i % (in + out), tile = before(first, block);
        if (part < in) k.spread(a, true, block, part * STRIP, x, s.v, tile, s.tiles, own);
        else k.spread(a, false, block, (part - in) * STRIP, dz, s.d, tile, s.tiles, own);
      }
    }
  };
#pragma omp parallel num_threads(threads)
  for (int64_t from = 0; from < a.out.C; from += s.made) {
    const int64_t to = std::min(from + s.made, a.out.C);
    for (int64_t first = 0; first < blocks; first += s.blocks) {
      const int64_t here = std::min(s.blocks, blocks - first), used = before(first, first + here);
      if (!from) spread(first, here);  // several parts are of the same tiles
#pragma omp for schedule(static)
      for (int64_t i = 0; i < ELEMENTS * in; ++i)
        k.gather(a, i / in, i % in * STRIP, from, to, s.d, s.v, s.du, used, s.tiles, first > 0);
    }
#pragma omp for schedule(static)
    for (int64_t o = from; o < to; ++o)
      if (!k.finish(a, o, from, to, s.du, dw)) finite = false;
  }
  return finite;
}

}  // namespace kernelzoo
