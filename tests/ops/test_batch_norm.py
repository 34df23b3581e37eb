"""batch_norm and instance_norm, of planes and of rows (channels-last), with and without a residual and an act."""

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import parse
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, GPU, WITHOUT_CUDA, Case, OpSuite, device_of, here, need

# by default where nothing is compiled or interpreted anew
ON = pytest.mark.parametrize(
    "backend",
    [pytest.param(b, marks=() if b == "cpp" or GPU else pytest.mark.slow) for b in WITHOUT_CUDA],
)
NAMES = pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])


def normal(shape, g, scale=1.0):
    return torch.randn(shape, generator=g, dtype=torch.float64) * scale


def case(
    *shape, last=False, act=None, weight=True, bias=True, residual=False, training=True, large=False
):  # fmt: skip
    def make(g):
        w = 1 + normal(shape[1:2], g, 0.5) if weight else None
        b = normal(shape[1:2], g) if bias else None
        return (normal(shape, g) + 0.5, w, b, normal(shape, g) if residual else None), {
            "training": training, "act": act, "last": last, "eps": 1e-3,
        }  # fmt: skip

    parts = ["x".join(map(str, shape)), "last" * last, "" if training else "eval", "w" * weight, "b" * bias]
    return Case(
        "-".join(filter(None, [*parts, "r" * residual, act if isinstance(act, str) else act and act[0]])),
        make,
        large,
    )


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def running(x):
    """Of an evaluation; a function of x's shape, as the harness knows no tensor without a gradient."""
    options = {"device": x.device, "dtype": x.dtype}
    return torch.linspace(-0.5, 0.5, x.shape[1], **options), torch.linspace(0.5, 2, x.shape[1], **options)


def on(function, extras):
    def call(x, w, b, r, training, act, last, eps):
        if last:
            x = channels_last(x)
        statistics = (None, None) if training else running(x)
        arguments = (x, *statistics, w, b, training, 0.1, eps)
        if extras:
            return function(*arguments, act=act, residual=r)
        # torch's channels-last backward reads a strided weight as if it were contiguous
        y = function(*arguments[:3], *(None if t is None else t.contiguous() for t in (w, b)), *arguments[5:])
        return parse("test", act).formula(y if r is None else y + r)

    return staticmethod(call)


def exact_norm(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    apart=(1,),
):
    """torch's own fp64 leaves (x - mean) rstd as x rstd - mean rstd. apart: dimensions with moments of their own."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    if training:
        dims = [d for d in range(x.dim()) if d not in apart]
        centred = x - x.mean(dims, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    else:
        y = (x - running_mean.view(shape)) * torch.rsqrt(running_var.view(shape) + eps)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def exact_instance(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    return exact_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, apart=(0, 1)
    )


class TestBatchNorm(OpSuite):
    call = on(F.batch_norm, extras=True)
    reference = on(T.batch_norm, extras=False)
    oracle = on(exact_norm, extras=False)
    cases = (
        case(3, 4, 5, 3, act="relu"),
        case(2, 6, 5, 3, last=True, act="relu", residual=True),
        case(2, 5, 7, residual=True, act="silu", bias=False),
        case(3, 19, 4, 2, last=True, training=False, act="relu"),
        case(5, 3, 41, 29, act="relu", large=True),
        case(7, 70, 9, 13, last=True, act="relu", residual=True, large=True),
    )

    @classmethod
    def takes(cls, case, backend):
        """By default, planes and rows once where every kernel is compiled or interpreted anew; Numba's planes are
        OpInfo's samples."""
        return backend == "cpp" or case in cls.cases[1 if backend == "numba" else 0 : 2]


