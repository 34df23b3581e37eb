"""What this machine can do at best: copy bandwidth and matrix-product rates, measured where they are used."""

import functools
import time

import torch


def measure(device="cpu", repeats=6, elements=None, n=None):
    """{name: rate}: "copy" and "copy_fresh" in bytes/s (read plus written), "gemm_<dtype>" in FLOP/s.

    "copy" writes memory that is mapped already, "copy_fresh" (CPU) a new tensor each time, as an op that
    returns its result does. Each rate is the best of `repeats`, on random data: `elements` float32 are
    copied (unless given 4 GiB on a GPU, 128 MiB on a CPU, beyond the caches), n x n matrices multiplied.
    """
    device = torch.device(device)
    gpu = device.type == "cuda"
    seconds = _device_seconds if gpu else _host_seconds
    source = torch.randn(elements or (1 << 30 if gpu else 1 << 25), device=device)
    target = torch.empty_like(source).fill_(1)
    size = 2 * source.numel() * source.element_size()
    found = {"copy": size / seconds(functools.partial(target.copy_, source), repeats)}
    if not gpu:
        found["copy_fresh"] = size / seconds(source.clone, repeats)
    n = n or (8192 if gpu else 2048)
    for dtype in (torch.float32, torch.bfloat16):
        # a CPU without bf16 takes minutes for the whole
        size = n if gpu or dtype == torch.float32 or _takes_bf16() else min(n, 128)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = min(seconds(product, repeats) for product in _products(a, b, gpu))
        found[f"gemm_{str(dtype).removeprefix('torch.')}"] = 2 * size**3 / best
    return found


def _products(a, b, gpu):
    out = torch.empty_like(a)
    yield lambda: torch.mm(a, b, out=out)
    # on AMD its fp32 product beats MKL's; bf16 it takes from AVX-512 on
    if not gpu and torch.backends.mkldnn.is_available() and (a.dtype == torch.float32 or _takes_bf16()):
        yield lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _takes_bf16():
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or supported()


def _host_seconds(function, repeats):
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def _device_seconds(function, repeats):
    for _ in range(3):
        function()
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def lines(found):
    """The rates as text, one a line."""
    names = {"copy": "copy, mapped memory", "copy_fresh": "copy, fresh pages"}
    for name, rate in found.items():
        if name in names:
            yield f"{names[name]}: {rate / 1e9:.1f} GB/s"
        else:
            yield f"matrix product {name.removeprefix('gemm_')}: {rate / 1e9:,.0f} GFLOP/s"
