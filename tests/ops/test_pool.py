"""Max, average and adaptive pooling."""

import random

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, GPU, WITHOUT_CUDA, Case, OpSuite, device_of, here, need

ON = pytest.mark.parametrize("backend", WITHOUT_CUDA)


def as_last(x):
    """x (N, C, *) with its channels adjacent."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def case(name, shape, *args, last=False, large=False):
    def make(g):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        return (x,), {"name": name, "args": args, "last": last}

    told = "_".join(str(a).replace(" ", "") for a in args)
    parts = [name, "x".join(map(str, shape)), told, "last" * last]
    return Case("-".join(filter(None, parts)), make, large)


def on(module):
    def call(x, name, args, last):
        x = as_last(x) if last else x
        if module is T and name == "avg_pool3d" and x.dtype.itemsize == 2:  # which torch has not on a CPU
            return T.avg_pool3d(x.float(), *args).to(x.dtype)
        return getattr(module, name)(x, *args)

    return staticmethod(call)


class TestMaxPool(OpSuite):
    call = on(F)
    reference = on(T)
    cases = (
        case("max_pool2d", (2, 5, 6, 5), 3, 2, 1, last=True),
        case("max_pool2d", (2, 2, 5, 6), (2, 3), (2, 1), (0, 1), (1, 2), True),
        case("adaptive_max_pool3d", (1, 2, 3, 4, 3), (2, 3, 2)),
        case("max_pool1d", (2, 3, 11), 2),
        case("max_pool3d", (1, 3, 5, 4, 6), (2, 3, 2), 2, (1, 1, 0), 1, True),
        case("adaptive_max_pool1d", (3, 10), 5),
        case("max_pool2d", (2, 70, 13, 12), 3, 2, 1, large=True, last=True),
        case("max_pool2d", (3, 9, 41, 67), 3, 2, 1, large=True),
        case("max_pool2d", (2, 4, 33, 50), 5, 3, (2, 1), 2, large=True),
        case("adaptive_max_pool2d", (2, 19, 23, 17), (5, 4), large=True, last=True),
    )
    takes = staticmethod(
        lambda case, backend, few=(*cases[:3], cases[6]): GPU or backend != "numba" or case in few
    )


class TestAvgPool(OpSuite):
    call = on(F)
    reference = on(T)
    cases = (
        case("avg_pool2d", (2, 5, 6, 5), 3, 2, 1, False, False, last=True),
        case("avg_pool2d", (2, 2, 5, 4), (2, 3), (2, 1), (0, 1), True),
        case("adaptive_avg_pool3d", (1, 2, 3, 4, 3), (2, 3, 2)),
        case("avg_pool1d", (2, 3, 11), 4, 5),
        case("avg_pool3d", (3, 5, 4, 6), (2, 3, 2), 2, (1, 1, 0), True, True, 7),
        case("adaptive_avg_pool2d", (2, 3, 9, 21), 1),
        case("avg_pool2d", (2, 70, 13, 12), 3, 2, 1, large=True, last=True),
        case("avg_pool2d", (3, 9, 41, 67), 3, 2, 1, large=True),
        case("avg_pool2d", (2, 4, 33, 50), (5, 4), 3, (2, 1), large=True),
        case("adaptive_avg_pool2d", (2, 19, 70, 61), 1, large=True, last=True),
        case("adaptive_avg_pool2d", (2, 5, 70, 61), (1, 3), large=True),
    )
    takes = staticmethod(
        lambda case, backend, few=(*cases[:2], cases[5]): GPU or backend == "cpp" or case in few
    )


def results(function, x):
    """y, what else it returns, and the gradient."""
    x = x.detach().requires_grad_()
    y = function(x)
    y = y if isinstance(y, tuple) else (y,)
    dy = torch.randn(y[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y[0])
    return *y, *torch.autograd.grad(y[0], x, dy)


SPECIAL = (
    ("max_pool1d", (2, 3, 23), (3, 2, 1)),
    ("max_pool2d", (1, 20, 7, 9), (3, 2, 1)),
    ("max_pool2d", (1, 3, 7, 20), ((2, 3), 1, 0, (2, 1))),
    ("max_pool3d", (1, 2, 5, 4, 5), (2, 2, 1)),
    ("adaptive_max_pool1d", (2, 3, 23), (7,)),
    ("adaptive_max_pool2d", (1, 17, 9, 7), ((4, 3),)),
    ("adaptive_max_pool3d", (1, 2, 5, 4, 7), (3,)),
)


def on_special():
    for i, given in enumerate(SPECIAL):
        for backend in WITHOUT_CUDA:
            slow = backend == "triton" and not GPU and i not in (1, 6)
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(backend, *given, id=f"{given[0]}-{i}-{backend}", marks=marks)


@pytest.mark.parametrize(("backend", "name", "shape", "args"), list(on_special()))
def test_ties_nan_and_inf_choose_as_torch(backend, name, shape, args):
    """Small whole numbers meet their equals; NaN wins, the last of them; a window of -inf takes its first."""
    need(backend)
    g = torch.Generator().manual_seed(4)
    kinds = torch.rand(shape, generator=g)
    x = torch.randint(0, 3, shape, generator=g).float()
    x[kinds < 0.5] = -torch.inf
    x[kinds < 0.04] = torch.nan
    x[kinds > 0.97] = torch.inf
    x = x.to(device_of(backend))
    # torch's own max_pool3d of channels-last planes gives place 0 for a window of -inf, wherever that lies
    for given in (x,) if name == "max_pool3d" else (x, as_last(x)):
        for indices in (True,) if backend == "triton" else (False, True):
            options = {"return_indices": indices}
            with kz.backend(backend):
                ours = results(lambda t, o=options: getattr(F, name)(t, *args, **o), given)
            theirs = results(lambda t, o=options: getattr(T, name)(t, *args, **o), given)
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == b.dtype
                # NaN and inf are at stake; a gradient may be summed in another order
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6, equal_nan=True)


@ON
def test_averages_of_nan_and_inf_as_torch(backend):
    need(backend)
    x = torch.randn(2, 17, 5, 6, device=device_of(backend))
    x[0, 3, 4, 5], x[1, 2, 0, 0], x[0, 0, 2, 3], x[1, 16, 3, 4] = torch.nan, torch.inf, -torch.inf, torch.inf
    for name, args in (
        ("avg_pool2d", (3, 2, 1)),
        ("adaptive_avg_pool2d", (4,)),
        ("adaptive_avg_pool2d", (1,)),
    ):
        for given in (x, as_last(x)):
            with kz.backend(backend):
                ours = results(lambda t, n=name, a=args: getattr(F, n)(t, *a), given)
            theirs = results(lambda t, n=name, a=args: getattr(T, n)(t, *a), given)
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def some_windows(rng, rank):
    """Random arguments of max_pool that torch takes, and the shape of an input for them."""
    size = [rng.randint(1, 20 if rank < 3 else 9) for _ in range(rank)]
    size[-1] = rng.choice([size[-1], 33, 70])
    kernel, stride = [rng.randint(1, 5) for _ in size], [rng.randint(1, 4) for _ in size]
    dilation = [rng.randint(1, min(3, n)) for n in size]  # else torch's own writes where no memory is
    # beyond half a kernel torch's max_pool3d has no backward
    half = [k if rank == 3 else (k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = [rng.randint(0, h // 2) for h in half]
    return (rng.randint(1, 3), rng.choice([1, 3, 17, 65]), *size), (
        kernel,
        stride,
        padding,
        dilation,
        rng.random() < 0.5,
    )


def fuzz(backend, count, seed):
    rng = random.Random(seed)
    ran = 0
    while ran < count:
        rank = rng.randint(1, 3)
        shape, (kernel, stride, padding, dilation, ceil) = some_windows(rng, rank)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(ran)).to(rng.choice(DTYPES))
        x = as_last(x) if rng.random() < 0.5 else x
        padding_avg = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
        out = [rng.randint(1, 9) for _ in kernel]
        calls = (
            ("max_pool", (kernel, stride, padding, dilation, ceil, rng.random() < 0.5)),
            ("avg_pool", (kernel, stride, padding_avg, ceil, rng.random() < 0.5)),
            ("adaptive_max_pool", (out, rng.random() < 0.5)),
            ("adaptive_avg_pool", (out,)),
        )
        for kind, args in calls:
            name = f"{kind}{rank}d"
            try:
                theirs = results(lambda t, n=name, a=args: getattr(T, n)(t, *a), x)
            except RuntimeError:  # some only in the backward; no 16-bit avg_pool3d on a CPU
                continue
            exact = results(lambda t, n=name, a=args: getattr(T, n)(t, *a), x.double())
            with kz.backend(backend):
                ours = results(lambda t, n=name, a=args: getattr(F, n)(t, *a), x)
            for a, b, c in zip(ours, theirs, exact, strict=True):
                if a.is_floating_point():
                    assert_as_good(f"{name} {shape} {args} {x.dtype}", a, b, c)
                else:
                    assert torch.equal(a, b), f"{name} {shape} {args}"
            ran += 1


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_random_windows(backend):
    need(backend)
    fuzz(backend, 100 if backend == "cpp" else 30, 1)


@pytest.mark.slow
@ON
def test_many_random_windows(backend):
    need(backend)
    fuzz(backend, {"cpp": 3000, "numba": 600, "triton": 100}[backend], 2)


def test_every_instruction_set(isa):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 70, 13, 37).to(dtype)
        for name, args in (
            ("max_pool2d", (3, 2, 1)),
            ("avg_pool2d", (3, 2, 1)),
            ("adaptive_avg_pool2d", (1,)),
        ):
            for given in (x, as_last(x)):
                with kz.backend("cpp"):
                    ours = results(lambda t, n=name, a=args: getattr(F, n)(t, *a), given)
                theirs, exact = (
                    results(lambda t, n=name, a=args: getattr(T, n)(t, *a), t)
                    for t in (given, given.double())
                )
                for three in zip(ours, theirs, exact, strict=True):
                    assert_as_good(name, *three)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_same_bits_on_any_number_of_threads(backend):
    need(backend)
    x = torch.randn(3, 17, 61, 60)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with kz.backend(backend):
                found.append([
                    t
                    for given in (x, as_last(x))
                    for f in (lambda t: F.max_pool2d(t, 3, 2, 1), lambda t: F.adaptive_avg_pool2d(t, 1))
                    for t in results(f, given)
                ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_saved_for_backward():
    """A byte an output, eight where indices are returned or a window is large; of averages nothing."""
    x = torch.randn(2, 8, 36, 36, requires_grad=True)
    for function, expected in (
        (lambda: F.max_pool2d(x, 3, 2, 1), (torch.uint8, 2 * 8 * 18 * 18)),
        (lambda: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0], (torch.int64, 2 * 8 * 18 * 18)),
        (lambda: F.max_pool2d(x, 17), (torch.int64, 2 * 8 * 2 * 2)),
        (lambda: F.adaptive_max_pool2d(x, 12), (torch.uint8, 2 * 8 * 12 * 12)),
        (lambda: F.avg_pool2d(x, 2), None),
        (lambda: F.interpolate(x, scale_factor=2, mode="bilinear"), None),
    ):
        saved = []
        pack = lambda t, saved=saved: saved.append((t.dtype, t.numel())) or t  # noqa: E731
        with kz.backend(here()), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function()
        assert saved == ([] if expected is None else [expected])


@ON
def test_memory_format(backend):
    """As torch's, and channels last even where torch's own avg_pool3d is not."""
    need(backend)
    for shape, form in (((2, 6, 4, 3), torch.channels_last), ((1, 2, 2, 3, 4), torch.channels_last_3d)):
        rank = len(shape) - 2
        x = torch.randn(shape, device=device_of(backend))
        for given in (x, x.to(memory_format=form)):
            for name, args in (
                (f"max_pool{rank}d", (2, 1)),
                (f"avg_pool{rank}d", (2, 1)),
                ("interpolate", (None, 2.0)),
            ):
                with kz.backend(backend):
                    ours = results(lambda t, n=name, a=args: getattr(F, n)(t, *a), given)
                theirs = results(lambda t, n=name, a=args: getattr(T, n)(t, *a), given)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b)
                if name == "avg_pool3d":
                    assert ours[0].is_contiguous(memory_format=form) == (given is not x)
                else:
                    assert ours[0].is_contiguous(memory_format=form) == theirs[0].is_contiguous(
                        memory_format=form
                    )


@ON
def test_results_may_be_written_to(backend):
    need(backend)
    x = torch.randn(1, 3, 4, 4, device=device_of(backend), requires_grad=True)
    for given in (x, as_last(x)):
        for f in (
            lambda m, t: m.max_pool2d(t, 2),
            lambda m, t: m.avg_pool2d(t, 2),
            lambda m, t: m.interpolate(t, 12),
        ):
            found = []
            for module in (F, T):
                with kz.backend(backend):
                    y = f(module, given)
                y *= 2
                found.append(torch.autograd.grad(y.square().sum(), x)[0])
            torch.testing.assert_close(*found)


@ON
def test_windows_without_an_input(backend):
    """By dilation a window may lie around the input. torch's backward then writes where no memory is."""
    need(backend)
    for last in (False, True):
        x = torch.randn(2, 3, 2, 2, device=device_of(backend))
        with kz.backend(backend):
            y, dx = results(lambda t: F.max_pool2d(t, 2, 1, 1, 3), as_last(x) if last else x)
        assert torch.equal(y, T.max_pool2d(x, 2, 1, 1, 3))
        assert torch.isneginf(y).all()
        assert not dx.any()


