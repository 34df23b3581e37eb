"""Random combinations of all of convolution's options, at tiny odd sizes, against the formula in fp64."""

import random

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.activation import parse

from ..fuzz import judge_together, keep
from ..harness import DTYPES, need
from .test_conv import KERNELS, channels_innermost, plain

IN_ALL = 1100  # a backend: with two of them more than 2,000
GROUP = 100

# torch says so of its own copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def sizes_of(r, rank, transposed):
    """(x's sizes, kernel, options) such that y has elements."""
    while True:
        kernel = [r.choice((1, 1, 2, 3, 3, 4, 5)) for _ in range(rank)]
        sizes = [r.randint(1, (40, 11, 6)[rank - 1]) for _ in range(rank)]
        stride, dilation = ([r.choice((1, 1, 1, 2, 3)) for _ in range(rank)] for _ in range(2))
        padding = [r.choice((0, 0, 1, 2, 4)) for _ in range(rank)]
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        if transposed:
            extra = options["output_padding"] = [
                r.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)
            ]
            each = zip(sizes, kernel, stride, padding, dilation, extra, strict=True)
            out = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in each]
        elif rank == 1 and r.random() < 0.3:
            options["causal"], options["dilation"], options["padding"] = True, dilation[0], 0
            out = [1]
        elif all(s == 1 for s in stride) and r.random() < 0.4:
            options["padding"] = "same"
            out = [1]
        else:
            each = zip(sizes, kernel, padding, dilation, strict=True)
            out = [n + 2 * p - d * (k - 1) for n, k, p, d in each]
        if min(out) > 0:
            return sizes, kernel, options


def problem(number):
    """(function, tensors, options), all from one number."""
    r = random.Random(number)
    g = torch.Generator().manual_seed(number)
    transposed, rank = r.random() < 0.3, r.randint(1, 3)
    sizes, kernel, options = sizes_of(r, rank, transposed)
    groups = r.choice((1, 1, 2, 3))
    inputs, outputs = r.randint(1, 5), r.randint(1, 5)  # a group
    if r.random() < 0.5:
        groups, inputs, outputs = r.choice((2, 5, 8, 16, 19)), 1, r.choice((1, 1, 1, 2))
    C, O = groups * inputs, groups * outputs
    options["groups"] = groups
    dtype = r.choice(DTYPES)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    x = normal(r.randint(1, 3), C, *sizes)
    # a tiny kernel's sums may cancel: an error is measured by the largest of all results
    w = normal(C if transposed else O, outputs if transposed else inputs, *kernel, scale=0.5)
    b = normal(O) if r.random() < 0.6 else None
    function = f"conv{'_transpose' if transposed else ''}{rank}d"
    shape = plain(function, x.to("meta"), w.to("meta"), **options).shape
    residual = normal(*shape) if r.random() < 0.4 else None
    place = r.choice(
        (torch.clone, torch.clone, channels_innermost, channels_innermost, lambda t: t.mT.contiguous().mT)
    )
    last = r.random() < 0.3
    if (
        max(kernel) == 1 and max(options["stride"]) > 1
    ):  # torch's own gradient writes outside its memory on AVX2
        place, last = torch.clone, False
    x, w = place(x), channels_innermost(w) if last else w
    residual = None if residual is None else r.choice((torch.clone, channels_innermost))(residual)
    if r.random() < 0.1:
        x, residual = x[0], None if residual is None else residual[0]
    return function, [x, w, b, residual], {**options, "act": r.choice((None, None, "gelu", "tanh", "silu"))}


def formula(function, x, w, b, residual, act, **options):
    z = plain(function, x, w, b, **options)
    return parse("formula", act).formula(z if residual is None else z + residual)


def ours(function, x, w, b, residual, **options):
    return getattr(F, function)(x, w, b, residual=residual, **options)


def results(call, function, tensors, options, dy):
    given = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = call(function, *given, **options)
    return y, *torch.autograd.grad(y, [t for t in given if t is not None], dy.to(y.dtype))


def check(backend, numbers):
    """The rule over each dtype's combinations together: which of two roundings comes out nearer is luck in one of
    these tiny problems."""
    need(backend)
    found = {}
    for number in numbers:
        function, tensors, options = problem(number)
        shape = formula(function, *tensors, **options).shape
        dy = torch.randn(shape, generator=torch.Generator().manual_seed(number + 1), dtype=torch.float64)
        dy = dy.to(tensors[0].dtype)
        with kz.backend(backend):
            mine = results(ours, function, tensors, options, dy)
        # contiguous: torch's gradient to a grouped, channels-last w is wrong, by 14.9 of 11.9 in combination 921
        plainly = [None if t is None else t.contiguous() for t in tensors]
        theirs = results(formula, function, plainly, options, dy)
        exact = [None if t is None else t.double() for t in plainly]
        right = results(formula, function, exact, options, dy)
        for i, (a, b, c) in enumerate(zip(mine, theirs, right, strict=True)):
            assert a.shape == c.shape, f"result {i} in combination {number}"
            assert a.isfinite().all(), f"result {i} in combination {number}"
            size = c.abs().max()
            if size:
                keep(found, (i, a.dtype), number, size, a, b, c)
    judge_together(found)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_few_combinations(backend):
    check(
        backend, range(60 if backend == "cpp" else 12)
    )  # Numba compiles a kernel for each activation and dtype


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, IN_ALL, GROUP))
@pytest.mark.parametrize("backend", KERNELS)
def test_all_combinations(backend, first):
    check(backend, range(first, first + GROUP))


@pytest.mark.slow
def test_combinations_on_triton():
    """Fewer than of the others: without a GPU, the interpreter takes seconds for one."""
    check("triton", range(GROUP))


def test_combinations_reach_every_option():
    seen = [problem(number) for number in range(300)]
    functions = {function for function, _, _ in seen}
    assert functions == {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
    options = [given for _, _, given in seen]
    assert any(given.get("causal") for given in options)
    assert any(given["padding"] == "same" for given in options)
    assert {given["groups"] for given in options} >= {1, 2, 3, 5, 8, 16, 19}
