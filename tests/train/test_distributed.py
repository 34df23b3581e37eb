"""Several processes: the same losses as one, checkpoints that any number of processes goes on from."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("tokenizers")

from rich.console import Console

from kernelzoo import train
from kernelzoo.data import InputError
from kernelzoo.train.config import flag
from kernelzoo.train.distributed import World
from kernelzoo.train.steps import check_split

from . import corpus

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
HOW = {
    "steps": 6,
    "batch_size": 8,
    "context": 16,
    "vocab_size": 300,
    "eval_every": 1,
    "clip": 0.5,
    "lr": 0.01,
}
HOW |= {"val_fraction": 0.2, "device": "cpu"}


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELZOO_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(out, data, model, **how):
    config = train.LanguageConfig(model, str(data), options=corpus.TINY[model], out=out, **{**HOW, **how})
    return train.run(config, Console(file=io.StringIO()))


def together(out, data, model, *switches, **how):
    """The same run by two processes, from the command line; what they print."""
    settings = {**HOW, **how, "out": out, "data": data, "threads": 1}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "kernelzoo", "train", model, *switches]
    command += [f"{flag(key)}={value}" for key, value in settings.items()]
    command += [f"--set={key}={value}" for key, value in corpus.TINY[model].items()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def history(out):
    return next(iter(json.loads((out / "metrics.json").read_text())["results"].values()))["history"]


def assert_same(ours, theirs):
    """Within the noise of sums in another order, grown over a few steps."""
    assert len(ours) == len(theirs) == HOW["steps"]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value == pytest.approx(b[key], rel=1e-4), (key, a["step"])


@pytest.mark.parametrize(
    "how",
    [
        {"task": "mlm", "accumulate": 2},
        pytest.param({"task": "classify"}, marks=pytest.mark.slow),
    ],
    ids=["mlm", "classify"],
)
def test_data_parallel_run_has_the_losses_of_one_process(tmp_path, how):
    # masked tokens, so that each process's part of a batch counts differently
    texts = corpus.write(tmp_path / "texts")
    alone(tmp_path / "one", texts, "bert", **how)
    printed = together(tmp_path / "two", texts, "bert", **how)
    assert_same(history(tmp_path / "two"), history(tmp_path / "one"))
    assert printed.count("step 6 of 6") == 1
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }


def test_sharded_run_goes_on_from_one_process_and_one_process_from_it(tmp_path):
    texts = corpus.write(tmp_path / "texts")
    how = {"sample_tokens": 0}
    alone(tmp_path / "one", texts, "gpt2", **how)
    out = tmp_path / "parts"
    alone(out, texts, "gpt2", stop_at=2, **how)
    printed = together(out, texts, "gpt2", "--resume", strategy="fsdp", stop_at=4, **how)
    assert "stopped after step 4 of 6" in printed
    alone(out, texts, "gpt2", resume=True, **how)
    assert_same(history(out), history(tmp_path / "one"))


def test_batch_that_does_not_split_is_refused():
    config = train.LanguageConfig("gpt2", "stdlib", batch_size=8, accumulate=2)
    check_split(config, World(size=4))
    with pytest.raises(
        InputError, match=r"--batch-size 8 .* does not split into 3 process\(es\) x --accumulate 2"
    ):
        check_split(config, World(size=3))