def test_second_derivatives_of_all_kinds_of_index():
    x = torch.randn(1, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    for args in ((3, 2, 1), ((2, 3), (2, 1), 0, (1, 2)), ((6, 9), 1)):
        for indices in (False, True):
            with kz.backend(here()):

                def f(t, args=args, indices=indices):
                    y = F.max_pool2d(t, *args, return_indices=indices)
                    return (y[0] if indices else y) ** 3

                assert torch.autograd.gradgradcheck(f, x, fast_mode=True)


def test_what_auto_and_torch_take():
    small, large = (
        torch.randn(1, 2, 8, 8),
        torch.randn(8, 64, 112, 112).contiguous(memory_format=torch.channels_last),
    )
    with kz.trace() as calls:
        F.max_pool2d(small, 2)
        F.max_pool2d(large, 3, 2, 1)
        F.max_pool2d(large, 3, 2, 1, return_indices=True)
    assert [c.op for c in calls] == ["max_pool2d"] * 3
    assert calls[0].backend == "torch"
    assert calls[1].backend == here()


def test_empty_and_other_dtypes():
    for f in (
        lambda m, t: m.max_pool2d(t, 2),
        lambda m, t: m.avg_pool2d(t, 2),
        lambda m, t: m.adaptive_avg_pool2d(t, 2),
    ):
        x = torch.randn(0, 3, 4, 4)
        with kz.backend(here()):
            assert f(F, x).shape == f(T, x).shape
    x = torch.randint(0, 9, (1, 2, 8, 8))
    assert torch.equal(F.max_pool2d(x, 2), T.max_pool2d(x, 2))
    with kz.backend("cpp"), pytest.raises(kz.BackendUnavailable, match="max_pool2d"):
        F.max_pool2d(x, 2)


def test_fx_traces():
    class Module(torch.nn.Module):
        def forward(self, x):
            return F.interpolate(F.avg_pool2d(F.max_pool2d(x, 2), 2), scale_factor=2)

    x = torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(Module())(x), Module()(x))


