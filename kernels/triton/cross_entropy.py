"""Cross entropy: a row's loss in one walk over its classes, its gradient written once."""

import triton
import triton.language as tl

from ..class_loss import ClassLoss
from ..class_loss import acc_dtype as acc_of
from .math import INTERPRET, narrow, widen
from .runtime import STORAGE, acc_dtype, launch_on, target_of


@triton.jit
def _shifted_exp(x, peak):
    """exp(x - peak) for x <= peak, 0 where both are -inf: a row that begins with -inf may go on finite."""
    return tl.exp(x - tl.where(peak == float("-inf"), 0.0, peak))


@triton.jit
def _row_starts(pid, rows, n, inner, BLOCK_R: tl.constexpr):
    """The rows of this program, and where each begins in (outer, n, inner)."""
    offs_r = pid.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    return offs_r, offs_r // inner * n * inner + offs_r % inner, offs_r < rows


@triton.jit
def _cross_entropy_fwd_kernel(
    x_ptr, target_ptr, w_ptr, loss_ptr, counts_ptr, stats_ptr, rows, n, inner, ignore_index,
    PROBABILITIES: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHING: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """loss = sum_c w_c q'_c (max + log_sum - x_c), q' = (1 - SMOOTHING) q + SMOOTHING / n, of BLOCK_R rows.

    One walk of BLOCK_C classes a step: the running maximum, and the sum that it rescales (arXiv:1805.02867). Sums
    of x are taken relative to the first step's maximum, so that a large common offset does not cancel in them.
    """
    offs_r, start, mask_r = _row_starts(tl.program_id(0), rows, n, inner, BLOCK_R)
    peak = tl.full((BLOCK_R,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_R,), ACC)
    base = tl.zeros((BLOCK_R,), ACC)
    sum_q = tl.zeros((BLOCK_R,), ACC)
    sum_qx = tl.zeros((BLOCK_R,), ACC)
    sum_w = tl.zeros((BLOCK_R,), ACC)
    sum_x = tl.zeros((BLOCK_R,), ACC)
    for k in range(0, n, BLOCK_C):
        offs_c = k + tl.arange(0, BLOCK_C).to(tl.int64)
        mask = mask_r[:, None] & (offs_c < n)[None, :]
        offs = start[:, None] + (offs_c * inner)[None, :]
        x = widen(tl.load(x_ptr + offs, mask=mask, other=float("-inf")), ACC)
        new_peak = tl.maximum(peak, tl.max(x, axis=1))
        total = total * _shifted_exp(peak, new_peak) + tl.sum(_shifted_exp(x, new_peak[:, None]), axis=1)
        peak = new_peak
        if PROBABILITIES or SMOOTHING > 0:
            if k == 0:
                base = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
            w = tl.where(mask, 1.0, 0.0).to(ACC)
            if WEIGHTED:
                w = w * tl.load(w_ptr + offs_c, mask=offs_c < n, other=0.0)[None, :]
            shifted = tl.where(mask, x - base[:, None], 0.0)
            if SMOOTHING > 0:
                sum_w += tl.sum(w, axis=1)
                sum_x += tl.sum(w * shifted, axis=1)
            if PROBABILITIES:
                q = w * widen(tl.load(target_ptr + offs, mask=mask, other=0.0), ACC)
                sum_q += tl.sum(q, axis=1)
                sum_qx += tl.sum(q * shifted, axis=1)
    log_sum = tl.log(total)
    lse = (peak - base) + log_sum
    if PROBABILITIES:
        counted = mask_r
        count = tl.where(mask_r, 1.0, 0.0).to(ACC)
        mass = sum_q * (1.0 - SMOOTHING)
        loss = (sum_q * lse - sum_qx) * (1.0 - SMOOTHING)
    else:
        target = tl.load(target_ptr + offs_r, mask=mask_r, other=0).to(tl.int64)
        counted = mask_r & (target != ignore_index)
        inside = (target >= 0) & (target < n)
        tl.device_assert(inside | (counted == 0), "cross_entropy: a target is out of bounds")
        picked = counted & inside
        count = tl.where(counted, 1.0, 0.0).to(ACC)
        if WEIGHTED:
            count = tl.load(w_ptr + target, mask=picked, other=0.0)
        x = widen(tl.load(x_ptr + start + target * inner, mask=picked, other=0.0), ACC)
        mass = count * (1.0 - SMOOTHING)
        loss = mass * (log_sum - (x - peak))
    if SMOOTHING > 0:
        mass += sum_w * SMOOTHING / n
        loss += (sum_w * lse - sum_x) * SMOOTHING / n
    tl.store(loss_ptr + offs_r, tl.where(counted, loss, 0.0), mask=mask_r)
    tl.store(counts_ptr + offs_r, count, mask=mask_r)
    tl.store(stats_ptr + offs_r, peak, mask=mask_r)
    tl.store(stats_ptr + rows + offs_r, log_sum, mask=mask_r)
    tl.store(stats_ptr + rows + rows + offs_r, mass, mask=mask_r)


@triton.jit
def _cross_entropy_bwd_kernel(
    x_ptr, target_ptr, w_ptr, stats_ptr, g_ptr, dx_ptr, rows, n, inner, stride_g, ignore_index,
    PROBABILITIES: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHING: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = g (mass exp(x - max - log_sum) - w q'), a tile of BLOCK_R rows and BLOCK_C classes a program. dx may be
    x: no program reads what another writes."""
    num_c = tl.cdiv(n, BLOCK_C)
    pid = tl.program_id(0)
    offs_r, start, mask_r = _row_starts(pid // num_c, rows, n, inner, BLOCK_R)
    offs_c = (pid % num_c).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = mask_r[:, None] & (offs_c < n)[None, :]
    offs = start[:, None] + (offs_c * inner)[None, :]
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
    peak = tl.load(stats_ptr + offs_r, mask=mask_r, other=0.0)
    log_sum = tl.load(stats_ptr + rows + offs_r, mask=mask_r, other=0.0)
    mass = tl.load(stats_ptr + rows + rows + offs_r, mask=mask_r, other=0.0)
    g = tl.load(g_ptr + offs_r * stride_g, mask=mask_r, other=0.0)
    dx = (g * mass)[:, None] * tl.exp((x - peak[:, None]) - log_sum[:, None])
    if PROBABILITIES:
        taken = widen(tl.load(target_ptr + offs, mask=mask, other=0.0), ACC) * (1.0 - SMOOTHING)
    else:
        target = tl.load(target_ptr + offs_r, mask=mask_r, other=0).to(tl.int64)
        taken = tl.where(target[:, None] == offs_c[None, :], 1.0, 0.0).to(ACC) * (1.0 - SMOOTHING)
    if SMOOTHING > 0:
        taken += (tl.zeros((BLOCK_R,), ACC) + SMOOTHING)[:, None] / n
    if WEIGHTED:
        taken = taken * tl.load(w_ptr + offs_c, mask=offs_c < n, other=0.0)[None, :]
    dx -= g[:, None] * taken
    if not PROBABILITIES:  # torch's is 0 times the probabilities where ignored
        dx = tl.where((target == ignore_index)[:, None], (log_sum - log_sum)[:, None], dx)
    if x.dtype == tl.float32:  # a denormal would slow the product that it enters
        dx = tl.where(tl.abs(dx) < 1.17549435e-38, 0.0, dx)
    tl.store(dx_ptr + offs, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)


def tile(target, n, inner):
    """Tile of both kernels. Not yet measured on a device.

    4096 elements, 16 a thread of 8 warps: along n where adjacent elements lie there; else 32 rows, a warp's
    transaction, side by side. Short rows share a program, of 512 elements: with 2048, 8 to 32 bytes spill, with 1024 8.
    """
    size, widest = 4096, 32
    if target.backend == "interpreter":  # small, so that tiny shapes reach every branch
        size, widest = 64, 4
    block_r = 1 if inner == 1 else min(triton.next_power_of_2(inner), widest)
    block_c = min(triton.next_power_of_2(n), size // block_r)
    if inner == 1:
        block_r = max(1, size // block_c // 8)
    return {"BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": 8}


def _options(x, target, weight, smoothing):
    # The assertion as in torch's kernels, but none for integer overflows, which `debug` brings too.
    checks = {} if INTERPRET.value else {"debug": True, "sanitize_overflow": False}
    return {
        "PROBABILITIES": target.is_floating_point(),
        "WEIGHTED": weight is not None,
        "SMOOTHING": smoothing,
        "ACC": STORAGE[acc_dtype(x.dtype)],
        **tile(target_of(x), x.shape[1], x.shape[2]),
        **checks,
    }


class _Rows(ClassLoss):
    def rows_fwd(self, x, target, weight, ignore_index, smoothing):
        outer, n, inner = x.shape
        loss, counts = (x.new_empty((outer, inner), dtype=acc_of(x.dtype)) for _ in range(2))
        stats = x.new_empty((3, outer, inner), dtype=acc_of(x.dtype))
        options = _options(x, target, weight, smoothing)
        with launch_on(x):
            _cross_entropy_fwd_kernel[(triton.cdiv(outer * inner, options["BLOCK_R"]),)](
                x_ptr=x, target_ptr=target, w_ptr=weight, loss_ptr=loss, counts_ptr=counts, stats_ptr=stats,
                rows=outer * inner, n=n, inner=inner, ignore_index=ignore_index, **options,
            )  # fmt: skip
        return loss, counts, stats

    def rows_bwd(self, x, target, weight, stats, g, ignore_index, smoothing, out):
        outer, n, inner = x.shape
        g = g.contiguous()
        options = _options(x, target, weight, smoothing)
        programs = triton.cdiv(outer * inner, options["BLOCK_R"]) * triton.cdiv(n, options["BLOCK_C"])
        with launch_on(x):
            _cross_entropy_bwd_kernel[(programs,)](
                x_ptr=x, target_ptr=target, w_ptr=weight, stats_ptr=stats, g_ptr=g, dx_ptr=out,
                rows=outer * inner, n=n, inner=inner, stride_g=int(g.dim() > 0), ignore_index=ignore_index,
                **options,
            )  # fmt: skip


_rows = _Rows()
cross_entropy_fwd = _rows.cross_entropy_fwd
cross_entropy_bwd = _rows.cross_entropy_bwd
nll_loss_fwd = _rows.nll_loss_fwd
nll_loss_bwd = _rows.nll_loss_bwd
linear_cross_entropy_fwd = _rows.linear_cross_entropy_fwd
linear_cross_entropy_bwd = _rows.linear_cross_entropy_bwd
