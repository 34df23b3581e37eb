"""Sound as 8-bit µ-law codes: wav files, their last part held out, windows of them."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .tabular import InputError
from .windows import Batch, stream

CODES = 256
MU = CODES - 1


def mu_law(samples: np.ndarray) -> np.ndarray:
    """x in [-1, 1] -> codes 0 to 255, uint8: (sign(x) ln(1 + 255 |x|) / ln 256 + 1) / 2 · 255, rounded.

    Source: ITU-T recommendation G.711, in the continuous form of A. van den Oord et al., arXiv:1609.03499, §2.2.
    """
    x = np.clip(samples, -1, 1)
    squeezed = np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU)
    return np.floor((squeezed + 1) / 2 * MU + 0.5).astype(np.uint8)


def mu_law_inverse(codes: np.ndarray) -> np.ndarray:
    """Codes -> samples in [-1, 1], float64."""
    squeezed = 2 * codes.astype(np.float64) / MU - 1
    return np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log1p(MU)) / MU


PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNTOLD = 0xFFFFFFFF  # the length that is written where the end was not known


def read_wav(path: Path) -> tuple[int, np.ndarray]:
    """Samples a second, and samples in [-1, 1], the mean of all channels; InputError for other than PCM of 8, 16, 24 or
    32 bits and floats of 32 or 64. Source: Microsoft, IBM, Multimedia Programming Interface and Data Specifications 1.0
    (1991), and the extensible format of Windows' mmreg.h, which 24 bits mostly come in."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise InputError(f"{path} is not a wav file: it does not begin with RIFF and WAVE; convert it to one")
    head, data, at = b"", None, 12
    while data is None and at + 8 <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        part = content[at + 8 : at + 8 + size]
        if name == b"fmt ":
            head = part
        elif name == b"data":
            data, promised = part, len(part) if size == UNTOLD else size
        at += 8 + size + size % 2
    if len(head) < 16 or data is None:
        raise InputError(f"{path} is not a whole wav file: it ends before its {'data' if head else 'head'}")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", head[:16])
    if kind == EXTENSIBLE and len(head) >= 26:
        kind = int.from_bytes(head[24:26], "little")
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        raise InputError(
            f"{path} holds sound of format {kind} with {bits} bits a sample; PCM (1) of 8, 16, 24 or 32 bits and "
            f"floats (3) of 32 or 64 are read, convert it to PCM of 16 bits"
        )
    if not channels or not rate:
        raise InputError(f"{path} says that it has {channels} channels and {rate} samples a second")
    frame = channels * bits // 8
    if len(data) != promised or promised % frame:
        raise InputError(
            f"{path} is truncated: its head says {promised // frame} samples, it holds {len(data) // frame}"
        )
    samples = _floats(data, kind, bits).reshape(-1, channels).mean(1)
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds samples that are NaN or infinite; make it anew")
    return rate, samples


def _floats(data: bytes, kind: int, bits: int) -> np.ndarray:
    if kind == FLOAT:
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if bits == 8:  # the one unsigned format
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)


