"""Text from a model, token by token: greedy, sampled, or by beam search, with the keys and values kept.

A model gives `start(input_ids, attention_mask, new)`, which reads the prompts and returns a cache with room for
`new` more tokens and the logits (B, V) of the first of them, and `step(tokens, cache)`, which appends one token
a row and returns the logits of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.core import ArgumentError
from .cache import Cache

NEVER = -1e9  # a score that no sequence of tokens has


class Generates:
    """`generate` for a model with `start` and `step`."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prompts (B, L) and what follows, (B, L + at most max_new_tokens), int64.

        input_ids, attention_mask (B, L): prompts of different lengths are padded, with attention_mask 0 there
        (on the left, as the transformers library does, and the result reads on; any other place works too).
        do_sample: draw each token from softmax(logits / temperature), limited to the top_k likeliest tokens and
        to the fewest whose probabilities reach top_p (A. Holtzman et al., arXiv:1904.09751); otherwise the
        likeliest. num_beams > 1: beam search, sum of log probabilities / length^length_penalty; early_stopping
        True ends when num_beams sequences are complete, False when the best one running is behind by its
        present length, "never" by the length that is best for it. All as in the transformers library, whose
        tokens these are, except that top_k is off unless given.
        eos_token_id: token or tokens that end a sequence; None: the model's; (): none. pad_token_id: what fills
        a sequence that ended; None: the model's, or else its first eos. seed or generator: of the draws.
        The model computes in eval mode and is left in the mode it was in.
        """
        end, pad = self._ends(eos_token_id, pad_token_id)
        _check(
            max_new_tokens, do_sample, temperature, top_k, top_p, num_beams, early_stopping, seed, generator
        )
        if seed is not None:
            generator = torch.Generator(input_ids.device).manual_seed(seed)
        pick = _Pick(do_sample, temperature, top_k, top_p, generator)
        training = self.training
        self.eval()
        try:
            cache, logits = self.start(input_ids, attention_mask, max_new_tokens)
            if num_beams > 1:
                new = _beams(
                    self,
                    cache,
                    logits,
                    max_new_tokens,
                    num_beams,
                    length_penalty,
                    early_stopping,
                    end,
                    pad,
                    pick,
                )
            else:
                new = _one(self, cache, logits, max_new_tokens, end, pad, pick)
        finally:
            self.train(training)
        return torch.cat([self.prefix_of(input_ids), new], 1)

    def prefix_of(self, input_ids: Tensor) -> Tensor:
        """The tokens that the result starts with."""
        return input_ids.long()

    def _ends(self, eos: Any, pad: int | None) -> tuple[list[int], int]:
        eos = self.options.get("eos_token_id") if eos is None else eos
        ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        pad = self.options.get("pad_token_id") if pad is None else pad
        return ends, (ends[0] if ends else 0) if pad is None else pad


class _Pick:
    """How the next token is taken from logits."""

    def __init__(
        self,
        sample: bool,
        temperature: float,
        top_k: int | None,
        top_p: float,
        generator: torch.Generator | None,
    ) -> None:
        self.sample, self.temperature, self.top_k, self.top_p = sample, temperature, top_k, top_p
        self.generator = generator

    def filtered(self, logits: Tensor) -> Tensor:
        return filtered(logits, self.temperature, self.top_k, self.top_p) if self.sample else logits

    def draw(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(values, indices) of `count` different entries a row: the largest, or drawn by softmax(scores)."""
        if not self.sample:
            return torch.topk(scores, count)
        at = torch.multinomial(scores.softmax(-1), count, generator=self.generator)
        return scores.gather(1, at), at


