"""A whole run on text: read, tokenize and check, train, write weights, samples, curves and metrics, compare."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shlex
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

import kernelzoo

from ..data import Corpus, InputError
from ..data.text import Document
from ..data.tokens import END, digest
from . import checkpoint, report
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
    Fit,
    check_out,
    check_plain,
    choose_device,
    chosen_backend,
    create_model,
    prepare_out,
    probe,
)
from .material import Material, contender, context_of, gather
from .step_config import LanguageConfig
from .steps import Training, check_split, fit, kinds, steps_for

# when a run stops before its end, what it gives
_STOPPED = {"stopped": True}


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
    check_split(config, world)
    if config.init_from is not None and config.init_from.resolve() == config.out.resolve():
        raise InputError(f"--init-from {config.init_from} is --out as well; name another folder to write to")
    config = replace(config, context=context_of(config))
    material = gather(config, world)
    create = functools.partial(contender, config, material)
    if config.compare == "torch":
        check_plain(config.model, material.options)
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
            "init_from": material.init,
        }
        state = None
        if resume:
            path = config.out / CHECKPOINT
            state = checkpoint.read(path, identity, model, kinds(material.data))
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
        steps = checkpoint.load(config.out / CHECKPOINT, kinds(material.data))["identity"].get("steps")
        return config.scheduled(steps)
    model = contender(config, material, KERNELZOO)
    training = Training(model, material.data, config, KERNELZOO, world)
    return config.scheduled(steps_for(training, config.minutes))


def _prepare(config: LanguageConfig, material: Material) -> None:
    prepare_out(config.out, config.resume)
    text = material.tokens.tokenizer.to_str(pretty=True)
    checkpoint.write_whole(config.out / TOKENIZER, text.encode())


def _metrics(material: Material, config: LanguageConfig, world: World) -> Any:
    from .metrics import classification_metrics, translation_metrics

    if config.task == "classify":
        return classification_metrics(len(material.data.classes)).to(world.device)
    return translation_metrics().to(world.device) if config.task == "translate" else None


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
    unit = "pairs" if config.task == "translate" else "files"
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
            unit: {"training": len(corpus.part(False)), "validation": len(corpus.part(True))},
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
    size = about["parameters"]
    size = f"{size / 1e6:.1f}M" if size >= 1e6 else f"{size / 1e3:.0f}k" if size >= 1e4 else str(size)
    title = f"{config.model} ({size} weights) on {config.data}, {config.task}"
    main = {"classify": "f1", "translate": "exact_match"}.get(config.task)
    checkpoint.write_whole(config.out / CURVES, report.curves(fits, title, main))
    written = [WEIGHTS, TOKENIZER, CURVES, METRICS, CHECKPOINT]
    skipped = f" ({corpus.skipped} files are not UTF-8 text and were left out)" if corpus.skipped else ""
    console.print(
        f"\n{title}: {about['corpus'][unit]['training']} {unit} ({len(tokens.training.ids)} tokens) to train "
        f"on, {about['corpus'][unit]['validation']} held out{skipped}",
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
    if config.task in _WRITERS and config.sample_tokens:
        result["samples"] = _WRITERS[config.task](ours, config, material, world)
        text = ("\n\n" if config.task == "lm" else "\n").join(result["samples"]) + "\n"
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
    model = _trained(ours, config, material, world)
    tokenizer = material.tokens.tokenizer
    limited = hasattr(model, "limit")
    prompts = [config.prompt] if config.prompt is not None else _first_lines(material.corpus)
    texts = []
    for prompt in prompts:
        # a file's first lines come after the end of another file
        ids = ([] if prompt == config.prompt else [END]) + tokenizer.encode(prompt).ids
        ids = (ids[-(config.context // 2) :] if limited else ids) or [END]
        new = min(config.sample_tokens, config.context - len(ids)) if limited else config.sample_tokens
        with chosen_backend(config.backend):
            out = model.generate(
                torch.tensor([ids], device=world.device),
                max_new_tokens=new,
                do_sample=True,
                temperature=config.temperature,
                top_k=config.top_k,
                seed=config.seed,
            )
        texts.append(prompt + tokenizer.decode(out[0, len(ids) :].tolist()))
    return texts


def _translations(ours: Fit, config: LanguageConfig, material: Material, world: World) -> list[str]:
    """Held-out sources, what the model writes for each, and, where that is not it, the target."""
    model = _trained(ours, config, material, world)
    tokenizer = material.tokens.tokenizer
    lines = []
    for document in _spread(material.corpus, 12):
        source, target = document.text.split("\t")
        with chosen_backend(config.backend):
            out = model.generate(
                torch.tensor([tokenizer.encode(source).ids], device=world.device),
                max_new_tokens=config.sample_tokens,
            )
        written = tokenizer.decode(out[0, 1:].tolist())
        lines.append(f"{source} → {written}" + ("" if written == target else f"   (is {target})"))
    return lines


_WRITERS = {"lm": _samples, "translate": _translations}


def _trained(ours: Fit, config: LanguageConfig, material: Material, world: World) -> torch.nn.Module:
    model = create_model(config.model, material.options, KERNELZOO, config.seed)
    model.load_state_dict(ours.weights)
    return model.to(world.device).eval()


def _first_lines(corpus: Corpus) -> list[str]:
    return ["\n".join(document.text.lstrip().splitlines()[:3])[:200] for document in _spread(corpus, 2)]


def _spread(corpus: Corpus, most: int) -> list[Document]:
    """At most so many held-out documents, evenly spread."""
    documents = corpus.part(held_out=True)
    return [documents[i * len(documents) // most] for i in range(min(most, len(documents)))]
