#include "conv.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels.h"

namespace kernelzoo {
namespace {

using Bytes = std::unique_ptr<char[]>;

int64_t acc_bytes(int dtype) { return dtype == F64 ? 8 : 4; }

// Outputs of a unit: with x's tile they lie in L1 where a channel's elements are neighbours, and in L2 with x's and the
// weights' rows where the channels are.
constexpr int64_t UNIT_FIRST = 3584, UNIT_LAST = 16384;
// Bytes of x and y from which what comes next is fetched ahead.
constexpr int64_t AHEAD = 8 << 20;
// The most sums of weight gradients of their own, which are then added up in their order.
constexpr int64_t SUMS = 64;

// How a convolution is cut into units, and where in a unit's tile the taps are.
int64_t cut(int dtype, Depthwise& a, std::vector<int64_t>& offsets) {
  if (!a.first) {
    const int64_t elements = a.N * a.C * (a.in[0] * a.in[1] * a.in[2] + a.out[0] * a.out[1] * a.out[2]);
    a.ahead = elements * ITEM[dtype] >= AHEAD;
    a.rows = 1;
    a.columns = std::min(a.out[2], std::max<int64_t>(4, UNIT_LAST / a.C));
    return a.N * a.out[0] * a.out[1] * ceil_div(a.out[2], a.columns);
  }
  a.columns = std::min(a.out[2], UNIT_FIRST);
  a.rows = a.columns < a.out[2] ? 1 : std::min(a.out[1], std::max<int64_t>(1, UNIT_FIRST / a.columns));
  a.tile_rows = ceil_div((a.rows - 1) * a.stride[1] + a.span(1), a.stride[1]);
  a.pitch = ceil_div((a.columns - 1) * a.stride[2] + a.span(2), a.stride[2]);
  for (int64_t d = 0; d < a.kernel[0]; ++d)
    for (int64_t i = 0; i < a.kernel[1]; ++i)
      for (int64_t j = 0; j < a.kernel[2]; ++j) {
        const int64_t h = i * a.dilation[1], w = j * a.dilation[2];
        const int64_t phase = (d * a.stride[1] + h % a.stride[1]) * a.stride[2] + w % a.stride[2];
        offsets.push_back((phase * a.tile_rows + h / a.stride[1]) * a.pitch + w / a.stride[2]);
      }
  a.offsets = offsets.data();
  a.whole = a.rows == a.out[1] && a.columns == a.out[2] && a.in[0] == 1 && a.out[0] == 1 && a.kernel[0] == 1;
  return a.N * a.C * a.out[0] * ceil_div(a.out[1], a.rows) * ceil_div(a.out[2], a.columns);
}

// Bytes that a kernel's scratch takes: x's tile, y's or dz's, and a converted line; or lists of taps and lines.
int64_t scratch(int dtype, const Depthwise& a) {
  if (!a.first) return 2 * 8 * (a.taps() + a.kernel[0] * a.kernel[1]);
  const int64_t tile = a.kernel[0] * a.stride[1] * a.stride[2] * a.tile_rows * a.pitch;
  return (tile + a.rows * (std::max(a.pitch, a.columns) + 16) + a.in[2] + 2 * CONV_SLACK) * acc_bytes(dtype);
}

// w (C, taps) as the kernels read it, the taps from the last to the first where `backward`.
template <class T>
void arrange(const Depthwise& a, const T* w, bool backward, T* to) {
  const int64_t taps = a.taps();
  for (int64_t c = 0; c < a.C; ++c)
    for (int64_t t = 0; t < taps; ++t)
      to[a.first ? c * taps + t : t * a.C + c] = w[c * taps + (backward ? taps - 1 - t : t)];
}

Bytes arranged(int dtype, const Depthwise& a, bool backward) {
  const int64_t n = a.C * a.taps();
  Bytes w(new char[n * acc_bytes(dtype)]), to(new char[n * acc_bytes(dtype)]);
  base(dtype).load(a.w, w.get(), n);
  if (dtype == F64) {
    arrange(a, reinterpret_cast<double*>(w.get()), backward, reinterpret_cast<double*>(to.get()));
  } else {
    arrange(a, reinterpret_cast<float*>(w.get()), backward, reinterpret_cast<float*>(to.get()));
  }
  return to;
}

// A contiguous part of a result, n elements from `first` on.
void finish(int dtype, const Behind& b, void* z, void* y, int64_t first, int64_t n) {
  const Kernels& k = base(dtype);
  float block[BLOCK];
  for (int64_t i = first; i < first + n; i += BLOCK) {
    const int64_t m = std::min(BLOCK, first + n - i);
    const void* residual = at(b.residual, dtype, i);
    if (residual && dtype >= BF16) {
      k.load(residual, block, m);
      residual = block;
    }
    k.bias_act(b.act, at(z, dtype, i), residual, at(y, dtype, i), m, b.save_z, b.p0, b.p1);
  }
}

}  // namespace

void depthwise_fwd(int dtype, Depthwise a, bool backward, Behind behind, void* z, void* y, int threads) {
  const Bytes w = arranged(dtype, a, backward);
  a.w = w.get();
  const Bytes b(new char[a.C * acc_bytes(dtype)]());
  if (a.b) base(dtype).load(a.b, b.get(), a.C);
  a.b = b.get();
  for (int i = 0; i < 3; ++i) {
    a.up[i] = 1;
    if (!backward) continue;
    std::swap(a.stride[i], a.up[i]);
    a.padding[i] = a.span(i) - 1 - a.padding[i];
  }
  std::vector<int64_t> offsets;
  const int64_t units = cut(dtype, a, offsets), size = scratch(dtype, a);
  const bool more = behind.residual || behind.act != ACT_none;
  const int64_t work = a.N * a.C * a.out[0] * a.out[1] * a.out[2] * a.taps();
#pragma omp parallel num_threads(threads) if (work > SERIAL)
  {
    const Bytes own(new char[size]());
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      conv(dtype).fwd(a, unit, z, own.get());
      if (!more) continue;
      const DepthwisePart part(a, unit);
      finish(dtype, behind, z, y, part.first, part.count);
    }
  }
}

