"""Elementwise activations: y = f(x), dx = dy f'(x).

The definitions are torch.nn.functional's; the kernels' own are in each backend's `math` file.
"""

import functools
import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as T

from .core import FRESH, ArgumentError, ArgumentTypeError, KernelFunction, autocast_dtype, below, define

aten = torch.ops.aten


class _Definition(NamedTuple):
    """formula(x, *params), the parameters' defaults, and, where the backward needs the output alone,
    derivative(dy, y, *params)."""

    formula: Callable
    defaults: tuple[float, ...] = ()
    from_output: Callable | None = None


DEFINITIONS = {
    "relu": _Definition(T.relu, from_output=lambda dy, y: aten.threshold_backward(dy, y, 0)),
    "relu6": _Definition(T.relu6, from_output=lambda dy, y: aten.hardtanh_backward(dy, y, 0, 6)),
    "leaky_relu": _Definition(
        T.leaky_relu, (0.01,), lambda dy, y, slope: aten.leaky_relu_backward(dy, y, slope, True)
    ),
    "elu": _Definition(T.elu, (1.0,)),
    "selu": _Definition(T.selu),
    "celu": _Definition(T.celu, (1.0,)),
    "gelu": _Definition(T.gelu),
    "gelu_tanh": _Definition(functools.partial(T.gelu, approximate="tanh")),
    "silu": _Definition(T.silu),
    "mish": _Definition(T.mish),
    "sigmoid": _Definition(torch.sigmoid, from_output=aten.sigmoid_backward),
    "logsigmoid": _Definition(T.logsigmoid),
    "hardsigmoid": _Definition(T.hardsigmoid),
    "hardswish": _Definition(T.hardswish),
    "hardtanh": _Definition(T.hardtanh, (-1.0, 1.0), aten.hardtanh_backward),
    "tanh": _Definition(torch.tanh, from_output=aten.tanh_backward),
    "tanhshrink": _Definition(T.tanhshrink),
    "softplus": _Definition(T.softplus, (1.0, 20.0)),
    "softsign": _Definition(T.softsign),
    "softshrink": _Definition(T.softshrink, (0.5,)),
    "hardshrink": _Definition(T.hardshrink, (0.5,)),
    "threshold": _Definition(T.threshold, (0.0, 0.0)),
}


def rounded(value, dtype):
    """A Python number to the nearest of dtype and back."""
    if dtype == torch.float64:
        return value
    try:
        if dtype == torch.float16:
            return struct.unpack("<e", struct.pack("<e", value))[0]
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    if dtype == torch.bfloat16:
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


# torch's own differentiates once only: the double backward takes this one.
_COMPOSED = {"hardsigmoid_composed": _Definition(lambda x: T.relu6(x + 3) / 6)}


class Activation(NamedTuple):
    """A name of DEFINITIONS, or "none" for the identity, with its parameters in torch's order."""

    name: str
    params: tuple[float, ...] = ()

    def formula(self, x):
        if self.name == "none":
            return x
        return (DEFINITIONS.get(self.name) or _COMPOSED[self.name]).formula(x, *self.params)

    def twice(self):
        """The same activation with a formula that differentiates twice."""
        return Activation("hardsigmoid_composed") if self.name == "hardsigmoid" else self

    def saves_output(self, dtype):
        """Whether the backward needs only the output: no tensor is kept that the user does not hold anyway."""
        if self.name == "leaky_relu":  # the sign survives
            return self.params[0] > 0
        if self.name == "hardtanh":  # a clamped value is recognised only where the bounds are not rounded
            return all(rounded(p, dtype) == p for p in self.params)
        return self.name != "none" and DEFINITIONS[self.name].from_output is not None

    def autocast(self, x):
        """float32 for softplus on CUDA, the only activation that torch.autocast casts; else None."""
        return (
            torch.float32 if self.name == "softplus" and x.is_cuda and autocast_dtype(x) is not None else None
        )

    def flat(self):
        """(name, p0, p1): what the torch ops and launchers take."""
        return (self.name, *self.params, *(0.0,) * (2 - len(self.params)))


IDENTITY = Activation("none")


