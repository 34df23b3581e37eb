"""Training: results beside other people's, checkpoints and resumption, bitwise."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")

from rich.console import Console
from safetensors import safe_open
from sklearn.linear_model import LinearRegression

from kernelzoo import train, zoo
from kernelzoo.data import InputError, load, split
from kernelzoo.train import checkpoint
from kernelzoo.train.engine import TrainingError
from kernelzoo.train.loop import epoch_seed


@pytest.fixture(autouse=True)
def _one_thread():
    # a run in a process of its own must sum in the same order as one in this process
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(out, model="mlp", data="breast_cancer", **how):
    how = {"epochs": 3, "device": "cpu", **how}
    return train.run(train.Config(model, data, out=out, **how), Console(file=io.StringIO()))


def weights(out):
    return (out / "model.safetensors").read_bytes()


def test_linear_regression_matches_least_squares(tmp_path):
    result = run(tmp_path, "linear_regression", "diabetes", epochs=60, weight_decay=0.0)
    data = split(load("diabetes"), 0.2, 0)
    least_squares = LinearRegression().fit(data.x, data.y).score(data.val_x, data.val_y)
    assert abs(result["results"]["kernelzoo"]["metrics"]["r2"] - least_squares) < 0.02


def test_reported_metrics_are_those_of_the_written_weights(tmp_path):
    result = run(tmp_path, data="diabetes", options={"hidden": (8,)})
    data = split(load("diabetes"), 0.2, 0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        normalization = json.loads(file.metadata()["kernelzoo"])["normalization"]
    assert normalization == data.normalization.as_dict()
    model = zoo.load("mlp", tmp_path / "model.safetensors")
    error = (model(data.val_x) - data.val_y).double() * normalization["target_std"]
    reported = result["results"]["kernelzoo"]["metrics"]
    assert reported["mse"] == pytest.approx(error.square().mean().item(), rel=1e-4)
    assert reported["mae"] == pytest.approx(error.abs().mean().item(), rel=1e-4)


def test_comparison_trains_the_same_model_in_plain_torch(tmp_path):
    result = run(tmp_path, compare="torch", backend="torch", options={"dropout": 0.3})
    assert result == json.loads((tmp_path / "metrics.json").read_text())
    ours, plain = result["results"]["kernelzoo"], result["results"]["torch"]
    # the formula on the same seed, data order and dropout masks: what differs is rounding
    assert result["largest_weight_difference"] < 1e-4 * result["largest_weight"]
    assert ours["history"][0]["train_loss"] == pytest.approx(plain["history"][0]["train_loss"], rel=1e-4)
    assert ours["steps_timed"] == plain["steps_timed"] == 3 * 8
    assert ours["median_step_ms"] > 0
    assert ours["metrics"]["accuracy"] == pytest.approx(plain["metrics"]["accuracy"], abs=1 / 114)


SETTINGS = {
    "adam-dropout": {"options": {"dropout": 0.4}},
    "momentum-l1": {"optimizer": "momentum", "l1": 1e-4},
    "rmsprop": {"optimizer": "rmsprop", "weight_decay": 1e-2},
    "adamw-early-stopping": {"optimizer": "adamw", "lr": 0.05, "early_stopping": 2, "epochs": 8},
}


@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, how):
    how = {"epochs": 4, **how}
    whole = run(tmp_path / "whole", **how)
    run(tmp_path / "parts", **{**how, "epochs": 2})
    resumed = run(tmp_path / "parts", resume=True, **how)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    ours, theirs = resumed["results"]["kernelzoo"], whole["results"]["kernelzoo"]
    assert ours["history"] == theirs["history"]
    assert ours["epoch"] == theirs["epoch"]
    if "early_stopping" in how:
        assert theirs["epochs"] < 8
        # a run that has stopped stays stopped
        again = run(tmp_path / "parts", resume=True, **how)["results"]["kernelzoo"]
        assert again["history"] == theirs["history"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_run_killed_by_sigkill_resumes_to_the_same_weights(tmp_path):
    out = tmp_path / "killed"
    how = {"data": "digits", "epochs": 10, "batch_size": 8, "options": {"dropout": 0.3, "hidden": (32,)}}
    command = "train mlp --data digits --epochs 10 --batch-size 8 --dropout 0.3 --set hidden=32, --device cpu"
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelzoo", *command.split(), "--threads", "1", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.ckpt").exists():
            assert process.poll() is None, "training ended by itself"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    done = len(torch.load(out / "checkpoint.ckpt", weights_only=True)["history"])
    assert 1 <= done < 10
    assert not (out / "metrics.json").exists()
    with pytest.raises(InputError, match="unfinished run; --resume continues it, --overwrite starts over"):
        run(out, **how)
    # a kill in the middle of writing leaves such a part behind
    (out / ".checkpoint.ckpt.part").write_bytes(b"half")
    result = run(out, resume=True, **how)
    run(tmp_path / "whole", **how)
    assert weights(out) == weights(tmp_path / "whole")
    assert result["results"]["kernelzoo"]["steps_timed"] == 10 * 180
    assert not list(out.glob("*.part"))


def test_write_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="file cannot be written: No space left on device"):
        checkpoint.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_finished_run_is_kept_unless_told(tmp_path):
    result = run(tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        InputError, match="holds a finished run; --overwrite replaces it, --out names another"
    ):
        run(tmp_path, epochs=1)
    (tmp_path / "checkpoint.ckpt").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="holds a finished run"):
        run(tmp_path, epochs=1, resume=True)
    (tmp_path / "moved").rename(tmp_path / "checkpoint.ckpt")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = run(tmp_path, epochs=1, overwrite=True)
    assert again["results"]["kernelzoo"]["history"] == result["results"]["kernelzoo"]["history"]
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoint.ckpt").unlink()
    with pytest.raises(InputError, match=r"holds a model\.safetensors; --overwrite"):
        run(tmp_path, epochs=1)


class Foreign:
    def __reduce__(self):
        return os.system, ("touch pickle-was-run",)


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def spoil_foreign(path):
    torch.save({"state_dict": {}, "epoch": 3}, path)


def spoil_code(path):
    torch.save({"model": Foreign()}, path)


def spoil_weights(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "model": {"weight": torch.zeros(3)}}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_truncated, "truncated or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "truncated or not a checkpoint"),
        (lambda path: path.write_text("hello"), "truncated or not a checkpoint"),
        (spoil_foreign, "not a checkpoint of kernelzoo train"),
        (spoil_code, "truncated or not a checkpoint"),
        (spoil_weights, "weights of another model"),
    ],
    ids=["truncated", "empty", "text", "foreign", "code", "other-weights"],
)
def test_bad_checkpoints_are_refused_and_nothing_changes(tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    run(out, "linear_regression", epochs=1)
    spoil(out / "checkpoint.ckpt")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=message):
        run(out, "linear_regression", epochs=2, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "lr was 0.01 and is now 0.5"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"data": "digits"}, "belongs to another run: .*data was"),
        ({"epochs": 1}, "has 2 epochs already, --epochs asks for 1"),
    ],
    ids=["lr", "seed", "data", "epochs"],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    run(tmp_path, "linear_regression", epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        run(tmp_path, "linear_regression", resume=True, **{"epochs": 3, **change})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    result = run(tmp_path, optimizer="adamw", lr=0.05, early_stopping=2, epochs=20)["results"]["kernelzoo"]
    losses = [row["val_loss"] for row in result["history"]]
    assert result["epochs"] < 20
    assert result["val_loss"] == min(losses) == losses[result["epoch"] - 1]


def test_divergence_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="training diverged; lower --lr"):
        run(tmp_path, "linear_regression", "diabetes", optimizer="sgd", lr=1e20)


def test_seeds_of_epochs_and_streams_differ_in_their_low_32_bits():
    seeds = {epoch_seed(s, e, k) for s in range(8) for e in range(8) for k in range(2)}
    assert len(seeds) == 128
    assert max(seeds) < 2**32
