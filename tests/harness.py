"""The proof that every op goes through: cases over backend × dtype × layout, against the formula in fp64.

The one rule of accuracy is `kernelzoo.verify`'s.
"""

import collections
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import kernelzoo as kz
from kernelzoo.verify import assert_as_good

GPU = torch.cuda.is_available()
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("triton", "cuda", "cpp", "numba")
WITHOUT_CUDA = ("triton", "cpp", "numba")  # of an op that has no kernels in CUDA C++
INTERPRETED = 3  # cases of an op that Triton's interpreter goes through by default; the others are slow
COMPILED = 4  # small cases, and half as many large ones, that Numba compiles kernels for by default


def device_of(backend):
    return "cuda" if backend in ("triton", "cuda") and GPU else "cpu"


def need(backend):
    """Skip, with its reason, what cannot run here."""
    status = kz.backends()[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")


@dataclass(frozen=True)
class Case:
    """make(generator) -> (tensors, options): fp64 CPU tensors (or None), which the harness casts and moves;
    tensors of whole numbers or bool keep their dtype and get no gradient.

    large: too slow for an interpreter. again: its double backward, transforms and compilation, which other cases cover,
    are slow tests.
    """

    id: str
    make: Callable
    large: bool = False
    again: bool = False


def _strided(t):
    """The same values as every other element of a larger tensor."""
    return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]


def _transposed(t):
    return t.mT.contiguous().mT if t.dim() > 1 else _strided(t)


def _misaligned(t):
    """The same values one element after an aligned address."""
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": _transposed,
    "sliced": _strided,
    "misaligned": _misaligned,
}


def _same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _results(y):
    return y if isinstance(y, tuple) else (y,)


