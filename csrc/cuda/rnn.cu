// Recurrent layers (LSTM, GRU, RNN): all steps in one cooperative launch while the recurrent weight fits the chip's
// shared memory, each block keeping its units' columns of it from the first step to the last; else a launch a step.
//
// The blocks meet once a step: h (backward: the gates' gradients) of the step is in global memory then, and L2 hands
// it to all of them. Formula, layouts and names are those of ops/rnn.py and rnn.h.
#include "rnn.h"

#include <stdexcept>
#include <string>

#include "rnn_product.cuh"

namespace kz {
namespace {

#ifdef __CUDACC__
__device__ uint4* block_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

__device__ void arrive(unsigned int* counter) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ unsigned int arrived(const unsigned int* counter) {
  unsigned int n;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
  return n;
}

__device__ void prefetch(const void* ptr) { asm volatile("prefetch.global.L2 [%0];" ::"l"(ptr)); }
#endif

// Waits until all blocks have called it `times` times; what they stored before is visible past L1 after.
__device__ void meet(unsigned int* counter, int64_t times) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive(counter);
    auto wanted = static_cast<unsigned int>(times * gridDim.x * gridDim.y);
    while (static_cast<int>(arrived(counter) - wanted) < 0) {
    }
  }
  __syncthreads();
}

struct Span {
  int64_t row, n;
};

// The rows of step i in the layer's own order; none before the first and after the last.
__device__ Span span(const Rnn& r, int64_t i) {
  if (i < 0 || i >= r.T) return {0, 0};
  int64_t t = r.reverse ? r.T - 1 - i : i;
  if (!r.offsets) return {t * r.B, r.B};
  auto offsets = static_cast<const int64_t*>(r.offsets);
  return {offsets[t], offsets[t + 1] - offsets[t]};
}

template <typename S>
__device__ AccOf<S> get(const void* ptr, int64_t i) {
  using Bits = typename Storage<S>::Bits;
  return Storage<S>::decode(__ldcg(static_cast<const Bits*>(ptr) + i));
}

template <typename S>
__device__ void put(void* ptr, int64_t i, AccOf<S> value) {
  static_cast<typename Storage<S>::Bits*>(ptr)[i] = Storage<S>::encode(value);
}

// Asks L2 for `count` values `step` apart: what the next step will want of memory, while the blocks still meet.
template <typename S>
__device__ void ask(const void* ptr, int64_t i, int count, int64_t step) {
  for (int k = 0; ptr && k < count; ++k) prefetch(static_cast<const S*>(ptr) + i + k * step);
}

// How the work is cut: a block has `units` units of all gates, and every gridDim.y-th tile of rows.
struct Cut {
  int units, held;  // held: w stays in shared memory
};

template <typename S, int MT>
struct Memory {
  uint4* w;
  AccOf<S>*parts, *sums;

  // bytes of a block, of N columns and K terms
  static int64_t bytes(int N, int64_t K, bool held) {
    int64_t sums = WARPS * MT * ROWS * PASS + MT * ROWS * N;
    return (held ? Right<S>::vectors(K) * Right<S>::stride(N) * 16 : 0) + sums * sizeof(AccOf<S>);
  }
  __device__ Memory(int N, int64_t K, bool held) {
    w = block_memory();
    parts = reinterpret_cast<AccOf<S>*>(w + (held ? Right<S>::vectors(K) * Right<S>::stride(N) : 0));
    sums = parts + WARPS * MT * ROWS * PASS;
  }
};

KZ_FN int gates_of(RnnMode mode) { return mode == RnnMode::lstm ? 4 : mode == RnnMode::gru ? 3 : 1; }

