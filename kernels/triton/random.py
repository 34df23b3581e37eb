"""The random bits of ops/core/random.py: Philox4x32 with 7 rounds, word i % 4 of block i // 4 for element i."""

import triton
import triton.language as tl


@triton.jit
def words4(seed, block):
    """The four words of the blocks numbered `block` (int64, any shape): uint32 tensors of its shape."""
    block = block.to(tl.uint64)
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = c0 ^ c0
    return tl.philox(seed, c0, c1, zero, zero, 7)


@triton.jit
def words(seed, index):
    """The word of each element numbered `index` (int64, any shape), each from a block of its own: for tiles whose
    neighbours share no block."""
    w0, w1, w2, w3 = words4(seed, index >> 2)
    lane = index & 3
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
