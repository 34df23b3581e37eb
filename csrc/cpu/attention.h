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
  // The backward in `chunks` tasks a (batch, key head), each with its own sums dk and dv, of which acc holds two
  // (Lk, padded) blocks a slot.
  int64_t chunks = 1;
  void* acc = nullptr;
  // Decoding: the new tokens' queries are in q, the caches in k and v; a page has `page` keys, 0 without a table.
  const int32_t *lengths = nullptr, *table = nullptr;
  int64_t table_row = 0, page = 0, parts = 1, part = 0;
};

// Columns of a padded row, of whatever type.
inline int64_t padded_columns(int64_t n) { return ceil_div(n, 16) * 16; }

struct AttentionKernels {
  void (*fwd)(const Attention&, int64_t b, int64_t h, int64_t block);
  // dq of the chunk's queries, and its sums of dk and dv in `slot`
  void (*bwd)(const Attention&, int64_t b, int64_t hk, int64_t chunk, int64_t slot);
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