// h_t and c_t of row b, unit j; gh: the unit's recurrent sums, one gate `stride` after the other.
template <typename S>
__device__ void cell_fwd(const Rnn& r, Span here, Span before, Span after, int64_t b, int64_t j, const AccOf<S>* gh,
                         int stride) {
  using T = AccOf<S>;
  using C = CalcOf<S>;
  int64_t H = r.H, row = here.row + b, G = gates_of(r.mode), x = row * G * H + j, own = b * H + j;
  T h;
  T old = 0;
  if (r.zone_h || r.mode == RnnMode::gru)
    old = b < before.n ? get<S>(r.out, (before.row + b) * H + j) : get<S>(r.h0, own);
  if (r.mode == RnnMode::lstm) {
    T c = static_cast<T*>(r.c)[own];
    T i = get<S>(r.gx, x) + gh[0], f = get<S>(r.gx, x + H) + gh[stride];
    if (r.peephole) i += get<S>(r.peephole, j) * c, f += get<S>(r.peephole, j + H) * c;
    i = sigmoid<C>(i), f = sigmoid<C>(f);
    T g = C::tanh(get<S>(r.gx, x + 2 * H) + gh[2 * stride]);
    T cell = f * c + i * g;
    T o = get<S>(r.gx, x + 3 * H) + gh[3 * stride];
    if (r.peephole) o += get<S>(r.peephole, j + 2 * H) * cell;
    o = sigmoid<C>(o);
    if (r.gates) put<S>(r.gates, x, i), put<S>(r.gates, x + H, f), put<S>(r.gates, x + 2 * H, g), put<S>(r.gates, x + 3 * H, o);
    h = o * C::tanh(cell);
    if (r.zone_c) {
      T zone = get<S>(r.zone_c, row * H + j);
      cell = zone * c + (T(1) - zone) * cell;
    }
    static_cast<T*>(r.c)[own] = cell;
    if (r.cells) static_cast<T*>(r.cells)[row * H + j] = cell;
  } else if (r.mode == RnnMode::gru) {
    T reset = sigmoid<C>(get<S>(r.gx, x) + gh[0]), z = sigmoid<C>(get<S>(r.gx, x + H) + gh[stride]);
    T gh_n = gh[2 * stride] + (r.b_hn ? get<S>(r.b_hn, j) : T(0));
    T n = C::tanh(get<S>(r.gx, x + 2 * H) + reset * gh_n);
    if (r.gates) {
      put<S>(r.gates, x, reset), put<S>(r.gates, x + H, z), put<S>(r.gates, x + 2 * H, n);
      put<S>(r.gh, row * H + j, gh_n);
    }
    h = n + z * (old - n);
  } else {
    T sum = get<S>(r.gx, x) + gh[0];
    h = r.mode == RnnMode::rnn_tanh ? C::tanh(sum) : (sum <= T(0) ? T(0) : sum);
    if (r.gates) put<S>(r.gates, row * H + j, h);
  }
  if (r.zone_h) {
    T zone = get<S>(r.zone_h, row * H + j);
    h = zone * old + (T(1) - zone) * h;
  }
  put<S>(r.out, row * H + j, h);
  if (b >= after.n) put<S>(r.hn, own, h);
}

// Gradients of row b, unit j; dh_next: what reaches h_t through the recurrent weight. dh and dc carry what goes
// straight from step to step. A row that has no step here has ended, and its dh is dh0's.
template <typename S>
__device__ void cell_bwd(const Rnn& r, Span here, Span before, int64_t b, int64_t j, AccOf<S> dh_next) {
  using T = AccOf<S>;
  using C = CalcOf<S>;
  int64_t H = r.H, row = here.row + b, G = gates_of(r.mode), x = row * G * H + j, own = b * H + j;
  if (r.h_mask) dh_next *= get<S>(r.h_mask, own);
  T dh = static_cast<T*>(r.dh)[own] + dh_next;
  if (b >= here.n) {
    put<S>(r.dh0, own, dh);
    return;
  }
  if (r.dout) dh += get<S>(r.dout, row * H + j);
  T on = 0;
  if (r.zone_h) {
    on = get<S>(r.zone_h, row * H + j) * dh;
    dh -= on;
  }
  if (r.mode == RnnMode::lstm) {
    T i = get<S>(r.gates, x), f = get<S>(r.gates, x + H), g = get<S>(r.gates, x + 2 * H), o = get<S>(r.gates, x + 3 * H);
    T c = b < before.n ? static_cast<const T*>(r.cells)[(before.row + b) * H + j] : static_cast<const T*>(r.first_c)[own];
    T cell = r.zone_c ? f * c + i * g : static_cast<const T*>(r.cells)[row * H + j];
    T dcell = static_cast<T*>(r.dc)[own], on_c = 0;
    if (r.zone_c) {
      on_c = get<S>(r.zone_c, row * H + j) * dcell;
      dcell -= on_c;
    }
    T squashed = C::tanh(cell);
    dcell += dh * o * (T(1) - squashed * squashed);
    T d_o = dh * squashed * (T(1) - o) * o;
    if (r.peephole) dcell += get<S>(r.peephole, j + 2 * H) * d_o;
    T d_i = dcell * g * (T(1) - i) * i, d_f = dcell * c * (T(1) - f) * f, d_g = dcell * i * (T(1) - g * g);
    T dc = dcell * f + on_c;
    if (r.peephole) dc += get<S>(r.peephole, j) * d_i + get<S>(r.peephole, j + H) * d_f;
    static_cast<T*>(r.dc)[own] = dc;
    put<S>(r.dgx, x, d_i), put<S>(r.dgx, x + H, d_f), put<S>(r.dgx, x + 2 * H, d_g), put<S>(r.dgx, x + 3 * H, d_o);
  } else if (r.mode == RnnMode::gru) {
    T reset = get<S>(r.gates, x), z = get<S>(r.gates, x + H), n = get<S>(r.gates, x + 2 * H);
    T h = b < before.n ? get<S>(r.out, (before.row + b) * H + j) : get<S>(r.h0, own);
    T d_n = dh * (T(1) - z) * (T(1) - n * n);
    T d_r = d_n * get<S>(r.gh, row * H + j) * (T(1) - reset) * reset, d_z = dh * (h - n) * (T(1) - z) * z;
    on += dh * z;
    put<S>(r.dgx, x, d_r), put<S>(r.dgx, x + H, d_z), put<S>(r.dgx, x + 2 * H, d_n);
    put<S>(r.dgh, x, d_r), put<S>(r.dgh, x + H, d_z), put<S>(r.dgh, x + 2 * H, d_n * reset);
  } else {
    T h = get<S>(r.gates, row * H + j);
    put<S>(r.dgx, x, r.mode == RnnMode::rnn_tanh ? dh * (T(1) - h * h) : (h <= T(0) ? T(0) : dh));
  }
  static_cast<T*>(r.dh)[own] = on;
}

