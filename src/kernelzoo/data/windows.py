"""What a language model is shown at each step, drawn from (seed, step) alone, and what it is validated on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from .tabular import InputError
from .tokens import CLS, MASK, PAD, SPECIAL, Part, Tokens

IGNORED = -100
MASKED = (
    0.15  # J. Devlin et al., BERT, 2019, arXiv:1810.04805, §3.1: of these 80 % MASK, 10 % random, 10 % kept
)
VALIDATION = 2**32  # stands for the step where validation windows are masked
MOST_CLASSES, LEAST_FILES = 12, 6
_TOGETHER = 4  # windows in a validation row of a stream, pairs in place of a validation window


class Batch(NamedTuple):
    """input_ids (rows, context); labels (rows, context), IGNORED where nothing is asked, or (rows,) classes;
    attention_mask (rows, context) bool, or None where every token is one of the text."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def rows(self, index: slice | torch.Tensor) -> Batch:
        mask = self.attention_mask
        return Batch(self.input_ids[index], self.labels[index], None if mask is None else mask[index])

    def to(self, device: str) -> Batch:
        return Batch(*(None if part is None else part.to(device) for part in self))


def stream(seed: int, step: int, number: int) -> np.random.Generator:
    """Random numbers of a step; `number`: 0 windows, 1 masks, 2 the order of documents."""
    return np.random.default_rng(np.random.SeedSequence([seed, step, number]))


@dataclass(frozen=True)
class CausalData:
    """Windows of consecutive tokens; a model shifts the labels itself, so a window of T asks T - 1 times."""

    tokens: Tokens
    context: int
    shift = 1

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        ids = _draw(self.tokens.training, stream(seed, step, 0), rows, self.context)
        return Batch(ids, ids)

    def validation(self, most: int) -> Batch:
        ids = _spread(self.tokens.validation, most, self.context)
        return Batch(ids, ids)


