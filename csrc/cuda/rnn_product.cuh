// The recurrent product of one block: rows of a state times the block's columns of the recurrent weight, which it may
// hold in shared memory from step to step. 16 bits on tensor cores, float32 and float64 by fused multiply-adds; either
// way the warps share out K, and their sums are added in one order.
#pragma once

#include "vec.cuh"

namespace kz {

constexpr int WARPS = THREADS / 32;
constexpr int ROWS = 16;  // of a tensor core's tile
constexpr int PASS = 32;  // columns that a warp has sums of at once

KZ_FN int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <typename S>
__device__ void decode16(uint4 q, AccOf<S> (&v)[VEC16<S>]) {
  const unsigned int w[4] = {q.x, q.y, q.z, q.w};
  using Bits = typename Storage<S>::Bits;
#pragma unroll
  for (int j = 0; j < VEC16<S>; ++j) {
    Bits b;
    if constexpr (sizeof(S) == 8) {
      b = static_cast<Bits>(w[2 * j]) | static_cast<Bits>(w[2 * j + 1]) << 32;
    } else if constexpr (sizeof(S) == 4) {
      b = w[j];
    } else {
      b = static_cast<Bits>(w[j / 2] >> (j % 2 * 16));
    }
    v[j] = Storage<S>::decode(b);
  }
}

// 16 bytes from ptr on, of which `left` elements exist, the rest 0. Past L1, which does not see other blocks' stores.
// wide: ptr is 16-byte aligned.
template <typename S>
__device__ uint4 load16(const S* ptr, int64_t left, bool wide) {
  if (wide && left >= VEC16<S>) return __ldcg(reinterpret_cast<const uint4*>(ptr));
  using Bits = typename Storage<S>::Bits;
  unsigned int w[4] = {0, 0, 0, 0};
#pragma unroll
  for (int j = 0; j < VEC16<S>; ++j) {
    Bits b = j < left ? __ldcg(reinterpret_cast<const Bits*>(ptr) + j) : Bits(0);
    if constexpr (sizeof(S) == 8) {
      w[2 * j] = static_cast<unsigned int>(b), w[2 * j + 1] = static_cast<unsigned int>(b >> 32);
    } else if constexpr (sizeof(S) == 4) {
      w[j] = b;
    } else {
      w[j / 2] |= static_cast<unsigned int>(b) << (j % 2 * 16);
    }
  }
  return make_uint4(w[0], w[1], w[2], w[3]);
}

// a b, rounded to S, on 16 bytes of each: 16 bits only (the others multiply what they decode)
template <typename S>
__device__ uint4 times16(uint4 a, uint4 b) {
  AccOf<S> x[VEC16<S>], y[VEC16<S>];
  decode16<S>(a, x);
  decode16<S>(b, y);
  unsigned int w[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    w[j] = Storage<S>::encode2(x[2 * j] * y[2 * j], x[2 * j + 1] * y[2 * j + 1]);
  }
  return make_uint4(w[0], w[1], w[2], w[3]);
}

// Row b of the left operand: base's while b < n_base, first's while b < n, else 0; times its row of `mask`.
template <typename S>
struct Left {
  const S *base, *first, *mask;
  int64_t n_base, n, K;
  bool wide;

  __device__ const S* row(int64_t b) const {
    return b < n_base ? base + b * K : b < n ? first + b * K : nullptr;
  }
  __device__ uint4 load(const S* row, int64_t k) const {
    return row && k < K ? load16(row + k, K - k, wide) : make_uint4(0, 0, 0, 0);
  }
  __device__ uint4 load_mask(int64_t b, int64_t k) const { return load(b < n ? mask + b * K : nullptr, k); }
};

// Columns of the right operand: column n is row (n / units) * H + first + n % units of w (., K).
template <typename S>
struct Right {
  const S* w;
  uint4* held;  // shared memory, (K / VEC, stride) vectors, or null
  int64_t H, first, K;
  int units, N;
  bool wide;

  // A stride of 2 vectors beyond 8: the 8 threads of a quarter warp then meet 8 different banks of 16 bytes.
  static KZ_FN int64_t stride(int N) { return round_up(N, 8) + 2; }
  static KZ_FN int64_t vectors(int64_t K) { return round_up(ceil_div(K, VEC16<S>), 4); }

