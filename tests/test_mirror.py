"""The laws of the mirror: torch's signatures, classes, state dicts and fall-through."""

import inspect
import pickle
import warnings

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo import nn, optim

# torch's own are built-ins without a signature: theirs as documented
DOCUMENTED = {
    **{
        f"conv{n}d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)"
        for n in (1, 2, 3)
    },
    **{
        f"conv_transpose{n}d": "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)"
        for n in (1, 2, 3)
    },
    **{
        name: f"(input, output_size{rest})"
        for name, rest in (
            ("adaptive_avg_pool1d", ""),
            *((f"adaptive_max_pool{rank}d", ", return_indices=False") for rank in (1, 2, 3)),
        )
    },
    **{
        f"avg_pool{rank}d": "(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True"
        + (", divisor_override=None)" if rank > 1 else ")")
        for rank in (1, 2, 3)
    },
    **{
        f"max_pool{rank}d": "(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
        "return_indices=False)"
        for rank in (1, 2, 3)
    },
    "gelu": "(input, approximate='none')",
    "hardshrink": "(input, lambd=0.5)",
    "linear": "(input, weight, bias=None)",
    "logsigmoid": "(input)",
    "scaled_dot_product_attention": "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, "
    "scale=None, enable_gqa=False)",
    "softplus": "(input, beta=1.0, threshold=20.0)",
    "softshrink": "(input, lambd=0.5)",
}


# module: constructor arguments, inputs; () and (4, 3) normal numbers unless listed
MODULES = {
    **{
        f"Conv{kind}{n}d": ((3, 4, 2), lambda n=n: (torch.randn(2, 3, *(6, 5, 4)[:n]),))
        for kind in ("", "Transpose")
        for n in (1, 2, 3)
    },
    **{
        f"AdaptiveAvgPool{rank}d": ((2,), lambda rank=rank: (torch.randn(2, 4, *(5,) * rank),))
        for rank in (1, 2, 3)
    },
    **{
        f"AdaptiveMaxPool{rank}d": ((2,), lambda rank=rank: (torch.randn(2, 4, *(5,) * rank),))
        for rank in (1, 2, 3)
    },
    **{
        f"AvgPool{rank}d": ((2, 1, 1), lambda rank=rank: (torch.randn(2, 4, *(5,) * rank),))
        for rank in (1, 2, 3)
    },
    **{
        f"MaxPool{rank}d": ((3, 2, 1, 1), lambda rank=rank: (torch.randn(2, 4, *(5,) * rank),))
        for rank in (1, 2, 3)
    },
    "Upsample": ((None, 2.0, "linear"), lambda: (torch.randn(2, 4, 5),)),
    "UpsamplingBilinear2d": ((None, 2.0), lambda: (torch.randn(2, 4, 5, 3),)),
    "UpsamplingNearest2d": (((7, 6),), lambda: (torch.randn(2, 4, 5, 3),)),
    "GroupNorm": ((1, 3), None),
    "LayerNorm": ((3,), None),
    "BatchNorm1d": ((3,), None),
    "BatchNorm2d": ((3,), lambda: (torch.randn(4, 3, 6, 5),)),
    "BatchNorm3d": ((3,), lambda: (torch.randn(4, 3, 2, 6, 5),)),
    "SyncBatchNorm": ((3,), None),
    "InstanceNorm1d": ((3,), lambda: (torch.randn(4, 3, 6),)),
    "InstanceNorm2d": ((3,), lambda: (torch.randn(4, 3, 6, 5),)),
    "InstanceNorm3d": ((3,), lambda: (torch.randn(4, 3, 2, 6, 5),)),
    "Embedding": ((10, 5), lambda: (torch.randint(10, (4, 3)),)),
    "GLU": ((-1,), lambda: (torch.randn(4, 6),)),
    "BCELoss": ((), lambda: (torch.rand(4, 3), torch.rand(4, 3))),
    "BCEWithLogitsLoss": ((), lambda: (torch.randn(4, 3), torch.rand(4, 3))),
    "CrossEntropyLoss": ((), lambda: (torch.randn(4, 3), torch.tensor([0, 2, 1, 1]))),
    "HuberLoss": ((), lambda: (torch.randn(4, 3), torch.randn(4, 3))),
    "KLDivLoss": ((None, None, "batchmean"), lambda: (torch.randn(4, 3), torch.rand(4, 3))),
    "L1Loss": ((), lambda: (torch.randn(4, 3), torch.randn(4, 3))),
    "Linear": ((3, 5), None),
    "LinearCrossEntropyLoss": ((3, 5), lambda: (torch.randn(4, 3), torch.tensor([0, 4, 1, 1]))),
    "LogSoftmax": ((-1,), None),
    "RMSNorm": ((3,), None),
    "MSELoss": ((), lambda: (torch.randn(4, 3), torch.randn(4, 3))),
    "MultiheadAttention": ((6, 2), lambda: tuple(torch.randn(4, 3, 6) for _ in range(3))),
    "NLLLoss": ((), lambda: (torch.randn(4, 3), torch.tensor([0, 2, 1, 1]))),
    "SmoothL1Loss": ((), lambda: (torch.randn(4, 3), torch.randn(4, 3))),
    "Softmax": ((-1,), None),
    "Threshold": ((0.5, 2.0), None),
    "Transformer": ((6, 2, 1, 1, 8), lambda: (torch.randn(4, 3, 6), torch.randn(5, 3, 6))),
    "TransformerDecoder": (
        (torch.nn.TransformerDecoderLayer(6, 2, 8), 1),
        lambda: (torch.randn(4, 3, 6), torch.randn(5, 3, 6)),
    ),
    "TransformerDecoderLayer": ((6, 2, 8), lambda: (torch.randn(4, 3, 6), torch.randn(5, 3, 6))),
    "TransformerEncoder": (
        (torch.nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1),
        lambda: (torch.randn(4, 3, 6),),
    ),
    "TransformerEncoderLayer": ((6, 2, 8), lambda: (torch.randn(4, 3, 6),)),
    **{name: ((3, 5), lambda: (torch.randn(4, 2, 3),)) for name in ("GRU", "LSTM", "RNN")},
    **{name: ((3, 5), lambda: (torch.randn(4, 3),)) for name in ("GRUCell", "LSTMCell", "RNNCell")},
}


