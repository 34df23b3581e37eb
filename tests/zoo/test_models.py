"""Every transformer of the zoo: its plain twin, compile, export, copies, autocast, bad input."""

import copy
import pickle

import pytest
import torch

from kernelzoo import zoo

TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 37, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
VIT = {key: value for key, value in TEXT.items() if key not in ("vocab_size", "max_position_embeddings")}
VIT |= {"image_size": 8, "patch_size": 4, "num_labels": 3}
SEQ2SEQ = {
    "vocab_size": 37,
    "d_model": 24,
    "nhead": 3,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 40,
    "max_positions": 16,
}
MODELS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("llama", {**TEXT, "num_key_value_heads": 2}),
    "bert-mlm": ("bert", TEXT),
    "bert-classify": ("bert", {**TEXT, "head": "classify", "num_labels": 3}),
    "roberta-mlm": ("roberta", TEXT),
    "roberta-classify": ("roberta", {**TEXT, "head": "classify", "num_labels": 3}),
    "vit": ("vit", VIT),
    "transformer": ("transformer", SEQ2SEQ),
}
# "transformer" takes labels, or what its decoder reads
DROPOUT_OFF = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "transformer": {"dropout": 0.0},
}
DROPOUT_OFF["roberta"] = DROPOUT_OFF["bert"]


def build(case, nn=None, **more):
    name, options = MODELS[case]
    torch.manual_seed(3)
    return zoo.create(name, nn=nn, **{**options, **more})


def inputs(case, dtype=torch.float32):
    name, options = MODELS[case]
    g = torch.Generator().manual_seed(1)
    classes = torch.tensor([0, 2])
    if name == "vit":
        return (torch.randn(2, 3, 8, 8, generator=g, dtype=dtype),), classes
    ids = torch.randint(3, 37, (2, 11), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return (ids, mask), classes if options.get("head") == "classify" else ids


@pytest.mark.parametrize("case", MODELS)
def test_plain_twin(case):
    ours, plain = build(case), build(case, zoo.plain)
    states = ours.state_dict(), plain.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(type(layer).__module__.startswith("kernelzoo.nn") for layer in plain.modules())
    assert any(type(layer).__module__.startswith("kernelzoo.nn") for layer in ours.modules())
    off = DROPOUT_OFF.get(MODELS[case][0], {})
    given, labels = inputs(case, torch.float64)
    results = []
    for model in (build(case, **off).double(), build(case, zoo.plain, **off).double()):
        loss = model(*given, labels=labels)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", MODELS)
def test_copies(case):
    given, labels = inputs(case)
    model = build(case).eval()
    expected = model(*given, labels=labels)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(*given, labels=labels), expected)
    pickle.loads(pickle.dumps(build(case, zoo.plain)))


@pytest.mark.parametrize("case", MODELS)
def test_dropout_is_in_training_only(case):
    if MODELS[case][0] in ("llama", "vit"):
        pytest.skip("no dropout unless asked for")
    given, labels = inputs(case)
    model = build(case)
    assert model(*given, labels=labels) != model(*given, labels=labels)
    model.eval()
    assert model(*given, labels=labels) == model(*given, labels=labels)


@pytest.mark.parametrize("case", [case for case in MODELS if "vit" not in case])
def test_int32_tokens_and_labels(case):
    given, labels = inputs(case)
    model = build(case).eval()
    expected = model(*given, labels=labels)
    assert torch.equal(model(*(t.int() for t in given), labels=labels.int()), expected)


@pytest.mark.parametrize("case", MODELS)
def test_autocast(case):
    given, labels = inputs(case)
    model = build(case).eval()
    exact = model(*given, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*given, labels=labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    # bfloat16 through whole models
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("case", ["gpt2", "llama", "bert-mlm", "roberta-classify", "vit", "transformer"])
def test_compiles_whole(case):
    given, labels = inputs(case)
    model = build(case).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(*given, labels=labels), model(*given, labels=labels)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(y, parameters) for y in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", MODELS)
def test_exports(case):
    given, _ = inputs(case)
    model = build(case).eval()
    more = {"decoder_input_ids": given[0]} if case == "transformer" else {}
    program = torch.export.export(model, given, more)
    torch.testing.assert_close(program.module()(*given, **more), model(*given, **more))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "roberta", "vit"])
