"""lstm, gru, rnn and their cells: what does not fit is refused by both sides' names, before any launch."""

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.rnn_formula import GATES

from ..harness import compiled_quietly, here
from .test_rnn import CELLS, MODES

GOOD = {"input": (5, 2, 3), "weight_ih": (16, 3), "weight_hh": (16, 4), "bias_ih": (16,), "bias_hh": (16,)}


def arguments(**shapes):
    return {name: torch.randn(shape) for name, shape in {**GOOD, **shapes}.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": (5, 2, 7)}, r"lstm: input has 7 features but weight_ih has 3 columns"),
        ({"input": (5, 3)}, r"lstm: input has 2 dimensions, shape \(5, 3\); expected \(T, B, features\)"),
        ({"input": (0, 2, 3)}, r"Expected sequence length to be larger than 0"),
        ({"weight_hh": (15, 4)}, r"weight_hh has shape \(15, 4\); expected \(4 \* hidden_size"),
        ({"weight_hh": (16, 5)}, r"weight_hh has shape \(16, 5\), expected \(16, 4\)"),
        ({"weight_ih": (20, 3)}, r"weight_ih has shape \(20, 3\), expected \(16, 3\)"),
        ({"bias_hh": (4,)}, r"bias_hh has shape \(4,\), expected \(16,\)"),
        ({"weight_hr": (4, 4)}, r"proj_size has to be smaller than hidden_size.*projects to 4, hidden_size is 4"),
        ({"weight_hr": (2, 3)}, r"weight_hh has shape \(16, 4\), expected \(16, 2\)"),
        ({"peephole": (4,)}, r"peephole has shape \(4,\), expected \(3, 4\)"),
    ],
)  # fmt: skip
def test_bad_shapes(change, message):
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind, match=message):
            F.lstm(hx=None, **arguments(**change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hx": (torch.ones(3, 4), torch.ones(2, 4))}, r"h0 has shape \(3, 4\), expected \(2, 4\)"),
        ({"hx": (torch.ones(2, 4), torch.ones(2, 5))}, r"c0 has shape \(2, 5\), expected \(2, 4\)"),
        ({"hx": torch.ones(2, 4)}, r"hx must be a tuple of two Tensors"),
        ({"hx": (torch.ones(2, 4).double(),) * 2}, r"h0 has dtype torch.float64 but input has torch.float32"),
        ({"hx": (torch.ones(2, 4, device="meta"),) * 2}, r"h0 is on meta but input is on cpu"),
        ({"heads": 3}, r"heads must divide the 4 cells, got 3"),
        ({"zoneout": 1.5}, r"zoneout has to be between 0 and 1, but got 1.5"),
        ({"zoneout": (0.1, 0.2, 0.3)}, r"zoneout must be a probability, or two"),
        ({"recurrent_dropout": "no"}, r"recurrent_dropout must be a number, got str"),
        ({"weight_dropout": -1}, r"weight_dropout has to be between 0 and 1, but got -1"),
        ({"layer_norm": (torch.ones(16),)}, r"layer_norm must hold the weights"),
        ({"layer_norm": (torch.ones(16), torch.ones(8))}, r"layer_norm's hidden has shape \(8,\), expected \(16,\)"),
        ({"batch_sizes": torch.tensor([2, 2])}, r"input has 3 dimensions.*expected \(rows, features\)"),
    ],
)  # fmt: skip
def test_bad_options(options, message):
    for kind in (RuntimeError, (ValueError, TypeError)):
        with pytest.raises(kind, match=message):
            F.lstm(**{"hx": None, **arguments(), **options})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 2, 2], "batch_sizes sum to 6 but input has 5 rows"),
        ([2, 1, 1], "batch_sizes sum to 4 but input has 5 rows"),
        ([2, 1, 2], "batch_sizes must be positive and never rise, got"),
        ([3, 2, 0], "batch_sizes must be positive and never rise, got"),
        ([], "batch_sizes must be positive and never rise, got"),
    ],
)
def test_bad_batch_sizes(sizes, message):
    """In eager before the launch, in compiled code when the op runs."""
    x, w_ih, w_hh = torch.randn(5, 3), torch.randn(12, 3), torch.randn(12, 4)
    sizes = torch.tensor(sizes, dtype=torch.int64)

    def call(x, h0, sizes):
        return F.gru(x, h0, w_ih, w_hh, batch_sizes=sizes)

    h0 = torch.zeros(max(sizes.tolist(), default=1), 4)
    with pytest.raises(ValueError, match=message):
        call(x, h0, sizes)
    if not len(sizes):
        return  # a compiled call knows that there are none, and no op runs
    with compiled_quietly(), kz.backend(here()), pytest.raises(ValueError, match=message):
        torch.compile(call, fullgraph=True, backend="aot_eager")(x, h0, sizes)


def test_other_bad_arguments():
    x = torch.randn(5, 3)
    with pytest.raises(TypeError, match=r"gru: batch_sizes must be one-dimensional int64 on the CPU"):
        F.gru(x, None, torch.randn(12, 3), torch.randn(12, 4), batch_sizes=torch.tensor([3.0, 2.0]))
    with pytest.raises(TypeError, match=r"gru: input must be a Tensor, got list"):
        F.gru([1.0], None, torch.randn(12, 3), torch.randn(12, 4))
    with pytest.raises(ValueError, match=r"rnn: unknown nonlinearity 'gelu'"):
        F.rnn(x[:, None], None, torch.randn(4, 3), torch.randn(4, 4), nonlinearity="gelu")
    with pytest.raises(ValueError, match=r"gru: zoneout must be a probability, got"):
        F.gru(x[:, None], None, torch.randn(12, 3), torch.randn(12, 4), zoneout=(0.1, 0.1))


@pytest.mark.parametrize("mode", MODES)
def test_bad_cells(mode):
    """torch's own messages."""
    width = GATES[mode] * 4
    good = {
        "x": (3, 5),
        "h": (3, 4),
        "w_ih": (width, 5),
        "w_hh": (width, 4),
        "b_ih": (width,),
        "b_hh": (width,),
    }
    bad = [{"x": (3, 6)}, {"h": (3, 5)}, {"h": (2, 4)}, {"w_hh": (width + 1, 4)}]
    for change in bad:
        x, h, *weights = (torch.randn(s) for s in {**good, **change}.values())
        h = (h, torch.randn(3, 4)) if mode == "lstm" else h
        with pytest.raises(RuntimeError) as theirs:
            getattr(torch, f"{mode}_cell")(x, h, *weights)
        with pytest.raises(RuntimeError) as ours:
            CELLS[mode](x, h, *weights)
        assert str(theirs.value).split("\n")[0] in str(ours.value)