// Steps first ... last - 1, in the layer's order.
template <typename S, int MT>
__global__ __launch_bounds__(THREADS, 1) void _rnn_fwd_kernel(Rnn r, Cut cut, bool wide, int64_t first, int64_t last) {
  int64_t H = r.H, unit = static_cast<int64_t>(blockIdx.x) * cut.units;
  int units = static_cast<int>(H - unit < cut.units ? H - unit : cut.units), N = gates_of(r.mode) * units;
  Memory<S, MT> memory(gates_of(r.mode) * cut.units, H, cut.held);
  Right<S> right{static_cast<const S*>(r.w), cut.held ? memory.w : nullptr, H, unit, H, units, N, wide};
  if (cut.held) right.hold();
  for (int64_t i = first; i < last; ++i) {
    Span here = span(r, i), before = span(r, i - 1), after = span(r, i + 1);
    Left<S> left{static_cast<const S*>(r.out) + before.row * H, static_cast<const S*>(r.h0),
                 static_cast<const S*>(r.h_mask), before.n, here.n, H, wide};
    for (int64_t m0 = blockIdx.y * MT * ROWS; m0 < here.n; m0 += gridDim.y * MT * ROWS) {
      multiply<S, MT>(left, right, m0, memory.parts, memory.sums);
      for (int at = threadIdx.x; at < MT * ROWS * units; at += THREADS) {
        int m = at / units, u = at % units;
        if (m0 + m < here.n) cell_fwd<S>(r, here, before, after, m0 + m, unit + u, memory.sums + m * N + u, units);
      }
      __syncthreads();
    }
    if (i + 1 == last) return;
    for (int64_t at = threadIdx.x + blockIdx.y * THREADS; at < after.n; at += gridDim.y * THREADS)
      ask<S>(r.gx, (after.row + at) * gates_of(r.mode) * H + unit, gates_of(r.mode), H);
    meet(static_cast<unsigned int*>(r.counter), i - first + 1);
  }
}

