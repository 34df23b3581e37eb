// What one instruction set's build of the serial kernels offers to the parallel drivers.
//
// S is the type in memory, T the type of the arithmetic: double for double, float for the rest.
// Pointers to S and T travel as void*, scalars as double (every float is one).
#pragma once

#include "isa.h"

#define KERNELZOO_ACTS(X)                                                                          \
  X(none) X(relu) X(relu6) X(leaky_relu) X(elu) X(selu) X(celu) X(gelu) X(gelu_tanh) X(silu)       \
  X(mish) X(sigmoid) X(logsigmoid) X(hardsigmoid) X(hardswish) X(hardtanh) X(tanh) X(tanhshrink)   \
  X(softplus) X(softsign) X(softshrink) X(hardshrink) X(threshold)

namespace kernelzoo {

enum Act {
#define X(name) ACT_##name,
  KERNELZOO_ACTS(X)
#undef X
      ACTS
};

// Elements that one call of bias_act or act_bwd_sum takes at most: three float blocks of it fill 12 KB of L1.
constexpr int64_t BLOCK = 1024;
// Columns of a softmax tile: what tile_fwd and tile_bwd take at most.
constexpr int64_t TILE = 512;
// Rows of at most SHORT elements go through short_fwd and short_bwd, at most SHORT_ROWS of them at once.
constexpr int64_t SHORT = 32, SHORT_ROWS = 64;

struct Kernels {
  void (*load)(const void* s, void* t, int64_t n);
  void (*store)(const void* t, void* s, int64_t n);

  void (*act_fwd)(int act, const void* x, void* y, int64_t n, double p0, double p1);
  void (*act_bwd)(int act, const void* dy, const void* saved, void* dx, int64_t n, double p0, double p1);

  // z += bias (T, may be null), written back where save_z; y = act(z), which may be z itself. n <= BLOCK
  void (*bias_act)(int act, void* z, const void* bias, void* y, int64_t n, bool save_z, double p0, double p1);
  // dz = dy * act'(saved), to dz (S) unless null, added to sum unless null. n <= BLOCK
  void (*act_bwd_sum)(int act, const void* dy, const void* saved, void* dz, double* sum, int64_t n, double p0,
                      double p1);

  // Softmax along n contiguous elements; `total` is sum(exp(x - max)), or for the backward row_dot's result.
  double (*row_max)(const void* x, int64_t n);
  double (*row_sum)(const void* x, int64_t n, double max);
  void (*row_fwd)(const void* x, void* y, int64_t n, double max, double total, bool log);
  double (*row_dot)(const void* dy, const void* y, int64_t n, bool log);
  void (*row_bwd)(const void* dy, const void* y, void* dx, int64_t n, double total, bool log);
  // Softmax along n rows `stride` elements apart, of w <= TILE contiguous columns.
  void (*tile_fwd)(const void* x, void* y, int64_t n, int64_t stride, int64_t w, bool log);
  void (*tile_bwd)(const void* dy, const void* y, void* dx, int64_t n, int64_t stride, int64_t w, bool log);
  // Softmax along n <= SHORT contiguous elements, of rows <= SHORT_ROWS contiguous rows.
  void (*short_fwd)(const void* x, void* y, int64_t rows, int64_t n, bool log);
  void (*short_bwd)(const void* dy, const void* y, void* dx, int64_t rows, int64_t n, bool log);
};

// A row longer than this is summed piece by piece, so that threads can share it without changing the result.
constexpr int64_t PIECE = 8192;

KERNELZOO_TABLES(Kernels, base)

}  // namespace kernelzoo
