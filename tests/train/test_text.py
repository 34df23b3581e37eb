"""Text corpora: which files, which are held out, what is refused; tokens and windows drawn from seed and step."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")

from kernelzoo.data import InputError, load_text
from kernelzoo.data.tokens import (
    CLS,
    END,
    MASK,
    PAD,
    cache_folder,
    digest,
    read_tokenizer,
    tokenize,
    train_tokenizer,
)
from kernelzoo.data.windows import IGNORED, make_data

from . import corpus


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path):
    return load_text(str(corpus.write(tmp_path / "texts")), 0.2)


@pytest.fixture
def tokens(texts):
    return tokenize(texts, train_tokenizer(texts, 300))


def test_standard_library_is_source_in_a_fixed_order_without_what_is_installed_beside_it():
    library = load_text("stdlib", 0.1)
    paths = [document.path for document in library.documents]
    assert paths == sorted(paths)
    assert {"asyncio/events.py", "json/decoder.py", "ast.py"} <= {*paths}
    assert not any("site-packages" in path or "__pycache__" in path for path in paths)
    assert load_text("stdlib", 0.1).digest == library.digest
    for group in ("asyncio", "email", "xml"):
        sides = {document.held_out for document in library.documents if document.group == group}
        assert sides == {True, False}


def test_held_out_files_depend_on_their_paths_alone(tmp_path, texts):
    held = {document.path for document in texts.part(held_out=True)}
    assert len(held) == 2
    assert {path.split("/")[0] for path in held} == {"alpha", "beta"}
    for path in (tmp_path / "texts").rglob("*.txt"):
        path.write_text(path.read_text() + "more\n")
    again = load_text(str(tmp_path / "texts"), 0.2)
    assert {document.path for document in again.part(held_out=True)} == held
    assert again.digest != texts.digest


def test_files_that_are_not_text_are_left_out_and_counted(tmp_path):
    folder = corpus.write(tmp_path / "texts")
    before = load_text(str(folder), 0.2)
    (folder / "alpha" / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "alpha" / "program").write_bytes(b"\x7fELF\0\0")
    (folder / "alpha" / "empty.txt").write_text(" \n")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    after = load_text(str(folder), 0.2)
    assert (after.skipped, after.documents) == (2, before.documents)


def test_single_file_holds_its_last_lines_out(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    training, validation = load_text(str(path), 0.1).documents
    assert training.text + validation.text == path.read_text()
    assert validation.text.splitlines()[0].startswith("line 90")
    assert not training.held_out


def empty_folder(path):
    path.mkdir()


def binary_folder(path):
    path.mkdir()
    (path / "a").write_bytes(b"\0")


def lonely_file(path):
    path.mkdir()
    (path / "a.txt").write_text("text")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_folder, "no text files in"),
        (binary_folder, "only files that are not UTF-8 text"),
        (lonely_file, "leaves none to hold out"),
        (lambda path: path.write_bytes(b"\0\1"), "is not UTF-8 text"),
        (lambda path: path.write_text("\n"), "is empty"),
        (lambda path: path.write_text("one line"), "too little text"),
        (lambda path: None, "no such file or folder"),
    ],
    ids=["empty-folder", "binary-folder", "one-file", "binary", "empty", "short", "missing"],
)
def test_refusals_say_what_is_missing(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        load_text(str(tmp_path / "data"), 0.1)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_is_refused(tmp_path):
    folder = corpus.write(tmp_path / "texts")
    (folder / "alpha").chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        load_text(str(folder), 0.1)


def test_misspelt_stdlib_is_recognised():
    with pytest.raises(InputError, match="did you mean stdlib"):
        load_text("stdlb", 0.1)


def test_tokens_give_the_text_back_byte_by_byte(texts, tokens):
    tokenizer = tokens.tokenizer
    for text in ("naïve ☃ \t\r\n\0", "<|endoftext|> is text here", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    part = tokens.validation
    documents = texts.part(held_out=True)
    assert part.size == sum(len(document.text) for document in documents)
    for i, document in enumerate(documents):
        ids = part.ids[part.offsets[i] : part.offsets[i + 1]]
        assert ids[-1] == END
        assert tokenizer.decode(ids[:-1].tolist()) == document.text


def test_cache_is_memory_mapped_and_equal_to_what_is_computed_without_it(texts, tokens, monkeypatch):
    assert isinstance(tokens.training.ids, np.memmap)
    cached = tokenize(texts, train_tokenizer(texts, 300))
    monkeypatch.setenv("KERNELZOO_CACHE", "/dev/null/nowhere")
    plain = tokenize(texts, train_tokenizer(texts, 300))
    assert not isinstance(plain.training.ids, np.memmap)
    assert digest(cached.tokenizer) == digest(plain.tokenizer) == digest(tokens.tokenizer)
    np.testing.assert_array_equal(cached.training.ids, plain.training.ids)
    np.testing.assert_array_equal(cached.validation.offsets, plain.validation.offsets)


def test_half_written_cache_is_made_anew(texts, tokens):
    whole = np.array(tokens.training.ids)
    path = next(cache_folder().glob("tokens/*/training/ids.bin"))
    path.write_bytes(path.read_bytes()[:-2])
    np.testing.assert_array_equal(tokenize(texts, tokens.tokenizer).training.ids, whole)
    assert len(path.read_bytes()) == 2 * len(whole)


def test_tokenizer_is_the_same_in_another_process(tmp_path, texts, tokens):
    code = (
        "from kernelzoo.data import load_text, tokens as t\n"
        f"c = load_text({str(tmp_path / 'texts')!r}, 0.2)\n"
        "print(t.digest(t.train_tokenizer(c, 300)))"
    )
    environment = {**os.environ, "KERNELZOO_CACHE": str(tmp_path / "other"), "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert out.stdout.strip() == digest(tokens.tokenizer), out.stderr


@pytest.mark.parametrize("content", ["{", '{"a": 1}', None], ids=["broken", "foreign", "missing"])
def test_foreign_tokenizers_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"is not a tokenizer|cannot be read"):
        read_tokenizer(path)


def test_windows_depend_on_seed_and_step_alone(tokens):
    data = make_data("lm", tokens, 16)
    batch = data.batch(seed=3, step=5, rows=8)
    assert batch.input_ids.shape == (8, 16)
    assert batch.input_ids.dtype == torch.int64
    assert batch.labels.equal(batch.input_ids)
    assert data.batch(3, 5, 8).input_ids.equal(batch.input_ids)
    assert not data.batch(3, 6, 8).input_ids.equal(batch.input_ids)
    assert not data.batch(4, 5, 8).input_ids.equal(batch.input_ids)
    stream = tokens.training.ids.tolist()
    windows = {tuple(stream[i : i + 16]) for i in range(len(stream) - 15)}
    assert {tuple(row) for row in batch.input_ids.tolist()} <= windows


def test_validation_windows_lie_side_by_side(tokens):
    ids = make_data("lm", tokens, 16).validation(10_000).input_ids
    whole = len(tokens.validation.ids) // 16 * 16
    np.testing.assert_array_equal(ids.flatten(), tokens.validation.ids[:whole])
    few = make_data("lm", tokens, 16).validation(3).input_ids
    assert few.shape == (3, 16)
    assert few[0].equal(ids[0])
    assert few[-1].equal(ids[-1])


def test_masks_hide_80_replace_10_and_keep_10_percent(tokens):
    data = make_data("mlm", tokens, 17)
    batch = data.batch(0, 0, 2000)
    asked = batch.labels != IGNORED
    assert (batch.input_ids[:, 0] == CLS).all()
    assert not asked[:, 0].any()
    assert asked.any(1).all()
    assert asked[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.03)
    hidden = (batch.input_ids == MASK)[asked].double().mean().item()
    kept = (batch.input_ids == batch.labels)[asked].double().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)
    assert not (batch.input_ids == MASK)[~asked].any()
    assert not (batch.labels == END).any()
    again = data.batch(0, 0, 2000)
    assert again.input_ids.equal(batch.input_ids)
    assert again.labels.equal(batch.labels)
    assert data.validation(5).input_ids.equal(data.validation(5).input_ids)


def test_classes_are_folders_and_pieces_come_from_their_files(tokens):
    data = make_data("classify", tokens, 24)
    assert data.classes == ("alpha", "beta")
    batch = data.batch(0, 0, 64)
    assert set(batch.labels.tolist()) == {0, 1}
    texts = [tokens.tokenizer.decode(row[1:].tolist()) for row in batch.input_ids]
    for text, label in zip(texts, batch.labels.tolist(), strict=True):
        assert ("def" in text or "return" in text) == (label == 1)
    validation = data.validation(8)
    assert validation.labels.tolist() == [0] * 4 + [1] * 4
    assert validation.attention_mask.all()


def test_short_files_are_padded(tmp_path):
    folder = corpus.write(tmp_path / "short", lines=1)
    texts = load_text(str(folder), 0.2)
    batch = make_data("classify", tokenize(texts, train_tokenizer(texts, 300)), 64).batch(0, 0, 4)
    assert batch.input_ids.shape == (4, 64)
    assert batch.attention_mask.equal(batch.input_ids != PAD)
    assert not batch.attention_mask[:, -1].any()
    assert batch.attention_mask[:, :4].all()


@pytest.mark.parametrize(
    ("task", "context", "message"),
    [
        ("lm", 5000, "the training part of the corpus has .* fewer than one window of --context 5000"),
        ("mlm", 400, "the validation part"),
        ("classify", 16, None),
    ],
)
def test_too_little_text_for_a_task(tmp_path, tokens, task, context, message):
    if message is None:
        folder = corpus.write(tmp_path / "few", files=3)
        texts = load_text(str(folder), 0.2)
        tokens, message = tokenize(texts, tokens.tokenizer), r"0 such folder\(s\) with at least 6 files"
    with pytest.raises(InputError, match=message):
        make_data(task, tokens, context)


def test_vocabulary_holds_every_byte(texts):
    with pytest.raises(InputError, match="--vocab-size must be at least 260, got 100"):
        train_tokenizer(texts, 100)
