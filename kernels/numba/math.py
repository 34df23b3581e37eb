"""Activations: value and derivative side by side, and the scalar functions they are made of.

Pure functions on scalars. In float32 they are polynomials and selects without a branch or a library call, so
a loop over them becomes vector code (numba without SVML calls libm one element at a time, ten times slower).
In float64, where gradients are checked, they are libm's. `contract` (fused multiply-add) is the only liberty
the compiler has: NaN and infinities stay where the formulas, which are torch's, put them.
"""

import functools
import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# error_model: a division by zero gives inf; the check for it would be a branch in every loop.
# forceinline: a call left in the loop keeps it from becoming vector code (gelu: 20 ms instead of 1.5)
jit = njit(fastmath={"contract"}, error_model="numpy", nogil=True, forceinline=True)

f32, u16, i32, u32 = np.float32, np.uint16, np.int32, np.uint32


@intrinsic
def bits(typingctx, value, dtype):
    """value's bits read as another type of the same width."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(dtype.dtype))

    return dtype.dtype(value, types.NumberClass(dtype.dtype)), codegen


# ---- float32 functions; the relative error of each is below 3e-7 wherever the result is normal

ROUND = f32(1.5 * 2**23)  # adding it rounds to an integer, held in the low mantissa bits
ROUND_BIASED = f32(1.5 * 2**23 + 127)
LOG2E = f32(1.4426950408889634)
LN2_HIGH, LN2_LOW = (
    f32(0.693359375),
    f32(-2.12194440e-4),
)  # the first has 9 bits: its products with n are exact


@jit
def _pow2(n):
    """2**n for a whole n in [-127, 127] (2**-127 as 0)."""
    return bits(i32(bits(n + ROUND_BIASED, i32) << i32(23)), f32)


@jit
def _reduce(x):
    """n, r with x = n ln2 + r and |r| <= ln2 / 2."""
    n = (x * LOG2E + ROUND) - ROUND
    return n, (x - n * LN2_HIGH) - n * LN2_LOW


@jit
def _expm1_reduced(r):
    """exp(r) - 1 for |r| <= ln2 / 2: Cephes' expf polynomial (S. Moshier)."""
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return p * (r * r) + r


@jit
def _exp32(x):
    x = f32(89) if x > f32(89) else x  # inf
    x = f32(-104) if x < f32(-104) else x  # 0
    n, r = _reduce(x)
    half = (n * f32(0.5) + ROUND) - ROUND
    # in two factors, as 2**n alone overflows where exp(x) does not, and denormal results need n < -126
    return (_expm1_reduced(r) + f32(1)) * _pow2(half) * _pow2(n - half)


@jit
def _expm1_32(x):
    x = f32(89) if x > f32(89) else x  # inf
    x = f32(-20) if x < f32(-20) else x  # -1
    n, r = _reduce(x)
    half_scale = _pow2(n - f32(1))  # 2**n overflows where exp(x) does not
    half_result = _expm1_reduced(r) * half_scale + (half_scale - f32(0.5))
    return half_result + half_result


@jit
def _log1p32(u):
    """For u >= 0: log(w) + (what rounding u + 1 to w lost) / w. Cephes' logf polynomial (S. Moshier)."""
    w = u + f32(1)
    lost = (u - (w - f32(1))) / w if w < f32(1e8) else f32(0)
    e = i32((bits(w, i32) - i32(0x3F3504F3)) >> i32(23))  # w = 2**e m, m in [sqrt(1/2), sqrt(2))
    f = bits(i32(bits(w, i32) - (e << i32(23))), f32) - f32(1)
    p = f32(7.0376836292e-2)
    p = p * f + f32(-1.1514610310e-1)
    p = p * f + f32(1.1676998740e-1)
    p = p * f + f32(-1.2420140846e-1)
    p = p * f + f32(1.4249322787e-1)
    p = p * f + f32(-1.6668057665e-1)
    p = p * f + f32(2.0000714765e-1)
    p = p * f + f32(-2.4999993993e-1)
    p = p * f + f32(3.3333331174e-1)
    square = f * f
    n = f32(e)
    log = (p * (square * f) + (n * LN2_LOW - f32(0.5) * square)) + (f + n * LN2_HIGH) + lost
    return log if w < f32(np.inf) else u


@jit
def _tanh32(x):
    sign = u32(bits(x, u32) & u32(0x80000000))
    a = abs(x)
    large = f32(1) - f32(2) / (_exp32(a + a) + f32(1))
    z = a * a
    p = f32(-5.70498872745e-3)  # Cephes' tanhf (S. Moshier)
    p = p * z + f32(2.06390887954e-2)
    p = p * z + f32(-5.37397155531e-2)
    p = p * z + f32(1.33314422036e-1)
    p = p * z + f32(-3.33332819422e-1)
    small = p * z * a + a
    return bits(u32(bits(small if a < f32(0.625) else large, u32) | sign), f32)


