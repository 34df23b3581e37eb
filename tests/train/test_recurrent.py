"""Recurrent models on text: carried states, resumption, F1, translation, and what is refused."""

import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("tokenizers")

from rich.console import Console

from kernelzoo import train, zoo
from kernelzoo.data import InputError, load_pairs, load_text
from kernelzoo.data.pairs import in_words
from kernelzoo.data.tokens import END, PAD, read_tokenizer, tokenize, train_tokenizer
from kernelzoo.data.windows import IGNORED, make_data
from kernelzoo.train.config import flag

from . import corpus

SPELLED = {"a": "A", "b": "B", "c": "C", "d": "D"}


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELZOO_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path):
    return corpus.write(tmp_path / "texts")


@pytest.fixture
def pairs(tmp_path):
    """Up to three letters -> the first of them, a capital."""
    letters = ["", *SPELLED]
    sources = sorted({a + b + c for a in letters for b in letters for c in letters} - {""})
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{s}\t{SPELLED[s[0]]}\n" for s in sources))
    return path


def run(out, data, model="lstm_lm", **how):
    console = Console(file=io.StringIO())
    how = {"steps": 6, "batch_size": 4, "context": 16, "eval_every": 2, "vocab_size": 300, **how}
    how = {"device": "cpu", "sample_tokens": 4, "val_fraction": 0.2, **how}
    options = {**corpus.TINY[model], **how.pop("options", {})}
    result = train.run(train.LanguageConfig(model, str(data), options=options, out=out, **how), console)
    return {**result, "printed": console.file.getvalue()}


def weights(out):
    return (out / "model.safetensors").read_bytes()


def history(result, name="kernelzoo"):
    return result["results"][name]["history"]


def tokens_of(texts):
    found = load_text(str(texts), 0.2)
    return tokenize(found, train_tokenizer(found, 300))


