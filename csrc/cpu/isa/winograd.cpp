// Transforms and products of winograd.h. A strip of channels of a line of tiles is staged: its rows of pixels with the
// padding, the channels innermost whichever order memory has, so that no transform meets an edge.
#include "../winograd.h"

#include "begin.h"

#include "../tile.h"

// The products' right operands lie in panels as wide as a tile, row after row, their left ones' columns in panels of
// CHANNELS: a tile's operand is one run of memory, where rows of all channels would fall onto a few sets of the cache.
template <class T>
constexpr int64_t PANEL = TILE_VECTORS * WIDTH<T>;
template <class T>
inline int64_t panel(int64_t channels, int64_t first) {
  return channels - first < PANEL<T> ? channels - first : PANEL<T>;
}

template <class T>
inline void copy16(const T* s, T* to) {
  for (int64_t i = 0; i < 16; i += WIDTH<T>) storev(to + i, loadv(s + i));
}

// The first n of 16 elements: where fewer than 16 are memory of ours.
template <class T>
inline void copy_few(const T* s, T* to, int64_t n) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(T) == 4) {
    const __mmask16 some = static_cast<__mmask16>((1u << n) - 1);
    _mm512_mask_storeu_ps(to, some, _mm512_maskz_loadu_ps(some, s));
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) to[i] = s[i];
}

// `count` pixels of n channels: from s, where a channel's are neighbours and channels lie `plane` apart, to pixels of n
// channels, `wrap` of them one after the other, such lines `pitch` pixels apart.
template <class T>
void turn_in(const T* s, int64_t plane, int64_t count, T* to, int64_t n, int64_t wrap, int64_t pitch) {
  T few[16 * 16], turned[16 * 16];
  int64_t line = 0, w = 0;
  for (int64_t p = 0; p < count; p += 16) {
    const int64_t m = count - p < 16 ? count - p : 16;
    int64_t l = line, x = w;
    for (int64_t c = 0; c < n; c += 16) {
      const T* from = s + c * plane + p;
      if (m == 16) {
        transpose(from, plane, turned, 16, 16, 16);
      } else {
        for (int64_t i = 0; i < 16; ++i) copy_few(from + i * plane, few + i * 16, m);
        transpose(few, 16, turned, 16, 16, 16);
      }
      l = line, x = w;
      for (int64_t i = 0; i < m; ++i) {
        copy16(turned + i * 16, to + (l * pitch + x) * n + c);
        if (++x == wrap) x = 0, ++l;
      }
    }
    line = l, w = x;
  }
}

// The reverse: pixels of n channels one after the other, and 16 more that may be read, to planes.
template <class T>
void turn_out(const T* s, int64_t n, int64_t count, T* to, int64_t plane) {
  T turned[16 * 16];
  for (int64_t p = 0; p < count; p += 16) {
    const int64_t m = count - p < 16 ? count - p : 16;
    for (int64_t c = 0; c < n; c += 16) {
      T* at = to + c * plane + p;
      if (m == 16) {
        transpose(s + p * n + c, n, at, plane, 16, 16);
      } else {
        transpose(s + p * n + c, n, turned, 16, 16, 16);
        for (int64_t i = 0; i < 16; ++i) copy_few(turned + i * 16, at + i * plane, m);
      }
    }
  }
}

