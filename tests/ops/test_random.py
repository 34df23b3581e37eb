"""The random bits that dropout replays: one sequence in every language."""

import numpy as np
import pytest
import torch

import kernelzoo as kz
from kernelzoo.ops.core import random

from ..harness import device_of, need

if kz.backends()["triton"].available:
    import triton
    import triton.language as tl

    from kernelzoo.kernels.triton.random import words, words4

    @triton.jit
    def _draw_kernel(seed_ptr, index_ptr, y_ptr, four_ptr, N: tl.constexpr):
        offs = tl.arange(0, N)
        index = tl.load(index_ptr + offs)
        seed = tl.load(seed_ptr)
        tl.store(y_ptr + offs, words(seed, index).to(tl.int64))
        w0, _, _, w3 = words4(seed, index >> 2)
        tl.store(four_ptr + offs, tl.where(index % 4 == 0, w0, w3).to(tl.int64))


SEED = 0x7EDCBA9876543210
INDEX = torch.cat([torch.arange(61), torch.arange(2**33 - 3, 2**33 + 64)])


def test_known_answers():
    """Salmon et al.'s generator by Python's integers of any size."""

    def block(seed, counter):
        c, k = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(7):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    expected = [block(SEED, i // 4)[i % 4] for i in INDEX.tolist()]
    assert random.words(torch.tensor([SEED]), INDEX).tolist() == expected


def test_numba_draws_the_same():
    need("numba")
    from numba import njit

    from kernelzoo.kernels.numba.random import philox

    @njit
    def draw(seed, index):
        return [philox(np.uint64(seed), np.uint64(i >> 2))[i & 3] for i in index]

    assert draw(SEED, INDEX.numpy()) == random.words(torch.tensor([SEED]), INDEX).tolist()


def test_triton_draws_the_same():
    need("triton")
    device = device_of("triton")
    index = INDEX[:128].to(device)
    y, four = torch.empty_like(index), torch.empty_like(index)
    _draw_kernel[(1,)](torch.tensor([SEED], device=device), index, y, four, N=128)
    expected = random.words(torch.tensor([SEED]), INDEX[:128])
    assert y.tolist() == expected.tolist()
    ends = (index.cpu() % 4 == 0) | (index.cpu() % 4 == 3)
    assert four.cpu()[ends].tolist() == expected[ends].tolist()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_share_of_kept_elements(p):
    n = 1 << 18
    kept = random.kept(torch.tensor([SEED]), torch.arange(n), p)
    spread = (p * (1 - p) / n) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) <= 5 * spread


def test_seed_follows_torchs_generator():
    x = torch.empty(0)
    torch.manual_seed(5)
    first = kz.ops.core.draw_seed(x)
    assert not torch.equal(first, kz.ops.core.draw_seed(x))
    torch.manual_seed(5)
    assert torch.equal(first, kz.ops.core.draw_seed(x))
