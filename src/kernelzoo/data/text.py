"""A text corpus: which files it is made of, in which order, and which of them are held out."""

from __future__ import annotations

import difflib
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .tabular import InputError

STDLIB = "stdlib"
_SUFFIXES = (".py", ".txt", ".rst")
# what other packages put beside the standard library, caches, and the library's own tests: more than half of
# its source, left out by many distributions
_NOT_STDLIB = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A text of the corpus; `path` is relative to the corpus, with forward slashes."""

    path: str
    text: str
    held_out: bool

    @property
    def group(self) -> str:
        """The first folder of the path, empty for a file at the top."""
        return self.path.partition("/")[0] if "/" in self.path else ""


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their paths; `skipped`: files that are not UTF-8 text."""

    name: str
    documents: tuple[Document, ...]
    skipped: int = 0

    @cached_property
    def digest(self) -> str:
        """Of every path, text and side of the split, in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.path, document.text, str(document.held_out)):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def part(self, held_out: bool) -> list[Document]:
        return [document for document in self.documents if document.held_out is held_out]


def load_text(name: str, val_fraction: float) -> Corpus:
    """`stdlib` (the standard library of the Python that runs), a folder of text files, or one text file.

    A folder's hidden files and folders are left out, and files that are not UTF-8 (or hold a NUL). Held out
    is the share `val_fraction` of the files of each top folder, those of the smallest hash of their path (at
    least one of two); of a single file, its last lines. Raises InputError where there is nothing to read.
    """
    if name == STDLIB and not Path(name).exists():
        root = Path(sysconfig.get_path("stdlib"))
        files = (file for file in _files(root, _NOT_STDLIB) if file.suffix in _SUFFIXES)
        return _folder(name, root, files, val_fraction)
    path = Path(name)
    if path.is_dir():
        return _folder(name, path, _files(path), val_fraction)
    if path.is_file():
        return _single(name, path, val_fraction)
    close = difflib.get_close_matches(name, [STDLIB], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"--data {name}: no such file or folder{hint} (text is {STDLIB}, a folder or a file)")


def _files(root: Path, excluded: set[str] = frozenset()) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"--data {error.filename} cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in excluded and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and (file := Path(folder, name)).is_file():
                yield file


def read_text(path: Path) -> str | None:
    """None where the file is not text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"--data {path} cannot be read: {error.strerror}") from None
    try:
        return None if b"\0" in data else data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


def _folder(name: str, root: Path, files: Iterator[Path], val_fraction: float) -> Corpus:
    # a file name that is not UTF-8 itself still has an order and a hash
    paths = {file.relative_to(root).as_posix().encode(errors="replace").decode(): file for file in files}
    texts, skipped = {}, 0
    for path in sorted(paths):
        text = read_text(paths[path])
        if text is None:
            skipped += 1
        elif text.strip():
            texts[path] = text
    if not texts:
        found = "only files that are not UTF-8 text" if skipped else "no text files"
        raise InputError(f"--data {name}: {found} in {root}")
    held_out = _held_out(list(texts), val_fraction)
    if not held_out:
        raise InputError(
            f"--data {name}: one file of text ({next(iter(texts))}) in the folder leaves none to hold out; "
            "name the file itself, or add files"
        )
    return Corpus(name, tuple(Document(p, text, p in held_out) for p, text in texts.items()), skipped)


def _held_out(paths: list[str], val_fraction: float) -> set[str]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.partition("/")[0] if "/" in path else "", []).append(path)
    if all(len(group) == 1 for group in groups.values()):
        groups = {"": paths}
    chosen: set[str] = set()
    for group in groups.values():
        n = min(max(1, round(len(group) * val_fraction)), len(group) - 1)
        chosen.update(sorted(group, key=lambda path: hashlib.sha256(path.encode()).digest())[:n])
    return chosen


def _single(name: str, path: Path, val_fraction: float) -> Corpus:
    text = read_text(path)
    if text is None:
        raise InputError(f"--data {name} is not UTF-8 text")
    if not text.strip():
        raise InputError(f"--data {name} is empty")
    cut = text.rfind("\n", 0, round(len(text) * (1 - val_fraction))) + 1
    if not text[:cut].strip() or not text[cut:].strip():
        raise InputError(f"--data {name}: too little text to hold the last {val_fraction:g} of its lines out")
    return Corpus(
        name, (Document(path.name, text[:cut], False), Document(path.name + " (end)", text[cut:], True))
    )