class TestInstanceNorm(OpSuite):
    call = on(F.instance_norm, extras=True)
    reference = on(T.instance_norm, extras=False)
    oracle = on(exact_instance, extras=False)
    cases = (
        case(3, 4, 5, 3, act="relu"),
        case(2, 5, 3, 3, last=True, residual=True),
        case(3, 2, 700, large=True),
    )

    @staticmethod
    def takes(
        case, backend
    ):  # the kernels are batch_norm's; by default OpInfo's samples show several instances
        return backend == "cpp"


@pytest.mark.slow
class TestEveryBatchNorm(TestBatchNorm):
    cases = (
        TestBatchNorm.cases[0],
        *TestBatchNorm.cases[2:],
        case(9, 5, weight=False, bias=False),
        case(2, 3, 2, 2, 3, last=True, act="tanh", weight=False),
        case(2, 3, 5, 2, training=False, residual=True),
        case(2, 3, 4, act=("softshrink", 0.3), residual=True),
        case(2, 5, 3, 2, last=True, act="sigmoid"),
        case(300, 1100, large=True),
    )

    @staticmethod
    def takes(case, backend):
        return True


@pytest.mark.slow
class TestEveryInstanceNorm(TestInstanceNorm):
    backends = ("triton", "numba")

    @staticmethod
    def takes(case, backend):
        return True


def results(function, tensors, arguments, options):
    y = function(*arguments, **options)
    g = torch.Generator().manual_seed(5)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y)
    return [y, *torch.autograd.grad(y, tensors, dy)]


@ON
@NAMES
@pytest.mark.parametrize("last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_large_mean(backend, name, last, dtype, offset):
    """A variance by E[x²] - E[x]² would have lost all its digits; the first sample lies elsewhere than the others."""
    need(backend)
    g = torch.Generator().manual_seed(3)
    shape = (5, 3, 4, 7) if backend == "triton" and not GPU else (5, 18, 11, 13)
    x = normal(shape, g) + offset
    x[0, :, 0, 0] = 0
    x = x.to(dtype).to(device_of(backend))
    x = channels_last(x) if last else x
    w = normal(shape[1:2], g).to(x)
    found = []
    for function, cast in ((getattr(F, name), 0), (getattr(T, name), 0), (getattr(T, name), torch.float64)):
        a, b = ((t.to(cast) if cast else t).detach().requires_grad_() for t in (x, w))
        with kz.backend(backend):
            found.append(results(function, (a, b), (a, None, None, b, None, True), {}))
    for i, (ours, theirs, right) in enumerate(zip(*found, strict=True)):
        assert_as_good(f"{i}", ours, theirs, right)


@ON
@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, None], ids=str)
def test_running_statistics(backend, name, dtype):
    """Three batches, in one dtype and (None) in bfloat16 with float32 for what there is one of a channel."""
    need(backend)
    device, own = device_of(backend), dtype or torch.float32
    g = torch.Generator().manual_seed(3)
    batches = [(normal((3, 4, 5, 2), g) + 1).to(device) for _ in range(3)]
    found = []
    for function in (getattr(F, name), getattr(T, name), getattr(T, name)):
        kind = torch.float64 if len(found) == 2 else own
        mean, var = torch.zeros(4, dtype=kind, device=device), torch.ones(4, dtype=kind, device=device)
        w, b = (t.to(device).to(kind).requires_grad_() for t in (torch.arange(4), torch.ones(4)))
        for x in batches:
            x = x.to(dtype or torch.bfloat16).to(
                torch.float64 if len(found) == 2 else dtype or torch.bfloat16
            )
            with kz.backend(backend):
                function(x, mean, var, w, b, True, 0.3)
        x = x.requires_grad_()
        with kz.backend(backend):
            after = results(function, (x, w, b), (x, mean, var, w, b, False), {})
        found.append([mean, var, *after])
    for i, (ours, theirs, right) in enumerate(zip(*found, strict=True)):
        assert ours.dtype == theirs.dtype
        assert_as_good(f"{i}", ours, theirs, right)


