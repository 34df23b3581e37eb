"""Interpolation: y_o = Σ_i w(o, i) x_i, the weights of one input (nearest) or of two neighbours (linear) a dimension.

Output o lies at position o·s (align_corners: s = (I-1)/(O-1); nearest: s = I/O) or (o + 1/2)·s - 1/2 of the input,
s = I/O, or 1/scale_factor where that was given. nearest takes ⌊o·s⌋, nearest-exact ⌊(o + 1/2)·s⌋; linear weighs ⌊p⌋
and ⌊p⌋ + 1 by 1 - λ and λ, λ = p - ⌊p⌋; area is the mean of adaptive average pooling.
Backward: dx_i = Σ_o w(o, i) dy_o.
"""

import numbers
import warnings

import torch
from torch.nn import functional as T

from .pool_checks import LONGEST, each, is_image, left_to_torch, padded, torchs
from .resample import FEW_LAST, SMALL, ResampleFunction

LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}  # the number of dimensions that torch takes it for


def interpolate(
    input,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    """x resampled to `size`, or to its own times `scale_factor`: torch.nn.functional.interpolate.

    Args:
        input: x, of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        size: of the result, an int or a tuple of one a dimension.
        scale_factor: in place of a size, a number or a tuple of one a dimension.
        mode: "nearest", "nearest-exact", "linear" (of L), "bilinear" (of H, W), "trilinear" (of D, H, W) and "area" run
            on kernels; "bicubic", "lanczos" and whatever is antialiased is torch's own call.
        align_corners: of the linear modes, whether the corners' centres stay where they are.
        recompute_scale_factor: whether positions follow from the sizes rather than from scale_factor.
        antialias: torch's own.

    Returns:
        y, of shape (N, C, *size), in x's dtype and memory format. Linear in a dimension whose size stays, an infinity
        stays one; torch's own call makes NaN of it.

    float64, float32, bfloat16 and float16 run on kernels, with sums in float32 (float64 for float64); every other
    dtype and layout is torch's own call.

    Saved for the backward: nothing.

    Raises:
        ArgumentError (a ValueError and a RuntimeError): sizes and dimensions that do not fit.
        ArgumentTypeError (a TypeError and a RuntimeError): arguments of another type.
    """
    args = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if not left_to_torch(input, SMALL, FEW_LAST) and not antialias:
        found = _resized(input, size, scale_factor, mode, align_corners, recompute_scale_factor)
        if found is not None:
            out, kind, scales = found
            return ResampleFunction.call(input, "interpolate", args, out, kind, (), 0, scales)
    return torchs("interpolate", T.interpolate, "(N, C, *) and either a size or a scale_factor for each of *", input,
                  *args)  # fmt: skip


def _resized(x, size, scale_factor, mode, align_corners, recompute):
    """The result's sizes, kernels/pool.py's name of the mode and the factors; None where torch must have its say."""
    if not isinstance(x, torch.Tensor) or not 3 <= x.dim() <= 5 or not is_image(x, x.dim() - 2):
        return None
    rank = x.dim() - 2
    if (size is None) == (scale_factor is None) or (recompute and scale_factor is None):
        return None
    if mode in ("nearest", "nearest-exact", "area"):
        if align_corners is not None:
            return None
        kind = "adaptive" if mode == "area" else mode
    elif LINEAR.get(mode) == rank:
        kind = "corners" if align_corners else "linear"
    else:
        return None
    scales = (0.0,) * 3
    if size is not None:
        out = each(size, rank) if not isinstance(size, (tuple, list)) or len(size) == rank else None
    else:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * rank
        if len(factors) != rank or not all(isinstance(f, numbers.Real) and f > 0 for f in factors):
            return None
        out = tuple(torch.sym_int(n * float(f)) for n, f in zip(x.shape[2:], factors, strict=True))
        if not recompute and mode != "area":
            scales = padded([float(f) for f in factors], 0.0)
    if out is None or not all(0 < o < LONGEST for o in out):
        return None
    return out, kind, scales


def upsample(input, size=None, scale_factor=None, mode="nearest", align_corners=None):
    """`interpolate`, under the name that torch has deprecated: torch.nn.functional.upsample."""
    return _deprecated("upsample", input, size, scale_factor, mode, align_corners)


def upsample_nearest(input, size=None, scale_factor=None):
    """`interpolate` to the nearest, under the name that torch has deprecated: torch.nn.functional.upsample_nearest."""
    return _deprecated("upsample_nearest", input, size, scale_factor, "nearest", None)


def upsample_bilinear(input, size=None, scale_factor=None):
    """`interpolate`, bilinear with align_corners, under the name that torch has deprecated:
    torch.nn.functional.upsample_bilinear."""
    return _deprecated("upsample_bilinear", input, size, scale_factor, "bilinear", True)


def _deprecated(name, *args):
    warnings.warn(
        f"`nn.functional.{name}` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=3
    )
    return interpolate(*args)