def wav_bytes(codes: np.ndarray, rate: int) -> bytes:
    """A 16-bit wav file of one channel."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(mu_law_inverse(codes) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


@dataclass(frozen=True)
class Audio:
    """training and held_out: the codes of each file's two parts; `context` codes are a window. skipped: files that
    could not be read."""

    names: tuple[str, ...]
    rate: int
    training: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    context: int
    skipped: tuple[str, ...] = ()
    shift = 1  # a model is asked for the code after each

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.names, self.rate)).encode())
        for part in (*self.training, *self.held_out):
            digest.update(repr(len(part)).encode())
            digest.update(part.tobytes())
        return digest.hexdigest()

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        """Windows of the training parts, each place as likely as another; no window goes on into another file."""
        places = np.cumsum([max(0, len(part) - self.context + 1) for part in self.training])
        drawn = stream(seed, step, 0).integers(places[-1], size=rows)
        files = np.searchsorted(places, drawn, side="right")
        starts = drawn - np.concatenate([[0], places])[files]
        return self._batch(
            [self.training[f][at : at + self.context] for f, at in zip(files, starts, strict=True)]
        )

    def validation(self, most: int) -> Batch:
        """At most so many windows of the held-out parts, side by side, evenly spread."""
        windows = [
            part[at : at + self.context]
            for part in self.held_out
            for at in range(0, len(part) - self.context + 1, self.context)
        ]
        count = min(most, len(windows))
        return self._batch([windows[i * len(windows) // count] for i in range(count)])

    @staticmethod
    def _batch(windows: list[np.ndarray]) -> Batch:
        codes = torch.from_numpy(np.stack(windows).astype(np.int64))
        return Batch(codes, codes)

    def by_frequency(self) -> float:
        """Bits a held-out sample where each code is as likely as it was in training, whatever came before."""
        counts = np.bincount(np.concatenate(self.training), minlength=CODES) + 1.0
        return float(-np.log2(counts / counts.sum())[np.concatenate(self.held_out)].mean())


def load_audio(
    name: str, val_fraction: float, context: int, sample_rate: int | None = None, skip_corrupt: bool = False
) -> Audio:
    """A wav file or a folder of them; of each the last `val_fraction` is held out. sample_rate: to which each is
    resampled, by a filter of the band that both rates hold; unless given they must have one rate.

    Raises InputError, naming the file, for what cannot be read, unless `skip_corrupt`, for files of different rates,
    and where there is no window to train on or to hold out.
    """
    path = Path(name)
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".wav" and p.name[0] != ".")
        if not paths:
            raise InputError(f"{name} holds no .wav file")
    elif path.is_file():
        paths = [path]
    else:
        raise InputError(f"{name}: no such wav file or folder")
    training, validation, whole, skipped, rates = [], [], [], [], []
    for one in paths:
        try:
            rate, samples = read_wav(one)
        except InputError as error:
            if len(paths) == 1:
                raise
            if not skip_corrupt:
                raise InputError(f"{error}. Remove it, or leave such files out with --skip-corrupt") from None
            skipped.append(str(error))
            continue
        if sample_rate is not None:
            samples, rate = resampled(samples, rate, sample_rate), sample_rate
        if rates and rate != rates[0]:
            raise InputError(
                f"{whole[0]} has {rates[0]} samples a second but {one} has {rate}; --sample-rate N resamples each "
                f"to N"
            )
        rates.append(rate)
        whole.append(one)
        codes = mu_law(samples)
        first = len(codes) - round(len(codes) * val_fraction)
        training.append(codes[:first])
        validation.append(codes[first:])
    if not whole:
        raise InputError(f"{name}: none of its {len(paths)} wav files can be read; the first: {skipped[0]}")
    for parts, what in ((training, "trained on"), (validation, "held out")):
        longest = max(map(len, parts))
        if longest < context:
            raise InputError(
                f"{name}: of the longest file {longest} samples are {what}, fewer than a window of --context "
                f"{context}; shorten it, change --val-fraction or add sound"
            )
    if len(np.unique(np.concatenate(training))) < 2:
        raise InputError(f"{name} is silent where it is trained on; there is nothing to learn")
    root = path if path.is_dir() else path.parent
    return Audio(
        tuple(p.relative_to(root).as_posix() for p in whole),
        rates[0],
        tuple(training),
        tuple(validation),
        context,
        tuple(skipped),
    )


def resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """As sampled `to` times a second: filtered by polyphase (a Kaiser window's) and cut off where it repeats."""
    if rate == to or not len(samples):
        return samples
    from scipy.signal import resample_poly  # scikit-learn's own requirement

    common = math.gcd(rate, to)
    return resample_poly(samples, to // common, rate // common)
