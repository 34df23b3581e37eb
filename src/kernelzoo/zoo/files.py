"""What the files of a checkpoint hold: keys, shapes, config. No weight is read before it is asked for.

Only safetensors are read: a pickle runs code when it is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .base import CheckpointError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(NamedTuple):
    """What a path holds. about: what `kernelzoo train` wrote; config: config.json; either may be None."""

    path: Path
    tensors: dict[str, Stored]
    config: dict[str, Any] | None
    about: dict[str, Any] | None


def read(path: Path) -> Checkpoint:
    """Keys, shapes and config; no weight is read."""
    if not path.exists():
        raise FileNotFoundError(
            f"zoo.load: there is no file or folder {path}; nothing is downloaded, name one of this machine"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = [path / WEIGHTS]
        if not files[0].exists():
            files = shards(path / INDEX) if (path / INDEX).exists() else nothing_here(path)
    elif path.name.endswith(".index.json"):
        files = shards(path)
    else:
        refuse_pickle(path)
        files = [path]
    tensors, about = {}, None
    for file in files:
        with opened(file) as handle:
            text = (handle.metadata() or {}).get("kernelzoo")
            about = parsed(file, text) if text else about
            for key in handle.keys():  # noqa: SIM118 (not a mapping)
                part = handle.get_slice(key)
                if key in tensors:
                    raise CheckpointError(f"zoo.load: {key} is in {tensors[key].file} and in {file}")
                tensors[key] = Stored(file, key, tuple(part.get_shape()), part.get_dtype())
    config = parsed(folder / CONFIG) if about is None and (folder / CONFIG).exists() else None
    return Checkpoint(path, tensors, config, about)


def opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"zoo.load: {file} is truncated or no safetensors file ({error}); fetch or write it again"
        ) from None


def parsed(file: Path, text: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds, or `text` of it."""
    try:
        content = json.loads(file.read_text() if text is None else text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"zoo.load: {file} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"zoo.load: {file} holds a {type(content).__name__}; expected an object")
    return content


def shards(index: Path) -> list[Path]:
    """The files that an index names; each is here."""
    weights = parsed(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"zoo.load: {index} has no weight_map; expected key -> file")
    names = sorted(set(map(str, weights.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"zoo.load: {index} names {name!r}; expected a safetensors file beside it")
        if not (index.parent / name).exists():
            keys = [key for key, file in weights.items() if file == name]
            raise CheckpointError(
                f"zoo.load: {index.parent / name} is missing; it holds {keys[0]} and others"
            )
    return [index.parent / name for name in names]


def nothing_here(folder: Path) -> list[Path]:
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    there = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
    raise CheckpointError(f"zoo.load: {folder} has no {WEIGHTS} nor {INDEX}; there is {there}")


def refuse_pickle(path: Path) -> None:
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
    # zip archives are torch.save's; 80 02 .. 80 05 start a pickle, and a safetensors file whose header, from byte 8
    # on, is 640, 896, 1152 or 1408 bytes long
    archive = head.startswith(b"PK\x03\x04")
    pickled = head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and head[8:] != b"{"
    if path.suffix in PICKLES or archive or pickled:
        raise CheckpointError(
            f"zoo.load: {path} is a pickle, and opening one runs whatever code its author put in; ask for "
            f"safetensors, or, if you trust it, convert it: safetensors.torch.save_file(torch.load(path, "
            f"weights_only=True), {WEIGHTS!r}), or model.save_pretrained(folder) of the transformers library"
        )


def fetch(stored: Stored) -> Tensor:
    with opened(stored.file) as handle:
        return handle.get_tensor(stored.key)