// Steps first ... last - 1 from the layer's end on; step T is the last: it gives dh0.
template <typename S, int MT>
__global__ __launch_bounds__(THREADS, 1) void _rnn_bwd_kernel(Rnn r, Cut cut, bool wide, int64_t first, int64_t last) {
  int64_t H = r.H, K = gates_of(r.mode) * H, unit = static_cast<int64_t>(blockIdx.x) * cut.units;
  int units = static_cast<int>(H - unit < cut.units ? H - unit : cut.units);
  Memory<S, MT> memory(cut.units, K, cut.held);
  Right<S> right{static_cast<const S*>(r.w), cut.held ? memory.w : nullptr, H, unit, K, units, units, wide};
  if (cut.held) right.hold();
  for (int64_t s = first; s < last; ++s) {
    int64_t i = r.T - 1 - s;
    Span here = span(r, i), before = span(r, i - 1), after = span(r, i + 1);
    Left<S> left{static_cast<const S*>(r.dgh) + after.row * K, nullptr, nullptr, after.n, after.n, K, wide};
    int64_t rows = here.n > after.n ? here.n : after.n;
    for (int64_t m0 = blockIdx.y * MT * ROWS; m0 < rows; m0 += gridDim.y * MT * ROWS) {
      multiply<S, MT>(left, right, m0, memory.parts, memory.sums);
      for (int at = threadIdx.x; at < MT * ROWS * units; at += THREADS) {
        int m = at / units, u = at % units;
        if (m0 + m < rows) cell_bwd<S>(r, here, before, m0 + m, unit + u, memory.sums[m * units + u]);
      }
      __syncthreads();
    }
    if (s + 1 == last) return;
    for (int64_t at = threadIdx.x + blockIdx.y * THREADS; at < before.n; at += gridDim.y * THREADS) {
      ask<S>(r.gates, (before.row + at) * K + unit, gates_of(r.mode), H);
      ask<S>(r.dout, (before.row + at) * H + unit, 1, 0);
    }
    meet(static_cast<unsigned int*>(r.counter), s - first + 1);
  }
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// Most row groups with which all blocks are resident and hold their weights: they share L2's reads of h. units 0:
// there is no such cut.
template <typename S, int MT>
Cut resident_cut(const Rnn& r, int G, int64_t K, int device, int* groups) {
  int sms = attribute(cudaDevAttrMultiProcessorCount, device);
  int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (!attribute(cudaDevAttrCooperativeLaunch, device)) return {0, 0};
  int64_t tiles = ceil_div(r.B, MT * ROWS);
  for (int64_t y = tiles < 8 ? tiles : 8; y > 0; --y) {
    if (sms / y == 0) continue;
    auto units = static_cast<int>(ceil_div(r.H, sms / y));
    if (Memory<S, MT>::bytes(G * units, K, true) <= most) {
      *groups = static_cast<int>(y);
      return {units, 1};
    }
  }
  return {0, 0};
}

template <typename S, int MT>
void launch(void (*entry)(Rnn, Cut, bool, int64_t, int64_t), Rnn r, int G, int64_t K, int64_t steps, Target target) {
  DeviceGuard guard(target.device);
  auto kernel = reinterpret_cast<const void*>(entry);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  bool wide = aligned16(r.w) && aligned16(r.h0) && aligned16(r.out) && aligned16(r.h_mask) && aligned16(r.dgh) &&
              r.H * sizeof(S) % 16 == 0;
  auto run = [&](Cut cut, unsigned int groups, int64_t first, int64_t last) {
    auto bytes = static_cast<size_t>(Memory<S, MT>::bytes(G * cut.units, K, cut.held));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "rnn");
    dim3 grid(static_cast<unsigned int>(ceil_div(r.H, cut.units)), groups), block(THREADS);
    void* args[] = {&r, &cut, &wide, &first, &last};
    return cut.held ? cudaLaunchCooperativeKernel(kernel, grid, block, args, bytes, stream)
                    : cudaLaunchKernel(kernel, grid, block, args, bytes, stream);
  };
  int groups = 1;
  Cut cut = resident_cut<S, MT>(r, G, K, target.device, &groups);
  if (cut.units) {
    cudaError_t status = run(cut, groups, 0, steps);
    if (status != cudaErrorCooperativeLaunchTooLarge) return check(status, "rnn");
    cudaGetLastError();  // other work holds multiprocessors: a launch a step needs none to be free
  }
  int64_t tiles = ceil_div(r.B, MT * ROWS);
  for (int64_t step = 0; step < steps; ++step)
    check(run({8, 0}, static_cast<unsigned int>(tiles < 1024 ? tiles : 1024), step, step + 1), "rnn");
}

// Two tiles of rows share what is read of w in 16 bits.
template <typename F>
void for_tile(Dtype dtype, int64_t B, F f) {
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    if constexpr (sizeof(S) == 2) {
      if (B > ROWS) return f(null, std::integral_constant<int, 2>());
    }
    f(null, std::integral_constant<int, 1>());
  });
}

}  // namespace

void rnn_fwd(const Rnn& r, Dtype dtype, Target target) {
  for_tile(dtype, r.B, [&](auto* null, auto tiles) {
    using S = std::remove_pointer_t<decltype(null)>;
    launch<S, tiles>(_rnn_fwd_kernel<S, tiles>, r, gates_of(r.mode), r.H, r.T, target);
  });
}

void rnn_bwd(const Rnn& r, Dtype dtype, Target target) {
  for_tile(dtype, r.B, [&](auto* null, auto tiles) {
    using S = std::remove_pointer_t<decltype(null)>;
    launch<S, tiles>(_rnn_bwd_kernel<S, tiles>, r, 1, gates_of(r.mode) * r.H, r.T + 1, target);
  });
}

}  // namespace kz