// Pixels [row, row + rows) x [column, column + columns) of a sample, zero outside it, and channels [channel, channel + n):
// to (rows, columns, n).
template <class T>
void stage(const Image& a, bool first, const T* sample, int64_t row, int64_t rows, int64_t column, int64_t columns,
           int64_t channel, int64_t n, T* to) {
  const auto clip = [](int64_t i, int64_t most) { return i < 0 ? 0 : i > most ? most : i; };
  const int64_t h0 = clip(row, a.H), h1 = clip(row + rows, a.H), w0 = clip(column, a.W), w1 = clip(column + columns, a.W);
  if (h0 >= h1 || w0 >= w1) {
    std::memset(to, 0, rows * columns * n * sizeof(T));
    return;
  }
  const int64_t pixel = n * sizeof(T), before = w0 - column, behind = column + columns - w1;
  std::memset(to, 0, (h0 - row) * columns * pixel);
  std::memset(to + (h1 - row) * columns * n, 0, (row + rows - h1) * columns * pixel);
  for (int64_t h = h0; h < h1; ++h) {
    T* line = to + (h - row) * columns * n;
    std::memset(line, 0, before * pixel);
    std::memset(line + (columns - behind) * n, 0, behind * pixel);
    line += before * n;
    if (!first) {
      const T* s = sample + (h * a.W + w0) * a.C + channel;
      for (int64_t w = w0; w < w1; ++w, s += a.C, line += n)
        for (int64_t c = 0; c < n; c += 16) copy16(s + c, line + c);
    } else if (w1 - w0 < a.W) {
      turn_in(sample + channel * a.H * a.W + h * a.W + w0, a.H * a.W, w1 - w0, line, n, w1 - w0, columns);
    }
  }
  if (first && w1 - w0 == a.W)
    turn_in(sample + channel * a.H * a.W + h0 * a.W, a.H * a.W, (h1 - h0) * a.W,
            to + ((h0 - row) * columns + before) * n, n, a.W, columns);
}

// ---- transforms of one vector of channels

// Bᵀ d B
template <class T>
inline void spread_x(const T* s, int64_t pixel, int64_t pitch, T* v, int64_t plane) {
  Vec<T> t[4][4];
  for (int j = 0; j < 4; ++j) {
    const Vec<T> d0 = loadv(s + j * pixel), d1 = loadv(s + pitch + j * pixel), d2 = loadv(s + 2 * pitch + j * pixel),
                 d3 = loadv(s + 3 * pitch + j * pixel);
    t[0][j] = d0 - d2, t[1][j] = d1 + d2, t[2][j] = d2 - d1, t[3][j] = d1 - d3;
  }
  for (int i = 0; i < 4; ++i) {
    storev(v + (4 * i) * plane, t[i][0] - t[i][2]);
    storev(v + (4 * i + 1) * plane, t[i][1] + t[i][2]);
    storev(v + (4 * i + 2) * plane, t[i][2] - t[i][1]);
    storev(v + (4 * i + 3) * plane, t[i][1] - t[i][3]);
  }
}

// A dy Aᵀ
template <class T>
inline void spread_dy(const T* s, int64_t pixel, int64_t pitch, T* v, int64_t plane) {
  Vec<T> t[4][2];
  for (int j = 0; j < 2; ++j) {
    const Vec<T> d0 = loadv(s + j * pixel), d1 = loadv(s + pitch + j * pixel);
    t[0][j] = d0, t[1][j] = d0 + d1, t[2][j] = d0 - d1, t[3][j] = -d1;
  }
  for (int i = 0; i < 4; ++i) {
    storev(v + (4 * i) * plane, t[i][0]);
    storev(v + (4 * i + 1) * plane, t[i][0] + t[i][1]);
    storev(v + (4 * i + 2) * plane, t[i][0] - t[i][1]);
    storev(v + (4 * i + 3) * plane, -t[i][1]);
  }
}

// Aᵀ m A
template <class T>
inline void collect_y(const T* m, int64_t plane, Vec<T> (&y)[2][2]) {
  Vec<T> t[2][4];
  for (int j = 0; j < 4; ++j) {
    const Vec<T> m0 = loadv(m + j * plane), m1 = loadv(m + (4 + j) * plane), m2 = loadv(m + (8 + j) * plane),
                 m3 = loadv(m + (12 + j) * plane);
    t[0][j] = m0 + (m1 + m2), t[1][j] = (m1 - m2) - m3;
  }
  for (int i = 0; i < 2; ++i) {
    y[i][0] = t[i][0] + (t[i][1] + t[i][2]);
    y[i][1] = (t[i][1] - t[i][2]) - t[i][3];
  }
}

