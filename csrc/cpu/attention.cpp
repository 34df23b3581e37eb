#include "attention.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kernelzoo {
namespace {

// The backward's operands take at most 5 blocks of 192x256 doubles and 2 of 96x256, its tiles 6 of 192x96: 3.2 MB.
constexpr size_t SCRATCH = size_t{4} << 20;
// Tasks that a backward is cut into where there are too few heads, however many threads there are.
constexpr int64_t BWD_TASKS = 32, DECODE_TASKS = 64;
// Bytes of a head's keys and values that leave room for the forward's tiles in L2; and the heads of a thread from which
// the last one's work does not show.
constexpr int64_t HEAD_BYTES = int64_t{256} << 10, HEAD_TASKS = 8;
// Tasks below which what shares a gradient of the bias is split, each part with its own sums of it; and what the slots
// of such pairs may take at once, where that is more than one pair a part.
constexpr int64_t SPLIT_TASKS = 8, WAVE_BYTES = int64_t{4} << 20;
// What the parts' sums of a backward may take.
constexpr int64_t BWD_BYTES = int64_t{256} << 20;

int entry(int dtype) {
#if KERNELZOO_X86
  static const bool dot = __builtin_cpu_supports("avx512bf16");
  if (dtype == BF16 && dot) return BF16_DOT;
#endif
  return dtype;
}

int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Whether the work, in products of D elements, is worth a second thread.
bool shared(const Attention& a) { return a.B * a.H * a.Lq * std::min(a.Lk, a.left + a.right + BLOCK_N) * a.D > 4 * SERIAL; }

}  // namespace

void* attention_scratch() {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> kept(std::aligned_alloc(4096, SCRATCH));
  return kept.get();
}

void attention_fwd(int dtype, const Attention& a, int threads) {
  const AttentionKernels& k = attention(entry(dtype));
  const int64_t blocks = ceil_div(a.Lq, BLOCK_M), heads = a.B * a.H;
  // a task is a whole head where its keys and values stay in the thread's L2 and there are many heads, else a block
  const bool whole = a.Lk * (a.D + a.Dv) * ITEM[dtype] <= HEAD_BYTES && heads >= HEAD_TASKS * threads;
  const int64_t each = whole ? blocks : 1, tasks = heads * blocks / each;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (tasks > 1 && shared(a))
  for (int64_t t = 0; t < tasks; ++t)
    for (int64_t i = t * each; i < (t + 1) * each; ++i) {
      const int64_t head = i / blocks, block = blocks - 1 - i % blocks;  // causal: the longest first
      k.fwd(a, head / a.H, head % a.H, block);
    }
}

int64_t attention_bwd_size(int dtype, Attention& a, int threads) {
  const Sharing share(a, 1);
  const int64_t items = ceil_div(a.Lq, BLOCK_M) * (share.h ? 1 : a.H / a.Hkv), pairs = share.pairs(),
                groups = std::max<int64_t>(1, share.groups), slot = a.Lk * (padded_columns(a.D) + padded_columns(a.Dv));
  a.splits = std::min(pairs, std::max<int64_t>(1, SPLIT_TASKS / (groups * items)));
  const int64_t each = ceil_div(pairs, a.splits), parts = groups * a.splits;
  const int64_t wanted = std::min(ceil_div(BWD_TASKS, parts), pairs > 1 ? items : ceil_div(items, 4));
  const int64_t bytes = std::max<int64_t>(1, parts * slot * (dtype == F64 ? 8 : 4));
  a.chunks = std::max<int64_t>(1, std::min(wanted, BWD_BYTES / bytes));
  a.wave = a.chunks > 1 ? std::max<int64_t>(1, std::min(each, WAVE_BYTES / (bytes * a.chunks))) : each;
  a.strips = slot * (a.chunks > 1 ? parts * a.wave * a.chunks : std::min<int64_t>(parts, threads));
  const Sharing cut(a, a.chunks);
  return a.strips + parts * cut.strips * cut.strip;
}

