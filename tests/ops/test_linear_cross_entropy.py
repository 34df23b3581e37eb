"""linear_cross_entropy: chunks of logits, gradients computed in the forward."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.kernels import class_loss
from kernelzoo.ops.linear_cross_entropy import LinearCrossEntropy

from ..harness import WITHOUT_CUDA, Case, OpSuite, device_of, need

T = torch.nn.functional


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """16 rows, the least there is."""
    for name in ("CHUNK_BYTES", "CHUNK_BYTES_GPU"):
        monkeypatch.setattr(class_loss, name, 1)


def case(M, K, C, bias=True, probabilities=False, weighted=False, ignored=0, large=False, **options):
    def make(g):
        x = torch.randn(M, K, generator=g, dtype=torch.float64)
        w = torch.randn(C, K, generator=g, dtype=torch.float64) * K**-0.5
        b = torch.randn(C, generator=g, dtype=torch.float64) if bias else None
        target, extra = torch.randint(C, (M,), generator=g), {}
        if probabilities:
            extra["q"] = torch.randint(0, 9, (M, C), generator=g).double() / 8
        target[:ignored] = -100
        if weighted:
            extra["weight"] = torch.randint(1, 9, (C,), generator=g).double() / 8
        return (x, w, b, target), extra | options

    words = [f"M{M}-K{K}-C{C}", "bias" if bias else "", "probabilities" if probabilities else ""]
    words += ["weighted" if weighted else "", f"ignored{ignored}" if ignored else ""]
    return Case("-".join([*filter(None, words), *(f"{k}-{v}" for k, v in options.items())]), make, large)


def ours(x, w, b, target, weight=None, q=None, **options):
    weight = None if weight is None else weight.to(x)
    return F.linear_cross_entropy(
        x, w, target if q is None else q.to(x), linear_bias=b, weight=weight, **options
    )


def theirs(x, w, b, target, weight=None, q=None, **options):
    weight = None if weight is None else weight.to(x)
    return T.cross_entropy(T.linear(x, w, b), target if q is None else q.to(x), weight, **options)


class TestLinearCrossEntropy(OpSuite):
    call = staticmethod(ours)
    reference = staticmethod(theirs)
    cases = (
        case(37, 5, 19),
        case(19, 5, 33, bias=False, weighted=True, ignored=3, label_smoothing=0.1),
        case(37, 6, 19, reduction="none", ignored=2),
        case(18, 5, 19, probabilities=True, reduction="sum"),
        case(150, 65, 514, large=True, weighted=True),
    )


def tensors(backend, M=37, K=5, C=19, dtype=torch.float32):
    device = device_of(backend)
    x, w, b = (torch.randn(s, device=device, dtype=dtype).requires_grad_() for s in ((M, K), (C, K), (C,)))
    return x, w, b, torch.randint(C, (M,), device=device)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_twice(backend, reduction, dtype):
    """The first hands out what the forward computed, the second computes it anew; neither touches the other's."""
    need(backend)
    *given, target = tensors(backend, dtype=dtype)
    with kz.backend(backend):
        y = ours(*given, target, reduction=reduction)
    dy = torch.full_like(y, 3.0)
    first = torch.autograd.grad(y, given, dy, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(y, given, dy, retain_graph=True)
    third = torch.autograd.grad(y, given, 2 * dy)
    for a, b, c, d in zip(first, kept, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        torch.testing.assert_close(2 * a, d)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_fp16_sums_past_its_range(backend):
    """Before the mean divides them the rows' gradients add up to more than 65504."""
    need(backend)
    device = device_of(backend)
    M = 400
    x = torch.full((M, 2), 200.0, dtype=torch.float16, device=device, requires_grad=True)
    w = torch.zeros(8, 2, dtype=torch.float16, device=device, requires_grad=True)
    target = torch.zeros(M, dtype=torch.int64, device=device)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHUNK_BYTES", "CHUNK_BYTES_GPU"):
            patch.setattr(class_loss, name, 16 << 20)
        with kz.backend(backend):
            dw = torch.autograd.grad(F.linear_cross_entropy(x, w, target), w)[0]
    expected = torch.full_like(w, 200 / 8)
    expected[0] = -200 * 7 / 8
    torch.testing.assert_close(dw, expected)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("wide", ["input", "linear_weight"])
def test_float64_under_autocast(backend, wide):
    """Autocast leaves float64 as it is, and no kernel reads float32 beside it."""
    need(backend)
    x, w, _, _ = tensors(backend)
    q = torch.rand(37, 19, device=x.device).softmax(1)
    with torch.autocast(x.device.type), kz.backend(backend):
        if wide == "input":
            with pytest.raises(kz.BackendUnavailable, match="no kernel takes"):
                F.linear_cross_entropy(x.double(), w.double(), q)
            with kz.backend("auto"):
                y = F.linear_cross_entropy(x.double(), w.double(), q)
            expected = T.cross_entropy(T.linear(x.double(), w.double()), q)
            torch.testing.assert_close(y, expected)
        else:
            for given in ((x, w.double()), (x.double(), w)):
                with pytest.raises(RuntimeError, match=r"linear_cross_entropy: .*dtype"):
                    F.linear_cross_entropy(*given, q)


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_all_ignored(backend, dtype):
    need(backend)
    *given, target = tensors(backend, dtype=dtype)
    with kz.backend(backend):
        y = ours(*given, torch.full_like(target, -100))
    assert y.isnan()
    assert not any(g.any() for g in torch.autograd.grad(y, given))


@pytest.mark.parametrize("backend", WITHOUT_CUDA)
def test_unbatched_and_autocast(backend):
    need(backend)
    x, w, b, target = tensors(backend)
    with kz.backend(backend):
        for reduction in ("mean", "none"):
            y = F.linear_cross_entropy(x[0], w, target[0], linear_bias=b, reduction=reduction)
            torch.testing.assert_close(y, T.cross_entropy(T.linear(x[0], w, b), target[0]))
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = ours(x, w, b, target)
            torch.testing.assert_close(y, theirs(x, w, b, target))
    assert y.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y, (x, w, b)))


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_logits_are_never_whole(backend):
    need(backend)
    x, w, b, target = tensors(backend, M=400, K=8, C=1000)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)
            )
            return out

    from kernelzoo.kernels import cpp, numba  # noqa: F401
    from kernelzoo.ops.core.registry import launcher

    launch = launcher(backend, "cross_entropy", "linear_cross_entropy_fwd")
    with torch.no_grad(), Watch():
        launch(x, w, b, target, None, -100, "mean", 0.0, False, True, True, True)
    assert max(seen) <= 16 * 1000


