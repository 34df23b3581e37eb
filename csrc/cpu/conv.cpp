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
// The most sums of weight gradients of their own, which are then added up in their order.
constexpr int64_t SUMS = 64;

// How a convolution is cut into units, and where in a unit's tile the taps are.
int64_t cut(Depthwise& a, std::vector<int64_t>& offsets) {
  if (!a.first) {
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
  return a.N * a.C * a.out[0] * ceil_div(a.out[1], a.rows) * ceil_div(a.out[2], a.columns);
}

// Elements of T that a kernel's scratch takes.
int64_t scratch(const Depthwise& a) {
  const int64_t taps = a.taps(), columns = (a.columns - 1) * a.stride[2] + a.span(2);
  if (a.first) {
    const int64_t tile = a.kernel[0] * a.stride[1] * a.stride[2] * a.tile_rows * a.pitch;
    return tile + a.rows * (std::max(a.pitch, a.columns) + 16) + a.in[2] + 2 * CONV_SLACK;
  }
  const int64_t lines = a.kernel[0] * a.kernel[1];
  const int64_t rows = (a.columns + lines * std::min(columns, a.in[2])) * a.C + 16 * (lines + 1);
  return 6 * taps + 2 * lines + rows + 4 * CONV_SLACK;
}

// The weights as the kernels read them, from (C, taps) of S.
Bytes packed(int dtype, const Depthwise& a, const void* w, bool backward) {
  const int64_t taps = a.taps(), n = a.C * taps, item = acc_bytes(dtype);
  Bytes wide(new char[n * item]);
  base(dtype).load(w, wide.get(), n);
  if (a.first && !backward) return wide;
  Bytes out(new char[n * item]);
  for (int64_t c = 0; c < a.C; ++c)
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t from = c * taps + (backward ? taps - 1 - t : t);
      std::copy_n(wide.get() + from * item, item, out.get() + (a.first ? c * taps + t : t * a.C + c) * item);
    }
  return out;
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
  const Bytes w = packed(dtype, a, a.w, backward);
  a.w = w.get();
  Bytes b;
  if (a.b) {
    b.reset(new char[a.C * acc_bytes(dtype)]);
    base(dtype).load(a.b, b.get(), a.C);
    a.b = b.get();
  }
  for (int i = 0; i < 3; ++i) {
    a.up[i] = 1;
    if (!backward) continue;
    std::swap(a.stride[i], a.up[i]);
    a.padding[i] = a.span(i) - 1 - a.padding[i];
  }
  std::vector<int64_t> offsets;
  const int64_t units = cut(a, offsets), size = scratch(a) * acc_bytes(dtype);
  const bool more = behind.residual || behind.act != ACT_none;
  const int64_t work = a.N * a.C * a.out[0] * a.out[1] * a.out[2] * a.taps();
#pragma omp parallel num_threads(threads) if (work > SERIAL)
  {
    const Bytes own(new char[size]);
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
int64_t groups_of(const Depthwise& a, int64_t units) { return std::min(SUMS, a.first ? a.N : units); }

}  // namespace

int64_t depthwise_partial(const Depthwise& given) {
  Depthwise a = given;
  std::vector<int64_t> offsets;
  return groups_of(a, cut(a, offsets)) * (a.taps() + 1) * a.C;
}

void depthwise_bwd_weight(int dtype, Depthwise a, const void* dz, void* dw, void* db, void* partial, int threads) {
  std::fill_n(a.up, 3, 1);
  std::vector<int64_t> offsets;
  const int64_t units = cut(a, offsets), groups = groups_of(a, units), taps = a.taps();
  const int64_t item = acc_bytes(dtype), size = scratch(a) * item, all = (taps + 1) * a.C;
  const auto sums = [&](int64_t i) { return static_cast<char*>(partial) + i * item; };
  std::fill_n(sums(0), groups * all * item, 0);
  const int64_t work = a.N * a.C * a.out[0] * a.out[1] * a.out[2] * taps;
#pragma omp parallel num_threads(threads) if (work > SERIAL)
  {
    const Bytes own(new char[size]);
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
    for (int64_t c = 0; c < a.C; ++c)
      for (int64_t t = 0; t <= taps; ++t) {
        void* const out = t < taps ? at(dw, dtype, c * taps + t) : at(db, dtype, c);
        if (!out) continue;
        double total = 0;
        for (int64_t g = 0; g < groups; ++g) {
          const void* p = sums(g * all + (a.first ? c * (taps + 1) + t : t * a.C + c));
          total += dtype == F64 ? *static_cast<const double*>(p) : *static_cast<const float*>(p);
        }
        const float rounded = static_cast<float>(total);
        base(dtype).store(dtype == F64 ? static_cast<const void*>(&total) : &rounded, out, 1);
      }
  }
}

void add_act(int dtype, Behind behind, void* z, void* y, int64_t n, int threads) {
  constexpr int64_t PIECE = 8 * BLOCK;
#pragma omp parallel for schedule(static) num_threads(threads) if (n > SERIAL)
  for (int64_t i = 0; i < n; i += PIECE) finish(dtype, behind, z, y, i, std::min(PIECE, n - i));
}

}  // namespace kernelzoo
