#pragma once

#include "bind.h"

#include "../cross_entropy.h"

namespace {

kernelzoo::CrossEntropyRows rows_of(Address x, Address targets, Address probabilities, Address weights, int64_t rows,
                                    int64_t n, double smoothing) {
  return {pointer(x), pointer<int64_t>(targets), pointer(probabilities), pointer(weights), rows, n, smoothing};
}

}  // namespace

inline void bind_cross_entropy(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;

  m.def(
      "cross_entropy_fwd",
      [](Address x, Address targets, Address probabilities, Address weights, Address loss, Address counts,
         Address stats, int64_t rows, int64_t n, double smoothing, int dtype, int threads) {
        kernelzoo::cross_entropy_fwd(dtype, rows_of(x, targets, probabilities, weights, rows, n, smoothing),
                                     pointer(loss), pointer(counts), pointer(stats), threads);
      },
      no_gil);
  m.def(
      "cross_entropy_bwd",
      [](Address x, Address targets, Address probabilities, Address weights, Address stats, Address g,
         int64_t stride_g, Address dx, int64_t rows, int64_t n, double smoothing, int dtype, int threads) {
        kernelzoo::cross_entropy_bwd(dtype, rows_of(x, targets, probabilities, weights, rows, n, smoothing),
                                     pointer(stats), pointer(g), stride_g, pointer(dx), threads);
      },
      no_gil);
  m.def(
      "cross_entropy_both",
      [](Address x, Address targets, Address probabilities, Address weights, Address g, int64_t stride_g,
         Address loss, Address counts, Address dx, int64_t rows, int64_t n, double smoothing, int dtype, int threads) {
        kernelzoo::cross_entropy_both(dtype, rows_of(x, targets, probabilities, weights, rows, n, smoothing),
                                      pointer(g), stride_g, pointer(loss), pointer(counts), pointer(dx), threads);
      },
      no_gil);
}
