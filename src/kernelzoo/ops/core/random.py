"""Random bits that every backend makes alike, so that a mask drawn in the forward is drawn again in the backward.

Philox4x32 with 7 rounds (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11,
doi:10.1145/2063384.2063405), keyed by a 64-bit seed. Element i takes word i % 4 of the block whose counter is
i // 4. An element is kept where its word, as an unsigned number, is at least `threshold(p)`.
"""

import torch

_LOW = 0xFFFFFFFF


def draw_seed(x):
    """A seed for x's device, from torch's generator there: int64, shape (1,)."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=x.device)


def threshold(p):
    """Of 2^32 words, how many are dropped at probability p < 1."""
    return min(round(p * 2**32), 2**32 - 1)


def words(seed, index):
    """The 32-bit words, as int64 in [0, 2^32), of the elements numbered `index` (int64, any shape)."""
    counter = index >> 2
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(7):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wraps past 2^63, which leaves all 64 bits as they should be
        c0, c1, c2, c3 = (
            ((b >> 32) & _LOW) ^ c1 ^ k0,
            b & _LOW,
            ((a >> 32) & _LOW) ^ c3 ^ k1,
            a & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    lane = index & 3
    return torch.where(lane < 2, torch.where(lane == 0, c0, c1), torch.where(lane == 2, c2, c3))


def kept(seed, index, p):
    """Which of the elements numbered `index` stay at drop probability p: bool, of index's shape."""
    return words(seed, index) >= threshold(p)
