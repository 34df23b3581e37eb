#include "rnn.h"

#include <algorithm>
#include <atomic>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kernelzoo {

// Arrivals are counted and never reset: a thread may go on once its phase's are complete.
struct alignas(64) RnnBarrier {
  std::atomic<int64_t> arrived{0};
  int64_t team = 1;
};

namespace {

// Looks at the count before the core is offered to others: some 100 us, longer than threads of a step's equal shares
// wait for each other where each has a core.
constexpr int SPINS = 4000;
// Products of a step below which a second thread costs more than it saves.
constexpr int64_t SERIAL_STEP = 32768;

inline void pause() {
#if KERNELZOO_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int entry(int dtype) {
#if KERNELZOO_X86
  static const bool dot = __builtin_cpu_supports("avx512bf16");
  if (dtype == BF16 && dot) return RNN_BF16_DOT;
#endif
  return dtype;
}

void run(const RnnKernels& k, Rnn& a, int threads) {
  const int64_t gates = a.mode == RNN_LSTM ? 4 : a.mode == RNN_GRU ? 3 : 1;
  const bool shared = a.R / std::max<int64_t>(1, a.T) * gates * a.H * a.P / a.heads >= SERIAL_STEP;
  RnnBarrier barrier;
  a.barrier = &barrier;
#pragma omp parallel num_threads(threads) if (threads > 1 && shared)
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
#else
    const int64_t thread = 0, team = 1;
#endif
#pragma omp single
    barrier.team = team;
    k.run(a, thread, team);
  }
}

}  // namespace

void rnn_wait(RnnBarrier& barrier, int64_t& phase) {
  const int64_t all = ++phase * barrier.team;
  if (barrier.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 >= all) return;
  for (int i = 0; i < SPINS; ++i) {
    if (barrier.arrived.load(std::memory_order_acquire) >= all) return;
    pause();
  }
  while (barrier.arrived.load(std::memory_order_acquire) < all) std::this_thread::yield();
}

int64_t rnn_size(int dtype, const Rnn& a, bool backward) {
  return (backward ? rnn_backward(entry(dtype)) : rnn_forward(entry(dtype))).size(a);
}

void rnn_fwd(int dtype, Rnn a, int threads) { run(rnn_forward(entry(dtype)), a, threads); }
void rnn_bwd(int dtype, Rnn a, int threads) { run(rnn_backward(entry(dtype)), a, threads); }

}  // namespace kernelzoo
