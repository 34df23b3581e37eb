// Attention: what the serial kernels of one instruction set take and offer, and the parallel drivers over them.
#pragma once

#include "isa.h"

namespace kernelzoo {

// (batch, head, row, column) elements, columns contiguous; strides in elements.
struct Rows {
  void* p = nullptr;
  int64_t batch = 0, head = 0, row = 0;
};

enum { NO_BIAS, BOOL_BIAS, FLOAT_BIAS };
constexpr int64_t UNLIMITED = int64_t{1} << 30;

// Queries and keys of a block, multiples of 16: the score tile and each operand of a product (at D = 64: 16 KB)
// stay in L1 or, all of a block's together, in L2.
constexpr int64_t BLOCK_M = 128, BLOCK_N = 96;
// Keys that a part of a decoding step takes at least.
constexpr int64_t PART = 256;

struct Attention {
  Rows q, k, v, o, grad, dq, dk, dv;  // grad: of o
  Rows lse;
  int64_t B, H, Hkv, Lq, Lk, D, Dv;  // Lq, Lk: the longest where packed
  int bias_kind = NO_BIAS;
  const void* bias = nullptr;
  int64_t bias_stride[4] = {};
  void* dbias = nullptr;
  int64_t dbias_shape[4] = {};
  const float* slopes = nullptr;
  int64_t slopes_batch = 0, slopes_head = 0;
  const int32_t *key_lengths = nullptr, *cu_q = nullptr, *cu_k = nullptr;
  const int64_t* seed = nullptr;
  double scale, softcap = 0, dropout_p = 0;
  int64_t left, right;  // UNLIMITED where negative
  bool align_end = false;
  // How the backward is cut into tasks, each over every chunks'th block of queries, with sums of dk and dv of its own:
  // a slot of acc is two (Lk, padded) blocks. Where dbias is wanted, a group of (batch, key head) pairs that share it
  // goes in `splits` parts, and in each part `wave` pairs at a time. From acc's element `strips` on lie the sums of
  // dbias.
  int64_t chunks = 1, splits = 1, wave = 1, strips = 0;
  void* acc = nullptr;
  // Decoding: the new tokens' queries are in q, the caches in k and v; a page has `page` keys, 0 without a table.
  const int32_t *lengths = nullptr, *table = nullptr;
  int64_t table_row = 0, page = 0, parts = 1, part = 0;
};

// Columns of a padded row, of whatever type.
inline int64_t padded_columns(int64_t n) { return ceil_div(n, 16) * 16; }

// Which (batch, key head) pairs share a gradient of the bias: all batches, all heads, both or neither (where none is
// wanted too). It is summed over queries in strips of (key, BLOCK_M of them), of which each belongs to one task.
struct Sharing {
  bool b, h, i, j;  // dimensions along which the bias was broadcast
  int64_t batches, heads, groups;  // of a group: batches, key heads
  int64_t rows, strips, strip;     // strips of a head, and of a part; elements of a strip

  Sharing(const Attention& a, int64_t chunks) {
    const auto broadcast = [&](int dim, int64_t size) { return a.dbias && a.dbias_shape[dim] == 1 && size > 1; };
    b = broadcast(0, a.B);
    h = broadcast(1, a.H);
    i = broadcast(2, a.Lq);
    j = broadcast(3, a.Lk);
    batches = b ? a.B : 1;
    heads = h ? a.Hkv : 1;
    groups = ceil_div(a.B, batches) * (a.Hkv / heads);
    rows = i ? chunks : ceil_div(a.Lq, BLOCK_M);
    strips = a.dbias ? rows * (h ? 1 : a.H / a.Hkv) : 0;
    strip = (j ? 1 : ceil_div(a.Lk, BLOCK_N)) * BLOCK_N * BLOCK_M;
  }
  int64_t pairs() const { return batches * heads; }
  int64_t group(const Attention& a, int64_t batch, int64_t key_head) const {
    return (b ? 0 : batch) * (a.Hkv / heads) + (h ? 0 : key_head);
  }
};

struct AttentionKernels {
  void (*fwd)(const Attention&, int64_t b, int64_t h, int64_t block);
  // dq of the chunk's queries, and its sums of dk and dv in `slot`; dbias is added to the part's strips
  void (*bwd)(const Attention&, int64_t b, int64_t hk, int64_t chunk, int64_t slot, int64_t part);
  // dk and dv of a block of keys, from `count` slots
  void (*bwd_sum)(const Attention&, int64_t b, int64_t hk, int64_t block, int64_t slot, int64_t count);
  // dbias of (batch, head, query block, key block) of its own shape
  void (*bwd_bias)(const Attention&, int64_t b, int64_t h, int64_t i, int64_t j);
  void (*decode)(const Attention&, int64_t b, int64_t hk, int64_t part);
  void (*decode_sum)(const Attention&, int64_t b, int64_t hk);
};

// At least 2 MB that a thread keeps between calls, aligned to a page.
void* attention_scratch();

// One entry more than there are dtypes: bf16 by dot products of pairs, where the processor has them.
constexpr int BF16_DOT = DTYPES;
KERNELZOO_TABLES(AttentionKernels, attention)

// What a.acc must hold, in accumulators (double for double, else float); the first also chooses a.chunks, the second
// a.parts.
int64_t attention_bwd_size(int dtype, Attention& a, int threads);
int64_t attention_decode_size(Attention& a);

void attention_fwd(int dtype, const Attention& a, int threads);
void attention_bwd(int dtype, const Attention& a, int threads);
void attention_decode(int dtype, const Attention& a, int threads);

}  // namespace kernelzoo
