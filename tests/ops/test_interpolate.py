"""Interpolation to the nearest and linear, in one, two and three dimensions."""

import random

import pytest
import torch
from torch.nn import functional as T

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.verify import assert_as_good

from ..harness import DTYPES, GPU, WITHOUT_CUDA, Case, OpSuite, device_of, here, need
from .test_pool import as_last, results

ON = pytest.mark.parametrize("backend", WITHOUT_CUDA)


def case(shape, last=False, large=False, **options):
    def make(g):
        return (torch.randn(shape, generator=g, dtype=torch.float64),), {**options, "last": last}

    told = "_".join(str(v).replace(" ", "") for v in options.values())
    return Case("-".join(filter(None, ["x".join(map(str, shape)), told, "last" * last])), make, large)


def on(module):
    def call(x, last, **options):
        return module.interpolate(as_last(x) if last else x, **options)

    return staticmethod(call)


class TestInterpolate(OpSuite):
    call = on(F)
    reference = on(T)
    cases = (
        case((1, 5, 3, 2), scale_factor=2, mode="bilinear", last=True),
        case((2, 2, 3, 4), size=(5, 4), mode="bilinear", align_corners=True),
        case((2, 2, 3, 4), scale_factor=2.5, mode="nearest"),
        case((2, 3, 9), size=4, mode="linear"),
        case((1, 2, 3, 4, 5), size=(5, 3, 8), mode="trilinear"),
        case((2, 5, 4, 3), scale_factor=(0.7, 1.6), mode="nearest-exact", last=True, large=True),
        case((2, 2, 7, 6), scale_factor=1.4, mode="bilinear", recompute_scale_factor=True),
        case((2, 2, 7, 6), size=3, mode="area"),
        case((2, 70, 13, 11), scale_factor=2, mode="bilinear", last=True, large=True),
        case((3, 5, 31, 67), scale_factor=2, mode="bilinear", large=True),
        case((3, 5, 31, 67), scale_factor=2, mode="nearest", large=True),
        case((3, 5, 31, 167), size=(12, 40), mode="bilinear", align_corners=True, large=True),
    )
    takes = staticmethod(
        lambda case, backend, few=(*cases[:2], cases[8]): GPU or backend == "cpp" or case in few
    )


@ON
def test_nan_and_inf_as_torch(backend):
    """A weight of 0 makes NaN of an infinity, as in torch, and only where torch looks."""
    need(backend)
    x = torch.randn(2, 17, 3, 5, device=device_of(backend))
    x[0, 3, 2, 3], x[1, 2, 0, 0], x[0, 0, 2, 4], x[1, 16, 1, 2] = torch.nan, torch.inf, -torch.inf, torch.inf
    for options in (
        {"size": (5, 9), "mode": "bilinear", "align_corners": True},
        {"scale_factor": 0.7, "mode": "bilinear"},
        {"scale_factor": 2, "mode": "bilinear"},
        {"scale_factor": 2},
        {"scale_factor": 0.6, "mode": "nearest-exact"},
    )[: 2 if backend == "triton" else None]:
        for given in (x, as_last(x)):
            with kz.backend(backend):
                ours = results(lambda t, o=options: F.interpolate(t, **o), given)
            theirs = results(lambda t, o=options: T.interpolate(t, **o), given)
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def fuzz(backend, count, seed):
    rng = random.Random(seed)
    for i in range(count):
        rank = rng.randint(1, 3)
        size = [rng.randint(1, 12) for _ in range(rank)]
        size[-1] = rng.choice([size[-1], 33, 70])
        shape = (rng.randint(1, 3), rng.choice([1, 3, 17, 65]), *size)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(rng.choice(DTYPES))
        x = as_last(x) if rng.random() < 0.5 else x
        options = {
            "mode": rng.choice(["nearest", "nearest-exact", ("linear", "bilinear", "trilinear")[rank - 1]])
        }
        if rng.random() < 0.5:
            options["size"] = [rng.randint(1, 40 if rank < 3 else 9) for _ in range(rank)]
        else:
            options["scale_factor"] = [rng.uniform(1.01 / n, 2.5) for n in size]
            options["recompute_scale_factor"] = rng.random() < 0.5
        factors = options.get("scale_factor", ())
        if options["mode"] == "nearest" and any(
            int(n * f) in (n, 2 * n) for n, f in zip(size, factors, strict=False)
        ):
            continue  # there torch's kernels do not agree: some take the factor for 1 or 2
        if "linear" in options["mode"]:
            options["align_corners"] = rng.random() < 0.5
        with kz.backend(backend):
            ours = results(lambda t, o=options: F.interpolate(t, **o), x)
        theirs, exact = (results(lambda t, o=options: T.interpolate(t, **o), t) for t in (x, x.double()))
        if options["mode"].startswith("nearest"):
            assert torch.equal(ours[0], theirs[0]), f"{shape} {options}"
        for three in zip(ours, theirs, exact, strict=True):
            assert_as_good(f"{shape} {options} {x.dtype}", *three)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_random_sizes(backend):
    need(backend)
    fuzz(backend, 150 if backend == "cpp" else 60, 1)


