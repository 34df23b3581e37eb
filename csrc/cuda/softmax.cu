// softmax and log_softmax over the middle of (outer, n, inner), forward and backward.
//
// inner == 1: one group of threads a row, up to a warp for n <= 1024, a block beyond. The row is read from
// device memory once: each thread keeps what it loaded in shared memory, where it fits, and finds it in L2
// where it does not. inner > 1: neighbouring threads take neighbouring inner positions, so that accesses
// coalesce, and the threads of a column share its n.
#include <stdexcept>

#include "vec.cuh"

namespace kz {
namespace {

constexpr int WARP = 32;
constexpr int WARP_ROW = 1024;          // longest row one warp takes
constexpr int ROWS_THREADS = 128;       // a block of such rows
template <typename S>
constexpr int MAX_THREADS = sizeof(S) == 8 ? 512 : 1024;  // a block of one row; fp64 would spill at 1024
constexpr int CACHE_BYTES = 40 * 1024;  // shared memory a block may have without asking for more, less slack

// Running maximum m and sum of exp(x - m). While every x is -inf, m is too and the reference is 0, so that
// exp gives 0; a NaN or +inf makes the sum NaN, hence the whole row, as torch's.
template <typename C>
struct Online {
  using T = typename C::T;
  T m = T(-INFINITY), sum = T(0);

  static __device__ T ref(T m) { return m == T(-INFINITY) ? T(0) : m; }

  // The sum, relative to a maximum `m_new` >= m.
  __device__ T sum_at(T m_new) const { return sum * C::exp(m - ref(m_new)); }