def _parse(function, act):
    if act is None:
        return IDENTITY
    name, *params = (act,) if isinstance(act, str) else act
    if name not in DEFINITIONS:
        raise ArgumentError(f"{function}: unknown act {name!r}; expected one of {', '.join(DEFINITIONS)}")
    defaults = DEFINITIONS[name].defaults
    if len(params) > len(defaults):
        raise ArgumentError(
            f"{function}: act {name!r} takes {len(defaults)} parameters (defaults {defaults}), got {tuple(params)}"
        )
    for p in params:
        if not isinstance(p, int | float):
            raise ArgumentTypeError(f"{function}: act {name!r} takes numbers, got {p!r}")
    params = (*(float(p) for p in params), *defaults[len(params) :])
    if name == "softshrink" and params[0] < 0:
        raise ArgumentError(f"{function}: lambda must be greater or equal to 0, but found to be {params[0]}.")
    if name == "hardtanh" and params[0] > params[1]:
        raise ArgumentError(
            f"{function}: min_val cannot be greater than max_val, got {params[0]} > {params[1]}"
        )
    if name == "celu" and params[0] == 0:
        raise ZeroDivisionError(f"{function}: alpha cannot be 0 for CELU")
    return Activation(name, params)


_parse_once = functools.lru_cache(maxsize=1024)(_parse)


def parse(function, act):
    """None, a name, or (name, *params) as an `Activation`, checked; `function` names the caller in errors."""
    if torch.compiler.is_compiling():  # which traces through a cache, with a warning
        return _parse(function, act)
    try:
        if act is not None and type(act) is not str:
            name, *params = act
            params = [p if isinstance(p, int | float | str) else float(p) for p in params]
            act = (name, *params)
            if 0 in params:  # 0.0 and -0.0 are one key
                return _parse(function, act)
        return _parse_once(function, act)
    except TypeError as error:
        if isinstance(error, ArgumentTypeError):
            raise
        raise ArgumentTypeError(
            f"{function}: act must be None, a name, or (name, parameter, ...), got {act!r}"
        ) from None


def _dense(x):
    """x, or a copy whose elements fill their storage span: what the flat kernels need."""
    filled = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != filled:
                return x.clone(memory_format=torch.preserve_format)
            filled *= size
    return x


def _aligned(dy, saved):
    """Both dense with equal strides."""
    saved = _dense(saved)
    return (dy if dy.stride() == saved.stride() else torch.empty_like(saved).copy_(dy)), saved


act_fwd = define(
    "act_fwd(Tensor x, str act, float p0, float p1) -> Tensor",
    "activation",
    fake=lambda x, *_: torch.empty_like(x),
    prepare=lambda x, *rest: (_dense(x), *rest),
)
act_bwd = define(
    "act_bwd(Tensor dy, Tensor saved, str act, float p0, float p1) -> Tensor",
    "activation",
    fake=lambda dy, saved, *_: torch.empty_like(saved),
    prepare=lambda dy, saved, *rest: (*_aligned(dy, saved), *rest),
)

# "auto" on a CPU, measured forward and backward together on 2 cores (fp32 and bf16, C++ over eager). COSTLY: torch's
# own arithmetic costs more, and so many elements win back a call's fixed cost of some 50 us: at 2^18 mish runs 3.9
# to 4.4 times as fast, softsign 2, tanh 1.4 to 2.2, elu 1.4, softplus 1.0. The others only win in fresh memory, which
# huge pages make cheap (core.FRESH): at 2^20, in memory that the allocator kept, relu runs at 0.7, gelu at 0.8.
COSTLY = {
    "mish": 1 << 16,
    "softsign": 1 << 16,
    "gelu_tanh": 1 << 16,
    "tanh": 1 << 17,
    "tanhshrink": 1 << 17,
    "elu": 1 << 17,
    "selu": 1 << 17,
    "celu": 1 << 17,
    "softplus": 1 << 18,
    "logsigmoid": 1 << 18,
}


class ActivationFunction(KernelFunction):
    module = "activation"

    @staticmethod
    def autocast(x, act):
        return act.autocast(x)

    @staticmethod
    def label(x, act):
        return act.name

    @staticmethod
    def formula(x, act):
        return act.formula(x)

    @staticmethod
    def rule(x, act):
        if x.device.type != "cpu":
            return "torch's own kernel moves the same bytes; no GPU has been measured yet"
        fresh = FRESH // x.dtype.itemsize
        least = min(COSTLY.get(act.name, fresh), fresh)
        return "few elements for its cost on a CPU" if below(x.numel(), least) else None

    @staticmethod
    def forward(ctx, x, act, backend):
        y = act_fwd(x, *act.flat(), backend)
        ctx.save_for_backward(y if act.saves_output(x.dtype) else x)
        ctx.act, ctx.backend = act, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        (saved,) = ctx.saved_tensors
        return (act_bwd(dy, saved, *ctx.act.flat(), ctx.backend),)

    @staticmethod
    def inputs(ctx):
        return (*ctx.saved_tensors, ctx.act.twice())

    @classmethod
    def _by_formula(cls, ctx, dy):
        if ctx.act.saves_output(dy.dtype):
            (y,) = ctx.saved_tensors
            return [DEFINITIONS[ctx.act.name].from_output(dy, y, *ctx.act.params)]
        return super()._by_formula(ctx, dy)