// Gᵀ m G, as taps 0 ... 8
template <class T>
inline void collect_dw(const T* m, int64_t plane, Vec<T> (&g)[9]) {
  const Vec<T> half = splat(T(0.5));
  Vec<T> t[3][4];
  for (int j = 0; j < 4; ++j) {
    const Vec<T> m0 = loadv(m + j * plane), m1 = loadv(m + (4 + j) * plane), m2 = loadv(m + (8 + j) * plane),
                 m3 = loadv(m + (12 + j) * plane);
    const Vec<T> sum = half * (m1 + m2);
    t[0][j] = m0 + sum, t[1][j] = half * (m1 - m2), t[2][j] = sum + m3;
  }
  for (int i = 0; i < 3; ++i) {
    const Vec<T> sum = half * (t[i][1] + t[i][2]);
    g[3 * i] = t[i][0] + sum, g[3 * i + 1] = half * (t[i][1] - t[i][2]), g[3 * i + 2] = sum + t[i][3];
  }
}

// G g Gᵀ
template <class T>
inline void spread_w(const Vec<T> (&g)[9], T* u, int64_t plane) {
  const Vec<T> half = splat(T(0.5));
  Vec<T> t[4][3];
  for (int j = 0; j < 3; ++j) {
    const Vec<T> ends = half * (g[j] + g[6 + j]), middle = half * g[3 + j];
    t[0][j] = g[j], t[1][j] = ends + middle, t[2][j] = ends - middle, t[3][j] = g[6 + j];
  }
  for (int i = 0; i < 4; ++i) {
    const Vec<T> ends = half * (t[i][0] + t[i][2]), middle = half * t[i][1];
    storev(u + (4 * i) * plane, t[i][0]);
    storev(u + (4 * i + 1) * plane, ends + middle);
    storev(u + (4 * i + 2) * plane, ends - middle);
    storev(u + (4 * i + 3) * plane, t[i][2]);
  }
}

// Not a number where any element of what was added is not finite.
template <class T>
struct Finite {
  Vec<T> sum = {};
  void add(Vec<T> v) { sum += v * splat(T(0)); }
  bool all() const {
    T lanes[WIDTH<T>], total = 0;
    storev(lanes, sum);
    for (T lane : lanes) total += lane;
    return total == 0;
  }
};

// ---- the table

// taps[3 i + j] (16 rows, 16 columns), from wherever they lie.
template <class T>
void taps_of(const WinogradFilter& f, const T* s, T (*taps)[16 * 16]) {
  const int64_t inner = f.row < f.column ? f.row : f.column, outer = f.row < f.column ? f.column : f.row;
  const bool turned = inner == f.column;  // the result's columns are the neighbours
  T block[16 * 16];
  if (inner == 9 && f.tap[0] == 3 * f.tap[1] && (f.tap[1] == 1 || f.tap[1] == -1)) {  // (O, C, 3, 3), maybe turned round
    T all[9 * 16 * 16];
    const bool back = f.tap[1] < 0;
    transpose(back ? s - 8 : s, outer, all, 16, 16, 9 * 16);
    for (int64_t tap = 0; tap < 9; ++tap) {
      T* const to = turned ? block : taps[tap];
      for (int64_t i = 0; i < 16; ++i) copy16(all + (i * 9 + (back ? 8 - tap : tap)) * 16, to + i * 16);
      if (turned) transpose(block, 16, taps[tap], 16, 16, 16);
    }
    return;
  }
  for (int64_t tap = 0; tap < 9; ++tap, s += tap % 3 ? f.tap[1] : f.tap[0] - 2 * f.tap[1])
    for (int64_t i = 0; i < 16; ++i) {
      T* const to = (turned ? taps[tap] : block) + i * 16;
      if (inner == 1) copy16(s + i * outer, to);
      else
        for (int64_t l = 0; l < 16; ++l) to[l] = s[i * outer + l * inner];
      if (!turned && i == 15) transpose(block, 16, taps[tap], 16, 16, 16);
    }
}

template <class T>
void filter(const WinogradFilter& f, int64_t row, int64_t column, void* to) {
  T taps[9][16 * 16];
  taps_of(f, static_cast<const T*>(f.w) + row * f.row + column * f.column, taps);
  T* const u = static_cast<T*>(to);
  for (int64_t c = 0; c < 16; c += WIDTH<T>) {
    const int64_t first = (column + c) / PANEL<T> * PANEL<T>, width = panel<T>(f.columns, first);
    for (int64_t r = 0; r < 16; ++r) {
      Vec<T> g[9];
      for (int tap = 0; tap < 9; ++tap) g[tap] = loadv(taps[tap] + r * 16 + c);
      spread_w<T>(g, u + first * f.rows + (row + r) * width + column + c - first, f.rows * f.columns);
    }
  }
}

