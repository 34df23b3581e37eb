"""MultiheadAttention and the transformer layers: torch's values, gradients and state dicts in every mode."""

import pytest
import torch

import kernelzoo as kz
from kernelzoo import nn

from ..harness import compiled_quietly, here

E, H, L, S, N = 12, 4, 5, 7, 3


def pair(name, *args, seed=7, **options):
    """(ours, torch's), made from the same seed."""
    made = []
    for library in (nn, torch.nn):
        torch.manual_seed(seed)
        made.append(getattr(library, name)(*args, **options))
    ours, theirs = made
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    return ours, theirs


def same(ours, theirs, call, inputs):
    """call(module, *inputs) gives the same values and gradients, on every way through."""
    for backend in ("auto", here()):
        found = []
        with kz.backend(backend):
            for module in (ours, theirs):
                module.zero_grad()
                given = [t.detach().clone().requires_grad_() for t in inputs]
                results = [t for t in call(module, *given) if t is not None]
                torch.manual_seed(3)
                sum((t * torch.randn(t.shape)).sum() for t in results).backward()
                found.append((results, [t.grad for t in given], [p.grad for p in module.parameters()]))
        # a layer of float32 sums in another order
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def tokens(batch_first, length, width=E, batched=True):
    if not batched:
        return torch.randn(length, width)
    return torch.randn(N, length, width) if batch_first else torch.randn(length, N, width)


def padding(length):
    mask = torch.zeros(N, length, dtype=torch.bool)
    mask[0, -2:] = mask[2, -1:] = True
    return mask


def as_float(mask):
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


CAUSAL = torch.ones(L, L, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True}],
    ids=["plain", "no-bias", "kdim-vdim", "bias_kv-zero_attn"],
)
def test_cross_attention(options, batch_first, train):
    ours, theirs = (
        m.train(train) for m in pair("MultiheadAttention", E, H, batch_first=batch_first, **options)
    )
    q, k, v = tokens(batch_first, L), tokens(batch_first, S, ours.kdim), tokens(batch_first, S, ours.vdim)
    each = torch.rand(N * H, L, S) > 0.6
    each[..., 0] = False
    for masks in (
        {},
        {"key_padding_mask": padding(S)},
        {"attn_mask": each},
        {"attn_mask": each[0], "key_padding_mask": padding(S)},
        {"attn_mask": as_float(each), "key_padding_mask": as_float(padding(S))},
    ):
        for weights in ({"need_weights": False}, {}, {"average_attn_weights": False}):
            same(ours, theirs, lambda m, *x, o={**masks, **weights}: m(*x, **o), (q, k, v))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one"])
def test_self_attention(batched, train):
    for batch_first in (True, False):
        ours, theirs = (m.train(train) for m in pair("MultiheadAttention", E, H, batch_first=batch_first))
        x = tokens(batch_first, L, batched=batched)
        for options in ({}, {"attn_mask": CAUSAL}, {"attn_mask": CAUSAL, "is_causal": True}):
            same(ours, theirs, lambda m, x, o=options: m(x, x, x, need_weights=False, **o), (x,))
        with torch.no_grad():
            torch.testing.assert_close(
                ours(x, x, x, need_weights=False)[0], theirs(x, x, x, need_weights=False)[0]
            )
    memory = tokens(True, S)
    ours, theirs = pair("MultiheadAttention", E, H, batch_first=True)
    same(ours, theirs, lambda m, q, kv: m(q, kv, kv, need_weights=False), (tokens(True, L), memory))


def test_fully_padded_sequence_is_torchs():
    ours, theirs = pair("MultiheadAttention", E, H, batch_first=True)
    x = tokens(True, L)
    mask = torch.zeros(N, L, dtype=torch.bool)
    mask[1] = True
    same(ours, theirs, lambda m, x: m(x, x, x, key_padding_mask=mask, need_weights=False), (x,))


def test_attention_dropout_is_only_in_training():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, H, dropout=0.5, batch_first=True)
    x = tokens(True, L)
    with kz.backend(here()):
        assert not torch.equal(layer(x, x, x, need_weights=False)[0], layer(x, x, x, need_weights=False)[0])
        layer.eval()
        assert torch.equal(layer(x, x, x, need_weights=False)[0], layer(x, x, x, need_weights=False)[0])


def test_what_does_not_fit_raises_torchs_error():
    layer, theirs = pair("MultiheadAttention", E, H, batch_first=True)
    x = tokens(True, L)
    for args, options in (
        ((x, x[..., :4], x), {}),
        ((x, x[:1], x[:1]), {}),
        ((x, x, x), {"attn_mask": CAUSAL[:3]}),
        ((x, x, x), {"key_padding_mask": padding(S)}),
        ((x, x, x), {"is_causal": True}),
    ):
        with pytest.raises((AssertionError, RuntimeError)) as right:
            theirs(*args, need_weights=False, **options)
        with pytest.raises(right.type):
            layer(*args, need_weights=False, **options)