  template <int N>
  __device__ void add(const T (&x)[N]) {
    T m_new = m;
#pragma unroll
    for (int j = 0; j < N; ++j) m_new = x[j] > m_new ? x[j] : m_new;
    sum = sum_at(m_new);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += C::exp(x[j] - ref(m_new));
    m = m_new;
  }
};

struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Every thread of the group gets the reduction over it. A group is `lanes` (a power of two) of a warp, all
// of whose threads must be here, or a block whose warps exchange through `shared`.
template <bool BLOCK, typename T, typename Op>
__device__ T reduce_row(T v, int lanes, T* shared, Op op) {
  for (int step = BLOCK ? WARP / 2 : lanes / 2; step > 0; step /= 2)
    v = op(v, __shfl_xor_sync(0xffffffffu, v, step));
  if constexpr (BLOCK) {
    int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    __syncthreads();  // the values of the reduction before have been read
    if (threadIdx.x % WARP == 0) shared[warp] = v;
    __syncthreads();
    v = shared[0];
    for (int i = 1; i < warps; ++i) v = op(v, shared[i]);
  }
  return v;
}

template <bool BLOCK, typename C>
__device__ void reduce_row(Online<C>& state, int lanes, typename C::T* shared) {
  typename C::T m = reduce_row<BLOCK>(state.m, lanes, shared, Max());
  state.sum = reduce_row<BLOCK>(state.sum_at(m), lanes, shared, Sum());
  state.m = m;
}

// softmax: exp(x - m) / sum; log_softmax: x - m - log(sum)
template <typename C>
__device__ typename C::T softmax_value(typename C::T x, typename C::T m, typename C::T scale, bool log) {
  return log ? x - m - scale : C::exp(x - m) * scale;
}

template <typename C>
__device__ typename C::T softmax_scale(const Online<C>& state, bool log) {
  using T = typename C::T;
  return log ? ::log(state.sum) : T(1) / state.sum;
}

// softmax: y (dy - sum(dy y)); log_softmax: dy - exp(y) sum(dy)
template <typename C>
__device__ typename C::T softmax_grad(typename C::T dy, typename C::T y, typename C::T sum, bool log) {
  return log ? dy - C::exp(y) * sum : y * (dy - sum);
}

// y = softmax(x) on rows of n elements, a multiple of VEC; `lanes` threads a row, VEC elements at a time.
template <typename S, int VEC, bool BLOCK>
__global__ __launch_bounds__(BLOCK ? MAX_THREADS<S> : ROWS_THREADS, BLOCK ? 1 : 4) void
_softmax_rows_fwd_kernel(const S* x_ptr, S* y_ptr, int64_t rows, int64_t n, int lanes, bool log,
                         bool cached) {
  using C = CalcOf<S>;
  using T = AccOf<S>;
  extern __shared__ uint4 cache_bytes[];
  __shared__ T shared[WARP];
  int group = threadIdx.x / lanes, groups = blockDim.x / lanes, lane = threadIdx.x % lanes;
  int64_t vectors = n / VEC;
  auto* cache = reinterpret_cast<Raw<S, VEC>*>(cache_bytes) + group * vectors;

  // the loop's end is that of the block: a warp's groups shuffle together
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < rows;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    int64_t row = first + group;
    int64_t count = row < rows ? vectors : 0;
    const S* x_row = x_ptr + row * n;
    S* y_row = y_ptr + row * n;
    Online<C> state;
#pragma unroll(BLOCK || sizeof(S) == 8 ? 1 : 4)
    for (int64_t i = lane; i < count; i += lanes) {
      Raw<S, VEC> raw;
      T x[VEC];
      raw.load(x_row + i * VEC, VEC);
      if (cached) cache[i] = raw;  // read again by this thread alone: no barrier
      raw.decode(x);
      state.add(x);
    }
    reduce_row<BLOCK>(state, lanes, shared);
    T scale = softmax_scale(state, log);
#pragma unroll 1
    for (int64_t i = lane; i < count; i += lanes) {
      Raw<S, VEC> raw;
      T v[VEC];
      if (cached) {
        raw = cache[i];
      } else {
        raw.load(x_row + i * VEC, VEC);
      }
      raw.decode(v);
#pragma unroll
      for (int j = 0; j < VEC; ++j) v[j] = softmax_value<C>(v[j], state.m, scale, log);
      raw.encode(v);
      raw.store(y_row + i * VEC, VEC);
    }
  }
}

// dx from dy and y, on the same rows and groups; the cache holds dy and y.
template <typename S, int VEC, bool BLOCK>
__global__ __launch_bounds__(BLOCK ? MAX_THREADS<S> : ROWS_THREADS, BLOCK ? 1 : 4) void
_softmax_rows_bwd_kernel(const S* dy_ptr, const S* y_ptr, S* dx_ptr, int64_t rows, int64_t n, int lanes,
                         bool log, bool cached) {
  using C = CalcOf<S>;
  using T = AccOf<S>;
  extern __shared__ uint4 cache_bytes[];
  __shared__ T shared[WARP];
  int group = threadIdx.x / lanes, groups = blockDim.x / lanes, lane = threadIdx.x % lanes;
  int64_t vectors = n / VEC;
  auto* cache = reinterpret_cast<Raw<S, VEC>*>(cache_bytes) + group * vectors * 2;

  // the loop's end is that of the block: a warp's groups shuffle together
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < rows;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    int64_t row = first + group;
    int64_t count = row < rows ? vectors : 0;
    const S* dy_row = dy_ptr + row * n;
    const S* y_row = y_ptr + row * n;
    S* dx_row = dx_ptr + row * n;
    T sum = T(0);
#pragma unroll(BLOCK || sizeof(S) == 8 ? 1 : 2)
    for (int64_t i = lane; i < count; i += lanes) {
      Raw<S, VEC> raw_dy, raw_y;
      T dy[VEC], y[VEC];
      raw_dy.load(dy_row + i * VEC, VEC);
      raw_y.load(y_row + i * VEC, VEC);
      if (cached) cache[i] = raw_dy, cache[vectors + i] = raw_y;
      raw_dy.decode(dy);
      raw_y.decode(y);
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum += log ? dy[j] : dy[j] * y[j];
    }
    sum = reduce_row<BLOCK>(sum, lanes, shared, Sum());
#pragma unroll 1
    for (int64_t i = lane; i < count; i += lanes) {
      Raw<S, VEC> raw_dy, raw_y;
      T dy[VEC], y[VEC];
      if (cached) {
        raw_dy = cache[i], raw_y = cache[vectors + i];
      } else {
        raw_dy.load(dy_row + i * VEC, VEC);
        raw_y.load(y_row + i * VEC, VEC);
      }
      raw_dy.decode(dy);
      raw_y.decode(y);
#pragma unroll
      for (int j = 0; j < VEC; ++j) dy[j] = softmax_grad<C>(dy[j], y[j], sum, log);
      raw_dy.encode(dy);
      raw_dy.store(dx_row + i * VEC, VEC);
    }
  }
}