@pytest.mark.slow
@ON
def test_many_random_sizes(backend):
    need(backend)
    fuzz(backend, {"cpp": 3000, "numba": 1000, "triton": 200}[backend], 2)


def test_every_instruction_set(isa):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 20, 13, 37).to(dtype)
        for options in ({"mode": "bilinear"}, {"mode": "nearest"}):
            for given in (x, as_last(x)):
                with kz.backend("cpp"):
                    ours = results(lambda t, o=options: F.interpolate(t, scale_factor=2, **o), given)
                theirs, exact = (
                    results(lambda t, o=options: T.interpolate(t, scale_factor=2, **o), t)
                    for t in (given, given.double())
                )
                for three in zip(ours, theirs, exact, strict=True):
                    assert_as_good(str(options), *three)


def test_what_kernels_do_not_take_is_torchs():
    x = torch.randn(2, 3, 80, 80)
    for options in ({"mode": "bicubic"}, {"mode": "bilinear", "antialias": True}):
        with kz.trace() as calls:
            y = F.interpolate(x, scale_factor=0.5, **options)
        torch.testing.assert_close(y, T.interpolate(x, scale_factor=0.5, **options))
        assert [c.backend for c in calls] == ["torch"]
        with kz.backend(here()), pytest.raises(kz.BackendUnavailable, match="interpolate"):
            F.interpolate(x, scale_factor=0.5, **options)


def test_deprecated_names():
    x = torch.randn(2, 3, 80, 80)
    for name, arguments in (
        ("upsample", (None, 2.0, "bilinear")),
        ("upsample_nearest", (None, 2)),
        ("upsample_bilinear", ((9, 200),)),
    ):
        found = []
        for module in (F, T):
            with pytest.warns(UserWarning, match=f"`nn.functional.{name}` is deprecated"):
                found.append(getattr(module, name)(x, *arguments))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cpu_autocast_as_torch(dtype):
    x, solid = torch.randn(8, 8, 80, 80).to(dtype), torch.randn(1, 3, 48, 47, 46).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for f in (
            lambda m: m.interpolate(x, scale_factor=2),
            lambda m: m.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda m: m.interpolate(x, size=7, mode="area"),
            lambda m: m.max_pool2d(x, 2),
            lambda m: m.avg_pool2d(x, 2),
            lambda m: m.adaptive_avg_pool2d(x, 1),
            lambda m: m.max_pool3d(solid, 2),
            lambda m: m.avg_pool3d(solid, 2),
            lambda m: m.interpolate(solid, scale_factor=0.5, mode="trilinear"),
        ):
            theirs = f(T)
            with kz.backend(here()):
                ours = f(F)
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", [8, 200], ids=["small", "large"])
def test_bad_input(side):
    x = torch.randn(1, 2, side, side)
    for options, match in (
        ({}, "interpolate: either size or scale_factor should be defined; got input of shape"),
        ({"size": 4, "scale_factor": 2}, "interpolate: only one of size or scale_factor should be defined"),
        (
            {"size": (4, 4, 4)},
            "interpolate: Input and output must have the same number of spatial dimensions",
        ),
        (
            {"size": 4, "mode": "nearest", "align_corners": True},
            "interpolate: align_corners option can only be set",
        ),
        ({"size": 0}, r"interpolate: Input and output sizes should be greater than 0"),
        ({"scale_factor": (2, 2, 2)}, "interpolate: Input and scale_factor must have the same number"),
    ):
        with pytest.raises(ValueError, match=match):
            F.interpolate(x, **options)
    with pytest.raises(TypeError, match="interpolate: expected size to be one of int"):
        F.interpolate(x, size=(4.5, 4))
    with pytest.raises(NotImplementedError, match="bilinear"):
        F.interpolate(x[0], size=4, mode="bilinear")