LAYER = {"d_model": E, "nhead": H, "dim_feedforward": 20, "dropout": 0.0}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh], ids=["relu", "gelu", "tanh"])
def test_encoder_layer(activation, norm_first, train):
    for batch_first in (True, False):
        options = {**LAYER, "activation": activation, "norm_first": norm_first, "batch_first": batch_first}
        ours, theirs = (m.train(train) for m in pair("TransformerEncoderLayer", **options))
        x = tokens(batch_first, L)
        for given in (
            {},
            {"src_key_padding_mask": padding(L)},
            {"src_mask": CAUSAL, "is_causal": True},
            {"src_mask": CAUSAL, "src_key_padding_mask": padding(L)},
        ):
            same(ours, theirs, lambda m, x, o=given: [m(x, **o)], (x,))


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
def test_decoder_layer(norm_first):
    for batch_first, bias in ((True, True), (False, False)):
        options = {**LAYER, "norm_first": norm_first, "batch_first": batch_first, "bias": bias}
        ours, theirs = pair("TransformerDecoderLayer", **options)
        x, memory = tokens(batch_first, L), tokens(batch_first, S)
        for given in (
            {},
            {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_key_padding_mask": padding(S)},
            {"tgt_mask": as_float(CAUSAL), "tgt_key_padding_mask": as_float(padding(L))},
        ):
            same(ours, theirs, lambda m, x, y, o=given: [m(x, y, **o)], (x, memory))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_transformer(train):
    options = {"num_encoder_layers": 2, "num_decoder_layers": 2, "batch_first": True, **LAYER}
    ours, theirs = (m.train(train) for m in pair("Transformer", **options))
    for module in ours.modules():
        if type(module).__name__ in nn.__all__:
            assert type(module).__module__.startswith("kernelzoo"), type(module)
    x, y = tokens(True, S), tokens(True, L)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    masks = {"src_key_padding_mask": padding(S), "memory_key_padding_mask": padding(S), "tgt_mask": mask}
    for given in ({}, masks):
        same(ours, theirs, lambda m, x, y, o=given: [m(x, y, **o)], (x, y))


def test_custom_parts_stay_as_they_are():
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(E, H, batch_first=True), 1)
    model = nn.Transformer(E, H, 1, 1, custom_encoder=encoder, batch_first=True)
    assert model.encoder is encoder
    assert type(model.encoder.layers[0]) is torch.nn.TransformerEncoderLayer
    assert type(model.decoder.layers[0]) is nn.TransformerDecoderLayer


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_of_layers_in_evaluation_with_padding():
    """torch makes nested tensors of the padding here, which its own fast path alone computes."""
    ours, theirs = pair("TransformerEncoder", torch.nn.TransformerEncoderLayer(**LAYER, batch_first=True), 2)
    mine = nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER, batch_first=True), 2)
    mine.load_state_dict(ours.state_dict())
    x = tokens(True, L)
    for module in (mine, theirs):
        module.eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            mine(x, src_key_padding_mask=padding(L)), theirs(x, src_key_padding_mask=padding(L))
        )
        torch.testing.assert_close(mine(x, mask=CAUSAL), theirs(x, mask=CAUSAL))


def test_hooks_on_inner_layers_run():
    layer = nn.TransformerEncoderLayer(**LAYER, batch_first=True)
    seen = []
    for name in ("linear1", "norm1", "norm2"):
        getattr(layer, name).register_forward_hook(lambda m, i, o, name=name: seen.append((name, type(o))))
    layer(tokens(True, L))
    assert seen == [("norm1", torch.Tensor), ("linear1", torch.Tensor), ("norm2", torch.Tensor)]


def test_compiles_whole():
    model = nn.Transformer(**LAYER, num_encoder_layers=1, num_decoder_layers=1, batch_first=True)
    x, y = tokens(True, S), tokens(True, L)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    with kz.backend(here()), compiled_quietly():
        eager = model(x, y, tgt_mask=mask, tgt_is_causal=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, y, tgt_mask=mask, tgt_is_causal=True), eager)


def test_padding_makes_is_causal_a_hint_only():
    ours, theirs = pair("MultiheadAttention", E, H, batch_first=True)
    band = torch.ones(L, L, dtype=torch.bool).triu(2)

    def call(module, x):
        return module(
            x, x, x, key_padding_mask=padding(L), attn_mask=band, is_causal=True, need_weights=False
        )

    same(ours, theirs, call, [tokens(True, L)])
