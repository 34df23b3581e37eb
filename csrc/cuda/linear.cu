// What surrounds the GEMM of linear + activation: bias and activation in place, and the backward pass over
// dy that applies the derivative and sums the bias gradient.
//
// Both own columns: a block of tx x ty threads covers tx vectors of columns and walks down rows ty at a
// time, so a thread reads its bias once and keeps its column sums in registers.
#include <stdexcept>

#include "vec.cuh"

namespace kz {
namespace {

struct Tile {
  int tx, ty;
  int64_t col_blocks;
  Tile(int64_t N, int vec) {
    tx = pow2_ceil(ceil_div(N, vec), 32);
    ty = THREADS / tx;
    col_blocks = ceil_div(N, static_cast<int64_t>(tx) * vec);
  }
};

// All of a thread's loads are in flight before the first use, but the arithmetic takes 4 elements at a time:
// 16 at once take 118 registers on sm_90a, so 2 blocks a multiprocessor instead of 3, or spill.
template <int VEC>
constexpr int PART = VEC < 4 ? VEC : 4;

// z = act(z + b) in place; grid: col_blocks fastest, then row blocks; UNROLL rows a thread in flight.
template <typename S, int VEC, int UNROLL>
__global__ __launch_bounds__(THREADS) void _bias_act_fwd_kernel(
    S* z_ptr, const S* b_ptr, int64_t M, int64_t N, int64_t stride_bn, int64_t col_blocks, Act act,
    AccOf<S> p0, AccOf<S> p1) {
  using T = AccOf<S>;
  int64_t pid_n = blockIdx.x % col_blocks, pid_m = blockIdx.x / col_blocks;
  int64_t row_blocks = gridDim.x / col_blocks;
  int64_t col = (pid_n * blockDim.x + threadIdx.x) * VEC;
  T b[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j)
    b[j] = col + j < N ? Storage<S>::decode(reinterpret_cast<const typename Storage<S>::Bits*>(
                             b_ptr)[(col + j) * stride_bn])
                       : T(0);
  int64_t step = static_cast<int64_t>(blockDim.y) * UNROLL;
  for (int64_t row = pid_m * step + threadIdx.y; row < M; row += row_blocks * step) {
    Raw<S, VEC> raw[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int64_t r = row + u * blockDim.y;
      raw[u].load(z_ptr + r * N + col, r < M ? N - col : 0);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int64_t r = row + u * blockDim.y;
#pragma unroll
      for (int from = 0; from < VEC; from += PART<VEC>) {
        T v[PART<VEC>];
        raw[u].decode(v, from);
#pragma unroll
        for (int j = 0; j < PART<VEC>; ++j) v[j] += b[from + j];
        apply_value<CalcOf<S>>(act, v, p0, p1);
        raw[u].encode(v, from);
      }
      raw[u].store(z_ptr + r * N + col, r < M ? N - col : 0);
    }
  }
}

// dz = dy * act'(saved), stored where dz_ptr is given; partial[pid_m] = sum of dz over this block's rows,
// where partial_ptr is given. No atomics: the sums of a run are those of the next.
template <typename S, int VEC, int UNROLL>
__global__ __launch_bounds__(THREADS) void _bias_act_bwd_kernel(
    const S* dy_ptr, const S* saved_ptr, S* dz_ptr, AccOf<S>* partial_ptr, int64_t M, int64_t N,
    int64_t stride_dym, int64_t col_blocks, Act act, AccOf<S> p0, AccOf<S> p1) {
  using T = AccOf<S>;
  int64_t pid_n = blockIdx.x % col_blocks, pid_m = blockIdx.x / col_blocks;
  int64_t row_blocks = gridDim.x / col_blocks;
  int64_t col = (pid_n * blockDim.x + threadIdx.x) * VEC;
  T acc[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j) acc[j] = T(0);

  int64_t step = static_cast<int64_t>(blockDim.y) * UNROLL;
  for (int64_t row = pid_m * step + threadIdx.y; row < M; row += row_blocks * step) {
    Raw<S, VEC> raw_dy[UNROLL], raw_s[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int64_t r = row + u * blockDim.y;
      int64_t left = r < M ? N - col : 0;
      raw_dy[u].load(dy_ptr + r * stride_dym + col, left);
      raw_s[u].load(saved_ptr + r * N + col, saved_ptr ? left : 0);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int64_t r = row + u * blockDim.y;
#pragma unroll
      for (int from = 0; from < VEC; from += PART<VEC>) {
        T dz[PART<VEC>], s[PART<VEC>];
        raw_dy[u].decode(dz, from);
        raw_s[u].decode(s, from);
        apply_grad<CalcOf<S>>(act, dz, s, p0, p1);
        if (r < M) {  // a row past the end was read as 0, whose slope may be inf (p0): keep it out of the sum
#pragma unroll
          for (int j = 0; j < PART<VEC>; ++j) acc[from + j] += dz[j];
        }
        raw_dy[u].encode(dz, from);
      }
      if (dz_ptr) raw_dy[u].store(dz_ptr + r * N + col, r < M ? N - col : 0);
    }
  }
  if (!partial_ptr) return;

  __shared__ T sums[THREADS * VEC];  // (ty, VEC, tx): neighbouring threads use neighbouring banks
  int me = threadIdx.y * blockDim.x * VEC + threadIdx.x;
#pragma unroll
  for (int j = 0; j < VEC; ++j) sums[me + j * blockDim.x] = acc[j];
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        sums[me + j * blockDim.x] += sums[me + j * blockDim.x + half * blockDim.x * VEC];
    }
  }
  if (threadIdx.y == 0) {
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      if (col + j < N) partial_ptr[pid_m * N + col + j] = sums[me + j * blockDim.x];
  }
}

