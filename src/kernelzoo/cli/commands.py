"""Commands: `kernelzoo env | train | bench | verify`."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hand-written kernels for PyTorch: what is here, train, time, prove.",
)

_EXTRA = ("lightning", "torchmetrics", "sklearn", "safetensors", "matplotlib", "rich")
_RUN, _OPT, _REG = "The run", "Optimisation", "Regularisation"


def _fail(message: object, code: int = 2) -> typer.Exit:
    typer.echo(f"kernelzoo: {message}", err=True)
    return typer.Exit(code)


@app.command()
def env(
    ceilings: Annotated[
        bool, typer.Option("--ceilings", help="Also measure GEMM and copy ceilings.")
    ] = False,
) -> None:
    """Versions, devices, backends and why one is missing."""
    from kernelzoo import env as environment

    typer.echo(environment.report(ceilings=ceilings))


@app.command()
def verify(op: Annotated[str, typer.Argument(help="The op to check against float64.")] = "linear") -> None:
    """Errors of an op against float64, beside torch's own."""
    from kernelzoo import verify as verification

    raise typer.Exit(verification.run(op))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Time the kernels beside their peers (needs a checkout); arguments go to bench/run.py."""
    folders = (Path.cwd(), Path(__file__).resolve().parents[3])
    runner = next((f / "bench" / "run.py" for f in folders if (f / "bench" / "run.py").is_file()), None)
    if runner is None:
        raise _fail("bench/run.py is not here; run `kernelzoo bench` in a checkout of the repository")
    raise typer.Exit(subprocess.call([sys.executable, str(runner), *context.args]))


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model of the zoo: mlp, linear_regression, ...")],
    data: Annotated[str, typer.Option(help="digits, breast_cancer, diabetes, or a CSV file with a header.")],
    target: Annotated[str | None, typer.Option(help="The CSV column to predict.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification or regression. Unless given: classification if the target holds text, or "
            "whole numbers with at most 20 different values; else regression."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A model option, e.g. --set hidden=256,128 --set act=gelu."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(rich_help_panel=_OPT)] = 30,
    batch_size: Annotated[int, typer.Option(rich_help_panel=_OPT)] = 64,
    optimizer: Annotated[
        str, typer.Option(help="sgd, momentum, rmsprop, adam, adamw.", rich_help_panel=_OPT)
    ] = "adam",
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate; unless given, one that suits the optimizer.", rich_help_panel=_OPT),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="L2 on matrices (decoupled in adamw).", rich_help_panel=_REG)
    ] = 3e-3,
    l1: Annotated[float, typer.Option(help="L1 on matrices, added to the loss.", rich_help_panel=_REG)] = 0.0,
    dropout: Annotated[
        float | None, typer.Option(help="Short for --set dropout=...", rich_help_panel=_REG)
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            metavar="PATIENCE",
            help="Stop when the validation loss has not fallen for so many epochs; keep the best weights.",
            rich_help_panel=_REG,
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of rows to validate on.", rich_help_panel=_RUN)
    ] = 0.2,
    seed: Annotated[int, typer.Option(rich_help_panel=_RUN)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; runs/MODEL-DATA unless given.", rich_help_panel=_RUN),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the checkpoint in the folder, if there is one.", rich_help_panel=_RUN
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start over where an unfinished run lies.", rich_help_panel=_RUN),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(help="torch: train the same model in plain PyTorch as well.", rich_help_panel=_RUN),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="triton, cuda, cpp, numba, torch or auto.", rich_help_panel=_RUN)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_RUN)] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_RUN)] = None,
) -> None:
    """Train a model on a table, and say how well it does on rows it has not seen."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise _fail(f"train needs {', '.join(missing)}: pip install kernelzoo[train]")
    import torch

    from kernelzoo import train as training
    from kernelzoo.data import InputError
    from kernelzoo.train.engine import Stopped, TrainingError

    try:
        options = _parse_options(set_ or [])
        if dropout is not None:
            options["dropout"] = dropout
        if threads is not None:
            if threads < 1:
                raise InputError(f"--threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        training.run(
            training.Config(
                model, data, target, task, options, epochs, batch_size, optimizer, lr, weight_decay, l1,
                early_stopping, val_fraction, seed, out, resume, overwrite, compare, backend, device,
            )
        )  # fmt: skip
    except InputError as error:
        raise _fail(error) from None
    except TrainingError as error:
        raise _fail(error, code=1) from None
    except Stopped as error:
        raise _fail(f"{error}; add --resume to go on from the last whole epoch", code=130) from None


def _parse_options(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is a Python literal (0.5, 256,128, True), and text where it is none."""
    from kernelzoo.data import InputError

    words = {"true": True, "false": False, "none": None}
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key.isidentifier() and equals):
            raise InputError(f"--set wants key=value, got {pair!r}")
        try:
            options[key] = words[text] if text in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options
