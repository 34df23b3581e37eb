"""Activations as pure functions on values: each one's value and derivative side by side.

A derivative is a function grad(dy, saved) and not a factor, so that where the formula selects 0 the result is
0 even for an infinite dy. Values are fp32, or fp64 for fp64 inputs. `FAST` says that the result is stored in
16 bits. Constants stand inline: assigned to a name first, they would be fp32 in the interpreter.
"""

import triton
import triton.language as tl

# Read when the decorators below read it: true exactly where they made interpreted functions.
INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x, ACC: tl.constexpr):
    """A loaded value in the dtype that the arithmetic runs in."""
    # The interpreter garbles bf16 subnormals: shift the bits instead.
    if INTERPRET and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(ACC)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """A value rounded to nearest even in the dtype that it is stored in."""
    # The interpreter truncates fp32 -> bf16: round on the bits.
    if INTERPRET and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def exp(x, FAST: tl.constexpr):
    """e^x with good relative accuracy everywhere.

    tl.exp in fp32 is ex2(x * log2 e), whose rounded product costs a relative error of |x| * 2^-24: nothing in
    16 bits, ten eps at x = -20 in fp32. There, the argument is reduced first (Cody and Waite 1980).
    """
    if FAST or x.dtype == tl.float64:
        return tl.exp(x)
    x = tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x))  # beyond: inf and 0; NaN stays
    # The offset keeps n = 127 up to the largest finite result: 2^128 alone would be inf.
    n = tl.floor(x * 1.4426950408889634 - 0.001)
    r = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, n times the first is exact
    return tl.exp(r) * tl.exp2(n)


@triton.jit
def _tanh_small(x):
    """tanh for |x| < 0.625: x + x^3 R(x^2), coefficients of Cephes tanhf and tanh (Moshier 1989)."""
    s = x * x
    if x.dtype == tl.float64:
        p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
        q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
        return x + x * (s * (p / q))
    p = (-5.70498872745e-3 * s + 2.06390887954e-2) * s - 5.37397155531e-2
    p = (p * s + 1.33314422036e-1) * s - 3.33332819422e-1
    return x + x * (s * p)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    a = tl.abs(x)
    large = 1.0 - 2.0 / (exp(2.0 * a, FAST) + 1.0)
    return tl.where(a < 0.625, _tanh_small(x), tl.where(x < 0.0, -large, large))


@triton.jit
def tanh_grad(dy, y):
    return dy * (1.0 - y * y)


@triton.jit
def expm1(x, FAST: tl.constexpr):
    # e^x - 1 = tanh(x/2) (e^x + 1) has no cancellation; from 1 upwards neither has the difference.
    e = exp(x, FAST)
    return tl.where(tl.abs(x) < 1.0, _tanh_small(0.5 * x) * (e + 1.0), e - 1.0)


@triton.jit
def log1p(u):
    """log(1 + u) for u >= 0. What rounding 1 + u lost comes back as (u - (t - 1)) / t."""
    t = 1.0 + u
    return tl.log(t) + tl.where(u < 1.0, u - (t - 1.0), 0.0) / t


@triton.jit
def clamp(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))  # NaN stays, unlike tl.clamp's


@triton.jit
def relu(x):
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def relu_grad(dy, y):
    return tl.where(y <= 0.0, 0.0, dy)


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0.0, x, x * slope)


@triton.jit
def leaky_relu_grad(dy, x, slope):
    return tl.where(x > 0.0, dy, dy * slope)


@triton.jit
def hardtanh(x, low, high):
    return clamp(x, low, high)


@triton.jit
def hardtanh_grad(dy, x, low, high):
    return tl.where((x <= low) | (x >= high), 0.0, dy)


@triton.jit
def elu(x, alpha, FAST: tl.constexpr):
    return tl.where(x <= 0.0, alpha * expm1(x, FAST), x)


@triton.jit
def elu_grad(dy, x, alpha, FAST: tl.constexpr):
    return tl.where(x <= 0.0, dy * alpha * exp(x, FAST), dy)


# Klambauer, Unterthiner, Mayr, Hochreiter: Self-Normalizing Neural Networks, arXiv:1706.02515.
@triton.jit
def selu(x, FAST: tl.constexpr):
    return 1.0507009873554804934 * tl.where(x <= 0.0, 1.6732632423543772848 * expm1(x, FAST), x)


@triton.jit
def selu_grad(dy, x, FAST: tl.constexpr):
    return dy * 1.0507009873554804934 * tl.where(x <= 0.0, 1.6732632423543772848 * exp(x, FAST), 1.0)


@triton.jit
def celu(x, alpha, FAST: tl.constexpr):
    return tl.where(x <= 0.0, alpha * expm1(x / alpha, FAST), x)