// db[n] = sum over parts of partial[part, n], blocks of 32 columns x 8 parts at a time, in a fixed order.
template <typename S>
__global__ __launch_bounds__(THREADS) void _sum_parts_kernel(const AccOf<S>* partial_ptr, S* db_ptr,
                                                             int64_t N, int64_t parts) {
  using T = AccOf<S>;
  int64_t col = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  T acc = T(0);
  if (col < N)
    for (int64_t part = threadIdx.y; part < parts; part += 8) acc += partial_ptr[part * N + col];
  __shared__ T sums[8][32];
  sums[threadIdx.y][threadIdx.x] = acc;
  __syncthreads();
  if (threadIdx.y == 0 && col < N) {
#pragma unroll
    for (int i = 1; i < 8; ++i) acc += sums[i][threadIdx.x];
    reinterpret_cast<typename Storage<S>::Bits*>(db_ptr)[col] = Storage<S>::encode(acc);
  }
}

constexpr int UNROLL = 2;

// 1024 blocks of 256 threads: 6 to 8 for each of an H200's or B200's 132 to 148 multiprocessors. It depends
// on the shape alone, so the bias gradient has the same bits on every device.
int64_t row_blocks_of(int64_t M, const Tile& tile, int64_t most_blocks) {
  int64_t all = ceil_div(M, static_cast<int64_t>(tile.ty) * UNROLL);
  int64_t most = most_blocks / tile.col_blocks;
  return most < 1 ? 1 : (all < most ? all : most);
}

unsigned int grid_of(const Tile& tile, int64_t row_blocks) {
  int64_t blocks = tile.col_blocks * row_blocks;
  if (blocks > INT32_MAX) throw std::runtime_error("linear: too many columns for one launch");
  return static_cast<unsigned int>(blocks);
}

}  // namespace

void bias_act_fwd(void* z, const void* b, int64_t stride_bn, int64_t M, int64_t N, Dtype dtype, Act act,
                  double p0, double p1, Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    auto launch = [&](auto kernel, int vec) {
      Tile tile(N, vec);
      unsigned int grid = grid_of(tile, row_blocks_of(M, tile, 4096));
      kernel<<<grid, dim3(tile.tx, tile.ty), 0, stream>>>(static_cast<S*>(z), static_cast<const S*>(b), M, N,
                                                          stride_bn, tile.col_blocks, act, AccOf<S>(p0),
                                                          AccOf<S>(p1));
    };
    constexpr int V = VEC16<S>;
    if (N % V == 0 && aligned16(z)) {
      launch(_bias_act_fwd_kernel<S, V, UNROLL>, V);
    } else {
      launch(_bias_act_fwd_kernel<S, 1, UNROLL>, 1);
    }
    check_launch("bias_act_fwd");
  });
}

// The vector kernel's blocks are wider, so its parts are the more: an upper bound for both.
int64_t bias_act_bwd_parts(int64_t M, int64_t N, Dtype dtype) {
  int64_t parts = 0;
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    int64_t vec = row_blocks_of(M, Tile(N, VEC16<S>), 1024), one = row_blocks_of(M, Tile(N, 1), 1024);
    parts = vec > one ? vec : one;
  });
  return parts;
}

void bias_act_bwd(const void* dy, int64_t stride_dym, const void* saved, void* dz, void* db, void* partial,
                  int64_t M, int64_t N, Dtype dtype, Act act, double p0, double p1, Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    auto* sums = static_cast<AccOf<S>*>(db ? partial : nullptr);
    auto launch = [&](auto kernel, int vec) {
      Tile tile(N, vec);
      int64_t row_blocks = row_blocks_of(M, tile, 1024);
      kernel<<<grid_of(tile, row_blocks), dim3(tile.tx, tile.ty), 0, stream>>>(
          static_cast<const S*>(dy), static_cast<const S*>(saved), static_cast<S*>(dz), sums, M, N,
          stride_dym, tile.col_blocks, act, AccOf<S>(p0), AccOf<S>(p1));
      check_launch("bias_act_bwd");
      if (!db) return;
      _sum_parts_kernel<S><<<grid_of(Tile(N, 1), 1), dim3(32, 8), 0, stream>>>(sums, static_cast<S*>(db), N,
                                                                              row_blocks);
      check_launch("bias_act_bwd: sum of parts");
    };
    constexpr int V = VEC16<S>;
    bool vector = N % V == 0 && stride_dym % V == 0 && aligned16(dy) && aligned16(saved) && aligned16(dz);
    if (vector) {
      launch(_bias_act_bwd_kernel<S, V, UNROLL>, V);
    } else {
      launch(_bias_act_bwd_kernel<S, 1, UNROLL>, 1);
    }
  });
}

}  // namespace kz
