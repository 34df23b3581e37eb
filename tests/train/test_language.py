"""Language models on text: what a run writes, resumes, compares and refuses."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("tokenizers")

from rich.console import Console

from kernelzoo import train, zoo
from kernelzoo.data import InputError
from kernelzoo.data.tokens import read_tokenizer
from kernelzoo.train import checkpoint
from kernelzoo.train.engine import TrainingError
from kernelzoo.train.steps import learning_rate

from . import corpus


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    # a run in a process of its own must sum in the same order as one in this process
    monkeypatch.setenv("KERNELZOO_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path):
    return corpus.write(tmp_path / "texts")


def run(out, data, model="gpt2", **how):
    """8 steps of the smallest model, a row of the history every 2."""
    how = {"steps": 8, "batch_size": 4, "context": 16, "eval_every": 2, "vocab_size": 300, **how}
    if "init_from" in how:
        how.pop("vocab_size")
    how = {"device": "cpu", "sample_tokens": 4, "val_fraction": 0.2, **how}
    options = {**({} if "init_from" in how else corpus.TINY[model]), **how.pop("options", {})}
    config = train.LanguageConfig(model, str(data), options=options, out=out, **how)
    return train.run(config, Console(file=io.StringIO()))


def weights(out):
    return (out / "model.safetensors").read_bytes()


def history(result, name="kernelzoo"):
    return result["results"][name]["history"]


def test_run_learns_and_writes_what_it_reports(tmp_path, texts):
    out = tmp_path / "run"
    result = run(out, texts, steps=60, eval_every=30, lr=1e-2, prompt="the kernel")
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.ckpt", "curves.png", "metrics.json", "model.safetensors", "samples.txt", "tokenizer.json",
    }  # fmt: skip
    assert result == json.loads((out / "metrics.json").read_text())
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    first, last = history(result)
    assert last["val_loss"] < first["train_loss"] < math.log(300)
    assert [row["step"] for row in history(result)] == [30, 60]
    assert result["results"]["kernelzoo"]["tokens_per_s"] > 0
    assert (out / "samples.txt").read_text().startswith("the kernel")
    model = zoo.load("gpt2", out / "model.safetensors")
    assert model(torch.tensor([[5, 6, 7]])).shape == (
        1,
        3,
        read_tokenizer(out / "tokenizer.json").get_vocab_size(),
    )


def test_reported_validation_loss_is_that_of_the_written_weights(tmp_path, texts):
    from kernelzoo.data import load_text
    from kernelzoo.data.tokens import tokenize
    from kernelzoo.data.windows import make_data

    result = run(tmp_path, texts)
    tokens = tokenize(load_text(str(texts), 0.2), read_tokenizer(tmp_path / "tokenizer.json"))
    ids = make_data("lm", tokens, 16).validation(128).input_ids
    model = zoo.load("gpt2", tmp_path / "model.safetensors")
    logits = model(ids)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    reported = history(result)[-1]
    assert reported["val_loss"] == pytest.approx(loss, rel=1e-5)
    part = tokens.validation
    bits = loss / math.log(2) * len(part.ids) / part.size
    assert reported["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_comparison_trains_the_same_model_in_plain_torch(tmp_path, texts):
    result = run(tmp_path, texts, compare="torch", backend="torch")
    for ours, plain in zip(history(result), history(result, "torch"), strict=True):
        assert ours["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
        assert ours["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)
    assert result["largest_weight_difference"] < 1e-3 * result["largest_weight"]


@pytest.mark.parametrize("model", ["llama", "roberta"])
def test_other_models_learn_too(tmp_path, texts, model):
    first, *_, last = history(run(tmp_path, texts, model, steps=30, lr=1e-2))
    assert last["val_loss"] < first["val_loss"]


def test_bf16_comes_close_to_fp32(tmp_path, texts):
    fp32 = run(tmp_path / "fp32", texts)
    bf16 = run(tmp_path / "bf16", texts, precision="bf16")
    assert history(bf16)[-1]["val_loss"] == pytest.approx(history(fp32)[-1]["val_loss"], rel=1e-2)
    assert history(bf16)[-1] != history(fp32)[-1]


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path, texts):
    # masked tokens: every micro-batch has another number of them
    whole = run(tmp_path / "whole", texts, "bert")
    parts = run(tmp_path / "parts", texts, "bert", accumulate=4)
    for a, b in zip(history(whole), history(parts), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-5)


def test_clipping_bounds_the_step(tmp_path, texts):
    how = {"steps": 1, "weight_decay": 0.0, "warmup": 0}
    free = run(tmp_path / "free", texts, clip=0.0, **how)
    # AdamW sees a gradient's direction only, until its norm is far below epsilon
    still = run(tmp_path / "still", texts, clip=1e-12, **how)
    assert history(still)[0]["train_loss"] == history(free)[0]["train_loss"]
    assert history(still)[0]["gradient_norm"] == history(free)[0]["gradient_norm"] > 0
    start = zoo.create("gpt2", **still["options"])
    far, near = (distance(start, tmp_path / name) for name in ("free", "still"))
    assert near < 1e-3 < far


def distance(model, folder):
    torch.manual_seed(0)
    start = type(model)(**model.options).state_dict()
    end = zoo.load("gpt2", folder / "model.safetensors").state_dict()
    return max((end[key] - start[key]).abs().max().item() for key in start)


def test_learning_rate_warms_up_and_decays_to_a_tenth():
    config = train.LanguageConfig("gpt2", "stdlib", lr=1.0, warmup=10).scheduled(110)
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "how",
    [{"options": {"resid_pdrop": 0.2}}, {"model": "bert"}, {"model": "bert", "task": "classify"}],
    ids=["lm-dropout", "mlm", "classify"],
)
def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, texts, how):
    whole = run(tmp_path / "whole", texts, **how)
    stopped = run(tmp_path / "parts", texts, stop_at=3, **how)
    assert stopped == {"stopped": True}
    assert not (tmp_path / "parts" / "metrics.json").exists()
    with pytest.raises(InputError, match="unfinished run; --resume continues it"):
        run(tmp_path / "parts", texts, **how)
    resumed = run(tmp_path / "parts", texts, resume=True, **how)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert history(resumed) == history(whole)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_run_killed_by_sigkill_resumes_to_the_same_weights(tmp_path, texts):
    out = tmp_path / "killed"
    how = {"steps": 60, "eval_every": 20, "checkpoint_every": 1}
    settings = [f"--set={key}={value}" for key, value in corpus.TINY["gpt2"].items()]
    command = (
        "--steps 60 --eval-every 20 --checkpoint-every 1 --batch-size 4 --context 16 --vocab-size 300 "
        "--val-fraction 0.2 --device cpu --threads 1"
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kernelzoo", "train", "gpt2", "--data", str(texts), *settings),
            *command.split(),
            *("--out", str(out)),
        ],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.ckpt").exists():
            assert process.poll() is None, "training ended by itself"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert 1 <= torch.load(out / "checkpoint.ckpt", weights_only=True)["step"] < 60
    assert not (out / "metrics.json").exists()
    run(out, texts, resume=True, **how)
    run(tmp_path / "whole", texts, **how)
    assert weights(out) == weights(tmp_path / "whole")


def test_minutes_are_turned_into_steps_once(tmp_path, texts):
    how = {"steps": None, "minutes": 0.02, "eval_every": None}
    assert run(tmp_path, texts, stop_at=1, **how) == {"stopped": True}
    steps = torch.load(tmp_path / "checkpoint.ckpt", weights_only=True)["identity"]["steps"]
    assert steps >= 1
    if steps > 1:
        assert run(tmp_path, texts, resume=True, **how)["steps"] == steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "lr was 0.002 and is now 0.5"),
        ({"steps": 9}, "steps was 8 and is now 9"),
        ({"context": 24}, "context was 16 and is now 24"),
        ({"vocab_size": 310}, "tokenizer was"),
        ({"precision": "bf16"}, "precision was 'fp32' and is now 'bf16'"),
        ({"options": {"n_embd": 32}}, "options was"),
    ],
    ids=["lr", "steps", "context", "vocabulary", "precision", "size"],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, texts, change, message):
    out = tmp_path / "run"
    run(out, texts, stop_at=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=message):
        run(out, texts, resume=True, **change)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_checkpoint_of_changed_text_or_of_a_table_is_refused(tmp_path, texts):
    out = tmp_path / "run"
    run(out, texts, stop_at=2)
    (texts / "top.txt").write_text("other text, of the same file\n")
    with pytest.raises(InputError, match=r"belongs to another run: .*data was"):
        run(out, texts, resume=True)
    train.run(
        train.Config("linear_regression", "diabetes", epochs=1, out=tmp_path / "table", device="cpu"),
        Console(file=io.StringIO()),
    )
    with pytest.raises(InputError, match="not a checkpoint of kernelzoo train, or of another kind"):
        run(tmp_path / "table", texts, resume=True)


def test_pretrained_encoder_is_fine_tuned_beside_one_from_scratch(tmp_path, texts):
    before = run(tmp_path / "mlm", texts, "bert", steps=4)
    assert before["task"] == "mlm"
    out = tmp_path / "classify"
    # the window is as long as the model was made for unless told
    result = run(
        out, texts, "bert", task="classify", init_from=tmp_path / "mlm", compare="scratch", lr=1e-2, steps=60,
        eval_every=30, context=None,
    )  # fmt: skip
    assert result["context"] == 16
    assert result["classes"] == ["alpha", "beta"]
    assert list(result["results"]) == ["pre-trained", "from scratch"]
    for contender in result["results"].values():
        assert set(contender["metrics"]) == {"accuracy", "precision", "recall", "f1"}
        assert contender["metrics"]["f1"] > 0.9
    about = checkpoint_metadata(out)
    assert about["classes"] == ["alpha", "beta"]
    assert about["options"]["num_labels"] == 2
    assert zoo.load("bert", out / "model.safetensors")(torch.tensor([[3, 8, 9]])).shape == (1, 2)


def checkpoint_metadata(out):
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        return json.loads(file.metadata()["kernelzoo"])


def test_start_takes_over_everything_but_the_head(tmp_path, texts):
    run(tmp_path / "mlm", texts, "bert", steps=2)
    # a learning rate that moves nothing
    run(
        tmp_path / "classify", texts, "bert", task="classify", init_from=tmp_path / "mlm", lr=1e-12, steps=1,
        weight_decay=0.0,
    )  # fmt: skip
    before = zoo.load("bert", tmp_path / "mlm" / "model.safetensors").state_dict()
    after = zoo.load("bert", tmp_path / "classify" / "model.safetensors").state_dict()
    for key, value in after.items():
        if not key.startswith("head."):
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-9)
    assert not torch.allclose(after["head.dense.weight"], before["head.dense.weight"])


def test_finished_run_is_kept_unless_told(tmp_path, texts):
    run(tmp_path, texts, steps=1)
    before = weights(tmp_path)
    with pytest.raises(
        InputError, match="holds a finished run; --overwrite replaces it, --out names another"
    ):
        run(tmp_path, texts, steps=2)
    assert weights(tmp_path) == before
    run(tmp_path, texts, steps=2, overwrite=True)
    assert weights(tmp_path) != before


def test_start_is_not_written_over(tmp_path, texts):
    run(tmp_path, texts, "bert", steps=1)
    with pytest.raises(InputError, match="is --out as well; name another folder to write to"):
        run(tmp_path, texts, "bert", init_from=tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"init_from": "nowhere"}, "no model.safetensors there; name the folder of a run"),
        ({"init_from": "gpt2"}, "holds the weights of gpt2; bert is to be trained"),
        (
            {"init_from": "bert", "options": {"hidden_size": 32}},
            "the weights of --init-from have hidden_size=16",
        ),
        ({"init_from": "broken"}, "cannot be read"),
        ({"init_from": "bert", "context": 32}, "--context 32: the model has positions for 16 tokens"),
    ],
    ids=["missing", "other-model", "other-size", "truncated", "context"],
)
def test_weights_to_start_from_are_checked(tmp_path, texts, how, message):
    run(tmp_path / "gpt2", texts, steps=1)
    run(tmp_path / "bert", texts, "bert", steps=1)
    run(tmp_path / "broken", texts, "bert", steps=1)
    path = tmp_path / "broken" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    how = {**how, "init_from": tmp_path / how["init_from"]}
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", texts, "bert", task="classify", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": "abc"}, "^gpt2: n_embd is 'abc'; expected int"),
        ({"n_layer": 2.5}, r"^gpt2: n_layer is 2\.5; expected int"),
        ({"n_layer": -1}, "^gpt2: n_layer is -1; expected 0 or more"),
        ({"n_head": 3}, "^gpt2: n_embd=16 is not a multiple of n_head=3"),
    ],
)
def test_options_of_the_model_are_checked(tmp_path, texts, options, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", texts, options={**corpus.TINY["gpt2"], **options})
    assert not (tmp_path / "run").exists()


def test_divergence_stops_the_run(tmp_path, texts):
    with pytest.raises(TrainingError, match="training diverged; lower --lr"):
        run(tmp_path, texts, lr=1e30, clip=0.0, steps=20)


def test_checkpoint_fails_before_it_replaces(tmp_path, texts, monkeypatch):
    run(tmp_path, texts, stop_at=2)
    before = (tmp_path / "checkpoint.ckpt").read_bytes()

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(InputError, match=r"(ckpt|json) cannot be written: no space"):
        run(tmp_path, texts, resume=True)
    assert (tmp_path / "checkpoint.ckpt").read_bytes() == before