@jit
def _normal32(x):
    """The normal distribution's cdf and pdf; the cdf keeps its relative accuracy in the tail."""
    # exp(-x**2 / 2) = 2**n 2**r. With no overflow to mind, n is added to the exponent of the polynomial for
    # 2**r (relative error 2e-9); below 2**-125 the result is 0
    t = (x * x) * (f32(-0.5) * LOG2E)
    shifted = t + ROUND
    r = t - (shifted - ROUND)
    e = f32(1.5353354683611542e-4)
    e = e * r + f32(1.3398875016719103e-3)
    e = e * r + f32(9.618437848985195e-3)
    e = e * r + f32(5.5503323674201965e-2)
    e = e * r + f32(0.24022647738456726)
    e = e * r + f32(0.6931471824645996)
    e = e * r + f32(1)
    e = bits(i32(bits(e, i32) + (bits(shifted, i32) << i32(23))), f32)
    e = f32(0) if t < f32(-125) else e
    a = abs(x)
    a = f32(14.6) if a > f32(14.6) else a  # e is 0 before
    m = (a - f32(3)) / (a + f32(3))
    # erfc(a / sqrt(2)) exp(a**2 / 2) / 2, least squares with weights for an even relative error: 1e-8
    q = f32(5.306229286361486e-05)
    q = q * m + f32(0.00011490938777569681)
    q = q * m + f32(-0.00033891850034706295)
    q = q * m + f32(-0.0009831937495619059)
    q = q * m + f32(0.002904352732002735)
    q = q * m + f32(0.006131915841251612)
    q = q * m + f32(-0.04621325805783272)
    q = q * m + f32(0.12322504073381424)
    q = q * m + f32(-0.20640261471271515)
    q = q * m + f32(0.12151394784450531)
    tail = q * e
    return (tail if x < f32(0) else f32(1) - tail), e * f32(0.3989422804014327)


# ---- float64 functions


@jit
def _tanh64(x):
    z = x * x
    p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
    q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
    # Cephes' (S. Moshier); glibc's is an ulp worse, which is all there is of a small x - tanh(x)
    return x + x * (z * (p / q)) if z < 0.390625 else math.tanh(x)


@jit
def _normal64(x):
    return 0.5 * math.erfc(x * -0.7071067811865476), math.exp(-0.5 * x * x) * 0.3989422804014327


EXP = {f32: _exp32, np.float64: math.exp}

# torch rounds lambd to the tensor's dtype in these; every other parameter it uses as a float32 (or float64)
ROUNDED_LAMBD = {"hardshrink", "hardshrink_grad", "softshrink_grad"}


