"""The rule over many random combinations together: which of two roundings comes out nearer is luck in a tiny one."""

import torch

from kernelzoo.verify.rule import FLOOR_EPS, FLOOR_EPS_FP64, error


def keep(found, key, number, size, ours, theirs, exact):
    """Add combination `number`'s result of the kind `key`, (result, dtype), in units of `size`, to what was found."""
    *kept, errors = found.setdefault(key, ([], [], [], []))
    for values, t in zip(kept, (ours, theirs, exact), strict=True):
        values.append((t.double() / size).flatten().detach())
    errors.append((number, error(ours, exact)))


def judge_together(found):
    for (i, dtype), (a, b, c, errors) in found.items():
        floor = FLOOR_EPS_FP64 if dtype == torch.float64 else FLOOR_EPS
        limit = 2 * error(torch.cat(b), torch.cat(c)) + floor * torch.finfo(dtype).eps
        number, worst = max(errors, key=lambda one: one[1])
        assert error(torch.cat(a), torch.cat(c)) <= limit, (
            f"result {i} in {dtype}: {worst:.3e} in combination {number}, allowed {limit:.3e}"
        )