@pytest.mark.parametrize("size", [8, 200], ids=["small", "large"])
def test_bad_input(size):
    """Small inputs are torch's own call, large ones go through the checks: the same errors."""
    x = torch.randn(1, 2, size, size)
    bad = (
        (
            lambda: F.max_pool2d(x, size + 3),
            r"max_pool2d: .*Output size is too small; got input of shape \(1, 2, {0}, {0}\)",
        ),
        (lambda: F.avg_pool2d(x, size + 3), r"avg_pool2d: .*Output size is too small"),
        (
            lambda: F.max_pool2d(x, 3, padding=2),
            "max_pool2d: pad should be at most half of effective kernel size",
        ),
        (lambda: F.max_pool2d(x, 3, padding=-1), "max_pool2d: pad must be non-negative"),
        (
            lambda: F.avg_pool2d(x, 3, padding=2),
            "avg_pool2d: pad should be at most half of kernel size|avg_pool2d: pad",
        ),
        (lambda: F.avg_pool2d(x, 2, divisor_override=0), "avg_pool2d: divisor must be not zero"),
        (lambda: F.max_pool2d(x, 2, stride=0), "max_pool2d: stride should not be zero|max_pool2d"),
        (lambda: F.max_pool2d(x[0, 0], 2), "max_pool2d: .*expected shape"),
        (lambda: F.adaptive_avg_pool2d(x, (1, 2, 3)), "adaptive_avg_pool2d"),
        (lambda: F.adaptive_max_pool2d(x, -1), "adaptive_max_pool2d"),
        (lambda: F.max_pool2d(x, (2, 2, 2)), "max_pool2d"),
    )
    for call, match in bad:
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match=match.format(size)):
                call()
    for call in (lambda: F.max_pool2d([1.0], 2), lambda: F.avg_pool2d(x, "2"), lambda: F.max_pool2d(x, 2.5)):
        with pytest.raises(TypeError, match="pool2d: "):
            call()


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (4, 64, 80, 14)], ids=["few", "short rows"])
@pytest.mark.parametrize("stride", [None, 1, [2, 1], []])
def test_auto_ends_in_torchs_own_call(shape, stride):
    x = torch.randn(shape, requires_grad=True)
    ours, theirs = (f(x, 3, stride, 1, 1, True) for f in (F.max_pool2d, T.max_pool2d))
    assert type(ours.grad_fn) is type(theirs.grad_fn)
    assert torch.equal(ours, theirs)
    with kz.trace() as calls:
        F.max_pool2d(x, 3, stride, 1)
    assert [call.backend for call in calls] == ["torch"]
    with pytest.raises(kz.ArgumentError, match=r"max_pool2d: .*got input of shape .*expected shape"):
        F.max_pool2d(x, 3, stride, 2)
