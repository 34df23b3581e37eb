"""What every kind of training shares: contenders, what a fit gives, and the checks before a run writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

import kernelzoo
from kernelzoo import functional, nn, optim, zoo

from ..data import InputError

CHECKPOINT, WEIGHTS, CURVES, METRICS = "checkpoint.ckpt", "model.safetensors", "curves.png", "metrics.json"
TOKENIZER, SAMPLES = "tokenizer.json", "samples.txt"
FORECAST, MASK, SHEET, SOUND = "forecast.png", "mask.png", "samples.png", "sample.wav"
KEPT_STEP_TIMES = 10_000
LOSSES = {"val_loss": "validation", "train_loss": "training"}


class Engine(NamedTuple):
    """Where layers, losses and optimizers come from: kernelzoo's namespaces, or torch's."""

    name: str
    nn: Any
    functional: Any
    optim: Any


KERNELZOO = Engine("kernelzoo", nn, functional, optim)
TORCH = Engine("torch", zoo.plain, torch.nn.functional, torch.optim)


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is no longer a number)."""


class Stopped(RuntimeError):
    """The user interrupted the run (Ctrl-C)."""


@dataclass
class Fit:
    """What training produced.

    history: a row of losses and metrics an epoch, or (with "step") every so many steps. weights: those of row
    `best`: the last one, or with early stopping the one with the lowest validation loss. step_ms: times of
    the latest steps, at most `KEPT_STEP_TIMES`; tokens: how many a step reads, 0 where that is no measure.
    losses: keys of the history that are losses, and how they are called.
    """

    weights: dict[str, torch.Tensor]
    history: list[dict[str, float]]
    best: int
    step_ms: list[float] = field(repr=False)
    tokens: int = 0
    losses: dict[str, str] = field(default_factory=lambda: dict(LOSSES))

    @property
    def step_quartiles_ms(self) -> list[float]:
        """First quartile, median, third quartile."""
        return np.percentile(self.step_ms, [25, 50, 75]).tolist() if self.step_ms else [math.nan] * 3

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_quartiles_ms[1] * 1e3


def choose_device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def create_model(name: str, options: dict[str, Any], engine: Engine, seed: int) -> torch.nn.Module:
    if wrong := zoo.registry.mistyped(name, options):
        raise InputError(f"{name}: {wrong}")
    torch.manual_seed(seed)
    try:
        return zoo.create(name, nn=engine.nn, **options)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch's, of sizes below 0
        said = str(error).splitlines()[0].removeprefix(f"{name}: ")
        raise InputError(f"{name}: {said}") from None


def check_plain(name: str, options: dict[str, Any]) -> None:
    """InputError where there is no such model in plain PyTorch, before ours is trained to be compared with it."""
    with torch.device("meta"):
        create_model(name, options, TORCH, 0)


@contextlib.contextmanager
def chosen_backend(name: str | None) -> Iterator[None]:
    """`kernelzoo.backend(name)`; a name that does not exist or a backend that is not here: InputError."""
    if name is None:
        yield
        return
    try:
        choice = kernelzoo.backend(name)
    except (ValueError, kernelzoo.BackendUnavailable) as error:
        raise InputError(f"--backend {name}: {error}") from None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(choice)
        except (ValueError, kernelzoo.BackendUnavailable) as error:
            raise InputError(f"--backend {name}: {error}") from None
        yield


def probe(model: torch.nn.Module, backend: str | None, call: Callable[[], Any]) -> list[str]:
    """One forward pass, so that a backend that cannot serve says so before a file is written.

    Returns which op runs on which backend, each once: "linear[relu] on cpp".
    """
    model.eval()
    with kernelzoo.trace() as calls:
        try:
            call()
        except kernelzoo.BackendUnavailable as error:
            raise InputError(f"--backend {backend}: {error}") from None
    return list(dict.fromkeys(f"{call.op} on {call.backend}" for call in calls))


def check_out(out: Path, resume: bool, overwrite: bool, console: Console) -> bool:
    """Whether there is a checkpoint to go on from; InputError where a run, finished or not, would be lost."""
    path = out / CHECKPOINT
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if resume and path.exists():
        return True
    if not overwrite:
        if (out / METRICS).exists() or (out / WEIGHTS).exists():
            what = "a finished run" if (out / METRICS).exists() else f"a {WEIGHTS}"
            raise InputError(f"{out} holds {what}; --overwrite replaces it, --out names another folder")
        if path.exists():
            raise InputError(f"{out} holds an unfinished run; --resume continues it, --overwrite starts over")
    if resume:
        console.print(f"no checkpoint in {out} yet: starting from the beginning", soft_wrap=True)
    return False


def prepare_out(out: Path, resume: bool) -> None:
    """Make the folder, and take away what an older run left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = (WEIGHTS, CURVES, METRICS, SAMPLES, FORECAST, MASK, SHEET, SOUND)
        names = made + (() if resume else (CHECKPOINT,))
        for name in names:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None
