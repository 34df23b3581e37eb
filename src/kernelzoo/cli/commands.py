"""Commands: `kernelzoo env | train | bench | verify`."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import signal
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

_EXTRA = ("lightning", "torchmetrics", "sklearn", "tokenizers", "safetensors", "matplotlib", "rich")
_RUN, _OPT, _TAB, _TEXT = "The run", "Optimisation", "Tables, series and images", "Text, sound, images made"
_IMAGE, _PLAY = "Images", "Environments"


def _fail(message: object, code: int = 2) -> typer.Exit:
    # under torchrun, one process of many does the talking
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"kernelzoo: {message}", err=True)
    return typer.Exit(code)


@contextlib.contextmanager
def _terminated_as_interrupted():
    """SIGTERM, by which schedulers and containers end a run, ends it as Ctrl-C does, with a word on how to go on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    model: Annotated[
        str,
        typer.Argument(
            help="A model of the zoo: mlp, linear_regression; cnn, resnet18, ...; unet; dcgan; gpt2, bert, lstm_lm, "
            "...; gru_forecaster; wavenet; dqn."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="A table: digits, breast_cancer, diabetes, or a CSV file with a header. Text: stdlib (Python's "
            "own library), a folder or a file. Pairs: number_words, or a file of sources, tabs and targets. A "
            "series: sunspots, or a CSV file with a column of times. Images: digits, or a folder of class folders, of "
            "MNIST's files or of CIFAR-10's. To segment: photographs, or a folder with images/ and masks/. "
            "Sound: a wav file or a folder of them."
        ),
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="To play: cartpole, or an id of gymnasium's.", rich_help_panel=_PLAY)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The CSV column to predict.", rich_help_panel=_TAB)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of a table: classification or regression; unless given, classification if the target holds "
            "text, or whole numbers with at most 20 different values. Of text: lm (next token), mlm (hidden "
            "tokens), classify (a file's top folder), translate (a source's target); unless given, what the model "
            "is made for."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A model option, e.g. --set hidden=256,128 --set n_layer=6."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows, or windows of text, of a whole step; unless given, what suits the model.",
            rich_help_panel=_OPT,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate; unless given, one that suits the run.", rich_help_panel=_OPT),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="On matrices: L2 (3e-3, of images 1e-4; decoupled in adamw), of text and sound 0.1.",
            rich_help_panel=_OPT,
        ),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Short for --set dropout=...", rich_help_panel=_OPT)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="30, of a series 100, of images 60, of photographs 40.", rich_help_panel=_TAB),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, momentum, rmsprop, adam, adamw.", rich_help_panel=_TAB)
    ] = None,
    l1: Annotated[
        float | None, typer.Option(help="L1 on matrices, added to the loss.", rich_help_panel=_TAB)
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            metavar="PATIENCE",
            help="Stop when the validation loss has not fallen for so many epochs; keep the best weights.",
            rich_help_panel=_TAB,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Unless given: 1000, to classify text 300, of dcgan 2000, of dqn 400 episodes.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="As many steps as fit, by the first few's time.", rich_help_panel=_TEXT),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window: 256, the model's positions if fewer, or what suits it; of a series, values read; "
            "of sound, samples: 2048.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-batches that a step is split into.", rich_help_panel=_TEXT)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient: 1; 0 for any.", rich_help_panel=_TEXT)
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Steps before the cosine; a tenth, at most 100.", rich_help_panel=_TEXT),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or bf16 by autocast.", rich_help_panel=_TEXT)
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Of the byte-pair tokenizer trained on the data: 4096.", rich_help_panel=_TEXT),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run whose weights and tokenizer to start from.", rich_help_panel=_TEXT
        ),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between validations; a tenth.", rich_help_panel=_TEXT)
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps; as --eval-every.", rich_help_panel=_TEXT)
    ] = None,
    stop_at: Annotated[
        int | None,
        typer.Option(help="End at this step (of images: epoch); --resume goes on.", rich_help_panel=_TEXT),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="Under torchrun: ddp, or fsdp (each process a shard).", rich_help_panel=_TEXT),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the sample at the end goes on from.", rich_help_panel=_TEXT),
    ] = None,
    sample_tokens: Annotated[
        int | None, typer.Option(help="Length of a sample: 120; 0 for none.", rich_help_panel=_TEXT)
    ] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(help="Resample sound to so many samples a second.", rich_help_panel=_TEXT),
    ] = None,
    sample_seconds: Annotated[
        float | None, typer.Option(help="Length of a sound made at the end: 1.", rich_help_panel=_TEXT)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of samples: 0.8, of sound 1.", rich_help_panel=_TEXT)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Of samples: 40.", rich_help_panel=_TEXT)] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="none, crop (shifted at random), flip (mirrored) or crop,flip; unless given, what suits the data.",
            rich_help_panel=_IMAGE,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Resize the images of a folder, by their shorter side, and cut squares of this side out.",
            rich_help_panel=_IMAGE,
        ),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of the squares to segment: 64.", rich_help_panel=_IMAGE)
    ] = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option(
            "--skip-corrupt",
            help="Leave out, and name, images and sounds that cannot be read.",
            rich_help_panel=_IMAGE,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images: of a folder up to 4, else 0.", rich_help_panel=_IMAGE),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share to validate on: of rows and images 0.2, of a series the last 0.2, of photographs the last "
            "quarter of the columns, of files, pairs and a sound's end 0.1.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_RUN, help="0 unless given.")] = None,
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
        typer.Option(
            "--overwrite", help="Start over where a run lies, finished or not.", rich_help_panel=_RUN
        ),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            help="torch: train the same model in plain PyTorch as well. scratch: without --init-from as well.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="triton, cuda, cpp, numba, torch or auto.", rich_help_panel=_RUN)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_RUN)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_RUN)] = None,
) -> None:
    """Train a model on a table, a series, images, text, sound or a game; say how well it does on what it has not seen.

    On text, several processes train together under `torchrun --nproc-per-node N -m kernelzoo train ...`.
    """
    asked = {key: value for key, value in locals().items() if value is not None and value is not False}
    for key in ("set_", "dropout", "threads"):
        asked.pop(key, None)
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
        with _terminated_as_interrupted():
            training.run(training.configure(options=options, **asked))
    except InputError as error:
        raise _fail(error) from None
    except TrainingError as error:
        raise _fail(error, code=1) from None
    except Stopped as error:
        raise _fail(f"{error}; add --resume to go on from the last checkpoint", code=130) from None


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