template <typename S>
__device__ AccOf<S> at(const S* ptr, int64_t i) {
  return Storage<S>::decode(reinterpret_cast<const typename Storage<S>::Bits*>(ptr)[i]);
}

template <typename S>
__device__ void put(S* ptr, int64_t i, AccOf<S> v) {
  reinterpret_cast<typename Storage<S>::Bits*>(ptr)[i] = Storage<S>::encode(v);
}

// y = softmax(x) over n with inner > 1: tx inner positions x ty threads along n.
template <typename S>
__global__ __launch_bounds__(THREADS) void _softmax_inner_fwd_kernel(const S* x_ptr, S* y_ptr, int64_t n,
                                                                     int64_t inner, int64_t inner_blocks,
                                                                     int64_t blocks, bool log) {
  using C = CalcOf<S>;
  using T = AccOf<S>;
  __shared__ T m[THREADS], sum[THREADS];
  int me = threadIdx.y * blockDim.x + threadIdx.x;
  for (int64_t pid = blockIdx.x; pid < blocks; pid += gridDim.x) {
    int64_t col = pid % inner_blocks * blockDim.x + threadIdx.x;
    int64_t base = pid / inner_blocks * n * inner + col;
    int64_t count = col < inner ? n : 0;
    Online<C> state;
#pragma unroll(sizeof(S) == 8 ? 1 : 4)
    for (int64_t i = threadIdx.y; i < count; i += blockDim.y) {
      T x[1] = {at(x_ptr, base + i * inner)};
      state.add(x);
    }
    __syncthreads();  // the last column's values have been read
    m[me] = state.m, sum[me] = state.sum;
    __syncthreads();
    int threads = blockDim.x * blockDim.y;
    for (int i = threadIdx.x; i < threads; i += blockDim.x) state.m = Max()(state.m, m[i]);
    state.sum = T(0);
    for (int i = threadIdx.x; i < threads; i += blockDim.x)
      state.sum += sum[i] * C::exp(m[i] - Online<C>::ref(state.m));
    T scale = softmax_scale(state, log);
    for (int64_t i = threadIdx.y; i < count; i += blockDim.y)
      put(y_ptr, base + i * inner, softmax_value<C>(at(x_ptr, base + i * inner), state.m, scale, log));
  }
}

template <typename S>
__global__ __launch_bounds__(THREADS) void _softmax_inner_bwd_kernel(
    const S* dy_ptr, const S* y_ptr, S* dx_ptr, int64_t n, int64_t inner, int64_t inner_blocks,
    int64_t blocks, bool log) {
  using C = CalcOf<S>;
  using T = AccOf<S>;
  __shared__ T sums[THREADS];
  int me = threadIdx.y * blockDim.x + threadIdx.x;
  for (int64_t pid = blockIdx.x; pid < blocks; pid += gridDim.x) {
    int64_t col = pid % inner_blocks * blockDim.x + threadIdx.x;
    int64_t base = pid / inner_blocks * n * inner + col;
    int64_t count = col < inner ? n : 0;
    T sum = T(0);
#pragma unroll(sizeof(S) == 8 ? 1 : 4)
    for (int64_t i = threadIdx.y; i < count; i += blockDim.y) {
      T dy = at(dy_ptr, base + i * inner);
      sum += log ? dy : dy * at(y_ptr, base + i * inner);
    }
    __syncthreads();
    sums[me] = sum;
    __syncthreads();
    sum = T(0);
    for (int i = threadIdx.x; i < blockDim.x * blockDim.y; i += blockDim.x) sum += sums[i];
    for (int64_t i = threadIdx.y; i < count; i += blockDim.y) {
      int64_t at_i = base + i * inner;
      put(dx_ptr, at_i, softmax_grad<C>(at(dy_ptr, at_i), at(y_ptr, at_i), sum, log));
    }
  }
}

unsigned int grid_of(int64_t blocks) {  // kernels stride over what a grid cannot hold
  return static_cast<unsigned int>(blocks < INT32_MAX ? blocks : INT32_MAX);
}