@dataclass(frozen=True)
class StreamData:
    """Windows that go on where the same row's window of the step before ended, for a model that carries its state.

    The training documents, in an order that the seed draws, are a ring; row r of R starts r/R of the way round and
    moves on by `context` tokens a step, for ever. Labels have one token more than the input, so that every token
    is asked for once a round. Validation rows are a few windows long and start from a state of zero.
    """

    tokens: Tokens
    context: int
    shift = 1
    carries = True
    _rings: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        ids = self.tokens.training.ids
        first = np.arange(rows) * len(ids) // rows + step * self.context
        at = (first[:, None] + np.arange(self.context + 1)) % len(ids)
        ends, moved = self._ring(seed)
        return self._asked(ids[at + moved[np.searchsorted(ends, at, side="right")]])

    def validation(self, most: int) -> Batch:
        ids = self.tokens.validation.ids
        together = max(1, min(_TOGETHER, (len(ids) - 1) // self.context))
        return self._asked(
            _spread(self.tokens.validation, max(1, most // together), together * self.context + 1).numpy()
        )

    def _ring(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """By document, in the seed's order: where it ends in the ring, and how far it was moved to get there."""
        if seed not in self._rings:
            offsets = self.tokens.training.offsets
            order = stream(seed, 0, 2).permutation(len(offsets) - 1)
            lengths = np.diff(offsets)[order]
            ends = np.cumsum(lengths)
            self._rings[seed] = ends, offsets[:-1][order] - (ends - lengths)
        return self._rings[seed]

    @staticmethod
    def _asked(ids: np.ndarray) -> Batch:
        labels = torch.from_numpy(ids.astype(np.int64))
        return Batch(labels[:, :-1], labels)


@dataclass(frozen=True)
class MaskedData:
    """CLS and a window, 15 % of whose tokens are asked for; 80 % of these are hidden and 10 % replaced."""

    tokens: Tokens
    context: int
    shift = 0

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        ids = _draw(self.tokens.training, stream(seed, step, 0), rows, self.context - 1)
        return self._hide(ids, stream(seed, step, 1))

    def validation(self, most: int) -> Batch:
        ids = _spread(self.tokens.validation, most, self.context - 1)
        return self._hide(ids, stream(0, VALIDATION, 1))

    def _hide(self, ids: torch.Tensor, random: np.random.Generator) -> Batch:
        asked = torch.from_numpy(random.random(ids.shape) < MASKED) & (ids >= len(SPECIAL))
        # at least one a row, so that the mean over a micro-batch exists; of two neighbours one is no END
        first = (ids[:, 0] < len(SPECIAL)).long()
        asked[torch.arange(len(ids)), first] |= ~asked.any(1)
        how = torch.from_numpy(random.random(ids.shape))
        other = torch.from_numpy(random.integers(len(SPECIAL), self.tokens.vocab_size, ids.shape))
        shown = torch.where(asked & (how < 0.8), MASK, ids)
        shown = torch.where(asked & (how >= 0.8) & (how < 0.9), other, shown)
        labels = torch.where(asked, ids, IGNORED)
        return Batch(_after_cls(shown), torch.nn.functional.pad(labels, (1, 0), value=IGNORED))


class ClassifiedData:
    """CLS and a piece of a file; its class is the file's top folder.

    Classes: the (at most 12) folders with the most training tokens, of those with at least 6 files. A training
    piece is drawn from all pieces of a class drawn at random; held-out files give every class equally many
    pieces, evenly spread, as far as they reach. A file shorter than a piece is padded.
    """

    shift = 0

    def __init__(self, tokens: Tokens, context: int) -> None:
        self.tokens, self.context = tokens, context
        files: dict[str, int] = {}
        sizes: dict[str, int] = {}
        held = set(tokens.validation.groups)
        training = tokens.training
        for part in (training, tokens.validation):
            for group in part.groups:
                files[group] = files.get(group, 0) + 1
        for group, length in zip(training.groups, np.diff(training.offsets), strict=True):
            sizes[group] = sizes.get(group, 0) + int(length)
        groups = [g for g in sizes if g and g in held and files[g] >= LEAST_FILES]
        self.classes = tuple(sorted(sorted(groups, key=lambda g: (-sizes[g], g))[:MOST_CLASSES]))
        if len(self.classes) < 2:
            raise InputError(
                f"--task classify names a file's top folder; the data has {len(self.classes)} such "
                f"folder(s) with at least {LEAST_FILES} files, and at least 2 are needed"
            )
        # by class: where each file starts, and how many tokens the files before it and it have
        self._files = [self._of(training, group) for group in self.classes]

    @staticmethod
    def _of(part: Part, group: str) -> np.ndarray:
        """(files, 2): start and end, without the END."""
        return np.array(
            [(part.offsets[i], part.offsets[i + 1] - 1) for i, g in enumerate(part.groups) if g == group]
        )

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        random = stream(seed, step, 0)
        labels = random.integers(len(self.classes), size=rows)
        pieces = []
        for label, share in zip(labels, random.random(rows), strict=True):
            files = self._files[label]
            # a token of the class, and the piece of its file that starts there, or at the last whole piece
            lengths = np.cumsum(files[:, 1] - files[:, 0])
            token = int(share * lengths[-1])
            file = int(np.searchsorted(lengths, token, side="right"))
            start = files[file, 1] - (lengths[file] - token)
            pieces.append(self._piece(self.tokens.training, files[file], start))
        return self._batch(pieces, labels)

    def validation(self, most: int) -> Batch:
        part = self.tokens.validation
        pieces, labels = [], []
        for label, group in enumerate(self.classes):
            own = [(file, s) for file in self._of(part, group) for s in range(*file, self.context - 1)]
            chosen = np.linspace(0, len(own) - 1, min(len(own), max(1, most // len(self.classes))))
            pieces += [self._piece(part, *own[round(i)]) for i in chosen]
            labels += [label] * len(chosen)
        return self._batch(pieces, np.array(labels))

    def _piece(self, part: Part, file: np.ndarray, start: int) -> np.ndarray:
        start = max(file[0], min(start, file[1] - (self.context - 1)))
        return part.ids[start : min(start + self.context - 1, file[1])]

    def _batch(self, pieces: list[np.ndarray], labels: np.ndarray) -> Batch:
        ids = _after_cls(_padded(pieces, PAD, self.context - 1))
        return Batch(ids, torch.from_numpy(labels), ids != PAD)


class PairData:
    """A source and its target, documents that a tab divides; the target's tokens and END are asked for.

    A row is drawn from all pairs alike; rows are padded to the longest of the batch.
    """

    shift = 0

    def __init__(self, tokens: Tokens, context: int) -> None:
        (self._tab,) = tokens.tokenizer.encode("\t").ids
        self.tokens = tokens
        self._training, self._validation = self._cuts(tokens.training), self._cuts(tokens.validation)
        for name, cuts in (("training", self._training), ("validation", self._validation)):
            sides = cuts[:, 1] - cuts[:, 0], cuts[:, 2] - cuts[:, 1] - 1
            for side, lengths in zip(("source", "target"), sides, strict=True):
                if lengths.max() > context:
                    raise InputError(
                        f"--context {context}: {name} pair {lengths.argmax() + 1} has a {side} of {lengths.max()} "
                        f"tokens; raise --context or shorten the pair"
                    )

    def _cuts(self, part: Part) -> np.ndarray:
        """(pairs, 3): where each begins, its tab, and its end behind the END."""
        tabs = np.flatnonzero(np.asarray(part.ids) == self._tab)
        return np.stack([part.offsets[:-1], tabs, part.offsets[1:]], 1)

    @property
    def row_tokens(self) -> float:
        """Of source and target, on average."""
        return float((self._training[:, 2] - self._training[:, 0] - 1).mean())

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        chosen = stream(seed, step, 0).integers(len(self._training), size=rows)
        return self._rows(self.tokens.training, self._training[chosen])

    def validation(self, most: int) -> Batch:
        most, cuts = _TOGETHER * most, self._validation
        chosen = np.linspace(0, len(cuts) - 1, min(len(cuts), most)).round().astype(int)
        return self._rows(self.tokens.validation, cuts[chosen])

    def _rows(self, part: Part, cuts: np.ndarray) -> Batch:
        sources = _padded([part.ids[start:tab] for start, tab, _ in cuts], PAD)
        targets = _padded([part.ids[tab + 1 : end] for _, tab, end in cuts], IGNORED)
        return Batch(sources, targets, sources != PAD)


def _padded(rows: list[np.ndarray], value: int, length: int | None = None) -> torch.Tensor:
    """(rows, length), of the longest row unless given."""
    ids = torch.full((len(rows), length or max(map(len, rows))), value)
    for row, piece in zip(ids, rows, strict=True):
        row[: len(piece)] = torch.from_numpy(piece.astype(np.int64))
    return ids


def _draw(part: Part, random: np.random.Generator, rows: int, length: int) -> torch.Tensor:
    return _windows(part.ids, random.integers(len(part.ids) - length + 1, size=rows), length)


def _spread(part: Part, most: int, length: int) -> torch.Tensor:
    """At most so many windows, side by side, evenly spread over the part."""
    whole = len(part.ids) // length
    return _windows(
        part.ids, np.linspace(0, whole - 1, min(whole, most)).round().astype(int) * length, length
    )


def _windows(ids: np.ndarray, starts: np.ndarray, length: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([ids[start : start + length] for start in starts]).astype(np.int64))


def _after_cls(ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (1, 0), value=CLS)


DATA = {
    "lm": CausalData,
    "stream": StreamData,
    "mlm": MaskedData,
    "classify": ClassifiedData,
    "translate": PairData,
}


def make_data(task: str, tokens: Tokens, context: int) -> Any:
    """The batches of a task; "stream" is "lm" for a model that carries its state from window to window.

    Raises InputError where a part of the corpus is shorter than one window.
    """
    least = {"classify": 0, "translate": 0, "stream": context + 1}.get(task, context)
    for name, part in (("training", tokens.training), ("validation", tokens.validation)):
        if len(part.ids) < least:
            raise InputError(
                f"the {name} part of the corpus has {len(part.ids)} tokens, fewer than one window of "
                f"--context {context}{' and the token after it' * (least > context)}; add text or shorten the context"
            )
    return DATA[task](tokens, context)