@triton.jit
def celu_grad(dy, x, alpha, FAST: tl.constexpr):
    return tl.where(x <= 0.0, dy * exp(x / alpha, FAST), dy)


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.70710678118654752440))


@triton.jit
def gelu_grad(dy, x, FAST: tl.constexpr):
    cdf = 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))
    pdf = 0.39894228040143267794 * exp(-0.5 * x * x, FAST)
    return dy * (cdf + x * pdf)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    return 1.0 / (1.0 + exp(-x, FAST))


@triton.jit
def sigmoid_grad(dy, y):
    return dy * (1.0 - y) * y


# (1 + tanh u) / 2 = sigmoid(2u): cheaper, and no cancellation in the tail. 2 sqrt(2/pi) = 1.5957...
@triton.jit
def gelu_tanh(x, FAST: tl.constexpr):
    u2 = 1.59576912160573071176 * (x + 0.044715 * (x * x * x))
    return x / (1.0 + exp(-u2, FAST))


@triton.jit
def gelu_tanh_grad(dy, x, FAST: tl.constexpr):
    u2 = 1.59576912160573071176 * (x + 0.044715 * (x * x * x))
    e = exp(-tl.abs(u2), FAST)
    r = 1.0 / (1.0 + e)
    s = tl.where(u2 < 0.0, e * r, r)
    du2 = 1.59576912160573071176 * (1.0 + 3.0 * 0.044715 * (x * x))
    return dy * (s + x * (e * r * r) * du2)  # e r^2 = s (1 - s) without the cancellation in 1 - s


@triton.jit
def silu(x, FAST: tl.constexpr):
    return x / (1.0 + exp(-x, FAST))


@triton.jit
def silu_grad(dy, x, FAST: tl.constexpr):
    s = sigmoid(x, FAST)
    return dy * s * (1.0 + x * (1.0 - s))


# tanh(log1p(e)) = n / (n + 2) with n = e (e + 2): one exp, no cancellation. From x = 20 on (40 in fp64) the
# ratio rounds to 1, and e must not overflow: there e stays at e^20.
@triton.jit
def _mish_exp(x, FAST: tl.constexpr):
    if x.dtype == tl.float64:
        return exp(tl.where(x > 40.0, 40.0, x), FAST)
    return exp(tl.where(x > 20.0, 20.0, x), FAST)


@triton.jit
def mish(x, FAST: tl.constexpr):
    e = _mish_exp(x, FAST)
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@triton.jit
def mish_grad(dy, x, FAST: tl.constexpr):
    e = _mish_exp(x, FAST)
    n = e * (e + 2.0)
    t = n / (n + 2.0)
    return dy * (t + x * sigmoid(x, FAST) * (1.0 - t * t))


@triton.jit
def logsigmoid(x, FAST: tl.constexpr):
    return tl.where(x > 0.0, 0.0, x) - log1p(exp(-tl.abs(x), FAST))


@triton.jit
def logsigmoid_grad(dy, x, FAST: tl.constexpr):
    z = exp(-tl.abs(x), FAST)
    return dy * (tl.where(x < 0.0, 1.0, z) / (1.0 + z))


@triton.jit
def hardsigmoid(x):
    return clamp(x + 3.0, 0.0, 6.0) / 6.0


@triton.jit
def hardsigmoid_grad(dy, x):
    return tl.where((x > -3.0) & (x < 3.0), dy / 6.0, 0.0)


@triton.jit
def hardswish(x):
    return x * clamp(x + 3.0, 0.0, 6.0) / 6.0


@triton.jit
def hardswish_grad(dy, x):
    return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, dy * (x / 3.0 + 0.5), dy))


@triton.jit
def tanhshrink(x, FAST: tl.constexpr):
    return x - tanh(x, FAST)


@triton.jit
def tanhshrink_grad(dy, x, FAST: tl.constexpr):
    t = tanh(x, FAST)
    return dy * (t * t) + (dy - dy)  # dy - dy: torch's composite gives NaN for an infinite dy


@triton.jit
def softplus(x, beta, threshold, FAST: tl.constexpr):
    xb = x * beta
    return tl.where(xb > threshold, x, log1p(exp(xb, FAST)) / beta)


@triton.jit
def softplus_grad(dy, x, beta, threshold, FAST: tl.constexpr):
    xb = x * beta
    z = exp(xb, FAST)
    return tl.where(xb > threshold, dy, dy * z / (z + 1.0))


@triton.jit
def softsign(x):
    return x / (1.0 + tl.abs(x))


@triton.jit
def softsign_grad(dy, x):
    r = 1.0 / (1.0 + tl.abs(x))
    return dy * (r * r) + ((x - x) + (dy - dy))  # NaN for an infinite x or dy, as torch's composite


@triton.jit
def softshrink(x, lambd):
    return tl.where(x > lambd, x - lambd, tl.where(x < -lambd, x + lambd, x * 0.0))  # NaN stays


