"""Loading and saving models: folders of the transformers library, torchvision's weights, files of `kernelzoo train`.

A model says how its parameters are called there (`Pretrained.sources`) and what its config means
(`Pretrained.from_config`, `to_config`); everything else is here. Nothing is read before every key and shape
fits, and no model is returned half-loaded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import CheckpointError, Pretrained, Source
from .files import CONFIG, INDEX, WEIGHTS, Checkpoint, Stored, fetch, opened, read

FLOATS = ("F64", "F32", "F16", "BF16")
ANOTHER_HEAD = "; it holds another head: pass new_head=True to start this one afresh"
COUNTER = (
    ".num_batches_tracked"  # of a batch norm: files older than 2018 have none, and torch then starts at 0
)
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # before 2019


def load(
    create: Callable[..., torch.nn.Module],
    accepted: dict[str, Any],
    kind: type,
    name: str,
    path: str | Path,
    new_head: bool,
    opts: dict[str, Any],
) -> torch.nn.Module:
    """The model `name` with the weights in `path`, in eval mode; see `zoo.load`. create: builds it from options."""
    found = read(Path(path))
    ours = isinstance(kind, type) and issubclass(kind, Pretrained)
    bare = ours and kind.sized and found.about is None
    foreign = found.about is None and found.config is not None and not bare
    if bare:
        found = renamed(kind, found)
        given, names = kind.from_shapes({key: stored.shape for key, stored in found.tensors.items()}), None
    elif found.about is None and found.config is None and found.path.is_dir():
        raise CheckpointError(f"zoo.load: {path} has no {CONFIG}, which says how large the model is")
    elif foreign:
        if not (ours and kind.model_type):
            raise CheckpointError(
                f"zoo.load: {path} was written by the transformers library, which has no model like {name!r}"
            )
        given = kind.from_config(check_config(kind, found))
        names = found.config.get("id2label")
        names = list(names.values()) if names else None
    else:
        about = found.about or {}
        if about.get("model", name) != name:
            raise CheckpointError(
                f"zoo.load: {path} holds the weights of {about['model']!r}, not of {name!r}"
            )
        where = f"zoo.load: {path}, in what kernelzoo wrote,"
        check_types(where, name, about, {"options": dict | None, "classes": list | None})
        given = {key: value for key, value in (about.get("options") or {}).items() if key in accepted}
        check_types(where, name, given, hints(kind))
        names = about.get("classes")
    options = {**given, **opts}
    with torch.device("meta"), built_from(path, given, opts):  # no memory: for the names and shapes
        model = create(**options)
    plan = (plan_foreign if foreign else plan_own)(model, found, new_head)
    uncounted = [key for key in model.state_dict() if key.endswith(COUNTER) and key not in plan]
    missing = [key for key in model.state_dict() if key not in plan and key not in uncounted]
    fresh = [key for key in missing if new_head and key.startswith(model.heads)]
    if len(fresh) < len(missing):
        what = [key for key in missing if key not in fresh]
        keys = ", ".join(theirs(model, what[0]) if foreign else what[:1])
        raise CheckpointError(
            f"zoo.load: {path} has no {keys}"
            + (f" nor {len(what) - 1} more that {name} needs" if len(what) > 1 else f", which {name} needs")
            + (ANOTHER_HEAD if all(key.startswith(model.heads) for key in what) else "")
        )
    weights = gather(plan) | {key: torch.zeros((), dtype=torch.int64) for key in uncounted}
    for layer in model.modules():
        if hasattr(layer, "reach"):  # a rotary embedding: it makes its tables when it is given memory
            layer.to_empty(device="cpu", recurse=False)
    if fresh or any(t.is_meta for key, t in model.named_buffers() if key not in weights):
        model = create(**options)  # initialised, for what no file holds
        own, dtype = model.state_dict(), Counter(t.dtype for t in weights.values()).most_common(1)[0][0]
        weights |= {key: own[key].to(dtype) for key in fresh}
    model.load_state_dict(weights, assign=True)
    sizes = {**accepted, **options}
    if names and len(names) == sizes.get("num_labels", sizes.get("num_classes")):
        model.label_names = tuple(map(str, names))
    return model.eval()


def renamed(kind: type[Pretrained], found: Checkpoint) -> Checkpoint:
    """A file without settings, or with timm's, by the model's own keys.

    Old keys have new names, and parts that the model can be built without (`ignored`) stay where they are.
    """
    said = (found.config or {}).get("architecture", kind.name)
    if said != kind.name:
        raise CheckpointError(
            f"zoo.load: {CONFIG} of {found.path} says architecture {said!r}; expected {kind.name!r}"
        )
    if kind.old_names is None:
        return found
    return found._replace(tensors={re.sub(*kind.old_names, key): t for key, t in found.tensors.items()})


@contextlib.contextmanager
def built_from(path: str | Path, given: dict[str, Any], opts: dict[str, Any]) -> Iterator[None]:
    """What torch says of a negative size, and Python of a wrong kind inside a setting, is the checkpoint's fault."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if isinstance(error, ValueError) or opts:
            raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"zoo.load: the settings of {path} build no model ({reason}): {given}"
        ) from None


