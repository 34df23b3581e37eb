"""Files of a run, written whole or not at all, and the checkpoint that lets a killed run go on.

A checkpoint holds tensors, numbers, strings, lists and dicts only, and is read with `weights_only=True`:
reading one never runs code. It needs no random-number state: an epoch's shuffling and dropout are drawn from
the seed and the epoch's number (see `loop.epoch_seed`), so weights and optimizer state say all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ..data import InputError

FORMAT = 1
START_OVER = "train without --resume to start over"
_KEYS = {"kernelzoo_checkpoint": int, "identity": dict, "model": dict}


def write_whole(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, then rename: a kill leaves the old file or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        if os.name == "posix":  # the name itself is on disk once its folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({"kernelzoo_checkpoint": FORMAT, **state}, buffer)
    write_whole(path, buffer.getvalue())


def load(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    """What the file holds: `kinds` besides the identity and the model's weights; InputError where it does not."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise InputError(
            f"{path} is truncated or not a checkpoint of kernelzoo ({reason}); {START_OVER}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(state.get(key), kind) for key, kind in {**_KEYS, **kinds}.items()
    ):
        raise InputError(f"{path} is not a checkpoint of kernelzoo train, or of another kind; {START_OVER}")
    if state["kernelzoo_checkpoint"] != FORMAT:
        found = state["kernelzoo_checkpoint"]
        raise InputError(f"{path} has checkpoint format {found}, this version reads {FORMAT}; {START_OVER}")
    return state


def read(
    path: Path, identity: dict[str, Any], model: torch.nn.Module, kinds: dict[str, type]
) -> dict[str, Any]:
    """Load a checkpoint and check it against the run that wants to go on from it; the model is not touched.

    Raises InputError where the file is truncated, foreign, or of a run with other settings, data or model.
    """
    state = load(path, kinds)
    saved = state["identity"]
    differences = [
        f"{key} was {saved.get(key)!r} and is now {identity.get(key)!r}"
        for key in {**saved, **identity}
        if saved.get(key) != identity.get(key)
    ]
    if differences:
        raise InputError(f"{path} belongs to another run: {'; '.join(differences)}. Resume with its settings")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if {key: getattr(value, "shape", None) for key, value in state["model"].items()} != shapes:
        raise InputError(f"{path} holds the weights of another model; {START_OVER}")
    return state


def safetensors(weights: dict[str, torch.Tensor], about: dict[str, Any]) -> bytes:
    """The file that `zoo.load` reads; `about` (model, options, ...) is its metadata `kernelzoo`."""
    from safetensors.torch import save

    # one entry: safetensors writes several in an order that changes from run to run, and files should compare
    weights = {key: value.contiguous() for key, value in weights.items()}
    return save(weights, metadata={"kernelzoo": json.dumps(about)})