@triton.jit
def hardshrink(x, lambd):
    return tl.where((x >= -lambd) & (x <= lambd), 0.0, x)


@triton.jit
def shrink_grad(dy, x, lambd):
    """The derivative of both softshrink and hardshrink."""
    return tl.where((x >= -lambd) & (x <= lambd), 0.0, dy)


@triton.jit
def threshold(x, level, value):
    return tl.where(x <= level, value, x)


@triton.jit
def threshold_grad(dy, x, level):
    return tl.where(x <= level, 0.0, dy)


@triton.jit
def act_value(z, ACT: tl.constexpr, p0, p1, FAST: tl.constexpr):
    """The activation named ACT of z; "none" is the identity. p0 and p1 may have any float dtype."""
    p0 = tl.full([], p0, z.dtype)
    p1 = tl.full([], p1, z.dtype)
    if ACT == "none":
        return z
    elif ACT == "relu":
        return relu(z)
    elif ACT == "relu6":
        return hardtanh(z, 0.0, 6.0)
    elif ACT == "leaky_relu":
        return leaky_relu(z, p0)
    elif ACT == "elu":
        return elu(z, p0, FAST)
    elif ACT == "selu":
        return selu(z, FAST)
    elif ACT == "celu":
        return celu(z, p0, FAST)
    elif ACT == "gelu":
        return gelu(z)
    elif ACT == "gelu_tanh":
        return gelu_tanh(z, FAST)
    elif ACT == "silu":
        return silu(z, FAST)
    elif ACT == "mish":
        return mish(z, FAST)
    elif ACT == "sigmoid":
        return sigmoid(z, FAST)
    elif ACT == "logsigmoid":
        return logsigmoid(z, FAST)
    elif ACT == "hardsigmoid":
        return hardsigmoid(z)
    elif ACT == "hardswish":
        return hardswish(z)
    elif ACT == "hardtanh":
        return hardtanh(z, p0, p1)
    elif ACT == "tanh":
        return tanh(z, FAST)
    elif ACT == "tanhshrink":
        return tanhshrink(z, FAST)
    elif ACT == "softplus":
        return softplus(z, p0, p1, FAST)
    elif ACT == "softsign":
        return softsign(z)
    elif ACT == "softshrink":
        return softshrink(z, p0)
    elif ACT == "hardshrink":
        return hardshrink(z, p0)
    else:
        tl.static_assert(ACT == "threshold", "unknown activation")
        return threshold(z, p0, p1)


@triton.jit
def act_grad(dy, saved, ACT: tl.constexpr, p0, p1, FAST: tl.constexpr):
    """dy * act'(saved): saved is the output for sigmoid and tanh, and the input for the others.

    The output serves too for relu and relu6, and for leaky_relu if its slope is not negative: the conditions
    are the same on both. For hardtanh only if its bounds are exact in the dtype that the output is stored in.
    """
    p0 = tl.full([], p0, saved.dtype)
    p1 = tl.full([], p1, saved.dtype)
    if ACT == "relu":
        return relu_grad(dy, saved)
    elif ACT == "relu6":
        return hardtanh_grad(dy, saved, 0.0, 6.0)
    elif ACT == "leaky_relu":
        return leaky_relu_grad(dy, saved, p0)
    elif ACT == "elu":
        return elu_grad(dy, saved, p0, FAST)
    elif ACT == "selu":
        return selu_grad(dy, saved, FAST)
    elif ACT == "celu":
        return celu_grad(dy, saved, p0, FAST)
    elif ACT == "gelu":
        return gelu_grad(dy, saved, FAST)
    elif ACT == "gelu_tanh":
        return gelu_tanh_grad(dy, saved, FAST)
    elif ACT == "silu":
        return silu_grad(dy, saved, FAST)
    elif ACT == "mish":
        return mish_grad(dy, saved, FAST)
    elif ACT == "sigmoid":
        return sigmoid_grad(dy, saved)
    elif ACT == "logsigmoid":
        return logsigmoid_grad(dy, saved, FAST)
    elif ACT == "hardsigmoid":
        return hardsigmoid_grad(dy, saved)
    elif ACT == "hardswish":
        return hardswish_grad(dy, saved)
    elif ACT == "hardtanh":
        return hardtanh_grad(dy, saved, p0, p1)
    elif ACT == "tanh":
        return tanh_grad(dy, saved)
    elif ACT == "tanhshrink":
        return tanhshrink_grad(dy, saved, FAST)
    elif ACT == "softplus":
        return softplus_grad(dy, saved, p0, p1, FAST)
    elif ACT == "softsign":
        return softsign_grad(dy, saved)
    elif ACT == "softshrink" or ACT == "hardshrink":
        return shrink_grad(dy, saved, p0)
    else:
        tl.static_assert(ACT == "threshold", "unknown activation")
        return threshold_grad(dy, saved, p0)
