"""Embedding: the rows looked up, and the gradient summed row by row."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import DTYPES, WITHOUT_CUDA, Case, OpSuite, assert_as_good, device_of, here, need

T = torch.nn.functional


def case(rows, dim, shape, large=False, **options):
    def make(g):
        weight = torch.randn(rows, dim, generator=g, dtype=torch.float64)
        return [weight, torch.randint(rows, shape, generator=g)], options

    name = f"{rows}x{dim}-{'x'.join(map(str, shape)) or 'scalar'}"
    return Case(name + "".join(f"-{k}{v}" for k, v in options.items()), make, large)


class TestEmbedding(OpSuite):
    call = staticmethod(lambda weight, indices, **options: F.embedding(indices, weight, **options))
    reference = staticmethod(lambda weight, indices, **options: T.embedding(indices, weight, **options))
    cases = (
        case(7, 5, (4, 6)),
        case(7, 5, (4, 6), padding_idx=3),
        case(7, 5, (40,), padding_idx=-1),
        case(7, 5, (40,), scale_grad_by_freq=True),
        case(7, 5, (40,), scale_grad_by_freq=True, padding_idx=0),
        case(1, 1, (3,)),
        case(9, 4, ()),
        case(50, 37, (3, 5)),
        case(1031, 770, (3, 501), large=True),
        case(3, 130, (2000,), large=True),
        case(30000, 40, (64,), large=True),
    )

    def test_gradcheck(self, case, backend):
        if case.make(torch.Generator())[1]:
            pytest.skip("by definition not the function's derivative, but torch's: test_against_fp64")
        super().test_gradcheck(case, backend)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_common_row_is_summed_exactly(backend, dtype):
    """torch adds in bfloat16 itself, which stops growing at 256."""
    need(backend)
    weight = torch.zeros(3, 4, dtype=dtype, device=device_of(backend), requires_grad=True)
    indices = torch.ones(3000, dtype=torch.int64, device=weight.device)
    with kz.backend(backend):
        F.embedding(indices, weight).sum().backward()
    assert weight.grad[1].eq(torch.tensor(3000.0, dtype=dtype)).all()
    assert not weight.grad[0].any()
    assert not weight.grad[2].any()


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_int32_and_strided_indices(backend):
    need(backend)
    device = device_of(backend)
    weight = torch.randn(9, 5, device=device, requires_grad=True)
    indices = torch.randint(9, (6, 4), device=device, dtype=torch.int32).t()
    dy = torch.randn(4, 6, 5, device=device)
    with kz.backend(backend):
        y = F.embedding(indices, weight)
        (dw,) = torch.autograd.grad(y, weight, dy)
    z = T.embedding(indices, weight)
    assert torch.equal(y, z)
    torch.testing.assert_close(dw, torch.autograd.grad(z, weight, dy)[0])


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_max_norm_writes_the_weight_as_torch_does(backend, dtype):
    need(backend)
    mine = torch.randn(9, 5, dtype=torch.float64).to(dtype).to(device_of(backend))
    theirs, exact = mine.clone(), mine.double()
    indices = torch.tensor([[1, 2], [2, 5]], device=mine.device)
    with kz.backend(backend):
        y = F.embedding(indices, mine, max_norm=1.0, norm_type=1.5)
    z = T.embedding(indices, theirs, max_norm=1.0, norm_type=1.5)
    assert_as_good("y", y, z, T.embedding(indices, exact, max_norm=1.0, norm_type=1.5))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", [b for b in WITHOUT_CUDA if b != "cuda"])
def test_out_of_range(backend):
    need(backend)
    if device_of(backend) == "cuda":
        pytest.skip("on a GPU a bad index is the device's own assertion")
    weight = torch.randn(9, 5)
    for indices in ([0, 9], [-1, 3]):
        with (
            kz.backend(backend),
            pytest.raises(IndexError, match=r"index out of range in self.*weight has 9 rows"),
        ):
            F.embedding(torch.tensor(indices), weight)


def test_torchs_own_where_it_has_more():
    weight = torch.randn(600, 600, requires_grad=True)
    F.embedding(torch.tensor([1, 1, 5]), weight, sparse=True).sum().backward()
    assert weight.grad.is_sparse
    assert F.embedding(torch.zeros(0, dtype=torch.int64), weight).shape == (0, 600)
    with pytest.raises(AssertionError, match="Padding_idx must be within num_embeddings"):
        F.embedding(torch.tensor([1]), weight, padding_idx=600)
    with pytest.raises(TypeError, match="embedding: input must be a Tensor, got list"):
        F.embedding([1], weight)


def test_from_pretrained():
    layer = kz.nn.Embedding.from_pretrained(torch.randn(4, 3), padding_idx=1)
    assert type(layer) is kz.nn.Embedding
    assert not layer.weight.requires_grad
    assert torch.equal(layer(torch.tensor([2])), layer.weight[2:3])


def test_opcheck():
    weight, indices = torch.randn(7, 5), torch.tensor([1, 1, 6])
    torch.utils.deterministic.fill_uninitialized_memory = False
    ops = torch.ops.kernelzoo
    torch.library.opcheck(ops.embedding_fwd.default, (weight, indices, here()))
    torch.library.opcheck(ops.embedding_bwd.default, (torch.randn(3, 5), indices, 7, 1, True, here()))
