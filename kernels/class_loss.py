"""What the backends' cross_entropy launchers share: the reduction, nll_loss, and the walk over chunks of logits.

A backend gives the rows' kernels (`rows_fwd`, `rows_bwd`); the launchers are methods over them.
"""

import math

import torch

from . import memory
from .product import products

# Logits held at once. A chunk costs a read and a write of the weight's gradient (2 x 64 MB for 32000x512). 1024x512 to
# 32000 classes, fp32: 8 MB 729 ms, 16 MB 590, 30 MB 577, 48 MB 581 (eager: 734).
CHUNK_BYTES = 30 << 20
# On a GPU (not measured yet) a product needs rows to fill it: 1024 of 128k bf16 classes.
CHUNK_BYTES_GPU = 256 << 20


def acc_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class ClassLoss:
    """Launchers of one backend. x: contiguous (outer, C, inner); target: int64 (outer, inner), or probabilities of
    x's shape and dtype; weight: (C,) or None; stats: (3, outer, inner) of row maxima, log Σ exp(x - max) and Σ w q'.
    """

    products = products

    def rows_fwd(self, x, target, weight, ignore_index, smoothing):
        """(loss, what counts for the mean's divisor, stats), each row's."""
        raise NotImplementedError

    def rows_bwd(self, x, target, weight, stats, g, ignore_index, smoothing, out):
        """The gradient into `out`, which may be x; g: one number, or one a row."""
        raise NotImplementedError

    def rows_both(self, z, target, weight, g, ignore_index, smoothing):
        """(loss, counts) of logits z (rows, C), which become their gradient."""
        z = z.unsqueeze(2)
        loss, counts, stats = self.rows_fwd(z, target, weight, ignore_index, smoothing)
        self.rows_bwd(z, target, weight, stats, g, ignore_index, smoothing, z)
        return loss, counts

    @staticmethod
    def checked(target, classes, ignore_index):
        """target, or torch's IndexError for a class that does not exist (not on a GPU: there the kernel asserts)."""
        if target.is_floating_point() or not _on_cpu(target) or not target.numel():
            return target
        low, high = torch.aminmax(target)
        if low < 0 or high >= classes:
            bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
            if bad.any():
                raise IndexError(f"Target {int(target[bad][0])} is out of bounds.")
        return target

    def cross_entropy_fwd(self, x, target, weight, ignore_index, reduction, smoothing, wide):
        """(the loss: (outer, inner) or a scalar; stats; the factor of the mean, by which the gradient is scaled)."""
        target = self.checked(target, x.shape[1], ignore_index)
        loss, counts, stats = self.rows_fwd(x, target, _acc(weight, x), ignore_index, smoothing)
        loss, factor = reduced(loss, counts, reduction, torch.float32 if wide else x.dtype)
        return loss, stats, factor

    def cross_entropy_bwd(self, dy, x, target, weight, stats, factor, ignore_index, smoothing):
        out = memory.empty_like(x) if _on_cpu(x) else torch.empty_like(x)
        g = dy.to(factor.dtype) * factor
        self.rows_bwd(x, target, _acc(weight, x), stats, g, ignore_index, smoothing, out)
        return out

    def nll_loss_fwd(self, x, target, weight, ignore_index, reduction, wide):
        """(the loss, the factor of the mean). One element a row is read: torch's gather."""
        target = self.checked(target, x.shape[1], ignore_index)
        counted, index = self._counted(x, target, weight, ignore_index)
        picked = x.gather(1, index.unsqueeze(1)).squeeze(1).to(counted.dtype)
        loss = torch.where(target == ignore_index, 0, -counted * picked)
        return reduced(loss, counted, reduction, torch.float32 if wide else x.dtype)

    def nll_loss_bwd(self, dy, x, target, weight, factor, ignore_index):
        out = memory.empty_like(x) if _on_cpu(x) else torch.empty_like(x)
        counted, index = self._counted(x, target, weight, ignore_index)
        value = torch.where(target == ignore_index, 0, -counted * (dy.to(factor.dtype) * factor))
        bits, value = out.zero_(), value.to(x.dtype).unsqueeze(1)
        if x.dtype.itemsize == 2:
            # torch's 16-bit floating scatter_ copies all of its output twice (2048x8192: 32 ms of 36)
            bits, value = bits.view(torch.int16), value.view(torch.int16)
        bits.scatter_(1, index.unsqueeze(1), value)
        return out

    @staticmethod
    def _counted(x, target, weight, ignore_index):
        """(each row's weight w_t or 0, the classes with 0 for what is ignored)."""
        ignored = target == ignore_index
        index = target.masked_fill(ignored, 0)
        weight = _acc(weight, x)
        counted = (
            (~ignored).to(acc_dtype(x.dtype)) if weight is None else weight[index].masked_fill_(ignored, 0)
        )
        return counted, index

    def linear_cross_entropy_fwd(
        self, x, w, b, target, weight, ignore_index, reduction, smoothing, wide, need_dx, need_dw, need_db
    ):
        """(the loss; the gradients dx, dw, db for an incoming 1, None where not needed). x (M, K), w (C, K)."""
        target = self.checked(target, w.shape[0], ignore_index)
        need = need_dx, need_dw, need_db
        g = self._mean_factor(x, target, weight, ignore_index, reduction) if any(need) else None
        loss, counts, grads = self._walk(x, w, b, target, weight, ignore_index, smoothing, g, need)
        loss, _ = reduced(loss, counts, reduction, torch.float32 if wide else x.dtype)
        return loss, *grads

    def linear_cross_entropy_bwd(
        self, dy, x, w, b, target, weight, ignore_index, reduction, smoothing, need_dx, need_dw, need_db
    ):
        """The gradients once more, for dy a number or, without reduction, one a row.

        A number scales them at the end, as it scales what the forward computed: the logits' gradients are rounded
        to their dtype, and scaled before that they would round differently from the first backward's.
        """
        g = self._mean_factor(x, target, weight, ignore_index, reduction)
        if reduction == "none":
            g = g * dy.to(g.dtype)
        need = need_dx, need_dw, need_db
        grads = self._walk(x, w, b, target, weight, ignore_index, smoothing, g, need)[2]
        if reduction != "none":
            for grad in grads:
                if grad is not None:
                    grad.mul_(dy)
        return grads

    def _product(self, x, w, b):
        if not _on_cpu(x):
            return torch.mm(x, w.t()) if b is None else torch.addmm(b, x, w.t())
        z, rest = self.products.biased(x, w, b)
        return z if rest is None else z.add_(rest)

    def _into(self, total, a, b, add=False):
        """total = a @ b, or +=; fp16's in float32: gradients that are not yet divided by the mean's rows add up past
        its 65504."""
        if _on_cpu(a):
            return self.products.add_matmul(total, a, b) if add else self.products.matmul(a, b, out=total)
        if total.dtype == a.dtype:
            return total.addmm_(a, b) if add else torch.mm(a, b, out=total)
        if a.dtype == torch.float16 and not torch.version.hip:
            product = torch.mm(a, b, out_dtype=torch.float32)
        else:
            product = torch.mm(a.to(total.dtype), b.to(total.dtype))
        return total.add_(product) if add else total.copy_(product)

    def _mean_factor(self, x, target, weight, ignore_index, reduction):
        one = x.new_ones((), dtype=acc_dtype(x.dtype))
        if reduction != "mean":
            return one
        if target.is_floating_point():
            return one / x.shape[0]
        return one / self._counted(x, target, weight, ignore_index)[0].sum()

    def _walk(self, x, w, b, target, weight, ignore_index, smoothing, g, need):
        """(loss and counts of the rows, gradients) with the rows' incoming gradient g, or None for no gradient."""
        M, C = x.shape[0], w.shape[0]
        weight = _acc(weight, x)
        grad_dtype = gradient_dtype(x)
        new = (lambda shape, dtype: memory.empty(shape, dtype)) if _on_cpu(x) else x.new_empty
        loss, counts = (x.new_empty(M, dtype=acc_dtype(x.dtype)) for _ in range(2))
        shapes = (x.shape, w.shape, (C,))
        dx, dw, db = (new(s, dtype=grad_dtype) if n else None for s, n in zip(shapes, need, strict=True))
        # fp16 would lose probabilities divided by the mean's rows: its gradients are scaled at the end
        late = g if x.dtype == torch.float16 and g is not None and g.dim() == 0 else None
        if late is not None:
            g = torch.ones_like(g)
        budget = CHUNK_BYTES if _on_cpu(x) else CHUNK_BYTES_GPU
        rows = max(16, budget // (C * x.dtype.itemsize) // 16 * 16)
        chunks = max(1, math.ceil(M / rows))
        rows = math.ceil(M / chunks / 16) * 16 or 16  # chunks of one size
        for start in range(0, M, rows):
            part = slice(start, start + rows)
            xs, ts = x[part], target[part].reshape(-1, *target.shape[1:], 1)
            z = self._product(xs, w, b)
            if g is None:
                loss_part, counts_part, _ = self.rows_fwd(z.unsqueeze(2), ts, weight, ignore_index, smoothing)
            else:
                gs = g[part].contiguous() if g.dim() else g
                loss_part, counts_part = self.rows_both(z, ts, weight, gs, ignore_index, smoothing)
            loss[part], counts[part] = loss_part.view(-1), counts_part.view(-1)
            if dx is not None:
                self._into(dx[part], z, w)
            if dw is not None:
                self._into(dw, z.t(), xs, add=start > 0)
            if db is not None:
                total = z.sum(0, dtype=grad_dtype)
                db.copy_(total) if start == 0 else db.add_(total)
            del z  # before the next chunk's are there
        if late is not None:
            # every row ignored: nothing counts, and the gradient is 0
            late = torch.where(late.isfinite() | (counts != 0).any(), late, 0)
            for grad in (dx, dw, db):
                if grad is not None:
                    grad.mul_(late)
        return loss, counts, (dx, dw, db)


def gradient_dtype(x):
    """What linear_cross_entropy's gradients are added up in: bf16 on a GPU, where float32 would take more memory
    than the logits saved and 8 chunks round 8 times; else float32, or float64."""
    return x.dtype if x.is_cuda and x.dtype == torch.bfloat16 else acc_dtype(x.dtype)


def _on_cpu(t):
    return t.device.type == "cpu"


def _acc(weight, x):
    return None if weight is None else weight.to(acc_dtype(x.dtype))


def reduced(loss, counts, reduction, dtype):
    """(the rows' losses reduced, 1 / the mean's divisor or 1)."""
    one = counts.new_ones(())
    if reduction == "none":
        return loss.to(dtype), one
    total = loss.sum(dtype=torch.float64)
    if reduction == "sum":
        return total.to(dtype), one
    count = counts.sum(dtype=torch.float64)
    # torch's mean over rows that weigh 0 is NaN even where smoothing gives their other classes a loss
    mean = (total / count).masked_fill_(count == 0, torch.nan)
    return mean.to(dtype), (1 / count).to(counts.dtype)
