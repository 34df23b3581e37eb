"""The command line, end to end."""

import json
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
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_says_so_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    rows = CSV.splitlines()
    files = {
        "CSV": CSV,
        "TEXT": "\n".join([*rows[:2], "1,two,0", *rows[3:]]),
        "NAN": "\n".join([*rows[:2], "1,nan,0", *rows[3:]]),
        "ONE": "\n".join([rows[0], *(row[:-1] + "1" for row in rows[1:])]),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    before = sorted(tmp_path.iterdir())
    result = kernelzoo("train", *(f"{a}.csv" if a in files else a for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


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
