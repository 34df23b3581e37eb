"""torch's own samples and bad inputs (OpInfo) of every mirrored name: all of them."""

import itertools

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F

from ..harness import BACKENDS, DTYPES, GPU, assert_as_good, device_of, need
from .test_batch_norm import exact_instance, exact_norm
from .test_linear import exact_formula
from .test_norm import exact_group, exact_layer

pytest.importorskip("expecttest", reason="torch's OpInfo samples need expecttest")

from torch.testing._internal.common_methods_invocations import op_db, wrapper_set_seed

# torch's own functions warn as well
pytestmark = [
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss"),
    pytest.mark.filterwarnings("ignore:Using a target size"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options``"),
    pytest.mark.filterwarnings("ignore:`nn.functional.upsample"),
]

MANY_SAMPLES = tuple(n for n in F.__all__ if "pool" in n or n == "interpolate")  # up to 300: some by default
FEW_ON_NUMBA = (*MANY_SAMPLES, "batch_norm", "instance_norm")
WITHOUT_SAMPLES = ("upsample",)  # a name that torch has deprecated, and interpolate's by another
TOP_LEVEL = ("sigmoid", "tanh", "softmax", "log_softmax")  # OpInfo's names without nn.functional


# OpInfo's order of arguments, and its seed, are not torch's
OURS = {
    "embedding": lambda weight, index, **options: F.embedding(index, weight, **options),
    "dropout": lambda *args, **options: wrapper_set_seed(F.dropout, *args, **options),
}


def infos():
    for name in F.__all__:
        if not hasattr(torch.nn.functional, name) or name in WITHOUT_SAMPLES:
            continue
        found = [i for i in op_db if i.name == (name if name in TOP_LEVEL else f"nn.functional.{name}")]
        assert found, f"OpInfo has no {name}"
        for info in found:
            if info.variant_test_name == "without_cudnn":  # the samples of batch_norm once more
                continue
            yield pytest.param(
                name, info, id=name + (f"-{info.variant_test_name}" if info.variant_test_name else "")
            )


INFOS = list(infos())


def run(function, sample, dy_seed=3):
    tensors = [
        t for t in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(t, torch.Tensor)
    ]
    y = function(sample.input, *sample.args, **sample.kwargs)
    y, *indices = y if isinstance(y, tuple) else (y,)
    wanted = [t for t in tensors if t.requires_grad]
    if not wanted or not y.requires_grad:
        return [y, *indices]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(dy_seed), dtype=torch.float64)
    return [
        y,
        *torch.autograd.grad(
            y, wanted, dy.to(y.dtype).to(y.device), allow_unused=True, materialize_grads=True
        ),
        *indices,
    ]


def ours_of(name):
    return OURS.get(name) or getattr(F, name)


def assert_dropped(x, y, dx, dy):
    """Which elements are dropped is not torch's choice: each is 0 or doubled (p = 1/2), and its gradient alike."""
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, 2 * x, 0))
    torch.testing.assert_close(dx, torch.where(kept, 2 * dy, 0))


EXACT = {
    "layer_norm": exact_layer,
    "group_norm": exact_group,
    "batch_norm": exact_norm,
    "instance_norm": exact_instance,
}


def oracle(name, info):
    """torch's function in fp64, where that is exact."""
    if name in ("hardsigmoid", "celu"):
        return lambda x, *args, alpha=1.0, **_: exact_formula((name, alpha) if name == "celu" else name, x)
    return EXACT.get(name, info.op)


def exact(sample):
    def up(t):
        if isinstance(t, torch.Tensor) and t.is_floating_point():
            return t.detach().double().requires_grad_(t.requires_grad)
        return torch.float64 if isinstance(t, torch.dtype) else t

    sample = sample.transform(up)
    if "options" in sample.kwargs:  # how torch computes linear_cross_entropy, in dtypes that are not float64
        sample.kwargs["options"] = None
    return sample


def sampled():
    """Every backend and dtype; by default one dtype in Triton's interpreter, which is slow, and on Numba, which
    compiles a kernel for each: another where an op's own tests take few of its cases there. "auto" is torch's own call
    at most of these sizes: two dtypes."""
    for backend in (*BACKENDS, "auto"):
        for dtype in DTYPES:
            anew = backend == "numba" or (backend == "triton" and not GPU)
            for info in INFOS:
                few = backend == "numba" and dtype == torch.bfloat16 and info.values[0] in FEW_ON_NUMBA
                slow = anew and dtype != torch.float32 and not few
                # hundreds of samples that differ in how torch computes them
                slow = slow or ("chunked" in info.id and dtype != torch.float32)
                slow = slow or (backend == "auto" and dtype in (torch.float64, torch.float16))
                yield pytest.param(
                    backend,
                    dtype,
                    *info.values,
                    id=f"{backend}-{str(dtype).removeprefix('torch.')}-{info.id}",
                    marks=pytest.mark.slow if slow else (),
                )