void attention_bwd(int dtype, const Attention& a, int threads) {
  const AttentionKernels& k = attention(entry(dtype));
  const Sharing share(a, a.chunks);
  const int64_t blocks = ceil_div(a.Lk, BLOCK_N), pairs = share.pairs(), each = ceil_div(pairs, a.splits),
                parts = share.groups * a.splits, tasks = parts * a.chunks;
  // no more than there are slots, of which a thread takes its own where chunks is 1
  const int team = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, tasks)));
  const bool many = shared(a);
  if (a.dbias) {
    const int64_t size = share.strip * (dtype == F64 ? 8 : 4);
    char* strips = static_cast<char*>(a.acc) + a.strips * (dtype == F64 ? 8 : 4);
#pragma omp parallel for num_threads(threads) if (many)
    for (int64_t t = 0; t < parts * share.strips; ++t) std::memset(strips + t * size, 0, size);
  }
  for (int64_t first = 0; first < each; first += a.wave) {
    // calls `use` with the pairs of a part, and their place in the wave
    const auto in_wave = [&](int64_t part, int64_t u, const auto& use) {
      const int64_t group = part / a.splits, pair = part % a.splits * each + first + u, apart = a.Hkv / share.heads;
      if (first + u < each && pair < pairs)
        use(group / apart + pair / share.heads, group % apart + pair % share.heads, (part * a.wave + u) * a.chunks);
    };
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (tasks > 1 && many)
    for (int64_t t = 0; t < tasks; ++t) {
      const int64_t part = t / a.chunks, chunk = t % a.chunks;
      for (int64_t u = 0; u < a.wave; ++u)
        in_wave(part, u, [&](int64_t b, int64_t hk, int64_t slot) {
          k.bwd(a, b, hk, chunk, a.chunks > 1 ? slot + chunk : thread(), part);
          if (a.chunks == 1)
            for (int64_t block = 0; block < blocks; ++block) k.bwd_sum(a, b, hk, block, thread(), 1);
        });
    }
    if (a.chunks > 1 && (a.dk.p || a.dv.p)) {
#pragma omp parallel for num_threads(threads)
      for (int64_t t = 0; t < parts * a.wave * blocks; ++t)
        in_wave(t / blocks / a.wave, t / blocks % a.wave, [&](int64_t b, int64_t hk, int64_t slot) {
          k.bwd_sum(a, b, hk, t % blocks, slot, a.chunks);
        });
    }
  }
  if (a.dbias) {
    const int64_t* shape = a.dbias_shape;
    const int64_t rows = ceil_div(shape[2], BLOCK_M), columns = ceil_div(shape[3], BLOCK_N);
#pragma omp parallel for num_threads(threads) if (many)
    for (int64_t t = 0; t < shape[0] * shape[1] * rows * columns; ++t) {
      const int64_t row = t / columns, head = row / rows;
      k.bwd_bias(a, head / shape[1], head % shape[1], row % rows, t % columns);
    }
  }
}

int64_t attention_decode_size(Attention& a) {
  const int64_t longest = a.B ? *std::max_element(a.lengths, a.lengths + a.B) : 0;
  const int64_t heads = a.B * a.Hkv, most = std::max<int64_t>(1, std::min(longest, a.Lk));
  a.part = std::max(PART, ceil_div(ceil_div(most * heads, DECODE_TASKS), BLOCK_N) * BLOCK_N);
  a.parts = ceil_div(most, a.part);
  return a.B * a.H * a.Lq * a.parts * (padded_columns(a.Dv) + 2);
}

void attention_decode(int dtype, const Attention& a, int threads) {
  const AttentionKernels& k = attention(entry(dtype));
  const int64_t heads = a.B * a.Hkv;
  const bool many = shared(a);
#pragma omp parallel num_threads(threads) if (many)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < heads * a.parts; ++t) {
      const int64_t head = t / a.parts;
      k.decode(a, head / a.Hkv, head % a.Hkv, t % a.parts);
    }
#pragma omp for
    for (int64_t head = 0; head < heads; ++head) k.decode_sum(a, head / a.Hkv, head % a.Hkv);
  }
}

}  // namespace kernelzoo
