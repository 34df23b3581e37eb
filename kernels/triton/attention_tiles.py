"""Tiles of the attention kernels by the width of a head, a power of two: (BLOCK_M, BLOCK_N, num_warps, num_stages).

Frozen tables. None of it has been measured on a device yet: the sizes are meant to be the largest that compile
with no spills and within shared memory (tests/aot). What bounds them is registers: the accumulators, and
with mma.sync the operands that stay for the whole walk, which it keeps in registers too. Two stages at least, also
where memory could do with one: unless buffers alternate, the address of each 16-deep step of a product is hoisted
out of the walk (1,020 bytes spilled in dq at width 256 on sm_90, none with two stages).

The second table of a pair is for calls with a mask, slopes, a soft cap or dropout, whose offsets, counters and
partial results take up to 80 registers more, and for chips with less than 100 KB of shared memory.
"""

import torch

_INTERPRETED = (32, 16, 4, 1)  # small, so that tiny odd shapes have edges in every direction

_FWD_DESC = {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)}
_FWD_DESC_FULL = {64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)}
_FWD_DESC_FULL_TCGEN05 = {**_FWD_DESC_FULL, 256: (64, 32, 8, 2)}
_FWD_DESC_SMALL = {64: (128, 64, 8, 2), 128: (64, 64, 8, 2)}  # sm_120: 99 KB of shared memory
_FWD_HALF = {64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (64, 64, 8, 2)}
_FWD_HALF_FULL = {64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)}
# fp32 and fp64, FMA or mma.sync: operands are held at full depth
_FWD_FP32 = {64: (64, 32, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 2)}
# sm_90 and sm_100, where the tiles of sm_80 spill 2,400 bytes and more, packed sequences' most
_FWD_FP32_NEWER = {64: (64, 32, 8, 2), 128: (32, 16, 8, 2), 256: (32, 16, 8, 2)}
_FWD_FP32_FULL = {64: (32, 32, 8, 2), 128: (32, 32, 8, 2), 256: (16, 16, 8, 2)}
_FWD_FP64 = {64: (32, 32, 8, 2), 128: (32, 16, 8, 2), 256: (16, 16, 8, 1)}
_FWD_FP64_SMALL = {**_FWD_FP64, 64: (32, 16, 8, 2)}
_FWD_FP64_HIP = {**_FWD_FP64, 256: (16, 16, 4, 1)}

_DQ_HALF = {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)}
_DQ_HALF_FULL = {64: (64, 32, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 2)}
_DQ_HALF_SMALL = {
    64: (32, 64, 8, 2),
    128: (32, 32, 8, 2),
    256: (32, 32, 8, 2),
}  # (64, 32): 36 and 68 bytes on sm_120
_DQ_FP32 = {64: (32, 32, 8, 2), 128: (16, 16, 8, 2), 256: (16, 16, 8, 2)}
_DQ_FP64 = {64: (16, 16, 8, 2), 128: (16, 16, 8, 2), 256: (16, 16, 8, 1)}

# From width 256 on, and in the second table, dk and dv come in walks of their own: eight products in all, not seven.
_DKV_WGMMA = {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (32, 64, 8, 2)}
# sm_100, where the tiles of sm_90 spill 412 to 1,212 bytes
_DKV_TCGEN05 = {64: (64, 64, 8, 2), 128: (32, 32, 8, 2), 256: (32, 32, 8, 2)}
_DKV_HALF = {64: (32, 128, 8, 2), 128: (32, 64, 8, 2), 256: (32, 64, 8, 2)}
# one stage at width 256: two spill 8 bytes, and 40 in fp32, on sm_80
_DKV_HALF_FULL = {64: (32, 64, 8, 2), 128: (32, 64, 8, 2), 256: (16, 16, 8, 1)}
_DKV_HALF_FULL_SMALL = {64: (16, 64, 8, 2), 128: (16, 32, 8, 2), 256: (16, 16, 8, 1)}
_DKV_FP32 = {64: (16, 32, 8, 2), 128: (16, 16, 8, 2), 256: (16, 16, 8, 1)}
# two stages spill 24 to 180 bytes at width 128 on sm_80
_DKV_FP64 = {64: (16, 16, 8, 2), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)}

# AMD: 64 lanes a warp, so half as many; 64 KB of LDS
_FWD_HIP = {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 4, 2)}
_DQ_HIP = {64: (32, 32, 4, 2), 128: (32, 32, 4, 2), 256: (16, 32, 4, 2)}
_DKV_HIP = {64: (32, 32, 4, 2), 128: (16, 32, 4, 2), 256: (16, 32, 4, 2)}

_BWD_FP32_HIP = {64: (16, 32, 8, 2), 128: (16, 16, 8, 2), 256: (16, 16, 4, 1)}
_BWD_FP64_HIP = {64: (16, 16, 8, 2), 128: (16, 16, 4, 1), 256: (16, 16, 4, 1)}

_DBIAS_HALF = {64: (32, 32, 8, 2), 128: (16, 32, 8, 2), 256: (16, 32, 8, 2)}
_DBIAS_WIDE = {64: (16, 16, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)}
_DBIAS_FP32_NEWER = {64: (16, 16, 8, 1), 128: (64, 16, 8, 2), 256: (64, 16, 8, 2)}  # than sm_80
# sm_90; at width 128 every tile tried spills, by 36 bytes at least
_DBIAS_FP64_WGMMA = {**_DBIAS_WIDE, 64: (16, 32, 8, 2)}


