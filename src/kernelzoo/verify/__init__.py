"""`kernelzoo verify`: the rule of accuracy (rule.py) shown for every op and backend that is here."""

import warnings

import torch

from ..ops.core import BackendUnavailable, backend, backends
from ..ops.core.choice import KERNELS
from .cases import CASES, JUMPS, Case, exact_or_normal
from .rule import Verdict, assert_as_good, error, judge

__all__ = [
    "CASES",
    "JUMPS",
    "Case",
    "Verdict",
    "assert_as_good",
    "error",
    "exact_or_normal",
    "judge",
    "run",
    "table",
]

# Not float64, which a formula in fp64 cannot judge: finite differences (gradcheck) prove those kernels.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A case's results by the names of its op's arguments, the first y
RESULTS = {
    "linear": ("y", "dx", "dw", "db"),
    "attention": ("o", "dq", "dk", "dv"),
    "batch_norm": ("y", "dx", "dw", "db", "dr"),
    "glu": ("y", "dgate", "dup"),
    "rnn": ("y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"),
}
OTHER_RESULTS = ("y", "dx", "dw", "db")


def results(function, tensors, dy):
    """(y, a gradient for each floating tensor) of function(*tensors), `dy` the incoming gradient."""
    y = function(*tensors)
    return y, *torch.autograd.grad(y, [t for t in tensors if t.is_floating_point()], dy)


def check(case, name, dtype, device):
    """The `Verdict` of each result of one case on backend `name`."""
    made = case.make(torch.Generator().manual_seed(1))
    given = [t.to(dtype).to(device).requires_grad_() if t.is_floating_point() else t.to(device) for t in made]
    exact = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in given]
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
            for result, verdict in zip(
                RESULTS.get(op, OTHER_RESULTS), check(case, name, dtype, device), strict=False
            ):
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
    """Check an op (a key of CASES, or "all") on every backend and dtype that is here.

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
