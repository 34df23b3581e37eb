"""A whole run on text: read, tokenize and check, train, write weights, samples, curves and metrics, compare."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

import kernelzoo
from kernelzoo import zoo

from ..data import Corpus, InputError, load_text
from ..data.tokens import END, PAD, Tokens, digest, read_tokenizer, tokenize, train_tokenizer
from ..data.windows import make_data
from . import checkpoint, report
from .config import LanguageConfig
from .distributed import World, processes
from .engine import (
    CHECKPOINT,
    CURVES,
    KERNELZOO,
    METRICS,
    SAMPLES,
    TOKENIZER,
    TORCH,
    WEIGHTS,
    Engine,
    Fit,
    check_out,
    choose_device,
    chosen_backend,
    create_model,
    prepare_out,
    probe,
)
from .steps import STATE, Training, fit, steps_for

CONTEXT, VOCABULARY = 256, 4096
# of a model that 2 CPU cores can train: options of whatever family, where a model has them
_SMALL = {
    "n_layer": 4,
    "n_embd": 256,
    "n_head": 4,
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
}
_DROPOUTS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
)
_POSITIONS = ("n_positions", "max_position_embeddings")
# when a run stops before its end, what it gives
_STOPPED = {"stopped": True}


class Material(NamedTuple):
    """What a run trains on and starts from."""

    corpus: Corpus
    tokens: Tokens
    data: Any
    options: dict[str, Any]
    init: dict[str, torch.Tensor] | None


def run(config: LanguageConfig, console: Console | None = None) -> dict[str, Any]:
    """Train as `config` says; returns what `metrics.json` holds.

    Writes into `config.out`: checkpoint.ckpt (every so many steps), tokenizer.json, model.safetensors (metadata
    `kernelzoo`: JSON with model, options, classes), samples.txt where the model writes text, curves.png, and
    last metrics.json, which marks a complete run. Under torchrun, rank 0 writes and prints.
    Raises InputError, before anything is written there, where the data, an option or a checkpoint will not do.
    """
    config = replace(config, device=choose_device(config.device))
    with processes(config.device, config.strategy) as world:
        console = (console or Console()) if world.main else Console(quiet=True)
        return _run(config, world, console)


def _run(config: LanguageConfig, world: World, console: Console) -> dict[str, Any]:
    _check_split(config, world)
    config = replace(config, context=_context(config))
    material = _material(config, world)
    create = functools.partial(_contender, config, material)
    with chosen_backend(config.backend):
        model = create(KERNELZOO)
        ran = _probe(model, material.data, config, world)
        resume = world.on_main(
            lambda: check_out(config.out, config.resume, config.overwrite, console),
        )
        config = _schedule(config, material, world, resume)
        identity = {
            **config.identity(),
            "options": json.dumps(material.options, sort_keys=True),
            "data": material.corpus.digest,
            "tokenizer": digest(material.tokens.tokenizer),
            "init_from": _digest(material.init),
        }
        state = None
        if resume:
            path = config.out / CHECKPOINT
            state = checkpoint.read(path, identity, model, STATE)
            console.print(f"resuming {path} after step {state['step']} of {config.steps}", soft_wrap=True)
        world.on_main(lambda: _prepare(config, material))
        metrics = functools.partial(_metrics, material, config, world)
        names = ("pre-trained", "from scratch") if config.compare == "scratch" else ("kernelzoo", "torch")
        training = Training(model, material.data, config, KERNELZOO, world, state, metrics())
        ours = fit(
            training,
            names[0],
            console,
            lambda s: checkpoint.save(config.out / CHECKPOINT, {"identity": identity, **s}),
        )
        if training.step < config.steps:
            console.print(f"stopped after step {training.step} of {config.steps}; --resume goes on")
            return dict(_STOPPED)
        fits = {names[0]: ours}
        if config.compare == "scratch":
            training = Training(
                create(KERNELZOO, init=False), material.data, config, KERNELZOO, world, metrics=metrics()
            )
            fits[names[1]] = fit(training, names[1], console)
    if config.compare == "torch":
        training = Training(create(TORCH), material.data, config, TORCH, world, metrics=metrics())
        fits[names[1]] = fit(training, names[1], console)
    del training
    return world.on_main(lambda: _finish(fits, config, material, world, ran, console))


def _check_split(config: LanguageConfig, world: World) -> None:
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"--batch-size {config.batch_size} is the whole of a step and does not split into {world.size} "
            f"process(es) x --accumulate {config.accumulate}; take a multiple of {parts}"
        )


def _context(config: LanguageConfig) -> int:
    if config.context is not None:
        return config.context
    given = next((config.options[key] for key in _POSITIONS if key in config.options), CONTEXT)
    if not isinstance(given, int) or given < 8:
        raise InputError(f"{config.model}: {given!r} positions; at least 8 are needed")
    return min(given, CONTEXT)


def _material(config: LanguageConfig, world: World) -> Material:
    """Corpus, tokens, batches and options; rank 0 comes first and fills the cache for the others."""

    def make() -> Material:
        corpus = load_text(config.data, config.val_fraction)
        init, found, path = None, {}, None
        if config.init_from is not None:
            init, found, path = _read_init(config)
        tokenizer = read_tokenizer(path) if path else train_tokenizer(corpus, config.vocab_size or VOCABULARY)
        tokens = tokenize(corpus, tokenizer)
        data = make_data(config.task, tokens, config.context)
        return Material(corpus, tokens, data, _options(config, tokens, data, found), init)

    first = []
    world.on_main(lambda: first.append(make()))
    return first[0] if first else make()


def _read_init(config: LanguageConfig) -> tuple[dict[str, torch.Tensor], dict[str, Any], Path]:
    """Weights, options and tokenizer of another run's folder."""
    from safetensors import SafetensorError, safe_open

    folder = config.init_from.parent if config.init_from.is_file() else config.init_from
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"--init-from {config.init_from}: no {WEIGHTS} there; name the folder of a run")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("kernelzoo", "{}"))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"--init-from {path} cannot be read: {error}") from None
    if about.get("model") != config.model:
        found = f"the weights of {about['model']}" if "model" in about else "no weights of kernelzoo train"
        raise InputError(f"--init-from {path} holds {found}; {config.model} is to be trained")
    return weights, about["options"], folder / TOKENIZER


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
    # roberta's positions are counted after the padding's
    offset = PAD + 1 if config.model == "roberta" else 0
    small |= {key: config.context + offset for key in _POSITIONS if key in accepted}
    if "intermediate_size" in accepted and isinstance(given.get("hidden_size", 256), int):
        small["intermediate_size"] = 4 * given.get("hidden_size", 256)
    if "num_key_value_heads" in accepted:
        small["num_key_value_heads"] = given.get("num_attention_heads", _SMALL["num_attention_heads"])
    return {**small, **given, **fixed}


