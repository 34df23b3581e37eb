"""The one rule of accuracy, and `kernelzoo verify`, which shows it for every backend that is here.

err(ours, fp64) ≤ 2·err(torch in the same dtype, fp64) + a few eps, with err the largest absolute error over
the oracle's largest absolute value. The oracle is the op's formula in fp64 on the same (rounded) inputs; a
difference in where NaN and ±Inf stand is a failure.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from .ops import linear as linear_ops
from .ops import softmax as softmax_ops
from .ops.activation import DEFINITIONS, activation, parse
from .ops.core import BackendUnavailable, backend, backends
from .ops.core.choice import KERNELS

FLOOR_EPS = 4
# In fp64 the oracle is torch's own result and errs itself: log_softmax over 70001 is 72 eps from long double.
FLOOR_EPS_FP64 = 128
# Not float64, which a formula in fp64 cannot judge: finite differences (gradcheck) prove those kernels.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# The derivative, or the value, jumps: only inputs whose sums are exact meet the same side in every dtype.
JUMPS = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "hardsigmoid", "hardswish", "hardtanh",
         "softshrink", "hardshrink", "threshold")  # fmt: skip


class Verdict(NamedTuple):
    """What the rule says of one result; `problem` is None where it passes."""

    error: float
    theirs: float
    limit: float
    problem: str | None = None


def error(actual, oracle):
    """Largest absolute error over the oracle's largest absolute value, where that is finite."""
    difference, size = actual.double() - oracle, oracle.abs()
    finite = oracle.isfinite()
    if not finite.all():
        difference, size = difference[finite], size[finite]
    if not difference.numel():
        return 0.0
    worst, scale = difference.abs().max().item(), size.max().item()
    return worst / scale if scale else worst


def judge(ours, theirs, oracle):
    """The rule. ours, theirs: the result and torch's, in the tested dtype; oracle: the formula's in fp64."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        said = f"{ours.dtype} {tuple(ours.shape)}, torch's {theirs.dtype} {tuple(theirs.shape)}"
        return Verdict(float("nan"), float("nan"), float("nan"), said)
    ours, theirs, oracle = (t.detach() for t in (ours, theirs, oracle))
    if len({t.device for t in (ours, theirs, oracle)}) > 1:
        ours, theirs, oracle = ours.cpu(), theirs.cpu(), oracle.cpu()
    problem = None
    finite = theirs.isfinite()
    if not (finite.all() and ours.isfinite().all()):
        problem = _misplaced(ours, theirs)
        # where torch in this dtype overflows, the oracle does not: compare where both are finite
        oracle = torch.where(finite, oracle, theirs.double())
    got, reached = error(ours, oracle), error(theirs, oracle)
    floor = FLOOR_EPS_FP64 if ours.dtype == torch.float64 else FLOOR_EPS
    limit = 2 * reached + floor * torch.finfo(ours.dtype).eps
    if problem is None and not got <= limit:
        problem = f"error {got:.3e} against fp64, allowed {limit:.3e}"
    return Verdict(got, reached, limit, problem)


def _misplaced(ours, theirs):
    for kind, pick in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        different = pick(ours) != pick(theirs)
        if different.any():
            return (
                f"{kind} in other places than torch's, {int(different.sum())} of them, "
                f"first: ours {ours[different][0]}, torch's {theirs[different][0]}"
            )
    return None


def assert_as_good(name, ours, theirs, oracle):
    """The rule as an assertion on the result called `name`."""
    problem = judge(ours, theirs, oracle).problem
    assert problem is None, f"{name}: {problem}"


def exact_or_normal(shape, generator, exact, scale=1.0):
    """fp64 values: multiples of 1/2 in [-1, 1] where exact (their products' sums are exact), else normal."""
    if exact:
        return torch.randint(-2, 3, shape, generator=generator, device=generator.device).double() / 2
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device) * scale


class Case(NamedTuple):
    """ours and formula take the tensors of `make(generator)` (fp64, CPU), cast to the tested dtype."""

    name: str
    make: Callable
    ours: Callable
    formula: Callable
    large: bool = False  # too slow for an interpreter