def filtered(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """logits (B, V) / temperature with -inf for tokens outside the top_k, then outside the top_p nucleus."""
    logits = logits / temperature
    if top_k is not None:
        last = torch.topk(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = logits.masked_fill(logits < last, float("-inf"))
    if top_p < 1:
        ascending, order = torch.sort(logits)
        out = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        out[:, -1] = False
        logits = logits.masked_fill(torch.empty_like(out).scatter_(1, order, out), float("-inf"))
    return logits


def _one(model: Any, cache: Cache, logits: Tensor, new: int, end: list[int], pad: int, pick: _Pick) -> Tensor:
    """One continuation a row, (B, at most new)."""
    ends = torch.tensor(end, device=logits.device)
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    tokens = []
    while True:
        scores = pick.filtered(logits.float())
        token = pick.draw(scores, 1)[1][:, 0] if pick.sample else scores.argmax(-1)
        tokens.append(token.masked_fill(done, pad))
        if end:
            done = done | torch.isin(tokens[-1], ends)
        if len(tokens) == new or (end and done.all()):
            return torch.stack(tokens, 1)
        logits = model.step(tokens[-1], cache)


def _beams(
    model: Any,
    cache: Cache,
    logits: Tensor,
    new: int,
    beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    end: list[int],
    pad: int,
    pick: _Pick,
) -> Tensor:
    """The best of `beams` continuations a row, (B, at most new).

    Running sequences are those that go on; done ones have met an end and are kept while they are among the best.
    A step looks at (1 + ends)·beams candidates, so that beams of them go on whatever ends there.
    """
    device, (batch, vocabulary) = logits.device, logits.shape
    ends = torch.tensor(end, device=device)
    keep = max(2, 1 + len(end)) * beams
    if keep > beams * vocabulary:
        raise ArgumentError(
            f"generate: num_beams={beams} is too many for a vocabulary of {vocabulary} tokens"
        )
    first = torch.arange(keep, device=device) < beams
    rows = torch.arange(batch, device=device)[:, None]
    running = torch.full((batch, beams, new), pad, device=device)
    running_scores = torch.full((batch, beams), NEVER, device=device)
    running_scores[:, 0] = 0.0  # the beams of a prompt start equal: one of them counts
    best, best_scores = running.clone(), torch.full((batch, beams), NEVER, device=device)
    lengths = torch.zeros(batch, beams, dtype=torch.int64, device=device)
    done = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    open_ = torch.ones(batch, 1, dtype=torch.bool, device=device)  # could a running one still be the best?
    cache.reorder(torch.arange(batch, device=device).repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, 0)
    for step in range(new):
        scores = pick.filtered(logits.float().log_softmax(-1))
        scores = scores.view(batch, beams, vocabulary) + running_scores[:, :, None]
        scores, at = pick.draw(scores.flatten(1), keep)
        parent, token = at // vocabulary, at % vocabulary
        candidates = running[rows, parent]
        candidates[:, :, step] = token
        ended = torch.isin(token, ends) | (step + 1 == new)

        running_scores, on = torch.topk(scores + ended * NEVER, beams)
        running, parent = candidates[rows, on], parent[rows, on]

        final = scores / (step + 1) ** length_penalty
        full = done.all(1, keepdim=True) & (early_stopping is True)
        final = final + (full | ~open_ | ~(ended & first)) * NEVER
        best_scores, at = torch.topk(torch.cat([best_scores, final], 1), beams)
        best = torch.cat([best, candidates], 1)[rows, at]
        lengths = torch.cat([lengths, torch.full_like(ended, step + 1, dtype=torch.int64)], 1)[rows, at]
        done = torch.cat([done, ended & first], 1)[rows, at]

        reach = new if early_stopping == "never" and length_penalty > 0 else step + 1
        worst = torch.where(done, best_scores.min(1, keepdim=True)[0], NEVER)
        open_ = open_ & (running_scores[:, :1] / reach**length_penalty > worst).any(1, keepdim=True)
        if not open_.any() or ended.all() or (early_stopping is True and done.all()):
            break
        cache.reorder((parent + rows * beams).flatten())
        logits = model.step(running[:, :, step].flatten(), cache)
    return best[:, 0, : int(lengths[:, 0].max())]


def _check(
    new: int,
    sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float,
    beams: int,
    early_stopping: bool | str,
    seed: int | None,
    generator: torch.Generator | None,
) -> None:
    rules = {
        f"max_new_tokens is {new!r}; expected a whole number from 1": isinstance(new, int) and new >= 1,
        f"temperature is {temperature!r}; expected a number above 0": temperature > 0,
        f"top_k is {top_k!r}; expected a whole number from 1": top_k is None or top_k >= 1,
        f"top_p is {top_p!r}; expected a probability above 0 and up to 1": 0 < top_p <= 1,
        f"num_beams is {beams!r}; expected a whole number from 1": isinstance(beams, int) and beams >= 1,
        f"early_stopping is {early_stopping!r}; expected True, False or 'never'": early_stopping
        in (True, False, "never"),
        "seed and generator are both given; expected one of them": seed is None or generator is None,
        "temperature, top_k and top_p have no effect on the likeliest token; expected do_sample=True beside them": (
            sample or (temperature == 1 and top_k is None and top_p == 1)
        ),
    }
    for problem, holds in rules.items():
        if not holds:
            raise ArgumentError(f"generate: {problem}")
