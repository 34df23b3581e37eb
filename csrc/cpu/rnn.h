// Recurrent layers: what the kernels of one instruction set take and offer, and the drivers over them.
//
// A call runs a whole sequence in one parallel region. A thread owns a share of the cells, with all their gates, and of
// the features of h; the recurrent weights of its share are packed once and stay in its own cache as far as they fit.
#pragma once

#include "isa.h"

namespace kernelzoo {

enum RnnMode { RNN_LSTM, RNN_GRU, RNN_TANH, RNN_RELU };

// Threads meet here; the state lies with the driver.
struct RnnBarrier;
// `phase`: the caller's own count, 0 at first.
void rnn_wait(RnnBarrier& barrier, int64_t& phase);

// B sequences, T steps, R rows in all, H cells, P features of h, G gates. All contiguous, of the call's dtype S but for
// cells and rstd, which have the accumulator's; null where absent. batch_sizes: the rows of each step, or null (B).
struct Rnn {
  int mode = RNN_LSTM;
  int64_t B, T, R, H, P, heads;
  bool reverse;
  double eps;
  const int64_t* batch_sizes;
  const void *gx, *h0, *c0, *w_hh, *b_hn, *w_hr, *peephole, *ln_weight, *ln_cell, *h_mask, *zone_h, *zone_c;
  void *out, *hn, *cn, *gates, *cells, *gh, *rstd;  // the backward reads out, gates, cells, gh, rstd
  const void *dout, *dhn, *dcn;
  void *dgx, *dgh, *dh0, *dc0, *dh_new;

  char* workspace;
  RnnBarrier* barrier;
};

struct RnnKernels {
  int64_t (*size)(const Rnn&);  // bytes of the workspace, which is aligned to 64
  void (*run)(const Rnn&, int64_t thread, int64_t team);
};

// One entry more than there are dtypes: bf16 by dot products of pairs, where the processor has them.
constexpr int RNN_BF16_DOT = DTYPES;
KERNELZOO_TABLES(RnnKernels, rnn_forward)
KERNELZOO_TABLES(RnnKernels, rnn_backward)

int64_t rnn_size(int dtype, const Rnn& a, bool backward);
void rnn_fwd(int dtype, Rnn a, int threads);
void rnn_bwd(int dtype, Rnn a, int threads);

}  // namespace kernelzoo