class OpSuite:
    """Subclass as `class TestOp(OpSuite)` with `call`, `reference`, `cases`; conftest.py spreads the tests.

    A function may return one tensor or a tuple of them.
    """

    call: Callable  # call(*tensors, **options): the public function
    reference: Callable  # the same in plain torch
    oracle: Callable | None = None  # the same in fp64, where torch's own fp64 is not exact
    cases: tuple[Case, ...] = ()
    backends: tuple[str, ...] = WITHOUT_CUDA
    interpreted = INTERPRETED

    @classmethod
    def spread(cls, metafunc):
        names = metafunc.fixturenames
        if "backend" in names and "case" in names:
            metafunc.parametrize(("case", "backend"), list(cls.pairs()))
        elif "case" in names:
            # a graph holds the op whatever the case: every third is compiled and exported by default
            every = 3 if metafunc.function.__name__ == "test_compile_and_export" else 1
            small = [c for c in cls.cases if not c.large]
            slow = [c.again or i % every for i, c in enumerate(small)]
            each = zip(small, slow, strict=True)
            metafunc.parametrize(
                "case", [pytest.param(c, id=c.id, marks=pytest.mark.slow if s else ()) for c, s in each]
            )
        if "dtype" in names:
            metafunc.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
        if "layout" in names:
            metafunc.parametrize("layout", LAYOUTS)

    @staticmethod
    def takes(case, backend):
        """Whether a backend's kernels serve a case, where some serve less than others."""
        return True

    @classmethod
    def pairs(cls):
        """Every case on every backend; one skipped test, with its reason, for a backend that is not here."""
        for backend in cls.backends:
            cases = [case for case in cls.cases if cls.takes(case, backend)]
            cases = cases if kz.backends()[backend].available else cases[:1]
            interpreted = backend == "triton" and not GPU
            few = {False: len(cases), True: len(cases)}  # by default, of the small and of the large
            if interpreted:
                cases, few = [case for case in cases if not case.large], {False: cls.interpreted}
            elif backend == "numba":
                few = {False: COMPILED, True: COMPILED // 2}
            seen = collections.Counter()
            for case in cases:
                seen[case.large] += 1
                marks = pytest.mark.slow if seen[case.large] > few[case.large] else ()
                yield pytest.param(case, backend, id=f"{case.id}-{backend}", marks=marks)

    def build(self, case, dtype, device, layout="contiguous", requires_grad=True, jitter=0.0):
        """jitter: how far to move the values, where finite differences must not meet a kink."""
        generator = torch.Generator().manual_seed(1)
        tensors, options = case.make(generator)
        if jitter:
            tensors = [
                t + jitter * torch.randn(t.shape, generator=generator, dtype=t.dtype) if _floating(t) else t
                for t in tensors
            ]
        place = LAYOUTS[layout]
        tensors = [
            place(t.to(dtype).to(device)).detach() if _floating(t) else None if t is None else t.to(device)
            for t in tensors
        ]
        for t in tensors:
            if t is not None and t.is_floating_point():
                t.requires_grad_(requires_grad)
        return tensors, options

    def gradients(self, function, tensors, options, dy_of):
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        y = _results(function(*tensors, **options))
        dy = [dy_of(one) for one in y]
        moving = [i for i, one in enumerate(y) if one.requires_grad]
        return y, torch.autograd.grad([y[i] for i in moving], wanted, [dy[i] for i in moving])

    def dy(self, y, layout="contiguous"):
        g = torch.Generator().manual_seed(2)  # not the inputs' seed
        return LAYOUTS[layout](
            torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype).to(y.device)
        )

    def compare(self, case, backend, dtype, layout, dy_of=None, keep=None):
        device = device_of(backend)
        tensors, options = self.build(case, dtype, device, layout)
        for i, t in enumerate(tensors):
            if t is not None and keep is not None and i not in keep:
                t.requires_grad_(False)
        dy_of = dy_of or (lambda y: self.dy(y, layout))
        before = [None if t is None else t.detach().clone() for t in tensors]
        with kz.backend(backend):
            y, grads = self.gradients(self.call, tensors, options, dy_of)
            y2, grads2 = self.gradients(self.call, tensors, options, dy_of)
        for t, old in zip(tensors, before, strict=True):
            assert t is None or _same(t.detach(), old), "an input was written to"
        theirs, their_grads = self.gradients(self.reference, tensors, options, dy_of)
        exact = [t.detach().double().requires_grad_(t.requires_grad) if _floating(t) else t for t in tensors]
        dy64 = iter([dy_of(one).double() for one in theirs])
        oracle, oracle_grads = self.gradients(
            self.oracle or self.reference, exact, options, lambda _: next(dy64)
        )
        assert len(y) == len(theirs) == len(oracle)
        for i, one in enumerate(y):
            assert one.requires_grad == theirs[i].requires_grad
            assert_as_good(f"forward {i}", one, theirs[i], oracle[i])
        for i, grad in enumerate(grads):
            assert_as_good(f"gradient {i}", grad, their_grads[i], oracle_grads[i])
        for a, b in zip(y, y2, strict=True):
            assert _same(a, b), "two runs differ"
        for a, b in zip(grads, grads2, strict=True):
            assert _same(a, b), "two backward runs differ"

    def test_against_fp64(self, case, backend, dtype):
        need(backend)
        self.compare(case, backend, dtype, "contiguous")

    @staticmethod
    def expanded_dim(rank, options):
        """The dimension along which test_layouts repeats one gradient with stride 0, or None."""
        return 0 if rank else None

    def test_layouts(self, case, backend, layout):
        need(backend)

        def expanded(y):
            dim = self.expanded_dim(y.dim(), case.make(torch.Generator())[1])
            return self.dy(y) if dim is None else self.dy(y.narrow(dim, 0, 1)).expand(y.shape)

        self.compare(case, backend, torch.float32, layout, expanded if layout == "contiguous" else None)

    def test_frozen_inputs(self, case, backend):
        """Each gradient alone, the other inputs frozen; in Triton's interpreter every other gradient at once."""
        need(backend)
        moving = [i for i, t in enumerate(case.make(torch.Generator())[0]) if _floating(t)]
        interpreted = backend == "triton" and not GPU
        subsets = (moving[::2], moving[1::2]) if interpreted else [[i] for i in moving]
        for keep in filter(None, subsets):
            self.compare(case, backend, torch.float32, "contiguous", keep=keep)

    def test_no_grad(self, case, backend):
        need(backend)
        tensors, options = self.build(case, torch.float32, device_of(backend))
        with kz.backend(backend):
            results = _results(self.call(*tensors, **options))
            with torch.no_grad():
                plain = _results(self.call(*tensors, **options))
        for a, b in zip(results, plain, strict=True):
            assert a.requires_grad
            assert not b.requires_grad
            assert _same(a.detach(), b)

    def test_gradcheck(self, case, backend):
        need(backend)
        if case.large:
            pytest.skip("finite differences of a large case: the small ones prove the same kernel")
        tensors, options = self.build(case, torch.float64, device_of(backend), jitter=0.1)
        with kz.backend(backend):
            torch.autograd.gradcheck(
                _positional(self.call, tensors, options), _given(tensors), fast_mode=True
            )

    def test_gradgradcheck(self, case):
        backend = here()
        tensors, options = self.build(case, torch.float64, device_of(backend), jitter=0.1)
        with kz.backend(backend):
            function = _positional(self.call, tensors, options)
            torch.autograd.gradgradcheck(function, _given(tensors), fast_mode=True)

    def test_transforms(self, case):
        """vmap, grad, jvp and forward-mode AD give what torch's own composite gives."""
        backend = here()
        tensors, options = self.build(case, torch.float64, device_of(backend), requires_grad=False)
        primals = _given(tensors)
        ours, theirs = (_positional(f, tensors, options, first=True) for f in (self.call, self.reference))
        batch = tuple(torch.stack([t, 2 * t, -t]) for t in primals)
        with kz.backend(backend):
            for transform in (
                lambda f: torch.func.vmap(f)(*batch),
                lambda f: torch.func.grad(lambda *a: f(*a).square().sum())(*primals),
                lambda f: torch.func.jvp(f, primals, tuple(torch.ones_like(t) for t in primals))[1],
                lambda f: _dual(f, primals),
            ):
                torch.testing.assert_close(transform(ours), transform(theirs))

    def test_compile_and_export(self, case):
        backend = here()
        tensors, options = self.build(case, torch.float64, device_of(backend))
        function = _positional(self.call, tensors, options)
        given = _given(tensors)
        with kz.backend(backend), compiled_quietly():
            eager = _results(function(*given))
            dy = [self.dy(one) for one in eager]
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(_results(compiled(*given)), eager)
            got = torch.autograd.grad(_results(compiled(*given)), given, dy)
            torch.testing.assert_close(got, torch.autograd.grad(eager, given, dy))

            class Module(torch.nn.Module):
                def forward(self, *args):
                    return function(*args)

            with torch.no_grad():
                detached = tuple(t.detach() for t in given)
                program = torch.export.export(Module(), detached)
                exported = _results(program.module()(*detached))
                torch.testing.assert_close(exported, tuple(one.detach() for one in eager))
            assert any("kernelzoo" in str(node.target) for node in program.graph.nodes), (
                "the op is not in the graph"
            )


def here():
    """The kernel backend that tests of the core run on: any that is here, a fast one first."""
    order = ("triton", "cpp", "numba") if GPU else ("cpp", "numba")
    return next(name for name in order if kz.backends()[name].available)


@contextlib.contextmanager
def compiled_quietly():
    """Uninitialised memory is not filled while tracing: the fill is an op of its own in the graph."""
    torch._dynamo.reset()
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler, for torch.compile, that counts how often it is asked; what it gives runs op by op."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)


def _floating(t):
    return t is not None and t.is_floating_point()


def _given(tensors):
    return tuple(t for t in tensors if _floating(t))


def _positional(function, tensors, options, first=False):
    """function of the floating tensors alone, the others put in at their places; first: only its first result."""

    def call(*given):
        given = iter(given)
        y = function(*(next(given) if _floating(t) else t for t in tensors), **options)
        return _results(y)[0] if first else y

    return call


def _dual(function, primals):
    import torch.autograd.forward_ad as fwad

    with fwad.dual_level():
        duals = [fwad.make_dual(t, torch.ones_like(t)) for t in primals]
        return fwad.unpack_dual(function(*duals)).tangent
