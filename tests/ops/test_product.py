"""Matrix products in C++: every instruction set, dtype, layout and edge; and which are chosen."""

import itertools

import pytest
import torch

from kernelzoo.kernels.product import products as torchs
from kernelzoo.verify import assert_as_good

from ..harness import need

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# M, K, N: one element; less than a tile, one, and a part of another; sums of one part, of one and a bit, of several;
# several blocks of rows; two strips of columns
SIZES = [
    (1, 1, 1),
    (5, 7, 9),
    (6, 16, 64),
    (97, 385, 33),
    (13, 392, 70),
    (200, 800, 100),
    (300, 24, 18),
    (16, 768, 1500),
]


def _rows(m, n, g):
    return torch.randn(m, n, generator=g)


def _columns(m, n, g):
    return torch.randn(n, m, generator=g).t()


def _apart(m, n, g):
    return torch.randn(m, 2, n, 3, generator=g)[:, 1, :, 1]


def _expanded(m, n, g):
    return torch.randn(m, 1, generator=g).expand(m, n)


LAYOUTS = {"rows": _rows, "columns": _columns, "apart": _apart, "expanded": _expanded}


def like(t, dtype):
    """t in a dtype, with its strides."""
    if 0 in t.stride():
        return t[:, :1].to(dtype).expand(t.shape)
    return torch.empty_strided(t.shape, t.stride(), dtype=dtype).copy_(t)


@pytest.fixture
def own():
    need("cpp")
    from kernelzoo.kernels.cpp.product import products

    return products.run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_good_as_torchs(isa, own, size, dtype):
    M, K, N = size
    g = torch.Generator().manual_seed(M + N)
    for left, right in itertools.product(LAYOUTS.values(), repeat=2):
        a, b = like(left(M, K, g), dtype), like(right(K, N, g), dtype)
        bias, before = torch.randn(N, generator=g).to(dtype), torch.randn(M, N, generator=g)
        exact, wide = a.double() @ b.double(), a.float() @ b.float()
        assert_as_good("product", own(a, b, None, torch.empty(M, N, dtype=dtype)), wide.to(dtype), exact)
        biased = own(a, b, bias, torch.empty(M, N, dtype=dtype))
        assert_as_good("product", biased, (wide + bias.float()).to(dtype), exact + bias.double())
        assert_as_good("product", own(a, b, None, torch.empty(M, N)), wide, exact)
        added = own(a, b, None, before.clone(), add=True)
        assert_as_good("product", added, before + wide, before.double() + exact)


