"""What a run on text trains on and starts from: corpus, tokens, batches, the model and its options."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from kernelzoo import zoo

from ..data import Corpus, InputError, load_pairs, load_text
from ..data.tokens import END, LEAST_VOCABULARY, PAD, Tokens, read_tokenizer, tokenize, train_tokenizer
from ..data.windows import make_data
from .distributed import World
from .engine import TOKENIZER, WEIGHTS, Engine, create_model
from .step_config import CARRIES, WINDOWS, LanguageConfig

CONTEXT, VOCABULARY = 256, 4096
VOCABULARIES = {"char_rnn": LEAST_VOCABULARY}  # bytes
# of a model that 2 CPU cores can train: options of whatever family, where a model has them
_SMALL = {
    "n_layer": 4,
    "n_embd": 256,
    "n_head": 4,
    "num_hidden_layers": 4,
    "num_layers": 1,
    "hidden_size": 256,
    "num_attention_heads": 4,
}
_DROPOUTS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
)
_POSITIONS = ("n_positions", "max_position_embeddings")


class Material(NamedTuple):
    """What a run trains on and starts from."""

    corpus: Corpus
    tokens: Tokens
    data: Any
    options: dict[str, Any]
    init: str | None  # digest of the weights to start from


def context_of(config: LanguageConfig) -> int:
    """As given, or what suits the model, or as many tokens as it has positions for, and no more than 256."""
    if config.context is not None:
        return config.context
    if config.model in WINDOWS:
        return WINDOWS[config.model][1]
    found = _about(config)["options"] if config.init_from is not None else {}
    options = {**found, **config.options}
    given = next((options[key] for key in _POSITIONS if key in options), None)
    if given is None:
        return CONTEXT
    least = 8 + _offset(config)
    if not isinstance(given, int) or given < least:
        raise InputError(f"{config.model}: {given!r} positions; at least {least} are needed")
    return min(given - _offset(config), CONTEXT)


def _offset(config: LanguageConfig) -> int:
    """roberta counts positions from the padding's on."""
    return PAD + 1 if config.model == "roberta" else 0


def gather(config: LanguageConfig, world: World) -> Material:
    """Corpus, tokens, batches and options; rank 0 comes first and fills the cache for the others."""

    def make() -> Material:
        pairs = config.task == "translate"
        corpus = (load_pairs if pairs else load_text)(config.data, config.val_fraction)
        init, found = None, {}
        if config.init_from is None:
            size = config.vocab_size or VOCABULARIES.get(config.model, VOCABULARY)
            # a number is translated figure by figure
            tokenizer = train_tokenizer(corpus, size, digits=pairs)
        else:
            found, init = _about(config)["options"], _digest(config)
            tokenizer = read_tokenizer(config.init_from / TOKENIZER)
        tokens = tokenize(corpus, tokenizer)
        kind = "stream" if config.model in CARRIES else config.task
        data = make_data(kind, tokens, config.context)
        return Material(corpus, tokens, data, _options(config, tokens, data, found), init)

    first = []
    world.on_main(lambda: first.append(make()))
    return first[0] if first else make()


def _about(config: LanguageConfig) -> dict[str, Any]:
    """What another run says of its weights."""
    with _opened(config) as file:
        about = json.loads((file.metadata() or {}).get("kernelzoo", "{}"))
    if about.get("model") != config.model:
        found = f"the weights of {about['model']}" if "model" in about else "no weights of kernelzoo train"
        raise InputError(f"--init-from {config.init_from} holds {found}; {config.model} is to be trained")
    return about


def _digest(config: LanguageConfig) -> str:
    """Of the weights to start from: a resumed run is to have the same."""
    total = hashlib.sha256()
    with _opened(config) as file:
        for key in sorted(file.keys()):
            total.update(key.encode())
            total.update(file.get_tensor(key).contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def _opened(config: LanguageConfig) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    path = config.init_from / WEIGHTS
    if not path.is_file():
        raise InputError(f"--init-from {config.init_from}: no {WEIGHTS} there; name the folder of a run")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"--init-from {path} cannot be read: {error}") from None


def _options(config: LanguageConfig, tokens: Tokens, data: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The model's options: those that the tokens and the task fix, those of `init_from`, those given, small ones."""
    accepted = zoo.options(config.model)
    given = dict(config.options)
    if (dropout := given.pop("dropout", None)) is not None:
        given = {**{key: dropout for key in _DROPOUTS if key in accepted}, **given}
    fixed: dict[str, Any] = {"vocab_size": tokens.vocab_size, "pad_token_id": PAD, "eos_token_id": END}
    if "head" in accepted:
        fixed["head"] = config.task
    if config.task == "classify":
        fixed["num_labels"] = len(data.classes)
    if config.task == "translate":
        fixed["bos_token_id"] = END
    fixed = {key: value for key, value in fixed.items() if key in accepted}
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise InputError(
                f"--set {key}={given[key]}: this run needs {key}={value}; leave the option out"
                + (" (--vocab-size sets the tokenizer's)" if key == "vocab_size" else "")
            )
    if found:
        own = {**found, **fixed}
        for key, value in given.items():
            if key not in _DROPOUTS and own.get(key, value) != value:
                raise InputError(f"--set {key}={value}: the weights of --init-from have {key}={own[key]}")
        if found.get("vocab_size") != tokens.vocab_size:
            raise InputError(
                f"--init-from: its tokenizer has {tokens.vocab_size} tokens, "
                f"its weights {found.get('vocab_size')}"
            )
        return {**own, **given}
    small = {key: value for key, value in _SMALL.items() if key in accepted}
    small |= {key: 0.0 for key in _DROPOUTS if key in accepted}
    small |= {key: config.context + _offset(config) for key in _POSITIONS if key in accepted}
    if "intermediate_size" in accepted and isinstance(given.get("hidden_size", 256), int):
        small["intermediate_size"] = 4 * given.get("hidden_size", 256)
    if "num_key_value_heads" in accepted:
        small["num_key_value_heads"] = given.get("num_attention_heads", _SMALL["num_attention_heads"])
    return {**small, **given, **fixed}


def contender(
    config: LanguageConfig, material: Material, engine: Engine, *, init: bool = True
) -> torch.nn.Module:
    if init and material.init is not None:
        model = _started(config, material, engine)
    else:
        model = create_model(config.model, material.options, engine, config.seed)
    limit = getattr(model, "limit", config.context)
    if limit < config.context:
        raise InputError(f"--context {config.context}: the model has positions for {limit} tokens")
    return model


def _started(config: LanguageConfig, material: Material, engine: Engine) -> torch.nn.Module:
    """The model with the weights of `init_from`: a head where all of it fits, else a new one."""
    torch.manual_seed(config.seed)
    try:
        model = zoo.load(
            config.model, config.init_from / WEIGHTS, nn=engine.nn, new_head=True, **material.options
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--init-from {config.init_from}: {str(error).splitlines()[0]}") from None
    return model.float()