def test_windows_go_on_along_each_row_and_show_every_token_once_a_round(texts):
    tokens = tokens_of(texts)
    ids = tokens.training.ids
    data = make_data("stream", tokens, 7)
    rows, round_ = 3, -(-len(ids) // (3 * 7))
    batches = [data.batch(5, step, rows) for step in range(round_ + 1)]
    for batch, after in itertools.pairwise(batches):
        assert batch.labels.shape == (rows, 8)
        assert batch.input_ids.equal(batch.labels[:, :-1])
        assert batch.labels[:, -1].equal(after.input_ids[:, 0])
    stream = torch.cat([batch.input_ids for batch in batches], 1)
    # a row's share of the ring is where the next row began
    share = np.diff(np.arange(rows + 1) * len(ids) // rows)
    ring = torch.cat([row[:n] for row, n in zip(stream, share, strict=True)]).tolist()
    assert sorted(ring) == sorted(ids.tolist())
    at = ring.index(END) + 1
    documents = split(ring[at:] + ring[:at])
    offsets = tokens.training.offsets
    expected = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert sorted(documents) == sorted(expected)
    assert documents != expected
    assert not data.batch(6, 0, rows).labels.equal(batches[0].labels)
    assert make_data("stream", tokens, 7).batch(5, 1, rows).labels.equal(batches[1].labels)


def split(ids):
    """The documents of a stream that ends with END."""
    documents = [[]]
    for token in ids:
        documents[-1].append(token)
        if token == END:
            documents.append([])
    return documents[:-1]


def test_validation_rows_are_a_few_windows_long(texts):
    tokens = tokens_of(texts)
    batch = make_data("stream", tokens, 8).validation(128)
    assert batch.labels.shape[1] == 4 * 8 + 1
    stream = tokens.validation.ids
    assert batch.labels.flatten().tolist() == stream[: batch.labels.numel()].tolist()
    short = make_data("stream", tokens, len(stream) - 1).validation(128)
    assert short.labels.shape == (1, len(stream))


def test_training_carries_the_state_and_resets_it_between_texts(tmp_path, texts):
    # a learning rate that moves nothing: what is seen is the state alone
    still = {"lr": 1e-12, "weight_decay": 0.0, "eval_every": 1, "steps": 5, "context": 24, "accumulate": 2}
    result = run(tmp_path / "run", texts, **still)
    tokens = tokenize(load_text(str(texts), 0.2), read_tokenizer(tmp_path / "run" / "tokenizer.json"))
    data = make_data("stream", tokens, 24)
    batches = [data.batch(0, step, 4) for step in range(5)]
    ids = torch.cat([batch.input_ids for batch in batches], 1)
    labels = torch.cat([batch.labels[:, 1:] for batch in batches], 1)
    assert (ids[:, 1:] == END).any()
    model = zoo.load("lstm_lm", tmp_path / "run" / "model.safetensors")
    losses = torch.nn.functional.cross_entropy(model(ids).transpose(1, 2), labels, reduction="none")
    for row, part in zip(history(result), losses.split(24, 1), strict=True):
        assert row["train_loss"] == pytest.approx(part.mean().item(), rel=1e-5)
    state = torch.load(tmp_path / "run" / "checkpoint.ckpt", weights_only=True)
    cache = model.new_cache()
    model(ids, cache=cache)
    for part, expected in zip(state["carried"], cache.parts, strict=True):
        torch.testing.assert_close(part, expected)


CASES = {
    "lstm_lm-dropout": ("lstm_lm", {"options": {"dropout": 0.2, "num_layers": 2}}),
    "lstm_lm-accumulate": ("lstm_lm", {"accumulate": 2}),
    "char_rnn": ("char_rnn", {"vocab_size": None}),
    "lstm_classifier": ("lstm_classifier", {}),
    "seq2seq": ("seq2seq", {}),
}


@pytest.mark.parametrize(("model", "how"), CASES.values(), ids=CASES)
def test_resumed_run_ends_as_an_uninterrupted_one(tmp_path, texts, pairs, model, how):
    data = pairs if model == "seq2seq" else texts
    whole = run(tmp_path / "whole", data, model, **how)
    stopped = run(tmp_path / "parts", data, model, stop_at=3, **how)
    assert stopped["stopped"]
    resumed = run(tmp_path / "parts", data, model, resume=True, **how)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert history(resumed) == history(whole)


@pytest.mark.parametrize("model", ["lstm_lm", "lstm_classifier", "seq2seq"])
def test_comparison_trains_the_same_model_in_plain_torch(tmp_path, texts, pairs, model):
    data = pairs if model == "seq2seq" else texts
    result = run(tmp_path, data, model, compare="torch", backend="torch")
    for ours, plain in zip(history(result), history(result, "torch"), strict=True):
        assert ours["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
        assert ours["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)
    assert result["largest_weight_difference"] < 1e-3 * result["largest_weight"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


VARIED = {
    "lstm_lm": {"layer_norm": True, "peephole": True, "proj_size": 8, "zoneout": (0.1, 0.1)},
    "lstm_classifier": {"layer_norm": True, "heads": 2},
    "seq2seq": {"recurrent_dropout": 0.1, "weight_dropout": 0.1},
}


@pytest.mark.parametrize("model", VARIED)
def test_options_of_the_layers(tmp_path, texts, pairs, model):
    """Trained, resumed and written; a comparison with plain PyTorch, which lacks them, is refused at once."""
    data = pairs if model == "seq2seq" else texts
    how = {"steps": 2, "eval_every": 2, "options": VARIED[model]}
    run(tmp_path / "run", data, model, stop_at=1, **how)
    run(tmp_path / "run", data, model, resume=True, **how)
    loaded = zoo.load(model, tmp_path / "run" / "model.safetensors")
    for name, value in VARIED[model].items():
        assert loaded.options[name] == (list(value) if isinstance(value, tuple) else value)
    with pytest.raises(InputError, match=f"{model}: .* is an option of kernelzoo.nn"):
        run(tmp_path / "compared", data, model, compare="torch", **how)
    assert not (tmp_path / "compared").exists()


def test_language_model_learns_and_writes(tmp_path, texts):
    result = run(tmp_path, texts, steps=40, eval_every=20, lr=1e-2, prompt="the kernel", sample_tokens=30)
    first, last = history(result)
    assert last["val_loss"] < first["val_loss"] < np.log(300)
    assert last["bits_per_byte"] < first["bits_per_byte"]
    # a window of 16 tokens is no limit to a recurrence
    assert len(read_tokenizer(tmp_path / "tokenizer.json").encode(result["samples"][0]).ids) > 20
    assert result["samples"][0].startswith("the kernel")


def test_char_rnn_reads_bytes(tmp_path, texts):
    result = run(tmp_path, texts, "char_rnn", vocab_size=None, steps=1)
    assert result["vocab_size"] == 260
    # every byte a token, and the end of each file
    for side in ("training", "validation"):
        documents = load_text(str(texts), 0.2).part(side == "validation")
        size = sum(len(document.text.encode()) + 1 for document in documents)
        assert result["corpus"]["tokens"][side] == size


def test_classifier_tells_folders_apart_and_shows_f1(tmp_path, texts):
    result = run(tmp_path, texts, "lstm_classifier", steps=30, lr=1e-2, eval_every=15)
    assert result["task"] == "classify"
    assert result["classes"] == ["alpha", "beta"]
    assert result["results"]["kernelzoo"]["metrics"]["f1"] > 0.9
    assert "f1" in result["printed"]
    assert zoo.load("lstm_classifier", tmp_path / "model.safetensors").label_names == ("alpha", "beta")


def test_translator_learns_and_reports_exact_matches(tmp_path, pairs):
    result = run(tmp_path, pairs, "seq2seq", steps=60, batch_size=16, lr=2e-2, eval_every=30)
    reported = result["results"]["kernelzoo"]["metrics"]["exact_match"]
    assert reported > 0.5
    model = zoo.load("seq2seq", tmp_path / "model.safetensors")
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json")
    held_out = [document.text.split("\t") for document in load_pairs(str(pairs), 0.2).part(held_out=True)]
    right = 0
    for source, target in held_out:
        out = model.generate(torch.tensor([tokenizer.encode(source).ids]), max_new_tokens=30)[0, 1:]
        right += tokenizer.decode(out.tolist()) == target
    assert reported == pytest.approx(right / len(held_out))
    assert result["corpus"]["pairs"] == {"training": 84 - len(held_out), "validation": len(held_out)}
    for line in result["samples"]:
        source, _, written = line.partition(" → ")
        target = dict(held_out)[source]
        assert written == target or written.endswith(f"   (is {target})")


def test_pairs_are_cut_at_their_tab_and_padded(pairs):
    found = load_pairs(str(pairs), 0.2)
    tokens = tokenize(found, train_tokenizer(found, 300, digits=True))
    data = make_data("translate", tokens, 16)
    batch = data.batch(0, 0, 32)
    assert batch.attention_mask.equal(batch.input_ids != PAD)
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        source = tokens.tokenizer.decode(ids[ids != PAD].tolist())
        target = labels[labels != IGNORED].tolist()
        assert target[-1] == END
        assert tokens.tokenizer.decode(target[:-1]) == SPELLED[source[0]]
    assert data.batch(0, 0, 32).labels.equal(batch.labels)
    lengths = [len(row[row != IGNORED]) for row in data.validation(1000).labels]
    assert len(lengths) == len(tokens.validation.groups)
    with pytest.raises(
        InputError, match=r"--context 1: training pair \d+ has a (source|target) of \d tokens"
    ):
        make_data("translate", tokens, 1)


def test_numbers_in_words():
    assert in_words(0) == "zero"
    assert in_words(1234) == "one thousand two hundred thirty four"
    assert in_words(19) == "nineteen"
    assert in_words(20) == "twenty"
    assert in_words(700_015) == "seven hundred thousand fifteen"
    assert in_words(999_999) == ("nine hundred ninety nine thousand nine hundred ninety nine")
    words = load_pairs("number_words", 0.1)
    pairs = [document.text.split("\t") for document in words.documents]
    assert len(pairs) == len({source for source, _ in pairs}) == 16_000
    assert all(in_words(int(source)) == target for source, target in pairs)
    assert len({target for _, target in pairs}) == 16_000
    held_out = words.part(held_out=True)
    assert len(held_out) == 1600
    assert words.digest == load_pairs("number_words", 0.1).digest
    found = train_tokenizer(words, 4096, digits=True)
    assert len(found.encode("123456").ids) == 6


def test_a_source_is_on_one_side_only(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"source {i % 5}\ttarget {i}\n" for i in range(50)) + "\n\n")
    sides = {}
    for document in load_pairs(str(path), 0.4).documents:
        sides.setdefault(document.text.split("\t")[0], set()).add(document.held_out)
    assert sorted(map(len, sides.values())) == [1] * 5
    assert sum(side == {True} for side in sides.values()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nc d\n", r"line 2: 0 tab\(s\) in 'c d'; expected a source, one tab and a target"),
        (b"a\tb\tc\n", r"line 1: 2 tab\(s\)"),
        (b"a\tb\n\t c\n", "line 2: an empty source or target"),
        (b"a\tb\na\tc\n", r"1 different source\(s\)"),
        (b"", r"0 different source\(s\)"),
        (b"a\tb\xff\n", "is not UTF-8 text"),
        (None, "no such file; did you mean number_words"),
    ],
    ids=["no-tab", "two-tabs", "empty", "one-source", "nothing", "binary", "missing"],
)
def test_files_that_are_no_pairs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    name = "number_wrds"
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", name, "seq2seq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            "lstm_lm",
            {"context": 5000},
            "fewer than one window of --context 5000 and the token after it; add text",
        ),
        ("lstm_lm", {"options": {"embedding_size": 5}}, "embedding_size=5 is not hidden_size=16"),
        ("lstm_lm", {"options": {"eos_token_id": 7}}, "this run needs eos_token_id=1; leave the option out"),
        ("lstm_lm", {"options": {"num_layers": 0}}, "num_layers must be greater than zero"),
        ("lstm_lm", {"task": "classify"}, "--task of lstm_lm is lm, got 'classify'"),
        ("lstm_classifier", {"prompt": "x"}, "--prompt: a model of task classify"),
        ("char_rnn", {"options": {"cell": "elman"}}, "cell is 'elman'"),
        (
            "char_rnn",
            {"options": {"cell": "gru", "peephole": True}},
            "peephole=True is an option of LSTMs; the",
        ),
        ("lstm_lm", {"options": {"proj_size": 16}}, "got proj_size=16 and hidden_size=16"),
        ("lstm_lm", {"options": {"layer_norm": "yes"}}, "layer_norm is 'yes'; expected bool"),
        ("lstm_lm", {"options": {"zoneout": "a"}}, "zoneout is 'a'; expected float"),
        ("lstm_lm", {"options": {"layernorm": True}}, "did you mean 'layer_norm'"),
        ("seq2seq", {"strategy": "fsdp"}, "--strategy fsdp"),
        ("seq2seq", {"options": {"bos_token_id": 3}}, "this run needs bos_token_id=1"),
        ("lstm_lm", {"accumulate": 3}, "does not split into"),
    ],
)
def test_bad_input(tmp_path, texts, pairs, model, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", pairs if model == "seq2seq" else texts, model, **change)
    assert not (tmp_path / "run").exists()


def test_checkpoint_without_the_carried_state_is_refused(tmp_path, texts):
    run(tmp_path, texts, stop_at=2)
    path = tmp_path / "checkpoint.ckpt"
    state = torch.load(path, weights_only=True)
    del state["carried"]
    torch.save(state, path)
    with pytest.raises(InputError, match="not a checkpoint of kernelzoo train, or of another kind"):
        run(tmp_path, texts, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_go_on_with_the_state_of_one(tmp_path, texts):
    whole = history(run(tmp_path / "one", texts, eval_every=1, sample_tokens=0))
    out = tmp_path / "parts"
    run(out, texts, eval_every=1, sample_tokens=0, stop_at=3)
    settings = {"steps": 6, "batch_size": 4, "context": 16, "eval_every": 1, "vocab_size": 300, "stop_at": 5}
    settings |= {
        "device": "cpu",
        "sample_tokens": 0,
        "val_fraction": 0.2,
        "threads": 1,
        "data": texts,
        "out": out,
    }
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kernelzoo"]
    command += ["train", "lstm_lm", "--resume", *(f"{flag(key)}={value}" for key, value in settings.items())]
    command += [f"--set={key}={value}" for key, value in corpus.TINY["lstm_lm"].items()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    run(out, texts, eval_every=1, sample_tokens=0, resume=True)
    result = json.loads((out / "metrics.json").read_text())
    for a, b in zip(history(result), whole, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
