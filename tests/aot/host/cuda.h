// Enough of CUDA on the host to run a kernel: every thread of a grid is a fiber, and a fiber runs until it waits for
// others, at a barrier of its block or warp or for another block. One system thread, so that every run is the same.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

namespace host {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t word[32];
  unsigned int a[32][4], b[32][2];
};

struct Block {
  uint3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<uint4> memory;
};

struct Thread {
  ucontext_t context;
  uint3 index;
  Block* block;
  bool done = false;
  std::unique_ptr<char[]> stack;
};

inline Thread* current;
inline ucontext_t scheduler;
inline dim3 grid, block_size;
inline std::function<void()> body;

inline void yield() { swapcontext(&current->context, &scheduler); }

inline void wait(Barrier& barrier, int all) {
  int generation = barrier.generation;
  if (++barrier.arrived == all) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline int lane() { return static_cast<int>(current->index.x % 32); }
inline Warp& warp() { return current->block->warps[current->index.x / 32]; }

inline void start() {
  body();
  current->done = true;
  yield();
}

// All blocks at once where they wait for each other, else one after the other.
inline void run(dim3 blocks, dim3 threads, size_t bytes, bool together, std::function<void()> kernel) {
  grid = blocks, block_size = threads, body = std::move(kernel);
  std::vector<Block> all(blocks.x * blocks.y);
  for (unsigned int i = 0; i < all.size(); ++i) {
    all[i].index = {i % blocks.x, i / blocks.x, 0};
    all[i].warps.resize(threads.x / 32);
    all[i].memory.assign((bytes + 15) / 16, uint4{0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0});  // NaN
  }
  size_t step = together ? all.size() : 1;
  constexpr size_t STACK = 64 << 10;
  for (size_t first = 0; first < all.size(); first += step) {
    std::vector<Thread> fibers(step * threads.x);
    for (size_t i = 0; i < fibers.size(); ++i) {
      Thread& t = fibers[i];
      t.block = &all[first + i / threads.x];
      t.index = {static_cast<unsigned int>(i % threads.x), 0, 0};
      t.stack = std::make_unique<char[]>(STACK);
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = t.stack.get();
      t.context.uc_stack.ss_size = STACK;
      t.context.uc_link = nullptr;
      makecontext(&t.context, start, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (Thread& t : fibers) {
        if (t.done) continue;
        current = &t;
        swapcontext(&scheduler, &t.context);
        left = left || !t.done;
      }
    }
  }
}

}  // namespace host

#define __launch_bounds__(...)
#define threadIdx (host::current->index)
#define blockIdx (host::current->block->index)
#define gridDim (host::grid)
#define blockDim (host::block_size)
#define __syncthreads() host::wait(host::current->block->barrier, static_cast<int>(host::block_size.x))

inline double __longlong_as_double(long long v) { double d; std::memcpy(&d, &v, 8); return d; }
inline long long __double_as_longlong(double v) { long long d; std::memcpy(&d, &v, 8); return d; }
inline float __uint_as_float(unsigned int v) { float d; std::memcpy(&d, &v, 4); return d; }
inline unsigned int __float_as_uint(float v) { unsigned int d; std::memcpy(&d, &v, 4); return d; }

template <typename T>
T __ldcg(const T* ptr) { return *ptr; }

template <typename T>
T __shfl_xor_sync(unsigned int, T value, int off) {
  host::Warp& w = host::warp();
  std::memcpy(&w.word[host::lane()], &value, sizeof(T));
  host::wait(w.barrier, 32);
  std::memcpy(&value, &w.word[host::lane() ^ off], sizeof(T));
  host::wait(w.barrier, 32);
  return value;
}

namespace kz {

inline uint4* block_memory() { return host::current->block->memory.data(); }
inline void arrive(unsigned int* counter) { ++*counter; }
inline unsigned int arrived(const unsigned int* counter) {
  host::yield();
  return *counter;
}

inline void prefetch(const void*) {}

inline float widened(unsigned short bits, __nv_bfloat16*) { return __uint_as_float(static_cast<unsigned int>(bits) << 16); }
inline float widened(unsigned short bits, __half*) { return __half2float(__ushort_as_half(bits)); }

// mma.sync.m16n8k16 row.col, by the fragments' layout in the PTX manual: register r of thread 4 group + quad holds
// A[group + 8 (r % 2)][2 quad + 8 (r / 2) + (0, 1)], B[2 quad + 8 r + (0, 1)][group], C[group + 8 (r / 2)][2 quad + r % 2].
template <typename S>
void mma(float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, S* kind) {
  host::Warp& w = host::warp();
  int me = host::lane();
  std::memcpy(w.a[me], a, sizeof(a));
  w.b[me][0] = b0, w.b[me][1] = b1;
  host::wait(w.barrier, 32);
  auto half = [&](unsigned int word, int k) { return widened(static_cast<unsigned short>(word >> (k % 2 * 16)), kind); };
  for (int r = 0; r < 4; ++r) {
    int m = me / 4 + 8 * (r / 2), n = 2 * (me % 4) + r % 2;
    for (int k = 0; k < 16; ++k) {
      int quad = k % 8 / 2, high = k / 8;
      c[r] += half(w.a[m % 8 * 4 + quad][m / 8 + 2 * high], k) * half(w.b[n * 4 + quad][high], k);
    }
  }
  host::wait(w.barrier, 32);
}

}  // namespace kz
