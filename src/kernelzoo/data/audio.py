"""Sound as 8-bit µ-law codes: wav files, their last part held out, windows of them."""

from __future__ import annotations

import hashlib
import io
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


def read_wav(path: Path) -> tuple[int, np.ndarray]:
    """Samples a second, and samples in [-1, 1], the mean of all channels; InputError for other than 8/16-bit PCM."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            content = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        why = str(error) or "it ends within its head"
        raise InputError(f"{path} is not a wav file of plain PCM ({why}); convert it to 16 bits") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if width not in (1, 2):
        raise InputError(f"{path} has {8 * width} bits a sample; 8 and 16 are read, convert it")
    if len(content) != frames * channels * width:
        raise InputError(
            f"{path} is truncated: its head says {frames} samples, it holds {len(content) // (channels * width)}"
        )
    if width == 1:  # the one unsigned format
        samples = (np.frombuffer(content, np.uint8).astype(np.float64) - 128) / 128
    else:
        samples = np.frombuffer(content, "<i2").astype(np.float64) / 32768
    return rate, samples.reshape(-1, channels).mean(1)


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
    """training and held_out: the codes of each file's two parts; `context` codes are a window."""

    names: tuple[str, ...]
    rate: int
    training: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    context: int
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


def load_audio(name: str, val_fraction: float, context: int) -> Audio:
    """A wav file or a folder of them; of each the last `val_fraction` is held out.

    Raises InputError, naming the file, for what is no 8- or 16-bit PCM, for files of different rates, and where there
    is no window to train on or to hold out.
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
    training, validation, rates = [], [], []
    for one in paths:
        rate, samples = read_wav(one)
        if rates and rate != rates[0]:
            raise InputError(
                f"{paths[0]} has {rates[0]} samples a second but {one} has {rate}; resample them to one rate"
            )
        rates.append(rate)
        codes = mu_law(samples)
        first = len(codes) - round(len(codes) * val_fraction)
        training.append(codes[:first])
        validation.append(codes[first:])
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
        tuple(p.relative_to(root).as_posix() for p in paths),
        rates[0],
        tuple(training),
        tuple(validation),
        context,
    )