NARROW = (
    "BatchNorm1d",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "SyncBatchNorm",
)  # made for three features


def described(signature):
    """[(name, default)] without annotations and without our keyword-only extras."""
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return [(p.name, p.default) for p in kept]


@pytest.mark.parametrize("name", [n for n in F.__all__ if hasattr(torch.nn.functional, n)])
def test_functional_signature(name):
    ours = described(inspect.signature(getattr(F, name)))
    if name in DOCUMENTED:
        namespace = {}
        exec(f"def f{DOCUMENTED[name]}: pass", namespace)
        theirs = described(inspect.signature(namespace["f"]))
    else:
        theirs = described(inspect.signature(getattr(torch.nn.functional, name)))
    assert ours == theirs


@pytest.mark.parametrize("name", [n for n in nn.__all__ if hasattr(torch.nn, n)])
def test_module_is_torchs(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs)
    assert described(inspect.signature(ours)) == described(inspect.signature(theirs))
    args, make = MODULES.get(name, ((), None))
    with warnings.catch_warnings():
        # torch's Transformer builds its encoder without batch_first, and warns that nested tensors need it
        warnings.filterwarnings("ignore", "enable_nested_tensor is True.*batch_first", UserWarning)
        torch.manual_seed(7)
        mine = ours(*args)
        torch.manual_seed(7)
        reference = theirs(*args)
    assert repr(mine) == repr(reference)
    assert mine.state_dict().keys() == reference.state_dict().keys()
    for key, value in mine.state_dict().items():
        assert torch.equal(value, reference.state_dict()[key])
    reference.load_state_dict(mine.state_dict())
    mine.load_state_dict(reference.state_dict())
    inputs = make() if make else (torch.randn(4, 3),)
    copy = pickle.loads(pickle.dumps(mine))
    torch.testing.assert_close(copy.eval()(*inputs), reference.eval()(*inputs))
    if make is None:
        large = torch.randn(600, 3).repeat(1, 60)[:, : 3 if name in NARROW else None].contiguous()
        torch.testing.assert_close(mine.eval()(large), reference(large))


def test_linear_act_module():
    layer = nn.Linear(4, 6, act=("leaky_relu", 0.2))
    x = torch.randn(5, 4)
    torch.testing.assert_close(
        layer(x), torch.nn.functional.leaky_relu(torch.nn.Linear.forward(layer, x), 0.2)
    )
    assert repr(layer) == "Linear(in_features=4, out_features=6, bias=True, act=('leaky_relu', 0.2))"
    with pytest.raises(ValueError, match=r"Linear: unknown act 'gelou'"):
        nn.Linear(4, 6, act="gelou")


def test_every_other_name_is_torchs_own():
    assert F.fold is torch.nn.functional.fold
    assert nn.LazyConv2d is torch.nn.LazyConv2d
    assert nn.functional is F
    assert optim.SGD is torch.optim.SGD
    assert set(dir(torch.nn)) <= set(dir(nn))
    assert set(dir(torch.nn.functional)) <= set(dir(F))
    assert set(dir(torch.optim)) <= set(dir(optim))
    for namespace in (F, nn, optim, kz):
        with pytest.raises(AttributeError):
            namespace.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [n for n in F.__all__ if "inplace" in inspect.signature(getattr(F, n)).parameters and n != "dropout"],
)
def test_inplace_writes_the_input_and_only_then(name):
    arguments = {"threshold": (0.1, 2.0), "dropout": (1.0,)}.get(name, ())
    x = torch.randn(300, 300)
    before = x.clone()
    y = getattr(F, name)(x, *arguments)
    assert torch.equal(x, before)
    assert getattr(F, name)(x, *arguments, inplace=True) is x
    torch.testing.assert_close(x, y)
    torch.testing.assert_close(x, getattr(torch.nn.functional, name)(before, *arguments))