def test_a_negative_bit_is_seen(own):
    x = torch.randn(20, 30, dtype=torch.complex64).conj().imag
    b, bias = torch.randn(30, 16), torch.randn(16, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(own(x, b, bias, torch.empty(20, 16)), torch.addmm(bias, x, b))


@pytest.mark.parametrize("K", [256, 300, 384, 512, 768, 2048])
def test_sums_of_one_sign_err_no_more_than_torchs(own, K):
    """Where every term rounds the same way, an error grows with the terms that are added up one after the other."""
    from kernelzoo.kernels.cpp.product import products

    if not products.serves(torch.empty(512, K), torch.empty(K, 256)):
        # MKL groups its sums otherwise on other processors, where these tiles are not used
        pytest.skip("products of this processor are torch's")
    g = torch.Generator().manual_seed(K)
    for a, b in itertools.product(
        (torch.full((512, K), 0.1), torch.full((512, K), 1 / 3), torch.rand(512, K, generator=g)),
        (torch.full((K, 256), 0.3), torch.randn(K, 256, generator=g).abs()),
    ):
        assert_as_good("product", own(a, b, None, torch.empty(512, 256)), a @ b, a.double() @ b.double())


def test_writes_its_result_alone(isa, own):
    """Nothing before or behind it, and none of what it reads."""
    a, b = torch.randn(20, 30), torch.randn(30, 21)
    kept = a.clone(), b.clone()
    block = torch.full((22 * 21,), 7.0)
    own(a, b, None, block[21:-21].view(20, 21))
    assert (block[:21] == 7).all()
    assert (block[-21:] == 7).all()
    torch.testing.assert_close((a, b), kept, rtol=0, atol=0)  # operands are only read


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(own, dtype):
    a, b, c = (torch.randn(s).to(dtype) for s in ((250, 800), (800, 300), (300,)))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(own(a, b, c, torch.empty(250, 300, dtype=dtype)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_is_not_finite_stays_where_it_is(isa, own):
    a, b = torch.randn(30, 400), torch.randn(400, 40)
    a[7, 390], b[11, 39] = float("inf"), float("nan")
    result = own(a, b, None, torch.empty(30, 40))
    odd = torch.zeros(30, 40, dtype=torch.bool)
    odd[7], odd[:, 39] = True, True
    assert torch.equal(~result.isfinite(), odd)
    assert result[:, 39].isnan().all()
    assert result[7, :39].isinf().all()


def test_scratch_holds_what_is_written(own, monkeypatch):
    """More threads than blocks of rows, too."""
    from kernelzoo.kernels import memory

    guard, given = 4096, []

    def scratch(size):
        given.append((torch.full((size + 64 + guard,), 123, dtype=torch.uint8), size))
        return given[-1][0]

    monkeypatch.setattr(memory, "product_scratch", scratch)
    torch.set_num_threads(5)
    for (M, K, N), dtype in itertools.product(SIZES, DTYPES):
        own(torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype), None, torch.empty(M, N, dtype=dtype))
        block, size = given.pop()
        assert (block[size + 64 :] == 123).all()


@pytest.fixture
def chosen(monkeypatch):
    """Products that choose as on a processor where the tiles are the fastest, and what the tiles were given."""
    need("cpp")
    from kernelzoo.kernels.cpp import product

    class Watched(product.Packed):
        def run(self, a, b, bias, out, add=False):
            seen.append(a.dtype)
            return super().run(a, b, bias, out, add)

    seen = []
    monkeypatch.setattr(product, "is_amd", lambda: True)
    monkeypatch.setattr(product, "_is_avx2", lambda: True)
    return Watched(), seen


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_which_are_own(chosen, dtype):
    products, seen = chosen

    def ran(m, k, n):
        seen.clear()
        w, x, dz = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
        products.biased(x, w, w[:, 0])
        products.weight_gradient(dz, x, w)
        products.add_matmul(torch.zeros(m, k, dtype=torch.promote_types(dtype, torch.float32)), dz, w)
        return len(seen)

    assert ran(256, 512, 300) == (0 if dtype == torch.float64 else 3)
    assert ran(16, 64, 64) == (3 if dtype.itemsize == 2 else 0)
    with pytest.raises(RuntimeError):
        products.matmul(torch.randn(256, 512).to(dtype), torch.randn(511, 300).to(dtype))
    assert ran(1, 512, 512) == (1 if dtype.itemsize == 2 else 0)  # the weight's, whose sums have one term


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_every_way_gives_the_product(chosen, dtype, own):
    products, seen = chosen if own else (torchs, [])
    acc = torch.promote_types(dtype, torch.float32)
    x, w, dz, b = (torch.randn(s).to(dtype) for s in ((160, 512), (300, 512), (160, 300), (300,)))
    total = torch.randn(160, 512, dtype=acc)
    z, rest = products.biased(x, w, b)
    results = {
        "z": (z if rest is None else z + rest, x.double() @ w.double().t() + b.double()),
        "dx": (products.matmul(dz, w), dz.double() @ w.double()),
        "dx wide": (products.matmul(dz, w, out=torch.empty(160, 512, dtype=acc)), dz.double() @ w.double()),
        "dw": (products.weight_gradient(dz, x, w), dz.double().t() @ x.double()),
        "sum": (products.add_matmul(total.clone(), dz, w), total.double() + dz.double() @ w.double()),
    }
    assert len(seen) == (5 if own and dtype != torch.float64 else 0)
    bound = torch.finfo(dtype).eps * (2 if dtype.itemsize == 2 else 16)  # one rounding, or those of the sums
    for name, (result, exact) in results.items():
        error = (result.double() - exact).abs().max() / exact.abs().max()
        assert error < bound, (name, error)
