"""The Numba launchers on threads, past one tile, with rows and columns that their blocks leave over."""

import pytest
import torch

from kernelzoo.kernels.numba.rnn import rnn_bwd, rnn_fwd
from kernelzoo.ops.rnn_formula import GATES, reference


def arguments(mode, sizes, H, heads, norm):
    g = torch.Generator().manual_seed(7)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=g, dtype=torch.float64) * scale

    R, B, width, lstm = sum(sizes), sizes[0], GATES[mode] * H, mode == "lstm"
    w = normal(width, H // heads, scale=(H // heads) ** -0.5)
    ln_cell = 1 + normal(2, H, scale=0.3) if norm and lstm else None
    b_hn = normal(H) if mode == "gru" else None
    ln_weight = 1 + normal(width, scale=0.3) if norm else None
    c0 = normal(B, H) if lstm else None
    return [normal(R, width), normal(B, H), c0, w, b_hn, None, None, ln_weight, ln_cell, None, None, None]


def results(a, batch_sizes, mode, reverse, heads):
    out, hn, cn, *saved = rnn_fwd(*a, batch_sizes, mode, reverse, heads, 1e-5, True)
    needs = [t is not None for t in a[:9]]
    grads = rnn_bwd(
        out.cos(), hn.cos(), None, out, *a[1:], batch_sizes, *saved, mode, reverse, heads, 1e-5, *needs
    )
    return [t for t in (out, hn, cn, *grads) if t is not None]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_on_threads(mode, norm):
    """61 rows' products and gates are shared by threads: the formula's results, the same bits on any number."""
    sizes, heads = [61, 61, 40, 9, 1], 2
    batch_sizes, a = torch.tensor(sizes), arguments(mode, sizes, 2 * 151, heads, norm)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(a, batch_sizes, mode, True, heads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)
    leaves = [None if t is None else t.clone().requires_grad_() for t in a]
    out, hn, cn = reference(*leaves, batch_sizes, mode, True, heads, 1e-5)
    grads = torch.autograd.grad((out, hn), [t for t in leaves if t is not None], (out.cos(), hn.cos()))
    expected = [*(t for t in (out, hn, cn) if t is not None), *grads]
    for one, two in zip(found[0], expected, strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-9, atol=1e-9)
