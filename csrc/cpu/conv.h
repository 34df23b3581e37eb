// Convolutions of one channel each: the table of serial kernels that isa/conv.cpp gives, and the drivers; and what stands
// behind a convolution whose product is torch's.
//
// S is the type in memory, T that of the arithmetic: double for double, float for the rest.
#pragma once

#include "isa.h"

namespace kernelzoo {

// y[n, c, i] = b[c] + sum over taps t of w[c, t] u[n, c, stride i - padding + dilation t], where u is x with up - 1 zeros
// between its elements (one of stride and up is 1), and 0 outside. Memory: (N, C, D, H, W) where `first`, else
// (N, D, H, W, C). A unit of work makes a contiguous part of y: `rows` rows or `columns` columns of a channel, or
// `columns` columns of all channels.
struct Depthwise {
  int64_t N, C;
  int64_t in[3], out[3], kernel[3], stride[3], up[3], padding[3], dilation[3];
  bool first;
  const void* x;  // S
  const void* w;  // T: (C, taps) where first, else (taps, C)
  const void* b;  // T (C)

  int64_t rows, columns;  // of a unit
  // A unit's x where `first`: for each plane of taps and each phase of rows and columns (the remainder of their number
  // by the stride), `tile_rows` rows `pitch` elements apart. There an output's elements lie `offsets` (taps) behind its
  // own number, pitch row + column, whatever the stride.
  int64_t tile_rows, pitch;
  const int64_t* offsets;
  bool whole;  // a unit is a channel's plane, of one
  bool ahead;  // x and y are too large for a near cache

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t span(int i) const { return dilation[i] * (kernel[i] - 1) + 1; }
};

// A unit's outputs: n, c (0 where it makes all channels), then where they begin and how many they are; and where in
// memory: elements first ... first + count - 1.
struct DepthwisePart {
  int64_t n, c, d, h, w, rows, columns, first, count;

  DepthwisePart(const Depthwise& a, int64_t unit) {
    const int64_t across = ceil_div(a.out[2], a.columns), down = ceil_div(a.out[1], a.rows);
    w = unit % across * a.columns;
    unit /= across;
    h = unit % down * a.rows;
    unit /= down;
    d = unit % a.out[0];
    unit /= a.out[0];
    c = a.first ? unit % a.C : 0;
    n = a.first ? unit / a.C : unit;
    rows = a.out[1] - h < a.rows ? a.out[1] - h : a.rows;
    columns = a.out[2] - w < a.columns ? a.out[2] - w : a.columns;
    const int64_t lines = (a.first ? n * a.C + c : n) * a.out[0] + d, depth = a.first ? 1 : a.C;
    first = ((lines * a.out[1] + h) * a.out[2] + w) * depth;
    count = rows * columns * depth;
  }
};

// Elements of the longest step of a kernel: what its tile has beyond the last.
constexpr int64_t CONV_SLACK = 64;

struct ConvKernels {
  // z: S, y as it lies in memory. scratch: zeros before a thread's first unit.
  void (*fwd)(const Depthwise& a, int64_t unit, void* z, void* scratch);
  // sums += the unit's share of dw, and last of db: T, (taps + 1) where `first`, else (taps + 1, C). dz: S, as y lies.
  void (*bwd_weight)(const Depthwise& a, int64_t unit, const void* dz, void* sums, void* scratch);
};

KERNELZOO_TABLES(ConvKernels, conv)

// What stands behind z (n elements): z += residual unless null, written back where save_z; y = act(z), which may be z.
struct Behind {
  int act;
  double p0, p1;
  const void* residual;
  bool save_z;
};

// w (C, taps) and b (C) of S. Where `backward`, x is the convolution's dz and the result its dx: in, out, stride and
// padding are still the convolution's own, but in is dz's and out dx's size.
void depthwise_fwd(int dtype, Depthwise a, bool backward, Behind behind, void* z, void* y, int threads);
// dw (C, taps), db (C) or null. partial: what depthwise_partial counts, in T.
void depthwise_bwd_weight(int dtype, Depthwise a, const void* dz, void* dw, void* db, void* partial, int threads);
int64_t depthwise_partial(int dtype, const Depthwise& a);

void add_act(int dtype, Behind behind, void* z, void* y, int64_t n, int threads);

}  // namespace kernelzoo
