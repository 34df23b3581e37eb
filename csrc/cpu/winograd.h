// Convolutions of 3x3 taps and stride 1 by Winograd's F(2x2, 3x3): 16 products for four outputs instead of 36.
//
// With g a filter's taps of one channel, d the 4x4 elements of x that a tile of 2x2 outputs sees and * element by element,
// y = Aᵀ [sum over c of (G g Gᵀ) * (Bᵀ d B)] A, so for each of the 16 elements one matrix product over the channels.
// (Lavin, Gray: Fast algorithms for convolutional neural networks, arXiv:1509.09308; S. Winograd: Arithmetic complexity
// of computations, SIAM 1980.)
//
//   Bᵀ = 1  0 -1  0     G = 1    0   0      Aᵀ = 1 1  1  0
//        0  1  1  0         1/2  1/2 1/2         0 1 -1 -1
//        0 -1  1  0         1/2 -1/2 1/2
//        0  1  0 -1         0    0   1
//
// The gradient to x is the same with the taps turned round and the channels exchanged; that to g is
// Gᵀ [sum over tiles of (Bᵀ d B) * (A dy Aᵀ)] G.
//
// T is float or double, in memory and in the arithmetic.
#pragma once

#include "isa.h"

namespace kernelzoo {

constexpr int64_t ELEMENTS = 16;  // of a transformed tile
// Channels come in whole multiples of CHANNELS, and are gone through STRIP at a time.
constexpr int64_t STRIP = 64, CHANNELS = 16;

inline int64_t strip(int64_t channels, int64_t first) { return channels - first < STRIP ? channels - first : STRIP; }

// One of the two images: (N, H, W, C), or (N, C, H, W) where the call is `first`.
struct Image {
  int64_t H, W, C;
};

struct Winograd {
  int64_t N;
  Image in, out;
  int64_t top, left;  // padding: rows above, columns before
  bool first;

  // Tiles: `down` lines of `across` a sample. A block has `lines` of them, of several samples maybe, and `columns`.
  int64_t across, down, lines, columns;

  int64_t all_lines() const { return N * down; }
  int64_t blocks() const { return ceil_div(all_lines(), lines) * ceil_div(across, columns); }
  int64_t tiles() const { return lines * columns; }  // of a block, at most
  // Where the elements of a block's tiles lie, T apart: a line of the cache more than they need, lest all 16 of a tile
  // fall onto the same sets of it.
  int64_t plane(int64_t tiles, int64_t channels) const { return tiles * channels + 16; }
  // T of a line of tiles as it is read or written, a strip of channels: at most 4 rows of pixels, and 16 pixels
  int64_t staged() const { return (4 * (2 * columns + 2) + 16) * STRIP; }
};

struct WinogradBlock {
  int64_t line, lines, column, columns;

  WinogradBlock(const Winograd& a, int64_t block) {
    const int64_t parts = ceil_div(a.across, a.columns);
    line = block / parts * a.lines;
    column = block % parts * a.columns;
    lines = a.all_lines() - line < a.lines ? a.all_lines() - line : a.lines;
    columns = a.across - column < a.columns ? a.across - column : a.columns;
  }
  int64_t tiles() const { return lines * columns; }
};

// A filter as the product takes it: g of row r (summed over), column c and tap (i, j) stands at
// r row + c column + i tap[0] + j tap[1].
struct WinogradFilter {
  const void* w;
  int64_t rows, columns;
  int64_t row, column, tap[2];
};

struct WinogradKernels {
  // u, of (16, f.columns, f.rows) in an order of the kernels' own: CHANNELS rows from `row`, of CHANNELS columns
  void (*filter)(const WinogradFilter& f, int64_t row, int64_t column, void* u);
  // A block of x's tiles, a strip of its channels: to v, of (16, tiles, C)
  void (*input)(const Winograd& a, int64_t block, int64_t channel, const void* x, void* v, void* scratch);
  // One element of a block: to m, of (16, tiles, made), from v and u's
  void (*product)(const Winograd& a, int64_t block, int64_t element, int64_t made, const void* v, const void* u,
                  void* m);
  // A block of y's channels [from, to), + bias unless null: from m. True where all are finite.
  bool (*collect)(const Winograd& a, int64_t block, const void* m, const void* bias, void* y, int64_t from, int64_t to,
                  void* scratch);
  // A strip of the channels [from, to) of an image (x, or dy), a block's tiles: to v, of (16, to - from, tiles) in an
  // order of the kernels' own, from tile `first` on.
  void (*spread)(const Winograd& a, bool of_x, int64_t block, int64_t channel, int64_t from, int64_t to,
                 const void* image, void* v, int64_t first, int64_t tiles, void* scratch);
  // du (16, to - from, C) of the output channels [from, to), one element of a strip of C's channels: = or += dᵀ v over
  // the `used` first of the tiles that d (of these output channels) and v, as `spread` left them, have room for
  void (*gather)(const Winograd& a, int64_t element, int64_t channel, int64_t from, int64_t to, const void* d,
                 const void* v, void* du, int64_t used, int64_t tiles, bool add);
  // dw of output channel o in [from, to), (O, 3, 3, C) or where `first` (O, C, 3, 3). True where all are finite.
  bool (*finish)(const Winograd& a, int64_t o, int64_t from, int64_t to, const void* du, void* dw);
};

KERNELZOO_TABLES(WinogradKernels, winograd)

// Bytes of scratch that the calls below need.
int64_t winograd_scratch(int dtype, const Winograd& a, bool weight, int threads);
// y, + bias unless null. False where something is not finite: the transforms spread an infinity over its whole tile.
bool winograd_fwd(int dtype, const Winograd& a, const WinogradFilter& f, const void* x, const void* bias, void* y,
                  void* scratch, int threads);
bool winograd_bwd_weight(int dtype, const Winograd& a, const void* dz, const void* x, void* dw, void* scratch,
                         int threads);

}  // namespace kernelzoo
