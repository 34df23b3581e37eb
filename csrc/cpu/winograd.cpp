#include "winograd.h"

#include <algorithm>
#include <atomic>

namespace kernelzoo {
namespace {

// Bytes of the transformed tiles that the weight gradient's products go through at once, of x and dy together.
constexpr int64_t CHUNK = 4 << 20;

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

// Channels of y that one unit of work makes: all, or fewer where there are few blocks, or where a block's sums would
// leave the near cache.
int64_t share(const Winograd& a, int64_t threads) {
  constexpr int64_t MOST = 256;
  const int64_t panels = ceil_div(a.out.C, PANEL), wanted = ceil_div(2 * threads, a.blocks());
  const int64_t parts = std::clamp(wanted, ceil_div(a.out.C, MOST), panels);
  return ceil_div(panels, parts) * PANEL;
}

struct Forward {
  void *u, *own;
  int64_t made, each, bytes;  // channels of a unit, T of a thread's own

  Forward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    made = share(a, threads);
    u = arena.take(ELEMENTS * a.in.C * a.out.C);
    each = round_up(a.staged() + ELEMENTS * (a.plane(a.tiles(), a.in.C) + a.plane(a.tiles(), made)), 64);
    own = arena.take(each * threads);
    bytes = arena.used;
  }
};

struct Backward {
  void *du, *d, *v, *own;
  int64_t blocks, tiles, each, bytes;  // blocks and tiles of a chunk

  Backward(const Winograd& a, int64_t item, void* scratch, int threads) {
    Arena arena{static_cast<char*>(scratch), item};
    const int64_t tile = ELEMENTS * (a.in.C + a.out.C) * item;
    blocks = std::clamp<int64_t>(CHUNK / (tile * a.tiles()), 1, a.blocks());
    tiles = blocks * a.tiles();
    du = arena.take(ELEMENTS * a.in.C * a.out.C);
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
  const int64_t rows = f.rows / CHANNELS, squares = rows * (f.columns / CHANNELS);
  const int64_t blocks = a.blocks(), parts = ceil_div(a.out.C, s.made);
  std::atomic<bool> finite{true};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < squares; ++i) k.filter(f, i % rows * CHANNELS, i / rows * CHANNELS, s.u);
    // each thread's own, by the order of its units: a unit's place in scratch says nothing about its result
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      void* const own = at(s.own, dtype, thread * s.each);
      for (int64_t i = thread * blocks * parts / threads; i < (thread + 1) * blocks * parts / threads; ++i) {
        const int64_t from = i / blocks * s.made, to = std::min(from + s.made, a.out.C);
        if (!k.fwd(a, i % blocks, x, s.u, bias, y, from, to, own)) finite = false;
      }
    }
  }
  return finite;
}

bool winograd_bwd_weight(int dtype, const Winograd& a, const void* dz, const void* x, void* dw, void* scratch,
                         int threads) {
  const WinogradKernels& k = winograd(dtype);
  const Backward s(a, ITEM[dtype], scratch, threads);
  const int64_t in = ceil_div(a.in.C, PANEL), out = ceil_div(a.out.C, PANEL), blocks = a.blocks();
  std::atomic<bool> finite{true};
#pragma omp parallel num_threads(threads)
  for (int64_t first = 0; first < blocks; first += s.blocks) {
    const int64_t here = std::min(s.blocks, blocks - first);
    const auto before = [&](int64_t block) {  // tiles of the chunk before a block's
      int64_t tiles = 0;
      for (int64_t b = first; b < block; ++b) tiles += WinogradBlock(a, b).tiles();
      return tiles;
    };
    const int64_t used = before(first + here);
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      void* const own = at(s.own, dtype, thread * s.each);
      const int64_t items = here * (in + out);
      for (int64_t i = thread * items / threads; i < (thread + 1) * items / threads; ++i) {
        const int64_t block = first + i / (in + out), panel = i % (in + out), tile = before(block);
        if (panel < in) k.spread(a, true, block, panel * PANEL, x, s.v, tile, s.tiles, own);
        else k.spread(a, false, block, (panel - in) * PANEL, dz, s.d, tile, s.tiles, own);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < ELEMENTS * in; ++i)
      k.gather(a, i / in, i % in * PANEL, s.d, s.v, s.du, used, s.tiles, first > 0);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t o = 0; o < a.out.C; ++o)
    if (!k.finish(a, o, s.du, dw)) finite = false;
  return finite;
}

}  // namespace kernelzoo
