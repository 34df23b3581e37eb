"""A whole run in steps, on images, sound or an environment: read and check, train, write, compare.

What a run is about is an `Errand`: it reads, makes contenders, and says what is shown at the end. (Text has a pipeline
of its own, `language`.)
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console

import kernelzoo
from kernelzoo import zoo

from ..data import InputError
from . import checkpoint, report
from .distributed import World, processes
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
    choose_device,
    chosen_backend,
    create_model,
    prepare_out,
)
from .step_config import GanConfig, SoundConfig, StepConfig
from .steps import Stepwise, fit

_LEFT_OUT = ("out", "resume", "overwrite", "minutes", "stop_at", "options", "device", "backend")


class Errand:
    """What a step-wise run is about. kinds: what its checkpoints hold besides identity and weights.

    main: the metric that is drawn. fingerprint: of what is learnt from.
    """

    kinds: dict[str, type]
    main: str | None = None

    def __init__(self, config: StepConfig) -> None:
        self.config = config
        self.options = self.fixed(self.read())

    def read(self) -> dict[str, Any]:
        """Read what is learnt from; options of the model that it fixes."""
        raise NotImplementedError

    def fixed(self, sizes: dict[str, Any]) -> dict[str, Any]:
        """The model's options: those given, with those that the data fixes."""
        model, given = self.config.model, self.config.options
        accepted = zoo.options(model)
        if unknown := [key for key in given if key not in accepted]:
            raise InputError(f"{model} has no option {unknown[0]!r}; it takes {', '.join(accepted)}")
        for key, value in sizes.items():
            if given.get(key, value) != value:
                raise InputError(
                    f"--set {key}={given[key]}: this run needs {key}={value}; leave the option out"
                )
        return {**self.suited(), **given, **sizes}

    def suited(self) -> dict[str, Any]:
        """Options that suit the data where none are given."""
        return {}

    def check(self, world: World) -> None:
        """InputError where so many processes cannot train it together."""
        if world.size > 1:
            raise InputError(f"{self.config.model} is trained by one process, not under torchrun")

    def create(self, engine: Engine) -> torch.nn.Module:
        return create_model(self.config.model, self.options, engine, self.config.seed)

    def probe(self, model: torch.nn.Module) -> list[str]:
        """See `engine.probe`."""
        raise NotImplementedError

    def steps_for(self, minutes: float, world: World) -> int:
        raise NotImplementedError

    def training(
        self, model: torch.nn.Module, engine: Engine, world: World, state: dict | None = None
    ) -> Stepwise:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What the file of weights says besides model and options."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of what was learnt from."""
        return {}

    def baselines(self) -> dict[str, dict[str, float]]:
        return {}

    def finish(self, model: torch.nn.Module, result: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
        """Files that the trained model, in eval mode on the CPU, makes, and sentences; may add to the result."""
        return {}, []


def errand_of(config: StepConfig) -> Errand:
    if isinstance(config, GanConfig):
        from .gan import Gan as kind
    elif isinstance(config, SoundConfig):
        from .sound import Sound as kind
    else:
        from .play import Play as kind
    return kind(config)


def run(config: StepConfig, console: Console | None = None) -> dict[str, Any]:
    """Train as `config` says; returns what `metrics.json` holds.

    Writes into `config.out`: checkpoint.ckpt (every so many steps), model.safetensors (metadata `kernelzoo`: JSON with
    model and options), what the model made, curves.png, and last metrics.json, which marks a complete run.
    Raises InputError, before anything is written there, where the data, an option or a checkpoint will not do.
    """
    config = replace(config, device=choose_device(config.device))
    with processes(config.device, getattr(config, "strategy", "ddp")) as world:
        console = (console or Console()) if world.main else Console(quiet=True)
        errand = errand_of(config)
        errand.check(world)
        return _run(errand, world, console)


def _run(errand: Errand, world: World, console: Console) -> dict[str, Any]:
    with chosen_backend(errand.config.backend):
        model = errand.create(KERNELZOO)
        model.to(world.device)
        ran = errand.probe(model)
        config = errand.config
        resume = world.on_main(lambda: check_out(config.out, config.resume, config.overwrite, console))
        errand.config = config = config.scheduled(_steps(errand, world, resume))
        path = config.out / CHECKPOINT
        identity = {
            **config.identity(),
            "options": json.dumps(errand.options, sort_keys=True),
            "data": errand.fingerprint(),
        }
        state = None
        if resume:
            state = checkpoint.read(path, identity, model, errand.kinds)
            console.print(f"resuming {path} after step {state['step']} of {config.steps}", soft_wrap=True)
        world.on_main(lambda: prepare_out(config.out, config.resume))
        training = errand.training(model, KERNELZOO, world, state)
        ours = fit(
            training, "kernelzoo", console, lambda s: checkpoint.save(path, {"identity": identity, **s})
        )
        if training.step < config.steps and not training.solved:
            console.print(f"stopped after step {training.step} of {config.steps}; --resume goes on")
            return {"stopped": True}
    fits = {"kernelzoo": ours}
    if config.compare:
        fits["torch"] = fit(errand.training(errand.create(TORCH), TORCH, world), "torch", console)
    return world.on_main(lambda: _finish(fits, errand, world, ran, console))


def _steps(errand: Errand, world: World, resume: bool) -> int:
    """As given, as the checkpoint has it, or as many as fit into the minutes."""
    config = errand.config
    if config.steps is not None:
        return config.steps
    if resume:
        return checkpoint.load(config.out / CHECKPOINT, errand.kinds)["identity"].get("steps")
    return errand.steps_for(config.minutes, world)


def _finish(
    fits: dict[str, Fit], errand: Errand, world: World, ran: list[str], console: Console
) -> dict[str, Any]:
    """Write and show everything; on rank 0."""
    config, ours = errand.config, fits["kernelzoo"]
    about = {"version": kernelzoo.__version__, "model": config.model, "options": errand.options}
    checkpoint.write_whole(
        config.out / WEIGHTS, checkpoint.safetensors(ours.weights, {**about, **errand.about()})
    )
    parameters = sum(p.numel() for p in errand.create(TORCH).parameters())
    about = {
        **{key: value for key, value in asdict(config).items() if key not in _LEFT_OUT and value is not None},
        "options": errand.options,
        "parameters": parameters,
        "backend": config.backend or "auto",
        "ran": ran,
        "device": torch.cuda.get_device_name() if world.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"kernelzoo": kernelzoo.__version__, "torch": torch.__version__},
        **errand.facts(),
    }
    baselines = errand.baselines()
    if baselines:
        about["baselines"] = baselines
    result = report.summary(fits, about)
    model = errand.create(KERNELZOO)
    model.load_state_dict(ours.weights)
    with chosen_backend(config.backend):
        files, lines = errand.finish(model.eval(), result)
    for name, content in files.items():
        checkpoint.write_whole(config.out / name, content)
    size = f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"
    title = f"{config.model} ({size} weights) on {config.data or config.env}"
    checkpoint.write_whole(config.out / CURVES, report.curves(fits, title, errand.main))
    checkpoint.write_whole(
        config.out / METRICS, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    )
    console.print(f"\n{title}", highlight=False, soft_wrap=True)
    console.print(report.result_table(fits, baselines))
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    if config.compare:
        console.print(
            f"same seed, batches and loop; {result['device']}, {result['threads']} threads; "
            f"kernelzoo ran {', '.join(ran) or 'no op of its own'}",
            soft_wrap=True,
        )
    written = ", ".join([WEIGHTS, *files, CURVES, METRICS, CHECKPOINT])
    console.print(f"wrote {written} in {shlex.quote(str(config.out))}", soft_wrap=True)
    return result
