"""The one rule of accuracy.

err(ours, fp64) ≤ 2·err(torch in the same dtype, fp64) + a few eps, with err the largest absolute error over
the oracle's largest absolute value. The oracle is the op's formula in fp64 on the same (rounded) inputs; a
difference in where NaN and ±Inf stand is a failure.
"""

from typing import NamedTuple

import torch

FLOOR_EPS = 4
# In fp64 the oracle is torch's own result and errs itself: log_softmax over 70001 is 72 eps from long double.
FLOOR_EPS_FP64 = 128


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