namespace {

// Groups of samples, or of units where the channels are neighbours, that have sums of their own.
int64_t groups_of(const Depthwise& a, int64_t units) {
  const int64_t outputs = a.N * a.out[0] * a.out[1] * a.out[2];
  return std::min(SUMS, a.first ? a.N : std::min(units, std::max<int64_t>(1, outputs / 64)));
}

}  // namespace

int64_t depthwise_partial(int dtype, const Depthwise& given) {
  Depthwise a = given;
  std::vector<int64_t> offsets;
  return groups_of(a, cut(dtype, a, offsets)) * (a.taps() + 1) * a.C;
}

void depthwise_bwd_weight(int dtype, Depthwise a, const void* dz, void* dw, void* db, void* partial, int threads) {
  std::fill_n(a.up, 3, 1);
  std::vector<int64_t> offsets;
  const int64_t units = cut(dtype, a, offsets), groups = groups_of(a, units), taps = a.taps();
  const int64_t item = acc_bytes(dtype), size = scratch(dtype, a), all = (taps + 1) * a.C;
  const auto sums = [&](int64_t i) { return static_cast<char*>(partial) + i * item; };
  std::fill_n(sums(0), groups * all * item, 0);
  const int64_t work = a.N * a.C * a.out[0] * a.out[1] * a.out[2] * taps;
#pragma omp parallel num_threads(threads) if (work > SERIAL)
  {
    const Bytes own(new char[size]());
    if (a.first) {
      const int64_t each = units / (a.N * a.C);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < groups * a.C; ++i) {
        const int64_t group = i / a.C, c = i % a.C;
        for (int64_t n = group * a.N / groups; n < (group + 1) * a.N / groups; ++n)
          for (int64_t u = 0; u < each; ++u)
            conv(dtype).bwd_weight(a, (n * a.C + c) * each + u, dz, sums(i * (taps + 1)), own.get());
      }
    } else {
#pragma omp for schedule(static)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t u = group * units / groups; u < (group + 1) * units / groups; ++u)
          conv(dtype).bwd_weight(a, u, dz, sums(group * all), own.get());
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < all; i += BLOCK) {
      const int64_t n = std::min(BLOCK, all - i);
      double total[BLOCK] = {};
      for (int64_t g = 0; g < groups; ++g) {
        const void* p = sums(g * all + i);
        if (dtype == F64) {
          for (int64_t l = 0; l < n; ++l) total[l] += static_cast<const double*>(p)[l];
        } else {
          for (int64_t l = 0; l < n; ++l) total[l] += static_cast<const float*>(p)[l];
        }
      }
      for (int64_t l = 0; l < n; ++l) {
        const int64_t c = a.first ? (i + l) / (taps + 1) : (i + l) % a.C;
        const int64_t t = a.first ? (i + l) % (taps + 1) : (i + l) / a.C;
        void* const out = t < taps ? at(dw, dtype, c * taps + t) : at(db, dtype, c);
        const float rounded = static_cast<float>(total[l]);
        if (out) base(dtype).store(dtype == F64 ? static_cast<const void*>(total + l) : &rounded, out, 1);
      }
    }
  }
}

void add_act(int dtype, Behind behind, void* z, void* y, int64_t n, int threads) {
  constexpr int64_t PIECE = 8 * BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (n > SERIAL)
  for (int64_t i = 0; i < n; i += PIECE) finish(dtype, behind, z, y, i, std::min(PIECE, n - i));
}

}  // namespace kernelzoo
