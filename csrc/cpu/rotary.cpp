#include "rotary.h"

#include <algorithm>

namespace kernelzoo {

void rotary(int dtype, const Turn& turn, Heads x, Heads y, const int64_t* ids, int64_t stride_ids_b,
            int64_t stride_ids_l, int64_t B, int64_t H, int64_t L, int threads) {
  const RotaryKernels& k = rotary(dtype);
  const int64_t total = B * H * L * turn.width;
  if (H > 1 && x.h < x.l) {  // the heads of a position are neighbours, and share its row of the tables
    const auto own = [](int64_t b, int64_t stride_b, int64_t l, int64_t stride_l) {
      return b * stride_b + l * stride_l;
    };
    Turn one = turn;
    one.positions = 1;
    static const int64_t zero = 0;
    const int64_t row = turn.half * (dtype == F64 ? 8 : 4);
#pragma omp parallel for collapse(2) num_threads(threads) if (total > SERIAL)
    for (int64_t b = 0; b < B; ++b)
      for (int64_t l = 0; l < L; ++l) {
        int64_t position = ids ? ids[own(b, stride_ids_b, l, stride_ids_l)] : l;
        position = std::clamp<int64_t>(position, 0, turn.positions - 1);
        Turn mine = one;
        mine.cos = static_cast<const char*>(turn.cos) + position * row;
        mine.sin = static_cast<const char*>(turn.sin) + position * row;
        k.rows(mine, at(x.data, dtype, own(b, x.b, l, x.l)), x.h, at(y.data, dtype, own(b, y.b, l, y.l)), y.h, &zero, 0,
               0, H);
      }
    return;
  }
  const int64_t chunk = std::max<int64_t>(1, SERIAL / turn.width), chunks = ceil_div(L, chunk);
#pragma omp parallel for collapse(3) num_threads(threads) if (total > SERIAL)
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t l = c * chunk;
        k.rows(turn, at(x.data, dtype, b * x.b + h * x.h + l * x.l), x.l,
               at(y.data, dtype, b * y.b + h * y.h + l * y.l), y.l,
               ids ? ids + b * stride_ids_b + l * stride_ids_l : nullptr, stride_ids_l, l, std::min(chunk, L - l));
      }
}

}  // namespace kernelzoo