// A line of a block: pixels staged, and each tile's vectors given to `use(tile, channel, pixels, pixel, pitch)`.
template <class T, class Use>
void each_tile(const Winograd& a, bool of_x, const WinogradBlock& b, int64_t line, int64_t channel, int64_t n,
               const T* image, T* staged, Use use) {
  const Image& from = of_x ? a.in : a.out;
  const int64_t more = of_x ? 2 : 0, rows = 2 + more, columns = 2 * b.columns + more;
  const int64_t sample = (b.line + line) / a.down, row = 2 * ((b.line + line) % a.down), column = 2 * b.column;
  stage(from, a.first, image + sample * from.H * from.W * from.C, of_x ? row - a.top : row, rows,
        of_x ? column - a.left : column, columns, channel, n, staged);
  for (int64_t t = 0; t < b.columns; ++t)
    for (int64_t c = 0; c < n; c += WIDTH<T>) use(line * b.columns + t, c, staged + 2 * t * n + c, n, columns * n);
}

template <class T>
void input(const Winograd& a, int64_t block, int64_t channel, const void* x, void* to, void* scratch) {
  const WinogradBlock b(a, block);
  const int64_t C = a.in.C, plane = a.plane(a.tiles(), C);
  T* const v = static_cast<T*>(to) + channel;
  for (int64_t line = 0; line < b.lines; ++line)
    each_tile(a, true, b, line, channel, strip(C, channel), static_cast<const T*>(x), static_cast<T*>(scratch),
              [&](int64_t tile, int64_t c, const T* s, int64_t pixel, int64_t pitch) {
                spread_x(s, pixel, pitch, v + tile * C + c, plane);
              });
}

template <class T>
void product(const Winograd& a, int64_t block, int64_t element, int64_t made, const void* v, const void* u, void* m) {
  const int64_t C = a.in.C, tiles = WinogradBlock(a, block).tiles();
  const T* const left = static_cast<const T*>(v) + element * a.plane(a.tiles(), C);
  T* const to = static_cast<T*>(m) + element * a.plane(a.tiles(), made);
  for (int64_t o = 0; o < made; o += PANEL<T>) {
    const int64_t width = panel<T>(made, o);
    const T* right = static_cast<const T*>(u) + (element * made + o) * C;
    for (int64_t t = 0; t < tiles; t += TILE_ROWS) {
      const int64_t rows = tiles - t < TILE_ROWS ? tiles - t : TILE_ROWS;
      MICRO<Plain<T>>[rows - 1][width / WIDTH<T> - 1](C, left + t * C, C, 1, right, width, to + t * made + o, made,
                                                       false);
    }
  }
}

template <class T>
bool collect(const Winograd& a, int64_t block, const void* from_m, const void* bias, void* y, int64_t from, int64_t to,
             void* scratch) {
  const WinogradBlock b(a, block);
  const int64_t O = a.out.C, made = to - from, m_plane = a.plane(a.tiles(), made);
  const T* const m = static_cast<const T*>(from_m);
  T* const staged = static_cast<T*>(scratch);
  Finite<T> finite;
  const int64_t H = a.out.H, W = a.out.W, wide = W - 2 * b.column < 2 * b.columns ? W - 2 * b.column : 2 * b.columns;
  for (int64_t line = 0; line < b.lines; ++line) {
    const int64_t sample = (b.line + line) / a.down, row = 2 * ((b.line + line) % a.down);
    const int64_t rows = H - row < 2 ? H - row : 2;
    for (int64_t o = from; o < to; o += STRIP) {
      const int64_t n = strip(to, o);
      // a row of pixels: of y itself, or of what is turned into it
      T* const out = static_cast<T*>(y) + (a.first ? ((sample * O + o) * H + row) * W + 2 * b.column
                                                   : ((sample * H + row) * W + 2 * b.column) * O + o);
      T* const lines = a.first ? staged : out;
      const int64_t pixel = a.first ? n : O, pitch = a.first ? wide * n : W * O;
      for (int64_t t = 0; t < b.columns; ++t)
        for (int64_t c = 0; c < n; c += WIDTH<T>) {
          Vec<T> four[2][2];
          collect_y(m + (line * b.columns + t) * made + o - from + c, m_plane, four);
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < 2 && 2 * t + j < wide; ++j) {
              if (bias) four[i][j] += loadv(static_cast<const T*>(bias) + o + c);
              finite.add(four[i][j]);
              storev(lines + i * pitch + (2 * t + j) * pixel + c, four[i][j]);
            }
        }
      if (!a.first) continue;
      if (wide == W) turn_out(staged, n, rows * W, out, H * W);
      else
        for (int64_t i = 0; i < rows; ++i) turn_out(staged + i * pitch, n, wide, out + i * W, H * W);
    }
  }
  return finite.all();
}