def test_heads_divide(name):
    options = {**GPT2, "n_head": 5} if name == "gpt2" else {**(VIT if name == "vit" else TEXT)}
    if name != "gpt2":
        options["num_attention_heads"] = 5
    with pytest.raises(ValueError, match=r"=24 is not a multiple of (n_head|num_attention_heads)=5"):
        zoo.create(name, **options)


def test_options_that_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads=6 is not a multiple of num_key_value_heads=4"):
        zoo.create("llama", **{**TEXT, "num_key_value_heads": 4})
    with pytest.raises(ValueError, match="head is 'qa'; expected 'mlm' or 'classify' or None"):
        zoo.create("bert", **{**TEXT, "head": "qa"})
    with pytest.raises(ValueError, match="unknown activation 'quick_gelu'"):
        zoo.create("bert", **{**TEXT, "hidden_act": "quick_gelu"})
    with pytest.raises(ValueError, match="'llama3' needs factor and low_freq_factor"):
        zoo.create("llama", **{**TEXT, "rope_scaling": {"rope_type": "llama3"}})
    with pytest.raises(ValueError, match="patch_size=3"):
        zoo.create("vit", **{**VIT, "patch_size": 3})
    with pytest.raises(ValueError, match="gpt2: n_layer is -1; expected 0 or more"):
        zoo.create("gpt2", n_layer=-1)


@pytest.mark.parametrize("case", ["gpt2", "llama", "bert-mlm", "roberta-mlm"])
def test_bad_input(case):
    model = build(case)
    with pytest.raises(ValueError, match=r"\d+ tokens do not fit into .*=1\d; shorten the input"):
        model(torch.ones(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\); expected \(batch, length\)"):
        model(torch.ones(5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"input_ids has dtype torch\.float32"):
        model(torch.ones(1, 5))
    ids = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\) but input_ids has \(2, 5\)"):
        model(ids, ids[:, :4])
    with pytest.raises(ValueError, match=r"labels has shape \(1, 5\) but input_ids has \(2, 5\)"):
        model(ids, labels=ids[:1])
    with pytest.raises(TypeError, match=r"labels has dtype torch\.float32; expected whole numbers"):
        model(ids, labels=ids.float())
    with pytest.raises(ValueError, match=r"position_ids has shape \(3, 5\); expected \(5,\) or \(2, 5\)"):
        model(ids, position_ids=torch.ones(3, 5, dtype=torch.int64))
    with pytest.raises(IndexError):
        model(ids + 40)


def test_images_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(1, 3, 9, 8\); expected \(batch, 3, 8, 8\), resize"):
        build("vit")(torch.zeros(1, 3, 9, 8))


@pytest.mark.parametrize(
    ("problem", "labels"),
    [(None, torch.tensor([0.0, 1.0])), ("regression", torch.ones(2, 3)), (None, torch.ones(2, 3))],
    ids=["one number", "numbers", "a sigmoid each"],
)
def test_losses_of_a_classifier(problem, labels):
    width = 1 if labels.dim() == 1 else 3
    model = build("bert-classify", num_labels=width, problem_type=problem).eval()
    (ids, mask), _ = inputs("bert-classify")
    logits, F = model(ids, mask), torch.nn.functional
    sigmoid = problem is None and width == 3
    expected = (F.binary_cross_entropy_with_logits if sigmoid else F.mse_loss)(logits, labels.view_as(logits))
    torch.testing.assert_close(model(ids, mask, labels=labels), expected)


def test_padding_changes_nothing():
    for case in ("gpt2", "llama", "bert-mlm", "roberta-mlm"):
        model = build(case).eval()
        (ids, mask), _ = inputs(case)
        if case == "roberta-mlm":
            ids = ids.masked_fill(mask == 0, 1)
        torch.testing.assert_close(model(ids, mask)[1, :7], model(ids[1:, :7])[0], rtol=1e-4, atol=1e-5)


def test_position_ids():
    for case in ("gpt2", "llama", "bert-mlm"):
        model = build(case).eval()
        (ids, _), _ = inputs(case)
        at = torch.arange(11).expand(2, 11)
        torch.testing.assert_close(model(ids, position_ids=at), model(ids), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(ids, position_ids=at[:1]), model(ids), rtol=1e-4, atol=1e-5)
        if case != "llama":  # whose attention sees only differences
            assert not torch.allclose(model(ids, position_ids=at + 2), model(ids))
