"""A corpus as token numbers: a byte-pair tokenizer trained on it, both cached by what they were made from.

The cache is $KERNELZOO_CACHE, or kernelzoo in $XDG_CACHE_HOME (~/.cache unless set); where it cannot be
written, all is computed anew and held in memory.
Source: R. Sennrich, B. Haddow, A. Birch, Neural machine translation of rare words with subword units, 2016,
arXiv:1508.07909; on bytes: A. Radford et al., Language models are unsupervised multitask learners, 2019.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tabular import InputError
from .text import Corpus

# the number of each is its place; every tokenizer has them all, so that one serves all models
SPECIAL = ("<|pad|>", "<|endoftext|>", "<|mask|>", "<|cls|>")
PAD, END, MASK, CLS = range(4)
LEAST_VOCABULARY = len(SPECIAL) + 256
_CHUNK = 256  # documents tokenized at once: an Encoding holds more than the numbers


@dataclass(frozen=True)
class Part:
    """One side of the split: `ids` (tokens,), each document ended by END; document i is
    ids[offsets[i]:offsets[i + 1]], of the top folder groups[i]; `size` in bytes of text."""

    ids: np.ndarray
    offsets: np.ndarray
    groups: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Tokens:
    tokenizer: Any
    training: Part
    validation: Part

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()


def cache_folder() -> Path:
    if folder := os.environ.get("KERNELZOO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernelzoo"


def digest(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def train_tokenizer(corpus: Corpus, vocab_size: int, *, digits: bool = False) -> Any:
    """A byte-level byte-pair `tokenizers.Tokenizer` of at most `vocab_size` tokens, from the training part.

    digits: each is a token of its own. Raises InputError below 260: every byte and the special tokens have a token
    of their own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < LEAST_VOCABULARY:
        raise InputError(f"--vocab-size must be at least {LEAST_VOCABULARY}, got {vocab_size}")
    path = cache_folder() / "tokenizers" / f"{corpus.digest[:32]}-{vocab_size}{'-digits' * digits}.json"
    if path.is_file():
        return read_tokenizer(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        parts = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in corpus.part(held_out=False)), trainer)
    tokenizer.encode_special_tokens = True  # a text that spells <|endoftext|> means the letters
    _keep(path, lambda part: part.write_text(tokenizer.to_str(), encoding="utf-8"))
    return tokenizer


def read_tokenizer(path: Path) -> Any:
    """The tokenizer.json of a run; InputError where it is none of ours."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is not a tokenizer ({str(error)[:80]})") from None
    found = [tokenizer.id_to_token(i) for i in range(len(SPECIAL))]
    if tuple(found) != SPECIAL:
        raise InputError(f"{path} is not a tokenizer of kernelzoo train: it starts with {found}")
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize(corpus: Corpus, tokenizer: Any) -> Tokens:
    """Both parts of the corpus in token numbers, memory-mapped from the cache."""
    folder = cache_folder() / "tokens" / f"{corpus.digest[:32]}-{digest(tokenizer)[:32]}"
    return Tokens(
        tokenizer,
        _part(corpus, False, tokenizer, folder / "training"),
        _part(corpus, True, tokenizer, folder / "validation"),
    )


def _part(corpus: Corpus, held_out: bool, tokenizer: Any, folder: Path) -> Part:
    documents = corpus.part(held_out)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    groups = tuple(document.group for document in documents)
    size = sum(len(document.text.encode()) for document in documents)

    def cached() -> Part | None:
        try:
            offsets = np.load(folder / "offsets.npy")
            ids = np.memmap(folder / "ids.bin", dtype=dtype, mode="r")
        except (OSError, ValueError):
            return None
        whole = len(offsets) == len(documents) + 1 and offsets[-1] == len(ids)
        return Part(ids, offsets, groups, size) if whole else None

    def write(part: Path) -> None:
        part.mkdir()
        ids.tofile(part / "ids.bin")
        np.save(part / "offsets.npy", offsets)
        about = {"corpus": corpus.name, "digest": corpus.digest, "documents": len(documents)}
        (part / "about.json").write_text(json.dumps(about) + "\n")

    if (part := cached()) is not None:
        return part
    pieces = []
    for start in range(0, len(documents), _CHUNK):
        texts = [document.text for document in documents[start : start + _CHUNK]]
        for encoding in tokenizer.encode_batch_fast(texts):
            pieces.append(np.array([*encoding.ids, END], dtype=dtype))
    ids = np.concatenate(pieces)
    offsets = np.cumsum([0, *map(len, pieces)])
    _keep(folder, write)
    return cached() or Part(ids, offsets, groups, size)


def _keep(path: Path, write: Any) -> None:
    """Let `write` make a file or folder beside `path`, then rename it; a cache that cannot be written is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
    except OSError:
        return
    try:
        write(temporary / "made")
        if path.is_dir():  # half of an older one
            shutil.rmtree(path)
        (temporary / "made").replace(path)
    except OSError:
        pass
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
