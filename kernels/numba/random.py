"""The random bits of ops/core/random.py: Philox4x32 with 7 rounds, word i % 4 of block i // 4 for element i."""

import numpy as np

from .math import jit, u32

u64 = np.uint64
A, B = u64(0xD2511F53), u64(0xCD9E8D57)
KEY_A, KEY_B = u32(0x9E3779B9), u32(0xBB67AE85)
SHIFT = u64(32)


@jit
def philox(seed, block):
    """The four words of a block; seed and block are uint64."""
    c0, c1, c2, c3 = u32(block), u32(block >> SHIFT), u32(0), u32(0)
    k0, k1 = u32(seed), u32(seed >> SHIFT)
    for _ in range(7):
        a, b = A * u64(c0), B * u64(c2)
        c0, c1, c2, c3 = (
            u32(u32(b >> SHIFT) ^ c1 ^ k0),
            u32(b),
            u32(u32(a >> SHIFT) ^ c3 ^ k1),
            u32(a),
        )
        k0, k1 = u32(k0 + KEY_A), u32(k1 + KEY_B)
    return c0, c1, c2, c3