def _linear_cases():
    for act in (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", ("softplus", 2.0, 5.0)):
        chosen = parse("verify", act)
        for m, k, n in ((37, 65, 70), (259, 768, 514)):

            def make(g, m=m, k=k, n=n, exact=chosen.name in JUMPS):
                shapes = (((m, k), 1.0), ((n, k), k**-0.5), ((n,), 1.0))
                return [exact_or_normal(shape, g, exact, scale) for shape, scale in shapes]

            yield Case(
                f"{m}x{k}->{n} {chosen.name}",
                make,
                functools.partial(linear_ops.linear, act=act),
                functools.partial(linear_ops.LinearAct.formula, act=chosen),
                large=m > 64,
            )


# Finite: torch's own derivatives at NaN differ between its vector and its scalar loop (relu6, hardshrink).
EDGES = (0.0, 1e-30, 1e-5, 0.5, 1.0, 3.0, 6.0, 20.0, 88.0, 100.0, 1e4)


def _activation_cases():
    inputs = {
        "": lambda g: exact_or_normal((37, 129), g, False, 2.0),
        " tiny": lambda g: exact_or_normal((1031,), g, False, 1e-4),
        " tail": lambda g: exact_or_normal((1031,), g, False) - 20,
        " edges": lambda g: torch.tensor([*EDGES, *(-e for e in EDGES)], dtype=torch.float64),
    }
    for name in DEFINITIONS:
        chosen = parse("verify", name)
        for kind, values in inputs.items():
            yield Case(
                name + kind,
                lambda g, values=values: [values(g)],
                functools.partial(activation, act=chosen),
                chosen.formula,
            )


def _softmax_cases():
    for function in (softmax_ops.softmax, softmax_ops.log_softmax):
        log = function is softmax_ops.log_softmax
        for shape, dim in (((7, 33, 5), 0), ((7, 33, 5), 1), ((7, 33, 5), 2), ((9, 1031), 1)):
            yield Case(
                f"{function.__name__} {'x'.join(map(str, shape))} over {dim}",
                lambda g, shape=shape: [exact_or_normal(shape, g, False, 3.0)],
                functools.partial(function, dim=dim),
                functools.partial(softmax_ops.SoftmaxFunction.formula, dim=dim, log=log),
            )


CASES = {"linear": _linear_cases, "activation": _activation_cases, "softmax": _softmax_cases}
RESULTS = ("y", "dx", "dw", "db")


def results(function, tensors, dy):
    """(y, a gradient for each tensor) of function(*tensors), `dy` the incoming gradient."""
    y = function(*tensors)
    return y, *torch.autograd.grad(y, tensors, dy)


def check(case, name, dtype, device):
    """The `Verdict` of each result of one case on backend `name`."""
    given = [t.to(dtype).to(device).requires_grad_() for t in case.make(torch.Generator().manual_seed(1))]
    exact = [t.detach().double().requires_grad_() for t in given]
    with torch.no_grad():
        y = case.formula(*given)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y)
    with backend(name):
        ours = results(case.ours, given, dy)
    theirs = results(case.formula, given, dy)
    oracle = results(case.formula, exact, dy.double())
    return [judge(*three) for three in zip(ours, theirs, oracle, strict=True)]


def _verify(op, name, device, interpreted, out):
    """Print one backend's table; (whether all passed, how many results were checked)."""
    rows, failures, checked = [], [], 0
    for dtype in DTYPES:
        worst = {}
        for case in CASES[op]():
            if case.large and interpreted:
                continue
            for result, verdict in zip(RESULTS, check(case, name, dtype, device), strict=False):
                checked += 1
                if verdict.problem:
                    failures.append(f"{name} {dtype} {case.name}: {result}: {verdict.problem}")
                share = verdict.error / verdict.limit if verdict.problem is None else float("inf")
                if result not in worst or share > worst[result][0]:
                    worst[result] = share, verdict, case.name
        for result, (_, verdict, worst_case) in worst.items():
            figures = (f"{x:.1e}" for x in (verdict.error, verdict.theirs, verdict.limit))
            said = "ok" if verdict.problem is None else "FAILED"
            rows.append((name, str(dtype).removeprefix("torch."), result, *figures, worst_case, said))
    head = ("backend", "dtype", "result", "error", "torch's", "allowed", "worst case", "")
    out(table(head, rows))
    for line in failures:
        out(f"FAILED {line}")
    return not failures, checked


def run(op="linear", out=print):
    """Check an op ("linear", "activation", "softmax" or "all") on every backend and dtype that is here.

    Prints, for each backend, dtype and result, the case nearest to its limit. Returns the exit code: 0 where
    all pass, 1 where one fails or nothing could be checked, 2 for an unknown op.
    """
    if op != "all" and op not in CASES:
        out(f"verify: unknown op {op!r}; expected one of {', '.join(CASES)}, all")
        return 2
    passed, total = True, 0
    for each in CASES if op == "all" else [op]:
        out(f"\n{each}: error against the formula in float64, beside torch's own in the same dtype")
        absent = []
        for name in KERNELS:
            status = backends()[name]
            if not status.available:
                absent.append(f"{name}: {status.reason}")
                continue
            on_gpu = name in ("triton", "cuda") and torch.cuda.is_available()
            interpreted = name == "triton" and not on_gpu
            try:
                with warnings.catch_warnings(action="ignore"):  # an overflow in fp16 is a case, not news
                    good, checked = _verify(each, name, "cuda" if on_gpu else "cpu", interpreted, out)
            except BackendUnavailable as reason:
                absent.append(f"{name}: {reason}")
                continue
            passed, total = passed and good, total + checked
        for line in absent:
            out(f"not checked: {line}")
    out(f"\n{total} results checked: {'all as accurate as torch' if passed else 'FAILED'}")
    return 0 if passed and total else 1


def table(head, rows):
    """Columns as wide as their longest cell, numbers to the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [_numeric(column[1:]) for column in zip(*cells, strict=True)]

    def line(row):
        return "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])


def _numeric(column):
    return any(c[:1].isdigit() for c in column) and all(not c or c[0] in "-+.0123456789" for c in column)