@ON
def test_infinite_channels_as_torch(backend):
    need(backend)
    inf, nan = torch.inf, torch.nan
    x = torch.tensor(
        [[1.0, nan, inf, 5.0], [2.0, 1.0, 0.0, 6.0], [4.0, 2.0, 1.0, 8.0]], device=device_of(backend)
    )
    for training in (True, False):
        found = []
        for function in (F.batch_norm, T.batch_norm):
            a = x.clone().requires_grad_()
            with kz.backend(backend):
                found.append(results(function, (a,), (a, *running(x), None, None, training), {}))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@ON
def test_same_bits_on_any_number_of_threads(backend):
    need(backend)
    if backend not in ("cpp", "numba"):
        pytest.skip(f"{backend} has no threads of the host's")
    planes, rows = torch.randn(6, 5, 41, 40), channels_last(torch.randn(6, 17, 41, 10))
    many = torch.randn(8, 48, 9, 9)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            one = []
            for x in (planes, rows, many):
                x = x.detach().requires_grad_()
                w = torch.linspace(-1, 1, x.shape[1], requires_grad=True)
                for f in (F.batch_norm, F.instance_norm):
                    with kz.backend(backend):
                        one += results(f, (x, w), (x, None, None, w, w, True), {"act": "relu"})
            found.append(one)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_instruction_set(isa, dtype):
    """Planes shorter and longer than a block; rows of four vectors, of one, of less, and wider than a block."""
    suite = TestBatchNorm()
    for one in (
        case(3, 2, 37, 41, act="relu", residual=True),
        case(40, 3, 3, 3, act="relu"),
        case(9, 93, 2, 2, last=True, act="relu"),
        case(9, 93, 2, 2, last=True, act="relu", residual=True),
        case(40, 1101),
    ):
        suite.compare(one, "cpp", dtype, "contiguous")


@ON
@pytest.mark.parametrize("dims", [2, 3])
def test_memory_format(backend, dims):
    """Channels-last in, channels-last out; any other memory gives contiguous results, as torch's."""
    need(backend)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = torch.randn(2, 3, *(4,) * dims, device=device_of(backend))
    for given in (x.to(memory_format=layout), x.transpose(2, 3), x[:, :, ::2]):
        a = given.detach().requires_grad_()
        with kz.backend(backend):
            ours = results(F.batch_norm, (a,), (a, None, None, None, None, True), {"act": "relu"})
        theirs = results(T.batch_norm, (a,), (a, None, None, None, None, True), {})
        assert [t.stride() for t in ours] == [t.stride() for t in theirs]


def test_saved_for_backward():
    """x, what there is one of a channel, and y only where a residual came in before an activation."""
    x, r = (torch.randn(4, 8, 16, 16, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(8, requires_grad=True) for _ in range(2))
    for act, residual, tensors in (
        (None, None, 1),
        ("relu", None, 1),
        ("silu", None, 1),
        (None, r, 1),
        ("relu", r, 2),
    ):
        saved = []

        def pack(t, saved=saved):
            saved.append(t)
            return t

        with kz.backend(here()), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = F.batch_norm(x, None, None, w, b, True, act=act, residual=residual)
        large = {t.data_ptr() for t in saved if t.numel() == x.numel()}
        assert len(large) == tensors
        assert large <= {x.data_ptr(), y.data_ptr()}
        assert sum(t.numel() == 8 for t in saved) == len(saved) - tensors


def test_results_may_be_written_to():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    with kz.backend(here()):
        y = F.batch_norm(x, None, None, training=True, act="relu")
    y += 1
    y.sum().backward()
    torch.testing.assert_close(
        x.grad, torch.autograd.grad(T.batch_norm(x, None, None, training=True).relu().sum(), x)[0]
    )


def test_empty_as_torch():
    for shape in ((0, 6, 3), (3, 0, 2), (3, 6, 0)):
        for ours, theirs in ((F.batch_norm, T.batch_norm), (F.instance_norm, T.instance_norm)):
            if ours is F.instance_norm and shape == (3, 6, 0):
                continue  # torch's divides by zero
            x = torch.randn(shape, requires_grad=True)
            arguments = (x, *running(x), None, None, True)
            for a, b in zip(*(results(f, (x,), arguments, {}) for f in (ours, theirs)), strict=True):
                torch.testing.assert_close(a, b)


def test_fx_traces():
    class Module(torch.nn.Module):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True, act="relu") + F.instance_norm(x)

    x = torch.randn(3, 8, 5)
    y = T.batch_norm(x, None, None, training=True).relu() + T.instance_norm(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(Module())(x), y)