// Launches `warp_rows` or `block_rows` over (rows, n), with a cache of `tensors` rows where it fits.
template <typename S, typename Kernel, typename... Args>
void launch_rows(Kernel warp_rows, Kernel block_rows, int vec, int tensors, int64_t rows, int64_t n, bool log,
                 cudaStream_t stream, Args... pointers) {
  bool block = n > WARP_ROW;
  int64_t vectors = n / vec;
  // about 4 vectors a thread on long rows; on short ones no more lanes than vectors
  int lanes = block ? pow2_ceil(ceil_div(vectors, 4), MAX_THREADS<S>) : pow2_ceil(vectors, WARP);
  lanes = block && lanes < ROWS_THREADS ? ROWS_THREADS : lanes;
  int threads = block ? lanes : ROWS_THREADS;
  int64_t groups = threads / lanes;
  int64_t bytes = groups * tensors * n * static_cast<int64_t>(sizeof(S));
  bool cached = bytes <= CACHE_BYTES;
  (block ? block_rows : warp_rows)<<<grid_of(ceil_div(rows, groups)), threads, cached ? bytes : 0, stream>>>(
      pointers..., rows, n, lanes, log, cached);
}

struct InnerTile {
  dim3 block;
  int64_t inner_blocks, blocks;
  InnerTile(int64_t outer, int64_t n, int64_t inner) {
    int tx = pow2_ceil(inner, WARP), ty = pow2_ceil(n, THREADS / tx);
    block = dim3(tx, ty);
    inner_blocks = ceil_div(inner, tx);
    blocks = outer * inner_blocks;
  }
};

}  // namespace

void softmax_fwd(const void* x, void* y, int64_t outer, int64_t n, int64_t inner, bool log, Dtype dtype,
                 Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    constexpr int V = VEC16<S>;
    auto *xs = static_cast<const S*>(x);
    auto *ys = static_cast<S*>(y);
    if (inner > 1) {
      InnerTile tile(outer, n, inner);
      _softmax_inner_fwd_kernel<S><<<grid_of(tile.blocks), tile.block, 0, stream>>>(
          xs, ys, n, inner, tile.inner_blocks, tile.blocks, log);
    } else if (n % V == 0 && aligned16(x) && aligned16(y)) {
      launch_rows<S>(_softmax_rows_fwd_kernel<S, V, false>, _softmax_rows_fwd_kernel<S, V, true>, V,
                     1, outer, n, log, stream, xs, ys);
    } else {
      launch_rows<S>(_softmax_rows_fwd_kernel<S, 1, false>, _softmax_rows_fwd_kernel<S, 1, true>, 1,
                     1, outer, n, log, stream, xs, ys);
    }
    check_launch("softmax_fwd");
  });
}

void softmax_bwd(const void* dy, const void* y, void* dx, int64_t outer, int64_t n, int64_t inner, bool log,
                 Dtype dtype, Target target) {
  DeviceGuard guard(target.device);
  auto stream = reinterpret_cast<cudaStream_t>(target.stream);
  for_dtype(dtype, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    constexpr int V = VEC16<S>;
    auto *dys = static_cast<const S*>(dy), *ys = static_cast<const S*>(y);
    auto *dxs = static_cast<S*>(dx);
    if (inner > 1) {
      InnerTile tile(outer, n, inner);
      _softmax_inner_bwd_kernel<S><<<grid_of(tile.blocks), tile.block, 0, stream>>>(
          dys, ys, dxs, n, inner, tile.inner_blocks, tile.blocks, log);
    } else if (n % V == 0 && aligned16(dy) && aligned16(y) && aligned16(dx)) {
      launch_rows<S>(_softmax_rows_bwd_kernel<S, V, false>, _softmax_rows_bwd_kernel<S, V, true>, V,
                     2, outer, n, log, stream, dys, ys, dxs);
    } else {
      launch_rows<S>(_softmax_rows_bwd_kernel<S, 1, false>, _softmax_rows_bwd_kernel<S, 1, true>, 1,
                     2, outer, n, log, stream, dys, ys, dxs);
    }
    check_launch("softmax_bwd");
  });
}

}  // namespace kz
