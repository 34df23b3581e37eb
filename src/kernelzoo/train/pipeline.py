"""A whole run on a table or a series: read and check, train, write weights, curves and metrics, compare."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

import kernelzoo
from kernelzoo import zoo

from ..data import InputError, Series, Split, Table, load, load_series, split, split_series
from . import checkpoint, forecast, report
from .config import Config, SeriesConfig
from .engine import (
    CHECKPOINT,
    CURVES,
    FORECAST,
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


def run(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Train as `config` says; returns what `metrics.json` holds.

    Writes into `config.out`: checkpoint.ckpt (each epoch), model.safetensors (metadata `kernelzoo`: JSON with
    model, options, normalization, classes), curves.png, of a series forecast.png, and last metrics.json, which
    marks a complete run.
    Raises InputError, before anything is written, where the data, an option or a checkpoint will not do.
    """
    console = console or Console()
    config = replace(config, device=choose_device(config.device))
    series = isinstance(config, SeriesConfig)
    table = (
        load_series(config.data, config.target) if series else load(config.data, config.target, config.task)
    )
    options = _options(config, table)
    if config.compare:
        check_plain(config.model, options)
    model = create_model(config.model, options, KERNELZOO, config.seed)
    if series:
        data = split_series(table, config.context, model.options["horizon"], config.val_fraction)
    else:
        data = split(table, config.val_fraction, config.seed)
    identity = {
        **config.identity(),
        "options": json.dumps(options, sort_keys=True),
        "task": table.task,
        "data": table.fingerprint(),
    }
    with chosen_backend(config.backend):
        rows = data.x[: config.batch_size].to(config.device)
        model.to(config.device)
        ran = probe(model, config.backend, lambda: model(rows))
        state = _resume_state(config, identity, model, console)
        path = config.out / CHECKPOINT
        prepare_out(config.out, config.resume)
        ours = _fit(
            model, config, table, data, KERNELZOO, console,
            state=state, save=lambda s: checkpoint.save(path, {"identity": identity, **s}),
        )  # fmt: skip
    fits = {"kernelzoo": ours}
    about = _about(config, options, table, data)
    checkpoint.write_whole(config.out / WEIGHTS, checkpoint.safetensors(ours.weights, about))
    if config.compare:
        plain = create_model(config.model, options, TORCH, config.seed)
        fits["torch"] = _fit(plain, config, table, data, TORCH, console)
    return _report(fits, config, options, table, data, ran, console)


def _fit(
    model: torch.nn.Module,
    config: Config,
    table: Table | Series,
    data: Split,
    engine: Engine,
    console: Console,
    **how: Any,
) -> Fit:
    done = len(how["state"]["history"]) if how.get("state") else 0
    bar = ProgressBar(engine.name, NAMES[table.task][0], done, config.epochs, console)
    return fit(model, config, table, data, engine, callbacks=(bar,), **how)


def _options(config: Config, table: Table | Series) -> dict[str, Any]:
    """The model's options: those given, with the sizes that the data fixes."""
    try:
        accepted = zoo.options(config.model)
    except ValueError as error:
        raise InputError(str(error)) from None
    sizes = {"in_features": len(table.features)}
    if isinstance(table, Table):
        sizes["out_features"] = len(table.classes) if table.classes else 1
    if not sizes.keys() <= accepted.keys():
        raise InputError(
            f"{config.model} does not take tables of numbers (it has no option in_features, out_features)"
        )
    for key, size in sizes.items():
        given = config.options.get(key, size)
        if given != size:
            raise InputError(
                f"--set {key}={given}: the data {config.data} needs {key}={size}; leave the option out"
            )
    return {**config.options, **sizes}


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


def _about(config: Config, options: dict, table: Table | Series, data: Split) -> dict[str, Any]:
    return {
        "version": kernelzoo.__version__,
        "model": config.model,
        "options": options,
        "normalization": data.normalization.as_dict(),
        "features": table.features,
        "target": table.target,
        "task": table.task,
        "classes": table.classes,
        **({"context": config.context} if isinstance(config, SeriesConfig) else {}),
    }


def _report(
    fits: dict[str, Fit],
    config: Config,
    options: dict,
    table: Table | Series,
    data: Split,
    ran: list[str],
    console: Console,
) -> dict[str, Any]:
    about = {
        "model": config.model,
        "options": options,
        "data": config.data,
        "task": table.task,
        "rows": {"training": len(data.x), "validation": len(data.val_x)},
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
    }
    baselines, written = {}, [WEIGHTS, CURVES, METRICS, CHECKPOINT]
    if isinstance(config, SeriesConfig):
        about["context"] = config.context
        about["held_out"] = {"first": float(table.times[data.first]), "last": float(table.times[-1])}
        baselines = forecast.baselines(data)
        about["baselines"] = baselines
        model = create_model(config.model, options, KERNELZOO, config.seed)
        model.load_state_dict(fits["kernelzoo"].weights)
        checkpoint.write_whole(config.out / FORECAST, forecast.picture(model, table, data, config.model))
        written.insert(1, FORECAST)
    result = report.summary(fits, about)
    shown = ", ".join(f"{key}={value}" for key, value in options.items())
    title = f"{config.model}({shown}) on {config.data}"
    checkpoint.write_whole(config.out / CURVES, report.curves(fits, title, NAMES[table.task][0]))
    checkpoint.write_whole(
        config.out / METRICS, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    )
    console.print(
        f"\n{title}: {len(data.x)} rows to train on, {len(data.val_x)} to validate on",
        highlight=False,
        soft_wrap=True,
    )
    console.print(report.result_table(fits, baselines))
    if baselines:
        console.print(forecast.verdict(result, table, options), soft_wrap=True, highlight=False)
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