def test_target_out_of_range():
    x, w, b, target = tensors("cpp")
    target[3] = 19
    with kz.backend("numba"), pytest.raises(IndexError, match="Target 19 is out of bounds"):
        ours(x, w, b, target)


def test_auto_rule():
    big = torch.empty(2048, 8), torch.empty(4096, 8)
    assert LinearCrossEntropy.rule(*big) is None
    assert LinearCrossEntropy.rule(big[0][:4], big[1]) == "few logits"


@pytest.mark.skipif(not hasattr(T, "linear_cross_entropy"), reason="torch is older than linear_cross_entropy")
def test_as_torch():
    x, w, b, target = tensors("cpp")
    q = torch.rand(37, 19)
    with pytest.raises(RuntimeError, match=r"linear_cross_entropy: .*last dimensions"):
        F.linear_cross_entropy(x, w[:, :3], target)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: expected linear_bias shape"):
        F.linear_cross_entropy(x, w, target, linear_bias=b[:3])
    with pytest.raises(RuntimeError, match="ignore_index cannot be specified"):
        F.linear_cross_entropy(x, w, q, ignore_index=3)
    wide = torch.randn(4, 3, 5)  # (C, d1, in_features)
    inner = torch.randint(4, (37, 3))
    torch.testing.assert_close(F.linear_cross_entropy(x, wide, inner), T.linear_cross_entropy(x, wide, inner))
    options = torch.nn.LinearCrossEntropyOptions()
    torch.testing.assert_close(
        F.linear_cross_entropy(x, w, target, options=options), T.linear_cross_entropy(x, w, target)
    )
