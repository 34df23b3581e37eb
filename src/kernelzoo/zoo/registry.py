"""The table of models: a name, what builds it, and errors that say which names and options exist."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn as torch_nn

from . import checkpoints

_MODELS: dict[str, Callable[..., torch_nn.Module]] = {}

REQUIRED = inspect.Parameter.empty


def register(name: str) -> Callable[[Callable], Callable]:
    """Decorator that enters a model class (or a function that builds one) into the zoo under `name`."""

    def enter(build: Callable) -> Callable:
        if name in _MODELS:
            raise ValueError(f"zoo.register: the name {name!r} is taken by {_MODELS[name].__qualname__}")
        _MODELS[name] = build
        return build

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted: `zoo.list("gpt*")`."""
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def options(name: str) -> dict[str, Any]:
    """Options of a model and their defaults; `zoo.registry.REQUIRED` where there is none.

    Raises ValueError for a name that is not in the zoo, naming the close ones.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else f"there are {', '.join(list_models())}"
        )
        raise ValueError(f"zoo: no model is called {name!r}; {hint}")
    parameters = inspect.signature(_MODELS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "nn"}


def mistyped(name: str, opts: dict[str, Any]) -> str | None:
    """What is wrong with the first option of another type than the model's, such as text for a number."""
    expected = checkpoints.hints(_MODELS[name])
    for key, value in opts.items():
        if key in expected and not checkpoints.fits(value, expected[key]):
            return f"{key} is {value!r}; expected {checkpoints.spelled(expected[key])}"
    return None


def create(name: str, /, *, nn: Any = None, **opts: Any) -> torch_nn.Module:
    """Build the model `name` with its options.

    nn: the namespace its layers come from; None is `kernelzoo.nn`, `zoo.plain` is plain PyTorch.
    Raises ValueError for an unknown name, TypeError for unknown or missing options; each names what there is.
    """
    accepted = options(name)
    listing = ", ".join(key if d is REQUIRED else f"{key}={d!r}" for key, d in accepted.items())
    for key in opts:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise TypeError(f"zoo.create: {name} has no option {key!r}{hint} it takes {listing}")
    missing = [key for key, d in accepted.items() if d is REQUIRED and key not in opts]
    if missing:
        raise TypeError(f"zoo.create: {name} needs {' and '.join(missing)}; it takes {listing}")
    return _MODELS[name](**opts) if nn is None else _MODELS[name](**opts, nn=nn)


def load(
    name: str, path: str | Path, /, *, nn: Any = None, new_head: bool = False, **opts: Any
) -> torch_nn.Module:
    """Build the model `name` and load its weights; the model is in eval mode, in the dtype of the weights.

    path: a folder that the transformers library or `zoo.save` wrote (config.json beside model.safetensors, or
    beside the shards of model.safetensors.index.json), the weights in such a folder, or a safetensors file that
    `kernelzoo train` wrote, whose options are in it (JSON, metadata key `kernelzoo`). A model of torchvision's takes
    its state dict too, in a safetensors file or folder and with no more said: num_classes, num_channels and whether
    there are auxiliary classifiers follow from the shapes. Options given here win.
    new_head: build a head that the file does not hold afresh, such as head="classify" on pre-trained weights;
    without it that is an error. Weights trained on normalised inputs expect such again: `normalization` there.
    Raises CheckpointError (a ValueError) where the file is truncated, foreign or a pickle, or holds other
    names, shapes or settings than the model has, naming them; nothing is loaded then.
    """
    accepted = options(name)
    build = functools.partial(create, name, nn=nn)
    return checkpoints.load(build, accepted, _MODELS[name], name, path, new_head, opts)