def _contender(
    config: LanguageConfig, material: Material, engine: Engine, *, init: bool = True
) -> torch.nn.Module:
    model = create_model(config.model, material.options, engine, config.seed)
    limit = getattr(model, "limit", config.context)
    if limit < config.context:
        raise InputError(f"--context {config.context}: the model has positions for {limit} tokens")
    if init and material.init is not None:
        _start_from(model, material.init, config.init_from)
    return model


def _start_from(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Take over every weight but a head's, which is kept where it fits as a whole and is new otherwise."""
    own = model.state_dict()
    shared = {key: value for key, value in weights.items() if not key.startswith("head.")}
    head = {key: value for key, value in weights.items() if key.startswith("head.")}
    missing = [key for key in own if key not in shared and not key.startswith("head.")]
    wrong = [key for key, value in shared.items() if key not in own or own[key].shape != value.shape]
    if missing or wrong:
        raise InputError(f"--init-from {path}: {', '.join([*missing, *wrong][:4])} does not fit the model")
    same = {k: v.shape for k, v in head.items()} == {
        k: v.shape for k, v in own.items() if k.startswith("head.")
    }
    model.load_state_dict({**own, **shared, **(head if same else {})})


def _probe(model: torch.nn.Module, data: Any, config: LanguageConfig, world: World) -> list[str]:
    share = config.batch_size // (world.size * config.accumulate)
    rows = data.batch(config.seed, 0, share).to(world.device)
    kind = torch.device(world.device).type
    model.to(world.device)
    with torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16"):
        call = functools.partial(
            model, rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels
        )
        return probe(model, config.backend, call)


def _schedule(config: LanguageConfig, material: Material, world: World, resume: bool) -> LanguageConfig:
    """The number of steps: as given, as the checkpoint has it, or as many as fit into the minutes."""
    if config.steps is not None:
        return config.scheduled(config.steps)
    if resume:
        steps = checkpoint.load(config.out / CHECKPOINT, STATE)["identity"].get("steps")
        return config.scheduled(steps)
    model = _contender(config, material, KERNELZOO)
    training = Training(model, material.data, config, KERNELZOO, world)
    return config.scheduled(steps_for(training, config.minutes))


def _digest(weights: dict[str, torch.Tensor] | None) -> str | None:
    if weights is None:
        return None
    total = hashlib.sha256()
    for key in sorted(weights):
        total.update(key.encode())
        total.update(weights[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _prepare(config: LanguageConfig, material: Material) -> None:
    prepare_out(config.out, config.resume)
    text = material.tokens.tokenizer.to_str(pretty=True)
    checkpoint.write_whole(config.out / TOKENIZER, text.encode())


def _metrics(material: Material, config: LanguageConfig, world: World) -> Any:
    if config.task != "classify":
        return None
    from .metrics import classification_metrics

    return classification_metrics(len(material.data.classes)).to(world.device)


def _finish(
    fits: dict[str, Fit],
    config: LanguageConfig,
    material: Material,
    world: World,
    ran: list[str],
    console: Console,
) -> dict[str, Any]:
    """Write and show everything; on rank 0."""
    ours = next(iter(fits.values()))
    tokens, corpus = material.tokens, material.corpus
    if config.task == "lm":
        # nats a token -> bits a byte: comparable between vocabularies
        factor = len(tokens.validation.ids) / tokens.validation.size / math.log(2)
        for row in (row for each in fits.values() for row in each.history):
            row["bits_per_byte"] = row["val_loss"] * factor
    about = {"version": kernelzoo.__version__, "model": config.model, "options": material.options}
    about |= {"task": config.task, "classes": getattr(material.data, "classes", None)}
    checkpoint.write_whole(config.out / WEIGHTS, checkpoint.safetensors(ours.weights, about))
    settings = dataclasses.asdict(config)
    left_out = (
        "out",
        "resume",
        "overwrite",
        "minutes",
        "stop_at",
        "options",
        "device",
        "backend",
        "init_from",
    )
    about = {
        **{key: value for key, value in settings.items() if key not in left_out},
        "options": material.options,
        "parameters": sum(value.numel() for value in ours.weights.values()),
        "corpus": {
            "files": {"training": len(corpus.part(False)), "validation": len(corpus.part(True))},
            "tokens": {"training": len(tokens.training.ids), "validation": len(tokens.validation.ids)},
            "skipped": corpus.skipped,
            "digest": corpus.digest,
        },
        "vocab_size": tokens.vocab_size,
        "classes": getattr(material.data, "classes", None),
        "init_from": None if config.init_from is None else str(config.init_from),
        "processes": world.size,
        "backend": config.backend or "auto",
        "ran": ran,
        "device": torch.cuda.get_device_name() if world.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"kernelzoo": kernelzoo.__version__, "torch": torch.__version__},
    }
    result = report.summary(fits, about)
    title = f"{config.model} ({about['parameters'] / 1e6:.1f}M weights) on {config.data}, {config.task}"
    main = "f1" if config.task == "classify" else None
    checkpoint.write_whole(config.out / CURVES, report.curves(fits, title, main))
    written = [WEIGHTS, TOKENIZER, CURVES, METRICS, CHECKPOINT]
    skipped = f" ({corpus.skipped} files are not UTF-8 text and were left out)" if corpus.skipped else ""
    console.print(
        f"\n{title}: {about['corpus']['files']['training']} files ({len(tokens.training.ids)} tokens) to train "
        f"on, {about['corpus']['files']['validation']} held out{skipped}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(report.result_table(fits))
    if config.compare == "torch":
        console.print(
            f"same seed, batches and loop; {result['device']}, {result['threads']} threads; "
            f"kernelzoo ran {', '.join(ran) or 'no op of its own'}",
            soft_wrap=True,
        )
    if config.task == "lm" and config.sample_tokens and hasattr(zoo.causal.CausalLM, "generate"):
        result["samples"] = _samples(ours, config, material, world)
        text = "\n\n".join(result["samples"]) + "\n"
        checkpoint.write_whole(config.out / SAMPLES, text.encode())
        console.print("\n" + text, markup=False, highlight=False, soft_wrap=True)
        written.append(SAMPLES)
    checkpoint.write_whole(
        config.out / METRICS, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    )
    folder = shlex.quote(str(config.out))
    console.print(f"wrote {', '.join(written)} in {folder}", soft_wrap=True)
    return result


def _samples(ours: Fit, config: LanguageConfig, material: Material, world: World) -> list[str]:
    """Text that the model writes: after `prompt`, or after the first lines of held-out files."""
    model = create_model(config.model, material.options, KERNELZOO, config.seed)
    model.load_state_dict(ours.weights)
    model.to(world.device).eval()
    tokenizer = material.tokens.tokenizer
    prompts = [config.prompt] if config.prompt is not None else _first_lines(material.corpus)
    texts = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids[-(config.context // 2) :] or [END]
        new = min(config.sample_tokens, config.context - len(ids))
        torch.manual_seed(config.seed)
        with torch.no_grad(), chosen_backend(config.backend):
            out = model.generate(
                torch.tensor([ids], device=world.device),
                max_new_tokens=new,
                temperature=config.temperature,
                top_k=config.top_k,
            )
        texts.append(prompt + tokenizer.decode(out[0, len(ids) :].tolist()))
    return texts


def _first_lines(corpus: Corpus, most: int = 2) -> list[str]:
    documents = corpus.part(held_out=True)
    chosen = [documents[i * len(documents) // most] for i in range(min(most, len(documents)))]
    return ["\n".join(document.text.lstrip().splitlines()[:3])[:200] for document in chosen]