@NAMES
def test_bad_input(name):
    x, f = torch.randn(4, 6, 5), getattr(F, name)
    training = "use_input_stats" if name == "instance_norm" else "training"
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=f"{name}: weight should contain 6 elements not 5"):
            f(x, None, None, torch.ones(5), **{training: True})
    with pytest.raises(ValueError, match=f"{name}: running_mean should contain 6 elements not 5"):
        f(x, torch.ones(5), torch.ones(5))
    with pytest.raises(ValueError, match="must either both be None or neither be None"):
        f(x, torch.ones(6), None, **{training: True})
    with pytest.raises(RuntimeError, match="running_mean"):
        f(x, None, None, **{training: False})
    with pytest.raises(ValueError, match="Expected more than 1"):
        f(torch.randn(1, 6, 1), None, None, **{training: True})
    with pytest.raises(ValueError, match="at least 2 dim"):
        f(torch.randn(6), None, None, **{training: True})
    with pytest.raises(TypeError, match=f"{name}: input must be a Tensor, got list"):
        f([1.0], None, None)
    with pytest.raises(TypeError, match=f"{name}: momentum must be a number, got NoneType"):
        f(x, torch.zeros(6), torch.ones(6), **{training: True}, momentum=None)
    if name == "batch_norm":
        with pytest.raises(ValueError, match="eps must be positive during training, but got 0"):
            f(x, None, None, **{training: True}, eps=0.0, act="relu")
    with pytest.raises(ValueError, match=rf"{name}: residual has shape \(4, 6\) but input has \(4, 6, 5\)"):
        f(x, None, None, **{training: True}, residual=torch.randn(4, 6))
    with pytest.raises(ValueError, match=f"{name}: weight is on meta but input is on cpu"):
        f(x, None, None, torch.ones(6, device="meta"), **{training: True})
    with pytest.raises(ValueError, match=f"{name}: unknown act 'rely'"):
        f(x, None, None, **{training: True}, act="rely")


def test_auto_takes_what_is_fast():
    """Beside each size: whether a kernel serves a training step with relu behind it."""
    need("cpp")
    last = torch.channels_last
    served = [
        (False, torch.randn(16, 512, 7, 7), {}),
        (True, torch.randn(32, 512, 7, 7), {}),
        (True, torch.randn(16, 64, 16, 16), {}),
        (False, torch.randn(16, 64, 16, 16).contiguous(memory_format=last), {}),
        (False, torch.randn(16, 64, 16, 16).bfloat16(), {}),
        (True, torch.randn(16, 128, 28, 28).bfloat16().contiguous(memory_format=last), {}),
        (False, *[torch.randn(16, 128, 28, 28).bfloat16()] * 2),
    ]
    for kernel, x, residual in served:
        more = {"residual": residual} if isinstance(residual, torch.Tensor) else {}
        x.requires_grad_()
        y = F.batch_norm(x, None, None, training=True, act="relu", **more)
        with kz.trace() as calls:
            traced = F.batch_norm(x, None, None, training=True, act="relu", **more)
        assert [c.backend for c in calls] == ["cpp" if kernel else "torch"], x.shape
        assert torch.equal(y, traced)
        assert (type(y.grad_fn).__name__ == "ReluBackward0") is not kernel  # the shorter way says the same
