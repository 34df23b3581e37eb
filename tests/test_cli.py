"""The command line, end to end."""

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("lightning")

from typer.testing import CliRunner

from kernelzoo.cli.commands import app


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def kernelzoo(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def test_train_on_digits_beside_torch(tmp_path):
    out = tmp_path / "run"
    how = ("--compare", "torch", "--threads", 1)
    result = kernelzoo("train", "mlp", "--data", "digits", *how, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "largest weight difference" in result.stdout
    assert "median step, ms" in result.stdout
    files = {path.name for path in out.iterdir()}
    assert files == {"checkpoint.ckpt", "curves.png", "metrics.json", "model.safetensors"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "metrics.json").read_text())["results"]
    assert all(results[name]["metrics"]["accuracy"] >= 0.97 for name in ("kernelzoo", "torch"))
    assert set(results["torch"]["metrics"]) == {"accuracy", "precision", "recall", "f1"}


def test_train_on_a_csv_file_with_text_classes(tmp_path):
    path = tmp_path / "flowers.csv"
    rows = [f"{i % 2 + 0.01 * i},{i},{('rose', 'tulip')[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["size,height,kind", *rows]))
    out = tmp_path / "run"
    arguments = (
        "--data",
        path,
        "--target",
        "kind",
        "--epochs",
        20,
        "--batch-size",
        8,
        "--out",
        out,
        "--threads",
        1,
    )
    model = ("mlp", "--set", "hidden=16,", "--set", "act=('leaky_relu', 0.1)", "--dropout", 0.1)
    result = kernelzoo(
        "train", *model, *arguments, "--optimizer", "adamw", "--l1", 1e-5, "--early-stopping", 5
    )
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["options"]["hidden"] == [16]
    assert metrics["results"]["kernelzoo"]["metrics"]["accuracy"] >= 0.8


CSV = "a,b,y\n" + "\n".join(f"{i},{i * 2},{i % 2}" for i in range(20)) + "\n"
BAD = {
    "model": (["mpl", "--data", "digits"], "no model is called 'mpl'; did you mean 'mlp'?"),
    "data": (["mlp", "--data", "digts"], "no data set is called 'digts'; did you mean digits?"),
    "no-target": (["mlp", "--data", "CSV"], "--target; the columns are a, b, y"),
    "missing-target": (["mlp", "--data", "CSV", "--target", "z"], "has no column 'z'"),
    "text": (["mlp", "--data", "TEXT", "--target", "y"], "line 3, column 'b': 'two' is text"),
    "nan": (["mlp", "--data", "NAN", "--target", "y"], "line 3, column 'b': the value is missing (nan)"),
    "one-class": (["mlp", "--data", "ONE", "--target", "y"], "a single class"),
    "option": (["mlp", "--data", "digits", "--set", "widths=3"], "mlp has no option 'widths'"),
    "no-dropout": (["linear_regression", "--data", "digits", "--dropout", "0.1"], "no option 'dropout'"),
    "dropout": (
        ["mlp", "--data", "digits", "--dropout", "1.5"],
        "dropout probability has to be between 0 and 1",
    ),
    "act": (["mlp", "--data", "digits", "--set", "act=rellu"], "rellu"),
    "size": (["mlp", "--data", "digits", "--set", "out_features=3"], "needs out_features=10"),
    "pair": (["mlp", "--data", "digits", "--set", "hidden"], "--set wants key=value"),
    "optimizer": (["mlp", "--data", "digits", "--optimizer", "adm"], "--optimizer is one of"),
    "lr": (["mlp", "--data", "digits", "--lr", "-1"], "--lr must be positive, got -1.0"),
    "val": (["mlp", "--data", "digits", "--val-fraction", "0.001"], "each part needs at least 10"),
    "compare": (["mlp", "--data", "digits", "--compare", "jax"], "--compare knows torch"),
    "threads": (["mlp", "--data", "digits", "--threads", "0"], "--threads must be at least 1"),
    "backend": (["mlp", "--data", "digits", "--backend", "cdua"], "unknown backend 'cdua'"),
    "steps-of-a-table": (["mlp", "--data", "digits", "--steps", "0"], "--steps means nothing to mlp"),
    "epochs-of-text": (["gpt2", "--data", "BOOK", "--epochs", "3"], "--epochs means nothing to gpt2"),
    "steps-of-a-series": (
        ["gru_forecaster", "--data", "sunspots", "--steps", "3"],
        "--steps means nothing to gru_forecaster, which learns from a series",
    ),
    "no-series": (
        ["gru_forecaster", "--data", "sunspts"],
        "no series is called 'sunspts'; did you mean sunspots",
    ),
    "no-pairs": (["seq2seq", "--data", "nowhere"], "a file with a source, a tab and a target on each line"),
    "lines-that-are-no-pairs": (
        ["seq2seq", "--data", "BOOK"],
        "line 1: 0 tab(s) in 'a line of a small book'",
    ),
    "patches": (["vit", "--data", "digits"], "vit: image_size=8 is not a multiple of patch_size=16"),
    "no-images": (["cnn", "--data", "digts"], "no images are called 'digts'; did you mean digits?"),
    "augment": (
        ["cnn", "--data", "digits", "--augment", "turn"],
        "none, crop, flip or crop,flip, got 'turn'",
    ),
    "channels": (
        ["cnn", "--data", "digits", "--set", "num_channels=3"],
        "needs num_channels=1; leave the option out",
    ),
    "epochs-of-sound": (["wavenet", "--data", "x.wav", "--epochs", "3"], "--epochs means nothing to wavenet"),
    "data-of-a-game": (
        ["dqn", "--data", "digits"],
        "--data means nothing to dqn, which learns from an environment",
    ),
    "no-data": (["cnn"], "--data is missing: cnn learns from images"),
    "steps": (["gpt2", "--data", "BOOK", "--steps", "0"], "--steps must be at least 1, got 0"),
    "steps-and-minutes": (["gpt2", "--data", "BOOK", "--steps", "9", "--minutes", "1"], "give one"),
    "task": (["gpt2", "--data", "BOOK", "--task", "mlm"], "--task of gpt2 is lm, got 'mlm'"),
    "no-text": (["gpt2", "--data", "nowhere"], "no such file or folder"),
    "short-text": (
        ["gpt2", "--data", "BOOK", "--vocab-size", "300"],
        "fewer than one window of --context 256",
    ),
    "vocabulary": (["gpt2", "--data", "BOOK", "--vocab-size", "99"], "--vocab-size must be at least 260"),
    "vocabulary-set": (
        ["gpt2", "--data", "BOOK", "--context", "8", "--set", "vocab_size=9"],
        "leave the option out (--vocab-size sets the tokenizer's)",
    ),
    "heads": (
        ["gpt2", "--data", "BOOK", "--context", "8", "--set", "n_head=3"],
        "n_embd=256 is not a multiple",
    ),
    "negative": (["gpt2", "--data", "BOOK", "--context", "8", "--set", "n_embd=-4"], "gpt2: "),
    "layers": (["gpt2", "--data", "BOOK", "--context", "8", "--set", "n_layer=two"], "gpt2: "),
    "positions": (
        ["gpt2", "--data", "BOOK", "--context", "16", "--set", "n_positions=8"],
        "--context 16: the model has positions for 8 tokens",
    ),
    "precision": (["gpt2", "--data", "BOOK", "--precision", "fp8"], "--precision must be fp32 or bf16"),
    "strategy": (["gpt2", "--data", "BOOK", "--strategy", "zero"], "--strategy must be ddp or fsdp"),
    "batch": (["gpt2", "--data", "BOOK", "--accumulate", "3"], "does not split into 1 process(es) x"),
    "scratch": (
        ["bert", "--data", "BOOK", "--compare", "scratch"],
        "compares with the weights of --init-from",
    ),
    "init": (["bert", "--data", "BOOK", "--init-from", "nowhere"], "no model.safetensors there"),
    "init-vocabulary": (
        ["bert", "--data", "BOOK", "--init-from", "nowhere", "--vocab-size", "300"],
        "the tokenizer comes from --init-from",
    ),
    "classes": (
        ["bert", "--data", "BOOK", "--task", "classify", "--context", "8"],
        "0 such folder(s) with at least 6 files",
    ),
    "text-backend": (
        ["gpt2", "--data", "BOOK", "--context", "8", "--backend", "cdua"],
        "unknown backend 'cdua'",
    ),
    "out-is-a-file": (
        ["gpt2", "--data", "BOOK", "--context", "8", "--out", "CSV"],
        "is a file; name a folder",
    ),
    "out-below-a-file": (
        ["gpt2", "--data", "BOOK", "--context", "8", "--out", "BOOK/run"],
        "cannot be written",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_says_so_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERNELZOO_CACHE", os.devnull)
    rows = CSV.splitlines()
    files = {
        "CSV": CSV,
        "TEXT": "\n".join([*rows[:2], "1,two,0", *rows[3:]]),
        "NAN": "\n".join([*rows[:2], "1,nan,0", *rows[3:]]),
        "ONE": "\n".join([rows[0], *(row[:-1] + "1" for row in rows[1:])]),
        "BOOK": "a line of a small book\n" * 40,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    before = sorted(tmp_path.iterdir())
    result = kernelzoo(
        "train", *(f"{a}.csv" if a in files else a.replace("BOOK/", "BOOK.csv/") for a in arguments)
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_train_on_text_resumes_and_writes_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELZOO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of a small book\n" for i in range(200)))
    size = ("--set", "n_layer=1", "--set", "n_embd=16", "--set", "n_head=2", "--dropout", 0.1)
    how = ("--steps", 4, "--batch-size", 2, "--context", 16, "--vocab-size", 280, "--precision", "bf16")
    command = ("train", "gpt2", "--data", path, *size, *how, "--out", tmp_path / "run", "--threads", 1)
    result = kernelzoo(*command, "--stop-at", 2, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "stopped after step 2 of 4; --resume goes on" in result.stdout
    result = kernelzoo(*command, "--prompt", "line", "--sample-tokens", 5, "--resume", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "tokens/s" in result.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["options"]["attn_pdrop"] == 0.1
    assert (tmp_path / "run" / "samples.txt").read_text().startswith("line")
    assert kernelzoo(*command, "--resume", "--lr", 0.5).exit_code == 2


@pytest.mark.parametrize(
    ("where", "arguments", "message"),
    [
        (
            "kernelzoo.train.gan.GanTraining.record",
            ("dcgan", "--steps", 5, "--eval-every", 1, "--batch-size", 8, "--set", "width=4"),
            "interrupted in step 3",
        ),
        (
            "kernelzoo.train.loop.ProgressBar.on_train_epoch_end",
            ("cnn", "--epochs", 5, "--set", "filters=2,2"),
            "interrupted in epoch 2",
        ),
    ],
    ids=["steps", "epochs"],
)
def test_terminated_run_says_how_to_go_on_and_does(tmp_path, monkeypatch, where, arguments, message):
    owner, _, name = where.rpartition(".")
    module, _, kind = owner.rpartition(".")
    owner = getattr(importlib.import_module(module), kind)
    usual, calls, handler = getattr(owner, name), [], signal.getsignal(signal.SIGTERM)

    def ended(*args):
        result = usual(*args)
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, name, ended)
    how = ("--data", "digits", "--out", tmp_path / "run", "--threads", 1, "--device", "cpu")
    result = kernelzoo("train", *arguments, *how)
    assert result.exit_code == 130
    assert f"{message}; add --resume to go on from the last checkpoint" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is handler
    result = kernelzoo("train", *arguments, *how, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "resuming" in result.stdout
    assert "5 of 5: " in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a backend that needs a CUDA device")
def test_backend_that_is_not_here_says_why(tmp_path):
    result = kernelzoo("train", "mlp", "--data", "digits", "--backend", "cuda", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--backend cuda" in result.stderr
    assert not (tmp_path / "run").exists()


def test_truncated_checkpoint_exits_with_2(tmp_path):
    arguments = ("train", "linear_regression", "--data", "diabetes", "--epochs", 1, "--out", tmp_path)
    assert kernelzoo(*arguments).exit_code == 0
    path = tmp_path / "checkpoint.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    result = kernelzoo(*arguments, "--resume")
    assert result.exit_code == 2
    assert "truncated or not a checkpoint" in result.stderr


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_free_of_the_extras():
    code = (
        "import sys, kernelzoo, kernelzoo.zoo, kernelzoo.cli\n"
        "print({'typer', 'lightning', 'rich'} & {*sys.modules})"
    )
    assert python(code).stdout == "set()\n"


@pytest.mark.parametrize("absent", ["typer", "lightning"])
def test_train_without_its_extra_says_what_to_install(absent):
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "sys.argv = ['kernelzoo', 'train', 'mlp', '--data', 'digits']\n"
        "from kernelzoo.cli import main; sys.exit(main())"
    )
    result = python(code)
    assert result.returncode == 2
    assert "pip install kernelzoo[train]" in result.stderr
    assert absent in result.stderr


def test_bench_outside_a_checkout_says_so(tmp_path, monkeypatch):
    from kernelzoo.cli import commands

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "a/b/c/commands.py"))
    result = kernelzoo("bench")
    assert result.exit_code == 2
    assert "checkout" in result.stderr