@pytest.mark.parametrize(("backend", "dtype", "name", "info"), list(sampled()))
def test_samples(backend, dtype, name, info):
    if backend != "auto":
        need(backend)
    device = device_of(backend)
    if name == "avg_pool3d" and device == "cpu" and dtype.itemsize == 2:
        pytest.skip("torch's own avg_pool3d takes no 16-bit numbers on a CPU")
    samples = info.sample_inputs(device, dtype, requires_grad=True)
    interpreted = backend == "triton" and not GPU
    if name in MANY_SAMPLES:
        samples = a_few(samples, 1 if backend == "auto" and dtype != torch.float32 else 4)
        if interpreted:
            samples = sorted(samples, key=lambda s: s.input.numel())[:2]
    elif interpreted and name.startswith("conv"):
        samples = sorted(samples, key=lambda s: s.input.numel() * s.args[0].numel())[:6]
    compare(name, info, backend, samples)


def a_few(samples, count):
    """Every seventh, so that arguments differ."""
    return list(itertools.islice(samples, 0, 7 * count, 7))


def measured_by_its_terms(t, shape):
    """t, Σ dy in one number, beside Σ |dy|: how near to 0 the terms happen to cancel is no measure of its error."""
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.cat([t.flatten(), dy.abs().sum().reshape(1).to(t)])


def too_large(name, sample):
    """For the interpreter: elements, of a convolution times its filter's, one of which took two minutes."""
    if name.startswith("conv"):
        return sample.input.numel() * sample.args[0].numel() > 1 << 14
    return sample.input.numel() > 1024


def compare(name, info, backend, samples):
    ran = 0
    for sample in samples:
        if sample.kwargs.get("inplace") or (backend == "triton" and not GPU and too_large(name, sample)):
            continue
        if name == "scaled_dot_product_attention":
            if sample.kwargs.get("dropout_p"):  # drawn otherwise than torch's
                continue
            # By their own scale the scores reach 85, whose rounding moves a weight by 85 eps / 2: which of two results
            # comes out nearer is luck. And torch's float64, no oracle then, errs by 12,700 eps (its dq of the second
            # sample; these kernels by 4) where one key has nearly all the weight.
            sample.kwargs["scale"] = 0.05
        if sample.kwargs.get("dtype") is not None and sample.kwargs["dtype"] not in DTYPES:
            continue
        try:
            with kz.backend(backend):
                ours = run(ours_of(name), sample)
        except kz.BackendUnavailable:  # options that no kernel takes: said, and torch's own under "auto"
            assert backend != "auto"
            ours = run(ours_of(name), sample)
        if name == "dropout" and sample.kwargs.get("training", True) and sample.kwargs.get("p", 0.5) == 0.5:
            y, dx = ours
            g = torch.Generator().manual_seed(3)
            dy = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype).to(y.device)
            assert_dropped(sample.input, y, dx, dy)
            ran += 1
            continue
        theirs = run(info.op, sample)
        right = run(oracle(name, info), exact(sample))
        for i, (a, b, c) in enumerate(zip(ours, theirs, right, strict=True)):
            if (
                name.startswith("conv") and i == 3 and c.numel() == 1
            ):  # a bias of one channel: Σ dy, which cancels
                a, b, c = (measured_by_its_terms(t, right[0].shape) for t in (a, b, c))
            if a.is_floating_point():
                assert_as_good(f"{name}{sample.args}{sample.kwargs} output {i}", a, b, c)
            else:
                assert torch.equal(a, b)
        ran += 1
    assert ran


@pytest.mark.slow
@pytest.mark.parametrize(("name", "info"), [p for p in INFOS if p.values[0] in MANY_SAMPLES])
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_every_sample(name, info, backend):
    need(backend)
    compare(name, info, backend, info.sample_inputs("cpu", torch.float32, requires_grad=True))


@pytest.mark.parametrize(("name", "info"), INFOS)
def test_other_dtypes_as_torch(name, info):
    """What no kernel serves (integers, complex) gives torch's result or torch's error."""
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        samples = info.sample_inputs("cpu", dtype) if dtype in info.supported_dtypes("cpu") else []
        for sample in a_few(samples, 2) if name in MANY_SAMPLES else samples:
            ours, theirs = (f(sample.input, *sample.args, **sample.kwargs) for f in (ours_of(name), info.op))
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("name", "info"), INFOS)
def test_errors(name, info):
    if info.error_inputs_func is None:
        pytest.skip("OpInfo lists no bad input of this name")
    for bad in info.error_inputs("cpu"):
        sample = bad.sample_input
        with pytest.raises(bad.error_type, match=bad.error_regex):
            ours_of(name)(sample.input, *sample.args, **sample.kwargs)
