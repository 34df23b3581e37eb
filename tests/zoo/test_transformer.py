"""The encoder-decoder against torch.nn's own layers, and its generation against reading the whole again."""

import math

import pytest
import torch

from kernelzoo import zoo

OPTIONS = {
    "vocab_size": 37,
    "d_model": 24,
    "nhead": 3,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 40,
    "max_positions": 20,
}


@pytest.fixture
def model():
    return zoo.create("transformer", **OPTIONS).eval()


@pytest.fixture
def source():
    ids = torch.randint(3, 37, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def test_it_is_torchs_transformer(model, source):
    ids, mask = source
    shape = {"d_model": 24, "nhead": 3, "dim_feedforward": 40, "batch_first": True}
    nn = torch.nn
    encoder = nn.ModuleList(nn.TransformerEncoderLayer(**shape) for _ in range(2)).eval()
    decoder = nn.ModuleList(nn.TransformerDecoderLayer(**shape) for _ in range(2)).eval()

    def copy(theirs, ours, cross=None):
        theirs.self_attn.in_proj_weight.copy_(ours.attn.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attn.qkv.bias)
        pairs = [(theirs.self_attn.out_proj, ours.attn.out), (theirs.linear1, ours.mlp.up)]
        pairs += [(theirs.linear2, ours.mlp.down), (theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2)]
        if cross is not None:
            theirs.multihead_attn.in_proj_weight.copy_(torch.cat([cross.q.weight, cross.kv.weight]))
            theirs.multihead_attn.in_proj_bias.copy_(torch.cat([cross.q.bias, cross.kv.bias]))
            pairs += [(theirs.multihead_attn.out_proj, cross.out), (theirs.norm3, ours.norm3)]
        for one, other in pairs:
            one.load_state_dict(other.state_dict())

    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        for theirs, ours in zip(encoder, model.encoder, strict=True):
            copy(theirs, ours)
        for theirs, ours in zip(decoder, model.decoder, strict=True):
            copy(theirs, ours, ours.cross)

    def embed(ids):
        at = torch.arange(ids.shape[1])[:, None] / 10000 ** (torch.arange(0, 24, 2) / 24)
        waves = torch.zeros(ids.shape[1], 24)
        waves[:, ::2], waves[:, 1::2] = at.sin(), at.cos()
        return model.tokens(ids) * math.sqrt(24) + waves

    x = embed(ids)
    for layer in encoder:
        x = layer(x, src_key_padding_mask=mask == 0)
    target = ids[:, :6]
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    y = embed(target)
    for layer in decoder:
        y = layer(y, x, tgt_mask=causal, memory_key_padding_mask=mask == 0)
    torch.testing.assert_close(
        model(ids, mask, decoder_input_ids=target), y @ model.tokens.weight.T, rtol=1e-4, atol=1e-4
    )


def test_loss_reads_the_labels_shifted(model, source):
    ids, mask = source
    labels = ids[:, :6].clone()
    labels[0, 4:] = -100
    read = torch.cat([torch.ones(3, 1, dtype=torch.int64), labels[:, :-1].clamp(min=0)], 1)
    logits = model(ids, mask, decoder_input_ids=read)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    smooth = zoo.create("transformer", **OPTIONS, label_smoothing=0.1).eval()
    smooth.load_state_dict(model.state_dict())
    torch.testing.assert_close(smooth(ids, mask, labels=labels), expected)


def test_generation_reads_what_it_wrote(model, source):
    ids, mask = source
    written = model.generate(ids, mask, max_new_tokens=8, eos_token_id=())
    assert written.shape == (3, 9)
    logits = model(ids, mask, decoder_input_ids=written[:, :-1])
    assert torch.equal(logits.argmax(-1), written[:, 1:])
    alone = model.generate(ids[1:2, :5], max_new_tokens=8, eos_token_id=())
    assert torch.equal(alone[0], written[1])


def test_beams_are_no_worse_than_greedy(model, source):
    ids, mask = source

    def score(written):
        logp = model(ids, mask, decoder_input_ids=written[:, :-1]).log_softmax(-1)
        return logp.gather(2, written[:, 1:, None]).sum((1, 2))

    options = {"max_new_tokens": 6, "eos_token_id": ()}
    greedy = model.generate(ids, mask, **options)
    # as many beams as two steps have continuations: the first two tokens are searched through
    wide = model.generate(ids, mask, num_beams=37, **options)
    assert (score(wide) >= score(greedy) - 1e-5).all()


def test_bad_input(model, source):
    ids, mask = source
    with pytest.raises(ValueError, match="neither decoder_input_ids nor labels given"):
        model(ids)
    with pytest.raises(ValueError, match="21 tokens do not fit into max_positions=20"):
        model(torch.ones(1, 21, dtype=torch.int64), labels=ids[:1])
    with pytest.raises(ValueError, match="max_new_tokens=21 is more than max_positions=20"):
        model.generate(ids, mask, max_new_tokens=21)
