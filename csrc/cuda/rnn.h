// A recurrent layer in one direction: what its launchers take. No CUDA type, as launch.h.
#pragma once

#include <cstdint>

#include "launch.h"

// R rows in all, step after step; B sequences, T steps, H units, G gates. Null where an option is off; all contiguous,
// of one dtype, but c, cells, first_c, dh and dc, which have the accumulator's.
//   gx (R, G H), h0 (B, H), w (G H, H), b_hn (H), peephole (3, H), h_mask (B, H), zone_h, zone_c (R, H);
//   offsets (T + 1) int64, null where step t's rows start at t B; counter: one zeroed unsigned int;
//   forward: out (R, H), hn (B, H), c (B, H), c0 before and cn after; gates (R, G H), cells, gh (R, H);
//   backward: w is transposed, (H, G H); first_c (B, H) is c0, dout (R, H), dh and dc (B, H), which start as the
//   gradients of hn and cn and end as dc that of c0; dgx, dgh (R, G H), dh0 (B, H).
#define KZ_RNN_POINTERS(X) \
  X(gx) X(h0) X(w) X(b_hn) X(peephole) X(h_mask) X(zone_h) X(zone_c) X(offsets) X(counter) X(out) X(hn) X(c) X(gates) \
  X(cells) X(gh) X(first_c) X(dout) X(dh) X(dc) X(dgx) X(dgh) X(dh0)
#define KZ_RNN_SIZES(X) X(B) X(T) X(H)

namespace kz {

enum class RnnMode : int { lstm, gru, rnn_tanh, rnn_relu };

struct Rnn {
#define KZ_FIELD(name) void* name;
  KZ_RNN_POINTERS(KZ_FIELD)
#undef KZ_FIELD
#define KZ_FIELD(name) int64_t name;
  KZ_RNN_SIZES(KZ_FIELD)
#undef KZ_FIELD
  RnnMode mode;
  bool reverse;
};

void rnn_fwd(const Rnn&, Dtype, Target);
void rnn_bwd(const Rnn&, Dtype, Target);

}  // namespace kz
