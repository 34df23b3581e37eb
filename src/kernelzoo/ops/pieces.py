"""Sequences that lie in the rows of a batch, with padding anywhere, as one packed batch.

One op, opaque to compile and export: how many sequences there are and how long they get depends on the values.
"""

import torch

from .core import ArgumentError

_library = torch.library.Library("kernelzoo", "FRAGMENT")
_library.define(
    "pieces(Tensor tokens, Tensor? starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def pieces(tokens, starts=None):
    """The pieces of a batch of rows: tokens (B, L), False for padding; a piece begins at each row's first token and
    at each token where starts (B, L) is True, and goes on past padding.

    N tokens in K pieces, the longest of T tokens; all int64 but `goes_on`, a bool:
        source (N,): of each row of the PackedSequence, its place in the flattened batch;
        batch_sizes (T,), on the CPU: that PackedSequence's;
        row (K,): of each of its sequences, the row that it lies in;
        goes_on (K,): whether it leads its row, with no start there: it then goes on from the row's state;
        last (B,): of each row, the sequence that ends it.
    ValueError for a row without a token.
    """
    return torch.ops.kernelzoo.pieces.default(tokens, starts)


def _pieces(tokens, starts):
    first = tokens & (tokens.cumsum(1) == 1)
    if not first.any(1).all():
        raise ArgumentError("a row has no token; expected at least one in each row")
    begins = first if starts is None else first | (tokens & starts)
    leads = first if starts is None else first & ~starts
    at = tokens.flatten().nonzero()[:, 0]
    cut = begins.flatten()[at]
    begin, piece = cut.nonzero()[:, 0], cut.cumsum(0) - 1
    lengths = torch.diff(begin, append=begin.new_tensor([len(at)]))
    order = lengths.argsort(descending=True, stable=True)
    rank = order.argsort()
    step = torch.arange(len(at), device=at.device) - begin[piece]
    source = at[(step * len(begin) + rank[piece]).argsort()]
    lead = at[begin[order]]
    row = lead // max(tokens.shape[1], 1)
    return source, step.bincount().cpu(), row, leads.flatten()[lead], rank[begins.sum(1).cumsum(0) - 1]


def _fake(tokens, starts):
    ctx = torch.library.get_ctx()
    N, T, K = (ctx.new_dynamic_size(min=1) for _ in range(3))

    def of(size, **how):
        return tokens.new_empty(size, **{"dtype": torch.int64, **how})

    return of(N), of(T, device="cpu"), of(K), of(K, dtype=torch.bool), of(tokens.shape[0])


_library.impl("pieces", _pieces, "CompositeExplicitAutograd")
torch.library.register_fake("kernelzoo::pieces", _fake, lib=_library)