template <class T>
void spread(const Winograd& a, bool of_x, int64_t block, int64_t channel, int64_t from, int64_t to, const void* image,
            void* v, int64_t first, int64_t tiles, void* scratch) {
  const WinogradBlock b(a, block);
  const int64_t channels = to - from, plane = a.plane(tiles, channels), most = of_x ? PANEL<T> : CHANNELS;
  for (int64_t line = 0; line < b.lines; ++line)
    each_tile(a, of_x, b, line, channel, strip(to, channel), static_cast<const T*>(image), static_cast<T*>(scratch),
              [&](int64_t tile, int64_t c, const T* s, int64_t pixel, int64_t pitch) {
                const int64_t here = channel - from + c, o = here / most * most,
                              width = channels - o < most ? channels - o : most;
                T* const to = static_cast<T*>(v) + o * tiles + (first + tile) * width + here - o;
                if (of_x) spread_x(s, pixel, pitch, to, plane);
                else spread_dy(s, pixel, pitch, to, plane);
              });
}

template <class T>
void gather(const Winograd& a, int64_t element, int64_t channel, int64_t from, int64_t to, const void* d, const void* v,
            void* du, int64_t used, int64_t tiles, bool add) {
  const int64_t C = a.in.C, made = to - from, end = channel + strip(C, channel);
  const T* const left = static_cast<const T*>(d) + element * a.plane(tiles, made);
  T* const sums = static_cast<T*>(du) + element * made * C;
  for (int64_t c = channel; c < end; c += PANEL<T>) {
    const int64_t width = panel<T>(C, c);
    const T* right = static_cast<const T*>(v) + element * a.plane(tiles, C) + c * tiles;
    for (int64_t o = 0; o < made; ++o) {
      const int64_t r = o % CHANNELS, rows = CHANNELS - r < TILE_ROWS ? CHANNELS - r : TILE_ROWS;
      MICRO<Plain<T>>[rows - 1][width / WIDTH<T> - 1](used, left + (o - r) * tiles + r, 1, CHANNELS, right, width,
                                                       sums + o * C + c, C, add);
      o += rows - 1;
    }
  }
}

template <class T>
bool finish(const Winograd& a, int64_t o, int64_t from, int64_t to, const void* du, void* dw) {
  const int64_t C = a.in.C;
  Finite<T> finite;
  for (int64_t c = 0; c < C; c += WIDTH<T>) {
    Vec<T> g[9];
    collect_dw(static_cast<const T*>(du) + (o - from) * C + c, (to - from) * C, g);
    T* const out = static_cast<T*>(dw) + o * 9 * C + (a.first ? c * 9 : c);
    for (int tap = 0; tap < 9; ++tap) {
      finite.add(g[tap]);
      if (!a.first) storev(out + tap * C, g[tap]);
      else
        for (int64_t i = 0; i < WIDTH<T>; ++i) out[i * 9 + tap] = g[tap][i];
    }
  }
  return finite.all();
}

template <class T>
constexpr WinogradKernels table() {
  return {filter<T>, input<T>, product<T>, collect<T>, spread<T>, gather<T>, finish<T>};
}

const WinogradKernels TABLES[DTYPES] = {table<double>(), table<float>(), {}, {}};

KERNELZOO_EXPORT(WinogradKernels, winograd, TABLES)
