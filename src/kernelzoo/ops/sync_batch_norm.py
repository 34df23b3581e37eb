"""Batch normalisation over the batches of all processes of a group: batch_norm's kernels, with what each process
counts and sums exchanged between them.

Forward: every process gives its count, mean and variance (2 C + 1 numbers), and joins all of them (Chan, Golub,
LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979). Backward: Σ g and Σ g x̂ are
added up (2 C numbers); dw and db stay each process's own, which DistributedDataParallel adds up. A process without a
sample takes part in both.
"""

import torch
import torch.distributed as dist

from . import batch_norm as local
from .activation import parse
from .batch_norm_checks import explain
from .core.choice import Call, choose, state


class _ByTorch:
    """batch_norm's four ops in plain torch, for what no kernel serves and for a process without a sample."""

    @staticmethod
    def _shaped(t, x):
        return t.view(1, -1, *(1,) * (x.dim() - 2))

    @staticmethod
    def stats(x):
        if x.numel() == 0:
            return (x.new_zeros(x.size(1), dtype=local.acc_of(x.dtype)) for _ in range(2))
        var, mean = torch.var_mean(x.to(local.acc_of(x.dtype)), [0, *range(2, x.dim())], correction=0)
        return mean, var

    @staticmethod
    def forward(x, residual, weight, bias, mean, var, eps, act):
        z = local.normalised(x, weight, bias, mean, var, eps)
        return act.formula(z if residual is None else z + residual)

    @classmethod
    def incoming(cls, dy, x, saved, weight, bias, mean, var, from_output, eps, act):
        """g, and x̂, in mean's dtype."""
        normal = (x - cls._shaped(mean, x)) * cls._shaped(torch.rsqrt(var + eps), x)
        if act.name == "none":
            return dy, normal
        if from_output:
            return local.DEFINITIONS[act.name].from_output(dy, saved, *act.params), normal
        with torch.enable_grad():
            z = local.normalised(x, weight, bias, mean, var, eps)
            z = (z if saved is None else z + saved).detach().requires_grad_()
            return torch.autograd.grad(act.formula(z), z, dy)[0], normal

    @staticmethod
    def sums(g, normal):
        dims = [0, *range(2, g.dim())]
        return g.to(normal.dtype).sum(dims), (g * normal).sum(dims)

    @classmethod
    def backward(cls, g, normal, weight, var, g_mean, gx_mean, eps):
        scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
        dx = g - cls._shaped(g_mean, g) - normal * cls._shaped(gx_mean, g)
        return (dx * cls._shaped(scale, g)).to(g.dtype)


def _joined(count, mean, var, group):
    """Count, mean and variance over the group, from each process's, in float64."""
    mine = torch.cat([mean.double(), var.double(), mean.new_full((1,), count, dtype=torch.float64)])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group)
    every = torch.stack(every)
    counts = every[:, -1:]
    means, variances = every[:, :-1].chunk(2, 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return total, mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total


class _SyncBatchNorm(torch.autograd.Function):
    """Saved for the backward: what BatchNormFunction saves, the mean and the variance being the group's, and the count.
    It differentiates once only, as torch's."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, eps, act, keeps, group, backend):
        count, acc = x.numel() // max(1, x.size(1)), local.acc_of(x.dtype)
        mean, var = _ByTorch.stats(x) if backend == "torch" else local.batch_norm_stats(x, False, backend)
        total, mean, var = _joined(count, mean, var, group)
        mean, var = mean.to(acc), var.to(acc)
        if backend == "torch":
            y = _ByTorch.forward(x, residual, weight, bias, mean, var, eps, act)
        else:
            y, _, _ = local.batch_norm_fwd(
                x, residual, weight, bias, mean, var, False, eps, *act.flat(), backend
            )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, var, total)
        ctx.from_output = residual is not None and not keeps and act.saves_output(x.dtype)
        saved = None
        if residual is not None and act.name != "none":
            saved = y if ctx.from_output else residual
        ctx.save_for_backward(x, weight, bias, saved, mean, var, total)
        ctx.eps, ctx.act, ctx.group, ctx.backend = eps, act, group, backend
        return y, mean, var, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *_):
        x, weight, bias, saved, mean, var, total = ctx.saved_tensors
        need_dx, need_dw, need_db, need_dr = ctx.needs_input_grad[:4]
        eps, act, backend = ctx.eps, ctx.act, ctx.backend
        common = (dy, x, saved, weight, bias, mean, var)
        if backend == "torch":
            g, normal = _ByTorch.incoming(*common, ctx.from_output, eps, act)
            sum_g, sum_gx = _ByTorch.sums(g, normal)
        else:
            sum_g, sum_gx = local.batch_norm_sums(*common, False, ctx.from_output, eps, *act.flat(), backend)
        dw = sum_gx.to(weight.dtype) if need_dw else None
        db = sum_g.to(bias.dtype) if need_db else None
        dx = dr = None
        if need_dx:
            sums = torch.cat([sum_g.double(), sum_gx.double()])
            dist.all_reduce(sums, group=ctx.group)
            g_mean, gx_mean = (sums / total).to(mean.dtype).chunk(2)
        if backend == "torch":
            dx = _ByTorch.backward(g, normal, weight, var, g_mean, gx_mean, eps) if need_dx else None
            return dx, dw, db, g if need_dr else None, *[None] * 5
        same = act.name == "none"
        if need_dx or (need_dr and not same):
            dx, dr, _, _ = local.batch_norm_bwd(
                *common, *((g_mean, gx_mean) if need_dx else (None, None)), 1.0, need_dx, False, ctx.from_output, eps,
                *act.flat(), need_dx, need_dr and not same, False, False, backend,
            )  # fmt: skip
        return dx, dw, db, dy if same and need_dr else dr, *[None] * 5


def sync_batch_norm(
    input, running_mean, running_var, weight, bias, momentum, eps, group, *, act=None, residual=None,
    keep_residual=False,
):  # fmt: skip
    """`batch_norm` in training, with the mean and the variance of the batches of all processes of `group`, on any
    device that its backend serves; running statistics are updated in place with the group's."""
    name = "sync_batch_norm"
    act = parse(name, act)
    explain(name, input, running_mean, running_var, weight, bias, True, momentum, eps, residual)
    backend, reason = "torch", "its kernels take no such dtypes"
    args = (
        input, weight, bias, residual, running_mean, running_var, True, momentum, False, eps, act, keep_residual,
    )  # fmt: skip
    if local.served(input, running_mean, running_var, weight, bias, residual):
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        backend, reason = choose(local.BatchNormFunction, tensors, args)
    if state.calls is not None:
        state.calls.append(Call(name, backend, reason, (tuple(input.shape),), input.dtype))
    y, mean, var, total = _SyncBatchNorm.apply(
        input, weight, bias, residual, float(eps), act, keep_residual, group, backend
    )
    if running_mean is not None:
        with torch.no_grad():
            local.update(running_mean, mean, momentum)
            local.update(running_var, (var * (total / (total - 1))).to(var.dtype), momentum)
    return y