def activation(input, act, inplace=False):
    """f(input) for an `Activation`; with `inplace`, torch's own in-place function writes the input."""
    if not isinstance(input, torch.Tensor):
        if hasattr(input, "__torch_function__"):  # torch.fx
            return act.formula(input)
        raise ArgumentTypeError(f"{act.name}: input must be a Tensor, got {type(input).__name__}")
    if inplace:
        return DEFINITIONS[act.name].formula(input, *act.params, inplace=True)
    return ActivationFunction.call(input, act)


def _f(name, *params):
    return parse(name, (name, *params))


def relu(input, inplace=False):
    """y = max(x, 0)."""
    return activation(input, _f("relu"), inplace)


def relu6(input, inplace=False):
    """y = min(max(x, 0), 6)."""
    return activation(input, _f("relu6"), inplace)


def leaky_relu(input, negative_slope=0.01, inplace=False):
    """y = x where x > 0, negative_slope·x elsewhere."""
    return activation(input, _f("leaky_relu", negative_slope), inplace)


def elu(input, alpha=1.0, inplace=False):
    """y = x where x > 0, alpha·(eˣ - 1) elsewhere (Clevert et al., arXiv:1511.07289)."""
    return activation(input, _f("elu", alpha), inplace)


def selu(input, inplace=False):
    """y = 1.0507·(x where x > 0, 1.6733·(eˣ - 1) elsewhere) (Klambauer et al., arXiv:1706.02515)."""
    return activation(input, _f("selu"), inplace)


def celu(input, alpha=1.0, inplace=False):
    """y = max(x, 0) + min(alpha·(e^(x/alpha) - 1), 0) (Barron, arXiv:1704.07483)."""
    return activation(input, _f("celu", alpha), inplace)


def gelu(input, approximate="none"):
    """y = x·Φ(x), Φ the normal distribution's CDF, through erf, or with approximate="tanh" through
    tanh(√(2/π)·(x + 0.044715·x³)) (Hendrycks and Gimpel, arXiv:1606.08415)."""
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate argument must be either none or tanh, got {approximate!r}.")
    return activation(input, _f("gelu" if approximate == "none" else "gelu_tanh"))


def silu(input, inplace=False):
    """y = x·σ(x) (Elfwing et al., arXiv:1702.03118)."""
    return activation(input, _f("silu"), inplace)


def mish(input, inplace=False):
    """y = x·tanh(log(1 + eˣ)) (Misra, arXiv:1908.08681)."""
    return activation(input, _f("mish"), inplace)


def sigmoid(input):
    """y = σ(x) = 1/(1 + e⁻ˣ)."""
    return activation(input, _f("sigmoid"))


def logsigmoid(input):
    """y = log σ(x) = -log(1 + e⁻ˣ)."""
    return activation(input, _f("logsigmoid"))


def hardsigmoid(input, inplace=False):
    """y = min(max(x + 3, 0), 6)/6."""
    return activation(input, _f("hardsigmoid"), inplace)


def hardswish(input, inplace=False):
    """y = x·min(max(x + 3, 0), 6)/6 (Howard et al., arXiv:1905.02244)."""
    return activation(input, _f("hardswish"), inplace)


def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    """y = min(max(x, min_val), max_val)."""
    return activation(input, _f("hardtanh", min_val, max_val), inplace)


def tanh(input):
    """y = tanh(x)."""
    return activation(input, _f("tanh"))


def tanhshrink(input):
    """y = x - tanh(x)."""
    return activation(input, _f("tanhshrink"))


def softplus(input, beta=1.0, threshold=20.0):
    """y = log(1 + e^(beta·x))/beta, and x where beta·x > threshold."""
    return activation(input, _f("softplus", beta, threshold))


def softsign(input):
    """y = x/(1 + |x|)."""
    return activation(input, _f("softsign"))


def softshrink(input, lambd=0.5):
    """y = x - lambd where x > lambd, x + lambd where x < -lambd, 0 between."""
    if lambd < 0:
        return T.softshrink(input, lambd)  # torch's error
    return activation(input, _f("softshrink", lambd))


def hardshrink(input, lambd=0.5):
    """y = x where |x| > lambd, 0 elsewhere."""
    return activation(input, _f("hardshrink", lambd))


def threshold(input, threshold, value, inplace=False):
    """y = x where x > threshold, value elsewhere."""
    return activation(input, _f("threshold", threshold, value), inplace)
