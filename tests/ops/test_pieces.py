"""The pieces of padded rows, against a loop over their tokens."""

import pytest
import torch

from kernelzoo.ops.pieces import pieces


def looped(tokens, starts):
    """Lists of places, in order, with the row and whether the piece goes on from the row's state; each row's last."""
    found, last = [], []
    for b, row in enumerate(tokens.tolist()):
        fresh = True
        for i, token in enumerate(row):
            if not token:
                continue
            start = bool(starts is not None and starts[b, i])
            if fresh or start:
                found.append(([], b, fresh and not start))
            found[-1][0].append(b * len(row) + i)
            fresh = False
        last.append(len(found) - 1)
    return found, last


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 1), (4, 13)])
def test_against_a_loop(shape, started):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        tokens = torch.rand(shape, generator=g) < 0.7
        tokens[:, seed % shape[1]] = True
        starts = torch.rand(shape, generator=g) < 0.3 if started else None
        source, batch_sizes, row, goes_on, last = pieces(tokens, starts)
        expected, ends = looped(tokens, starts)
        begin = [0, *batch_sizes.cumsum(0).tolist()]
        assert len(source) == begin[-1] == tokens.sum()
        got = [
            (
                [int(source[first + k]) for first, n in zip(begin, batch_sizes, strict=False) if k < n],
                int(row[k]),
                bool(goes_on[k]),
            )
            for k in range(len(row))
        ]
        assert sorted(got) == sorted(expected)
        lengths = [len(places) for places, *_ in got]
        assert lengths == sorted(lengths, reverse=True)
        assert [got[k] for k in last] == [expected[k] for k in ends]


def test_opcheck():
    tokens, starts = torch.rand(3, 7) < 0.8, torch.rand(3, 7) < 0.3
    tokens[:, 2] = True
    for given in ((tokens, None), (tokens, starts)):
        torch.library.opcheck(torch.ops.kernelzoo.pieces.default, given)


def test_a_row_without_a_token():
    with pytest.raises(ValueError, match="a row has no token; expected at least one in each row"):
        pieces(torch.tensor([[True, False], [False, False]]))
