"""A whole run in epochs, on a table, a series, images or photographs: read and check, train, write, compare."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

import kernelzoo

from ..data import InputError
from . import checkpoint, report
from .config import Config
from .engine import (
    CHECKPOINT,
    CURVES,
    KERNELZOO,
    METRICS,
    TORCH,
    WEIGHTS,
    Engine,
    Fit,
    check_out,
    check_plain,
    choose_device,
    chosen_backend,
    create_model,
    prepare_out,
    probe,
)
from .loop import STATE, ProgressBar, fit
from .metrics import NAMES
from .problems import PROBLEMS, Problem


def run(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Train as `config` says; returns what `metrics.json` holds.

    Writes into `config.out`: checkpoint.ckpt (each epoch), model.safetensors (metadata `kernelzoo`: JSON with
    model, options, normalization, classes), curves.png, of a series forecast.png, of photographs mask.png, and last
    metrics.json, which marks a complete run.
    Raises InputError, before anything is written, where the data, an option or a checkpoint will not do.
    """
    console = console or Console()
    config = replace(config, device=choose_device(config.device))
    problem = PROBLEMS[type(config)](config)
    options = problem.options()
    if config.compare:
        check_plain(config.model, options)
    model = create_model(config.model, options, KERNELZOO, config.seed)
    problem.data = problem.split(model)
    identity = {
        **config.identity(),
        **problem.identity(),
        "options": json.dumps(options, sort_keys=True),
        "task": problem.subject.task,
        "data": problem.subject.fingerprint(),
    }
    with chosen_backend(config.backend):
        model.to(config.device)
        ran = _probe(model, problem)
        state = _resume_state(config, identity, model, console)
        path = config.out / CHECKPOINT
        prepare_out(config.out, config.resume)
        ours = _fit(
            model, problem, KERNELZOO, console,
            state=state, save=lambda s: checkpoint.save(path, {"identity": identity, **s}),
        )  # fmt: skip
    if len(ours.history) == config.stop_at and config.stop_at < config.epochs:
        console.print(f"stopped after epoch {config.stop_at} of {config.epochs}; --resume goes on")
        return {"stopped": True}
    fits = {"kernelzoo": ours}
    about = {
        "version": kernelzoo.__version__,
        "model": config.model,
        "options": options,
        "normalization": problem.data.normalization.as_dict(),
        "task": problem.subject.task,
        "classes": problem.subject.classes,
        **problem.about(),
    }
    checkpoint.write_whole(config.out / WEIGHTS, checkpoint.safetensors(ours.weights, about))
    if config.compare:
        plain = create_model(config.model, options, TORCH, config.seed)
        fits["torch"] = _fit(plain, problem, TORCH, console)
    return _report(fits, problem, options, ran, console)


def _probe(model: torch.nn.Module, problem: Problem) -> list[str]:
    config, training = problem.config, problem.data.training
    rows, _ = training[0, list(range(min(len(training), config.batch_size)))]
    rows = rows.to(config.device)
    try:
        return probe(model, config.backend, lambda: model(rows))
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{config.model} does not take {config.data}: {str(error).splitlines()[0]}"
        ) from None


def _fit(model: torch.nn.Module, problem: Problem, engine: Engine, console: Console, **how: Any) -> Fit:
    config, subject = problem.config, problem.subject
    done = len(how["state"]["history"]) if how.get("state") else 0
    bar = ProgressBar(engine.name, NAMES[subject.task][0], done, config.epochs, console)
    return fit(model, config, subject, problem.data, engine, callbacks=(bar,), **how)


def _resume_state(config: Config, identity: dict, model: torch.nn.Module, console: Console) -> dict | None:
    if not check_out(config.out, config.resume, config.overwrite, console):
        return None
    path = config.out / CHECKPOINT
    state = checkpoint.read(path, identity, model, STATE)
    if len(state["history"]) > config.epochs:
        raise InputError(
            f"{path} has {len(state['history'])} epochs already, --epochs asks for {config.epochs}"
        )
    console.print(f"resuming {path} after epoch {len(state['history'])} of {config.epochs}")
    return state


def _report(
    fits: dict[str, Fit], problem: Problem, options: dict, ran: list[str], console: Console
) -> dict[str, Any]:
    config, data = problem.config, problem.data
    sizes = len(data.training), len(data.validation)
    about = {
        "model": config.model,
        "options": options,
        "data": config.data,
        "task": problem.subject.task,
        problem.unit: {"training": sizes[0], "validation": sizes[1]},
        "optimizer": config.optimizer,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "l1": config.l1,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "backend": config.backend or "auto",
        "ran": ran,
        "device": torch.cuda.get_device_name() if config.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"kernelzoo": kernelzoo.__version__, "torch": torch.__version__},
        **problem.facts(),
    }
    if baselines := problem.baselines():
        about["baselines"] = baselines

    def trained() -> torch.nn.Module:
        model = create_model(config.model, options, KERNELZOO, config.seed)
        model.load_state_dict(fits["kernelzoo"].weights)
        return model

    pictures = problem.pictures(trained)
    for name, png in pictures.items():
        checkpoint.write_whole(config.out / name, png)
    written = [WEIGHTS, *pictures, CURVES, METRICS, CHECKPOINT]
    result = report.summary(fits, about)
    shown = ", ".join(f"{key}={value}" for key, value in options.items())
    title = f"{config.model}({shown}) on {config.data}"
    checkpoint.write_whole(config.out / CURVES, report.curves(fits, title, NAMES[problem.subject.task][0]))
    checkpoint.write_whole(
        config.out / METRICS, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    )
    console.print(
        f"\n{title}: {sizes[0]} {problem.unit} to train on, {sizes[1]} to validate on",
        highlight=False,
        soft_wrap=True,
    )
    console.print(report.result_table(fits, baselines))
    for line in problem.verdict(result):
        console.print(line, soft_wrap=True, highlight=False)
    if config.compare:
        console.print(
            f"largest weight difference {result['largest_weight_difference']:.2e} "
            f"(largest weight {result['largest_weight']:.2e}); same seed, data order and loop; "
            f"{result['device']}, {result['threads']} threads; "
            f"kernelzoo ran {', '.join(ran) or 'no op of its own'}",
            soft_wrap=True,
        )
    console.print(
        f"wrote {', '.join(written)} in {shlex.quote(str(config.out))}",
        soft_wrap=True,
    )
    return result
