"""Tiles of the convolution kernels. Sizes follow from registers, spills and shared memory as compiled ahead of time
(tests/aot); nothing here has been measured on a device yet, the speeds neither: they are guesses from how much more a
smaller tile reads."""

import functools

import torch
import triton

from .linear import Tile

# Programs to aim at: two, four of the smaller depthwise ones, for each multiprocessor of the largest chips. Not the
# chip's own number: sums would depend on it.
PROGRAMS = 264
SMALL_PROGRAMS = 1056

_INTERPRETED = (Tile(64, 16, 16, 4, 1, 1.0),)  # small, so that tiny odd shapes have edges in every direction
_FP64 = (
    Tile(64, 64, 16, 4, 3, 1.0),
    Tile(64, 32, 16, 4, 3, 0.7),
    Tile(32, 16, 16, 4, 3, 0.4),
)
_FP64_WEIGHT = (  # on 4 warps the first spilled 264 bytes on sm_90, taps merged
    Tile(64, 64, 16, 8, 2, 1.0),
    Tile(32, 16, 16, 4, 2, 0.4),
)
_FP32 = (  # no tensor core
    Tile(128, 64, 16, 8, 3, 1.0),
    Tile(64, 64, 16, 4, 3, 0.9),
    Tile(64, 32, 16, 4, 3, 0.7),
    Tile(64, 16, 16, 4, 3, 0.4),
)
_FP32_WEIGHT = (  # on 4 warps the first spilled 8 bytes on sm_80, as did 64 x 32
    Tile(64, 64, 16, 8, 2, 1.0),
    Tile(32, 32, 32, 4, 2, 0.6),
    Tile(64, 16, 16, 4, 2, 0.4),
)
_TF32 = (  # on 4 warps the second spilled 172 bytes on sm_120, taps merged
    Tile(128, 128, 32, 8, 3, 1.0),
    Tile(128, 64, 32, 8, 3, 0.8),
    Tile(64, 64, 32, 4, 3, 0.6),
    Tile(128, 32, 32, 4, 3, 0.5),
    Tile(128, 16, 32, 4, 3, 0.3),
)
_TF32_WEIGHT = (_TF32[0], Tile(128, 64, 32, 4, 3, 0.8), *_TF32[2:])  # on 8 it spilled 64 bytes on sm_100
_HALF = (  # on 4 warps the second spilled 96 bytes on sm_80
    Tile(128, 128, 64, 8, 3, 1.0),
    Tile(128, 64, 64, 8, 3, 0.8),
    Tile(64, 64, 64, 4, 3, 0.6),
    Tile(128, 32, 64, 4, 3, 0.5),
    Tile(128, 16, 64, 4, 3, 0.3),
)
_HALF_HIP = (  # 64 KB of LDS
    Tile(128, 128, 32, 8, 2, 1.0),
    Tile(128, 64, 32, 4, 2, 0.8),
    Tile(64, 64, 64, 4, 2, 0.6),
    Tile(128, 16, 64, 4, 2, 0.3),
)
_FP32_HIP = (
    Tile(128, 64, 16, 4, 2, 1.0),
    Tile(64, 64, 16, 4, 2, 0.8),
    Tile(64, 16, 16, 4, 2, 0.3),
)


def tiles(target, dtype, precision, weight):
    """The tiles of a target for `dtype`, the fastest first; precision: "tf32" or "ieee"; weight: dw's."""
    if target.backend == "interpreter":
        return _INTERPRETED
    if dtype == torch.float64:
        return _FP64_WEIGHT if weight else _FP64
    if target.backend == "hip":
        return _HALF_HIP if dtype.itemsize == 2 else _FP32_HIP
    if dtype == torch.float32 and precision == "ieee":
        return _FP32_WEIGHT if weight else _FP32
    if dtype == torch.float32:
        return _TF32_WEIGHT if weight else _TF32
    return _HALF


@functools.lru_cache(maxsize=4096)
def choose_tile(target, dtype, precision, weight, M, N, copies):
    """The tile with the least (waves over the SMs) (tile area) / speed, of `copies` results (M, N)."""

    def cost(tile):
        count = copies * triton.cdiv(M, tile.BLOCK_M) * triton.cdiv(N, tile.BLOCK_N)
        waves = (
            count if weight else triton.cdiv(count, target.num_sms)
        )  # dw's rows are split to fill the chip
        return waves * tile.BLOCK_M * tile.BLOCK_N / tile.speed

    return min(tiles(target, dtype, precision, weight), key=cost)


# Channels below which the taps of a row are summed as one (conv_gemm.py): each alone would be padded to the 16 that a
# tensor core takes.
FEW_CHANNELS = 16


def depth(tile, run, merged):
    """BLOCK_K for taps of `run` channels: the tile's, or the widest that pads them by less than an eighth.

    16 for merged taps: their masks are of elements, not of rows, and at 32 they spilled on sm_80.
    """
    if merged:
        return 16
    fits = [k for k in (64, 32, 16) if k <= tile.BLOCK_K]
    return next((k for k in fits if 8 * (triton.cdiv(run, k) * k - run) <= run), 16)


def weight_depth(tile, dtype, merged):
    """BLOCK_K of dw: the tile's; of merged taps 64 bytes, as more spilled on sm_80 and sm_90."""
    return max(16, min(tile.BLOCK_K, 64 // dtype.itemsize)) if merged else tile.BLOCK_K


def depthwise_tile(target, dtype, C):
    """128 adjacent bytes of each row, 16 a thread."""
    if target.backend == "interpreter":
        return {"BLOCK_M": 8, "BLOCK_N": 4, "num_warps": 4}
    block_n = min(triton.next_power_of_2(C), 128 // dtype.itemsize)
    threads = 4 * (64 if target.backend == "hip" else 32)
    block_m = min(128, threads * 16 // dtype.itemsize // block_n)
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": 4}


def short_tile(target, dtype, C):
    """As `depthwise_tile`, the rows being strips; rows are loaded by the UNROLL, as one load waits for the store before
    it."""
    tile = depthwise_tile(target, dtype, C)
    return {
        "BLOCK_S": 2 if target.backend == "interpreter" else tile["BLOCK_M"],
        "BLOCK_N": tile["BLOCK_N"],
        "UNROLL": 2 if target.backend == "interpreter" else 4,
        "num_warps": 4,
    }


def strip_rows(target, tile, N, L, C, longest):
    """Rows a strip: as many as leave SMALL_PROGRAMS programs, 8 at least, a multiple of UNROLL.

    A strip reads up to 7 rows more than it has: those that the one before it reads too, from L2.
    """
    if target.backend == "interpreter":
        return 2 * tile["UNROLL"]
    strips = triton.cdiv(SMALL_PROGRAMS, triton.cdiv(C, tile["BLOCK_N"])) * tile["BLOCK_S"]
    rows = triton.cdiv(triton.cdiv(N * L, strips), tile["UNROLL"]) * tile["UNROLL"]
    return min(max(rows, 8), longest)


def rows_per_split(target, rows, tiles, programs, block, least):
    """Rows of each of dw's partial sums: enough splits for `programs` programs, none of fewer than `least` rows."""
    if target.backend == "interpreter":
        programs, least = 3 * tiles, 2 * block
    splits = min(triton.cdiv(programs, tiles), triton.cdiv(rows, least))
    return triton.cdiv(triton.cdiv(rows, splits), block) * block