def _pick(table, width, target):
    tile = dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), table[max(width, 64)], strict=True))
    if target.backend == "cuda":
        # Else ptxas sometimes stops at 128 registers, for more programs on a multiprocessor, and spills 12 to 70 bytes.
        tile["maxnreg"] = 255
    return tile


def _is_small(target):
    return target.shared_memory < 100 << 10


def fwd_tile(target, dtype, width, full, descriptors):
    """The forward's; `full`: the call has flags of the second kind."""
    if target.backend == "interpreter":
        tile = _pick({max(width, 64): _INTERPRETED}, width, target)
    elif descriptors:
        large = _FWD_DESC_FULL if full or (target.arch == 100 and width == 256) else _FWD_DESC
        large = _FWD_DESC_FULL_TCGEN05 if full and target.arch == 100 else large
        tile = _pick(_FWD_DESC_SMALL if _is_small(target) else large, width, target)
    elif dtype.itemsize == 2:
        tile = _pick(
            _FWD_HIP
            if target.backend == "hip"
            else _FWD_HALF_FULL
            if full or _is_small(target)
            else _FWD_HALF,
            width,
            target,
        )
    elif dtype == torch.float32:
        light = _FWD_FP32_NEWER if target.arch in (90, 100) else _FWD_FP32
        tile = _pick(_FWD_FP32_FULL if full or _is_small(target) else light, width, target)
    elif target.backend == "hip":
        tile = _pick(_FWD_FP64_HIP, width, target)
    else:
        tile = _pick(_FWD_FP64_SMALL if _is_small(target) else _FWD_FP64, width, target)
    if descriptors:  # two slices at width 256: half of o's 64 KB of staging memory
        tile["SLICES"] = 2 if width == 256 else 1
    return tile


def dq_tile(target, dtype, width, full):
    if target.backend == "interpreter":
        return _pick({max(width, 64): _INTERPRETED}, width, target)
    if dtype.itemsize == 2:
        second = _DQ_HALF_SMALL if _is_small(target) else _DQ_HALF_FULL
        light = _DQ_HALF_SMALL if _is_small(target) else _DQ_HALF
        return _pick(_DQ_HIP if target.backend == "hip" else second if full else light, width, target)
    if target.backend == "hip" and width >= 128:
        return _pick(_BWD_FP32_HIP if dtype == torch.float32 else _BWD_FP64_HIP, width, target)
    return _pick(_DQ_FP32 if dtype == torch.float32 else _DQ_FP64, width, target)


def dkv_tile(target, dtype, width, full, even):
    """With it APART: whether dk and dv come in walks of their own. `even`: no column of a tile is beyond the head's,
    whose masks took (32, 128) at width 128 to 16 bytes of spills."""
    if target.backend == "interpreter":
        return _pick({max(width, 64): (16, 32, 4, 1)}, width, target) | {"APART": width == 32}
    apart = full or _is_small(target) or width >= 256 or dtype.itemsize > 2
    if target.backend == "hip" and dtype.itemsize == 2:
        tile = _pick(_DKV_HIP, width, target)
    elif dtype.itemsize == 2:
        own = {90: _DKV_WGMMA if even else _DKV_HALF, 100: _DKV_TCGEN05}
        light = own.get(target.arch, _DKV_HALF)
        # elsewhere the others spill: 8 bytes on sm_80 at width 64, at 128 52 on sm_120 and 252 on sm_100
        second = _DKV_HALF_FULL if even and target.arch == 90 else _DKV_HALF_FULL_SMALL
        tile = _pick(second if full or _is_small(target) else light, width, target)
    elif target.backend == "hip":
        tile = _pick(_BWD_FP32_HIP if dtype == torch.float32 else _BWD_FP64_HIP, width, target)
    else:
        tile = _pick(_DKV_FP32 if dtype == torch.float32 else _DKV_FP64, width, target)
    return tile | {"APART": apart}


def dbias_tile(target, dtype, width):
    if target.backend == "interpreter":
        return _pick({max(width, 64): _INTERPRETED}, width, target)
    if dtype.itemsize == 2:
        return _pick(_DBIAS_HALF, width, target)
    if dtype == torch.float32:
        return _pick(_DBIAS_FP32_NEWER if target.arch >= 90 else _DBIAS_WIDE, width, target)
    return _pick(_DBIAS_FP64_WGMMA if target.arch == 90 else _DBIAS_WIDE, width, target)


def decode_tile(target, dtype, width, rows):
    """Of `rows` query rows, and keys whose K and V, twice, fit shared memory."""
    block_m = min(64, max(16, 1 << (rows - 1).bit_length()))
    if target.backend == "interpreter":
        return {"BLOCK_M": min(block_m, 32), "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
    if dtype.itemsize > 2 and target.backend == "cuda":
        tile = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 2}
        # as in _pick; with it wide heads in fp64 spill on sm_100 and sm_120
        return tile | ({"maxnreg": 255} if dtype == torch.float32 or width <= 64 else {})
    if dtype.itemsize > 2:
        tile = {"BLOCK_M": 16, "BLOCK_N": 32 if width <= 128 else 16, "num_warps": 4, "num_stages": 2}
        return tile | ({"num_stages": 1} if dtype == torch.float64 and width > 128 else {})
    wide = width > 128 and (block_m > 16 or _is_small(target))
    return {
        "BLOCK_M": block_m, "BLOCK_N": 32 if wide else 64, "num_warps": 8 if wide else 4, "num_stages": 2
    }  # fmt: skip