def check_config(kind: type[Pretrained], found: Checkpoint) -> dict[str, Any]:
    """The config, where it is of this family and asks for nothing that the model does not compute."""
    config, where = found.config, f"zoo.load: {CONFIG} of {found.path}"
    if config.get("model_type") != kind.model_type:
        said = config.get("model_type")
        raise CheckpointError(f"{where} says model_type {said!r}; {kind.name} reads {kind.model_type!r}")
    if config.get("quantization_config"):
        raise CheckpointError(f"{where} says quantization_config; expected weights that are not quantised")
    for key, values in kind.supported.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"{where} says {key}={config[key]!r}; {kind.name} computes only "
                f"{' or '.join(map(repr, values))}"
            )
    rest = {"architectures": list | None, "id2label": dict | None, "rope_parameters": dict | None}
    check_types(where, kind.name, config, {**hints(kind), **rest})
    return config


def hints(kind: Any) -> dict[str, Any]:
    """The types of a model's options."""
    return typing.get_type_hints(kind.__init__ if isinstance(kind, type) else kind)


def check_types(where: str, name: str, values: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in values.items():
        if key in expected and not fits(value, expected[key]):
            raise CheckpointError(f"{where} says {key}={value!r}; {name} expects {spelled(expected[key])}")


def spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type: a list stands for a tuple, a whole number for a float."""
    if hint is Any:
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in inner)
    if tuple in (hint, origin) or origin is list:
        inner = [one for one in inner if one is not Ellipsis] or [Any]
        return isinstance(value, (list, tuple)) and all(any(fits(v, one) for one in inner) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def theirs(model: torch.nn.Module, key: str) -> tuple[str, ...]:
    return model.sources()[key].names


def plan_own(
    model: torch.nn.Module, found: Checkpoint, new_head: bool
) -> dict[str, tuple[Source, list[Stored]]]:
    """Which stored tensor each parameter comes from, in a file with our own names.

    new_head: a stored head takes part only where all of it fits: heads of two kinds share names of layers.
    """
    expected, tensors = model.state_dict(), found.tensors
    if found.about is None:
        tensors = {
            key: stored
            for key, stored in tensors.items()
            if key in expected or not any(re.search(pattern, key) for pattern in model.ignored)
        }
    if new_head:
        head = {key: stored.shape for key, stored in tensors.items() if key.startswith(model.heads)}
        if head != {key: tuple(t.shape) for key, t in expected.items() if key.startswith(model.heads)}:
            tensors = {key: stored for key, stored in tensors.items() if key not in head}
    unknown = [key for key in tensors if key not in expected]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        hint = ANOTHER_HEAD if all(key.startswith(model.heads) for key in unknown) else ""
        raise CheckpointError(
            f"zoo.load: {found.path} holds {unknown[0]}{more}, which the model does not have{hint}"
        )
    for key, stored in tensors.items():
        check_shape(stored, tuple(expected[key].shape), ANOTHER_HEAD if key.startswith(model.heads) else "")
        if expected[key].is_floating_point():
            check_dtype(stored)
    return {key: (Source((key,)), [stored]) for key, stored in tensors.items()}


def plan_foreign(
    model: Pretrained, found: Checkpoint, new_head: bool
) -> dict[str, tuple[Source, list[Stored]]]:
    """Which stored tensors each parameter comes from, by the transformers library's names.

    new_head: what a head stores in another shape, such as that of other labels, is left out.
    """
    sources, expected = model.sources(), model.state_dict()
    wanted = {name for source in sources.values() for name in source.names}
    tied, prefix = model.tied(), model.prefix
    stored: dict[str, Stored] = {}
    for key, tensor in found.tensors.items():
        for old, new in OLD_NAMES.items():
            key = key[: -len(old)] + new if key.endswith(old) else key
        # a bare model is saved without its prefix, and a head's model with it
        known = wanted | tied.keys()
        name = next((n for n in (key, prefix + key, key.removeprefix(prefix)) if n in known), None)
        if name is not None:
            stored[name] = tensor
        elif not any(re.search(pattern, key) for pattern in model.ignored):
            raise CheckpointError(
                f"zoo.load: {found.path} holds {key} of shape {tensor.shape}, which a {model.name} of this "
                f"{CONFIG} does not have"
            )
    for copy, original in tied.items():
        if copy in stored and original not in stored:
            stored[original] = stored[copy]
        elif copy in stored and not torch.equal(fetch(stored[copy]), fetch(stored[original])):
            raise CheckpointError(
                f"zoo.load: {found.path} holds {copy}, different from {original}, but its {CONFIG} says they "
                f"are one; set tie_word_embeddings to false there"
            )
    plan = {}
    for key, source in sources.items():
        if not all(name in stored for name in source.names):
            continue
        parts = [stored[name] for name in source.names]
        shape = source.shape or tuple(expected[key].shape)
        if new_head and key.startswith("head.") and parts[0].shape != shape:
            continue
        for part, rows in zip(parts, source.rows or shape[:1], strict=True):
            one = (rows, *shape[1:])
            check_shape(part, one[::-1] if source.transposed else one)
            check_dtype(part)
        plan[key] = source, parts
    return plan


def check_dtype(stored: Stored) -> None:
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"zoo.load: {stored.key} in {stored.file} has dtype {stored.dtype}; expected one of "
            f"{', '.join(FLOATS)}"
        )


def check_shape(stored: Stored, shape: tuple[int, ...], hint: str = "") -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"zoo.load: {stored.key} in {stored.file} has shape {stored.shape}; expected {shape}{hint}"
        )


def gather(plan: dict[str, tuple[Source, list[Stored]]]) -> dict[str, Tensor]:
    """Read the tensors, each file opened once."""
    needed = sorted({stored for _, parts in plan.values() for stored in parts})
    read = {}
    for file, group in itertools.groupby(needed, key=lambda stored: stored.file):
        with opened(file) as handle:
            for stored in group:
                # a copy: the tensor is a view of the file, which someone may write to
                read[stored] = handle.get_tensor(stored.key).clone()
    weights = {}
    for key, (source, parts) in plan.items():
        pieces = [read[stored] for stored in parts]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        whole = whole.T.contiguous() if source.transposed else whole
        weights[key] = whole.flatten(1) if source.shape else whole
    return weights


def exported(model: Pretrained, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(the transformers library's name, tensor) of parameters, or of their gradients, by our names."""
    for key, source in model.sources().items():
        t = tensors[key].T if source.transposed else tensors[key]
        t = t.view(source.shape) if source.shape else t
        parts = t.split(source.rows) if source.rows else (t,)
        yield from zip(source.names, parts, strict=True)


def save(model: torch.nn.Module, folder: str | Path) -> None:
    """Write model.safetensors, and config.json where the transformers library has such a model; see `zoo.save`."""
    from safetensors.torch import save_file

    if not isinstance(model, Pretrained):
        raise TypeError(
            f"zoo.save: {type(model).__name__} is no model of the zoo; expected zoo.create's result"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    if model.model_type:
        metadata = {"format": "pt"}
        weights = dict(exported(model, weights))
    else:
        about = {"model": model.name, "options": model.options}
        about |= {"classes": list(model.label_names)} if model.label_names else {}
        metadata = {"format": "pt", "kernelzoo": json.dumps(about)}
    weights = {key: t.detach().cpu().contiguous() for key, t in weights.items()}
    part = folder / f".{WEIGHTS}.part"
    save_file(weights, part, metadata)
    part.replace(folder / WEIGHTS)
    if model.model_type:
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        config = {"model_type": model.model_type, "dtype": dtype, **model.to_config()}
        part = folder / f".{CONFIG}.part"
        part.write_text(json.dumps(config, indent=2) + "\n")
        part.replace(folder / CONFIG)
    (folder / INDEX).unlink(missing_ok=True)  # of another model's shards that lay here
