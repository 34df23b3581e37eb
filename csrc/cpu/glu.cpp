#include "glu.h"

#include <algorithm>

namespace kernelzoo {
namespace {

// Elements a task takes: whole blocks.
constexpr int64_t SPAN = 16 * BLOCK;

// f(row, first column, columns) over pieces of rows.
template <class F>
void for_spans(int64_t M, int64_t N, int threads, F f) {
  const int64_t spans = ceil_div(N, SPAN);
#pragma omp parallel for collapse(2) num_threads(threads) if (M * N > SERIAL)
  for (int64_t row = 0; row < M; ++row)
    for (int64_t s = 0; s < spans; ++s) f(row, s * SPAN, std::min(SPAN, N - s * SPAN));
}

}  // namespace

void glu_fwd(int dtype, int act, GluRows gate, GluRows up, GluRows y, int64_t M, int64_t N, int threads) {
  const GluKernels& k = glu(dtype);
  for_spans(M, N, threads, [=, &k](int64_t row, int64_t j, int64_t n) {
    const auto of = [=](GluRows r) { return at(r.data, dtype, row * r.stride + j); };
    k.fwd(act, of(gate), of(up), of(y), n);
  });
}

void glu_bwd(int dtype, int act, GluRows dy, GluRows gate, GluRows up, GluRows dgate, GluRows dup, int64_t M, int64_t N,
             int threads) {
  const GluKernels& k = glu(dtype);
  for_spans(M, N, threads, [=, &k](int64_t row, int64_t j, int64_t n) {
    const auto of = [=](GluRows r) { return at(r.data, dtype, row * r.stride + j); };
    k.bwd(act, of(dy), of(gate), of(up), of(dgate), of(dup), n);
  });
}

}  // namespace kernelzoo
