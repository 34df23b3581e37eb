"""Pairs of a source and its target: numbers in figures and in words, or a file of them."""

from __future__ import annotations

import difflib
import hashlib
import random
from pathlib import Path

from .tabular import InputError
from .text import Corpus, Document, read_text

NUMBER_WORDS = "number_words"
TAB = "\t"
# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_DRAWN = 5000


def in_words(n: int) -> str:
    """An English cardinal from 0 to 999,999, without "and" or hyphens: 1234 is one thousand two hundred thirty four."""
    if n >= 1000:
        return in_words(n // 1000) + " thousand" + _rest(n % 1000)
    if n >= 100:
        return ONES[n // 100] + " hundred" + _rest(n % 100)
    if n >= 20:
        return TENS[n // 10 - 2] + _rest(n % 10)
    return ONES[n]


def _rest(n: int) -> str:
    return " " + in_words(n) if n else ""


def load_pairs(name: str, val_fraction: float) -> Corpus:
    """`number_words`, or a UTF-8 file with a source, a tab and a target on each line, as a corpus of documents.

    number_words: every number below 1000, and 5000 each of 4, 5 and 6 digits, drawn once and for all; in figures ->
    in words (`in_words`). Held out is the share `val_fraction` of the sources, those of the smallest
    hash: no held-out source is trained on. Raises InputError, naming the line, where one is no pair.
    """
    if name == NUMBER_WORDS and not Path(name).exists():
        pairs = {i: (str(n), in_words(n)) for i, n in enumerate(_numbers())}
    else:
        pairs = _read(Path(name))
    sources = {source for source, _ in pairs.values()}
    if len(sources) < 2:
        raise InputError(
            f"--data {name}: {len(sources)} different source(s); one to train on and one to hold out are needed"
        )
    n = min(max(1, round(len(sources) * val_fraction)), len(sources) - 1)
    held_out = set(sorted(sources, key=lambda source: hashlib.sha256(source.encode()).digest())[:n])
    return Corpus(
        name,
        tuple(
            Document(str(i), source + TAB + target, source in held_out)
            for i, (source, target) in pairs.items()
        ),
    )


def _numbers() -> list[int]:
    draw = random.Random(0)
    drawn = (draw.sample(range(10**digits, 10 ** (digits + 1)), _DRAWN) for digits in (3, 4, 5))
    return [*range(1000), *(n for part in drawn for n in sorted(part))]


def _read(path: Path) -> dict[int, tuple[str, str]]:
    """line number -> source, target; empty lines are left out."""
    if not path.is_file():
        close = difflib.get_close_matches(str(path), [NUMBER_WORDS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(
            f"--data {path}: no such file{hint} (pairs are {NUMBER_WORDS}, or a file with a source, a tab and "
            f"a target on each line)"
        )
    text = read_text(path)
    if text is None:
        raise InputError(f"--data {path} is not UTF-8 text")
    pairs = {}
    for number, line in enumerate(text.split("\n"), 1):
        parts = [part.strip() for part in line.split(TAB)]
        if parts == [""]:
            continue
        if len(parts) != 2 or not all(parts):
            what = "an empty source or target" if len(parts) == 2 else f"{len(parts) - 1} tab(s)"
            raise InputError(
                f"--data {path}, line {number}: {what} in {line[:60]!r}; expected a source, one tab and a target"
            )
        pairs[number] = (parts[0], parts[1])
    return pairs