  __device__ uint4 global(int64_t vec, int n) const {
    int64_t k = vec * VEC16<S>;
    if (n >= N || k >= K) return make_uint4(0, 0, 0, 0);
    return load16(w + ((n / units) * H + first + n % units) * K + k, K - k, wide);
  }
  __device__ uint4 load(int64_t vec, int n) const { return held ? held[vec * stride(N) + n] : global(vec, n); }
  __device__ void hold() const {
    int64_t vecs = vectors(K);
    for (int64_t i = threadIdx.x; i < vecs * round_up(N, 8); i += THREADS)
      held[i % vecs * stride(N) + i / vecs] = global(i % vecs, static_cast<int>(i / vecs));
    __syncthreads();
  }
};

#ifdef __CUDACC__
__device__ inline void mma(float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, __nv_bfloat16*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma(float (&c)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1, __half*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// parts (WARPS, MT * ROWS, PASS) = each warp's share of rows first_row ... of left times columns n0 ... of right.
//
// Thread q of a quad loads 16 bytes of K where mma.m16n8k16 wants 4: the order of K is free as long as both operands
// share it, so a load serves two products, its first 8 bytes the one, its last 8 the other.
template <typename S, int MT>
__device__ void multiply_mma(const Left<S>& left, const Right<S>& right, int64_t first_row, int n0, float* parts) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane % 4, group = lane / 4;
  float acc[MT][4][4] = {};
  const S* rows[MT][2];
#pragma unroll
  for (int i = 0; i < MT; ++i) {
    rows[i][0] = left.row(first_row + i * ROWS + group);
    rows[i][1] = left.row(first_row + i * ROWS + group + 8);
  }
#pragma unroll 2
  for (int64_t vec = warp * 4 + quad; vec < Right<S>::vectors(left.K); vec += WARPS * 4) {
    uint4 a[MT][2];
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[i][half] = left.load(rows[i][half], vec * VEC16<S>);
        if (left.mask)
          a[i][half] = times16<S>(
              a[i][half], left.load_mask(first_row + i * ROWS + group + half * 8, vec * VEC16<S>));
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (n0 + j * 8 < right.N) {
        uint4 b = right.load(vec, n0 + j * 8 + group);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          S* kind = nullptr;
          mma(acc[i][j], {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y}, b.x, b.y, kind);
          mma(acc[i][j], {a[i][0].z, a[i][1].z, a[i][0].w, a[i][1].w}, b.z, b.w, kind);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* part = parts + ((warp * MT + i) * ROWS + group) * PASS + j * 8 + quad * 2;
      part[0] = acc[i][j][0], part[1] = acc[i][j][1];
      part[8 * PASS] = acc[i][j][2], part[8 * PASS + 1] = acc[i][j][3];
    }
  }
}

// The same by fused multiply-adds, of ROWS rows: a thread has 4 rows and 4 columns; where a warp's threads are more
// than that takes, they share out the warp's K once more.
template <typename S>
__device__ void multiply_fma(const Left<S>& left, const Right<S>& right, int64_t first_row, int n0, AccOf<S>* parts) {
  using T = AccOf<S>;
  constexpr int VEC = VEC16<S>;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int across = pow2_ceil(ceil_div(right.N - n0, 4), 8), shares = 8 / across;
  int column = lane % across, group = lane / across % 4, share = lane / across / 4;
  T acc[4][4] = {};
  const S* rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rows[i] = left.row(first_row + group + i * 4);
  for (int64_t vec = warp * shares + share; vec * VEC < left.K; vec += WARPS * shares) {
    T a[4][VEC];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      decode16<S>(left.load(rows[i], vec * VEC), a[i]);
      if (left.mask) {
        T mask[VEC];
        decode16<S>(left.load_mask(first_row + group + i * 4, vec * VEC), mask);
#pragma unroll
        for (int v = 0; v < VEC; ++v) a[i][v] *= mask[v];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int n = n0 + column + j * across;
      if (n < right.N) {
        T b[VEC];
        decode16<S>(right.load(vec, n), b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) acc[i][j] += a[i][v] * b[v];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      for (int off = 4 * across; off < 32; off *= 2) acc[i][j] += __shfl_xor_sync(0xffffffffu, acc[i][j], off);
      if (share == 0) parts[(warp * ROWS + group + i * 4) * PASS + column + j * across] = acc[i][j];
    }
  }
}

// sums (MT * ROWS, N) = rows first_row ... of left times right's columns; all threads of the block call it.
template <typename S, int MT>
__device__ void multiply(const Left<S>& left, const Right<S>& right, int64_t first_row, AccOf<S>* parts,
                         AccOf<S>* sums) {
  constexpr int M = MT * ROWS;
  for (int n0 = 0; n0 < right.N; n0 += PASS) {
    if constexpr (sizeof(S) == 2) {
      multiply_mma<S, MT>(left, right, first_row, n0, parts);
    } else {
      static_assert(MT == 1);
      multiply_fma(left, right, first_row, n0, parts);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < M * PASS; i += THREADS) {
      int n = n0 + i % PASS;
      if (n >= right.N) continue;
      AccOf<S> sum = parts[i];
      for (int warp = 1; warp < WARPS; ++warp) sum += parts[warp * M * PASS + i];
      sums[i / PASS * right.N + n] = sum;
    }
    __syncthreads();
  }
}

}  // namespace kz