@functools.cache
def activations(f):
    """name -> value(x, p0, p1), name_grad -> gradient(dy, saved, p0, p1), in f: np.float32 or np.float64.

    saved is the output for sigmoid and tanh, either the input or the output for relu, relu6, hardtanh and
    leaky_relu, and the input for all others. Both sides of a select are computed first: it is no branch.
    """
    if f is f32:
        exp, expm1, log1p, tanh_of, normal = _exp32, _expm1_32, _log1p32, _tanh32, _normal32
    else:
        exp, expm1, log1p, tanh_of, normal = math.exp, math.expm1, math.log1p, _tanh64, _normal64
    table = {}

    def define(function):
        table[function.__name__] = jit(function)
        return table[function.__name__]

    @define
    def none(x, p0, p1):
        return x

    @define
    def relu(x, p0, p1):
        return f(0) if x < f(0) else x

    @define
    def relu_grad(dy, y, p0, p1):
        return f(0) if y <= f(0) else dy

    @define
    def relu6(x, p0, p1):
        return f(0) if x < f(0) else f(6) if x > f(6) else x

    @define
    def relu6_grad(dy, y, p0, p1):
        return f(0) if (y <= f(0)) | (y >= f(6)) else dy

    @define
    def hardtanh(x, low, high):
        return low if x < low else high if x > high else x

    @define
    def hardtanh_grad(dy, y, low, high):
        return f(0) if (y <= low) | (y >= high) else dy

    @define
    def leaky_relu(x, slope, p1):
        return x if x > f(0) else x * slope

    @define
    def leaky_relu_grad(dy, y, slope, p1):
        return dy if y > f(0) else dy * slope

    @define
    def elu(x, alpha, p1):
        negative = alpha * expm1(x)
        return negative if x < f(0) else x

    @define
    def elu_grad(dy, x, alpha, p1):
        negative = dy * alpha * exp(x)
        return negative if x <= f(0) else dy

    alpha_scale = f(1.6732632423543772848170429916717 * 1.0507009873554804934193349852946)
    scale = f(1.0507009873554804934193349852946)

    @define
    def selu(x, p0, p1):
        negative = alpha_scale * expm1(x)
        return negative if x < f(0) else scale * x

    @define
    def selu_grad(dy, x, p0, p1):
        negative = dy * alpha_scale * exp(x)
        return negative if x <= f(0) else dy * scale

    @define
    def celu(x, alpha, p1):
        negative = alpha * expm1(x / alpha)
        return negative if x < f(0) else x

    @define
    def celu_grad(dy, x, alpha, p1):
        negative = dy * exp(x / alpha)
        return negative if x <= f(0) else dy

    @define
    def gelu(x, p0, p1):
        return x * normal(x)[0]

    @define
    def gelu_grad(dy, x, p0, p1):
        cdf, pdf = normal(x)
        return dy * (cdf + x * pdf)

    sqrt_8_pi = f(1.5957691216057308)  # 2 sqrt(2 / pi): (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u))

    @define
    def gelu_tanh(x, p0, p1):
        return x / (f(1) + exp(-sqrt_8_pi * (x + f(0.044715) * (x * x * x))))

    @define
    def gelu_tanh_grad(dy, x, p0, p1):
        e = exp(-sqrt_8_pi * (x + f(0.044715) * (x * x * x)))
        s = f(1) / (f(1) + e)
        rest = f(1) if e > f(1e30) else e * s  # 1 - s without its cancellation
        return dy * (s + x * s * rest * (sqrt_8_pi * (f(1) + f(3 * 0.044715) * (x * x))))

    @define
    def silu(x, p0, p1):
        return x / (f(1) + exp(-x))

    @define
    def silu_grad(dy, x, p0, p1):
        s = f(1) / (f(1) + exp(-x))
        return dy * s * (f(1) + x * (f(1) - s))

    # tanh(log1p(e)) is e (e + 2) / (e (e + 2) + 2), and 1 in either type where x is larger than this
    mish_end = f(20 if f is f32 else 40)

    @define
    def mish(x, p0, p1):
        e = exp(mish_end if x > mish_end else x)
        n = e * (e + f(2))
        return x * (n / (n + f(2)))

    @define
    def mish_grad(dy, x, p0, p1):
        e = exp(mish_end if x > mish_end else x)
        n = e * (e + f(2))
        t = n / (n + f(2))
        s = e / (e + f(1))
        rest = f(0) if x > mish_end else f(2) / (n + f(2)) * (f(1) + t)  # 1 - t t without its cancellation
        return dy * (t + x * s * rest)

    @define
    def sigmoid(x, p0, p1):
        return f(1) / (f(1) + exp(-x))

    @define
    def sigmoid_grad(dy, y, p0, p1):
        return dy * (f(1) - y) * y

    @define
    def logsigmoid(x, p0, p1):
        return (x if x < f(0) else f(0)) - log1p(exp(-abs(x)))

    @define
    def logsigmoid_grad(dy, x, p0, p1):
        e = exp(-abs(x))
        s = e / (f(1) + e)
        return dy * (f(1) - s if x < f(0) else s)

    @define
    def hardsigmoid(x, p0, p1):
        z = x + f(3)
        return (f(0) if z < f(0) else f(6) if z > f(6) else z) / f(6)

    @define
    def hardsigmoid_grad(dy, x, p0, p1):
        return dy / f(6) if (x > f(-3)) & (x < f(3)) else f(0)

    @define
    def hardswish(x, p0, p1):
        z = x + f(3)
        return x * (f(0) if z < f(0) else f(6) if z > f(6) else z) / f(6)

    @define
    def hardswish_grad(dy, x, p0, p1):
        middle = dy * (x / f(3) + f(0.5))
        return f(0) if x <= f(-3) else middle if x < f(3) else dy

    @define
    def tanh(x, p0, p1):
        return tanh_of(x)

    @define
    def tanh_grad(dy, y, p0, p1):
        return dy * (f(1) - y * y)

    @define
    def tanhshrink(x, p0, p1):
        return x - tanh_of(x)

    @define
    def tanhshrink_grad(dy, x, p0, p1):
        t = tanh_of(x)
        return dy * (t * t) + (dy - dy)  # torch's dy - dy (1 - t t) is NaN for an infinite dy

    @define
    def softplus(x, beta, threshold):
        z = x * beta
        value = log1p(exp(z)) / beta
        return x if z > threshold else value

    @define
    def softplus_grad(dy, x, beta, threshold):
        z = x * beta
        e = exp(z)
        value = dy * e / (e + f(1))
        return dy if z > threshold else value

    @define
    def softsign(x, p0, p1):
        return x / (f(1) + abs(x))

    @define
    def softsign_grad(dy, x, p0, p1):
        r = f(1) / (f(1) + abs(x))
        return dy * (r * r) + ((x - x) + (dy - dy))  # NaN for an infinite x or dy, as torch's composite

    @define
    def softshrink(x, lambd, p1):
        return x - lambd if x > lambd else x + lambd if x < -lambd else x - x

    @define
    def softshrink_grad(dy, x, lambd, p1):
        return f(0) if (x >= -lambd) & (x <= lambd) else dy

    @define
    def hardshrink(x, lambd, p1):
        return f(0) if (x >= -lambd) & (x <= lambd) else x

    @define
    def hardshrink_grad(dy, x, lambd, p1):
        return f(0) if (x >= -lambd) & (x <= lambd) else dy

    @define
    def threshold(x, limit, value):
        return value if x <= limit else x

    @define
    def threshold_grad(dy, x, limit, value):
        return f(0) if x <= limit else dy

    return table
