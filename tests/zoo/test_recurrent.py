"""Recurrent models: their plain twin, the carried state, resets, padding, generation, saving, bad input."""

import copy
import pickle

import pytest
import torch

from kernelzoo import nn, zoo
from kernelzoo.zoo.recurrence import State

from ..harness import Counter, compiled_quietly

F = torch.nn.functional
VOCABULARY, EOS = 19, 1
LM = {"vocab_size": VOCABULARY, "hidden_size": 12}
CHAR = {**LM, "embedding_size": 5, "num_layers": 2}
CLASSIFY = {"vocab_size": VOCABULARY, "num_labels": 3, "embedding_size": 7, "hidden_size": 6}
SEQ2SEQ = {"vocab_size": VOCABULARY, "embedding_size": 8, "hidden_size": 6, "dropout": 0.0}
MODELS = {
    "lstm_lm": ("lstm_lm", LM),
    "lstm_lm-untied": ("lstm_lm", {**LM, "embedding_size": 7, "tie_word_embeddings": False}),
    "lstm_lm-eos": ("lstm_lm", {**LM, "eos_token_id": EOS}),
    "char_rnn": ("char_rnn", CHAR),
    "char_rnn-gru": ("char_rnn", {**CHAR, "cell": "gru", "eos_token_id": EOS}),
    "char_rnn-rnn": ("char_rnn", {**CHAR, "cell": "rnn"}),
    "lstm_classifier": ("lstm_classifier", CLASSIFY),
    "lstm_classifier-forward": ("lstm_classifier", {**CLASSIFY, "bidirectional": False, "num_layers": 2}),
    "gru_forecaster": ("gru_forecaster", {"in_features": 2, "hidden_size": 6, "horizon": 3}),
    "seq2seq": ("seq2seq", SEQ2SEQ),
    "seq2seq-lstm": ("seq2seq", {**SEQ2SEQ, "cell": "lstm", "num_layers": 2, "label_smoothing": 0.1}),
}
WRITERS = [case for case in MODELS if not case.startswith(("lstm_classifier", "gru_forecaster"))]
LANGUAGE = [case for case in WRITERS if "seq2seq" not in case]


def build(case, nn=None, **more):
    name, options = MODELS[case]
    torch.manual_seed(3)
    return zoo.create(name, nn=nn, **{**options, **more})


def inputs(case, dtype=torch.float32):
    """Arguments and labels: two rows of 9, some of the second padding; an EOS in the middle."""
    g = torch.Generator().manual_seed(1)
    if case == "gru_forecaster":
        return (torch.randn(2, 9, 2, generator=g, dtype=dtype),), None
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=g)
    ids[0, 4] = EOS
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return (ids, mask), torch.tensor([0, 2]) if "classifier" in case else ids


def loss_of(model, given, labels):
    return model(*given).square().sum() if labels is None else model(*given, labels=labels)


@pytest.mark.parametrize("case", MODELS)
def test_plain_twin(case):
    given, labels = inputs(case, torch.float64)
    ours, plain = build(case), build(case, zoo.plain)
    states = ours.state_dict(), plain.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(type(layer).__module__.startswith("kernelzoo.nn") for layer in plain.modules())
    layers = [layer for layer in ours.modules() if isinstance(layer, torch.nn.RNNBase)]
    assert {type(layer) for layer in layers} <= {nn.LSTM, nn.GRU, nn.RNN}
    assert layers
    results = []
    for model in (ours.double(), plain.double()):
        loss = loss_of(model, given, labels)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


DROPS = {"zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.25}
NORMED = {**DROPS, "layer_norm": True, "heads": 2}
LSTMS = {**NORMED, "zoneout": (0.1, 0.3), "peephole": True, "proj_size": 4}
VARIED = {
    "lstm_lm-eos": LSTMS,
    "char_rnn-gru": NORMED,
    "char_rnn-rnn": NORMED,
    "lstm_classifier-forward": LSTMS,
    "lstm_classifier": {**LSTMS, "proj_size": 2},
    "gru_forecaster": NORMED,
    "seq2seq": NORMED,
    "seq2seq-lstm": LSTMS,
}


@pytest.mark.parametrize("case", VARIED)
def test_options_of_the_layers(tmp_path, case):
    """They reach every layer, are trained, saved and loaded, and change nothing where they are at their defaults."""
    pytest.importorskip("safetensors")
    given, labels = inputs(case)
    model = build(case, **VARIED[case])
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.RNNBase)]
    for layer in layers:
        for name, value in VARIED[case].items():
            assert getattr(layer, name) == value
    loss_of(model, given, labels).backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert loss_of(model, given, labels) != loss_of(model, given, labels)
    expected = loss_of(model.eval(), given, labels)
    assert loss_of(model, given, labels) == expected
    zoo.save(model, tmp_path)
    assert torch.equal(loss_of(zoo.load(MODELS[case][0], tmp_path), given, labels), expected)
    if case in WRITERS:
        assert model.generate(*given, max_new_tokens=3, eos_token_id=()).shape[1] >= 3
    defaults = {name: value for name, value in zoo.options(MODELS[case][0]).items() if name in VARIED[case]}
    same, plain = build(case, **defaults), build(case, zoo.plain, **defaults)
    for model in (same, plain):
        assert list(model.state_dict()) == list(build(case).state_dict())


@pytest.mark.parametrize("case", ["lstm_lm", "lstm_classifier", "seq2seq-lstm"])
def test_projection_in_plain_pytorch(case):
    """The one option of a layer that torch's own has."""
    given, labels = inputs(case)
    models = [build(case, namespace, proj_size=3).double() for namespace in (None, zoo.plain)]
    ours, plain = (loss_of(model, given, labels) for model in models)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("case", MODELS)
def test_saved_loaded_and_copied(tmp_path, case):
    pytest.importorskip("safetensors")
    given, labels = inputs(case)
    model = build(case).eval()
    expected = loss_of(model, given, labels)
    zoo.save(model, tmp_path)
    loaded = zoo.load(MODELS[case][0], tmp_path)
    assert loaded.options == model.options
    for again in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(loss_of(again, given, labels), expected)


@pytest.mark.parametrize("case", LANGUAGE)
def test_state_carried_over_windows_is_one_long_window(case):
    model = build(case).double()
    (ids, _), _ = inputs(case)
    expected = model(ids)
    cache = model.new_cache()
    windows = [model(part, cache=cache) for part in ids.split([4, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(windows, 1), expected)
    # the gradient reaches back over the windows until the state is detached
    assert all(part.requires_grad for part in cache.parts)
    cache.detach()
    assert not any(part.requires_grad for part in cache.parts)
    assert len(cache.parts) == (1 if "gru" in case or "-rnn" in case else 2)


def test_text_knows_nothing_of_the_one_before():
    model = build("lstm_lm-eos").double()
    ids = torch.randint(3, VOCABULARY, (3, 10))
    ids[0, 4] = ids[1, 0] = ids[1, 9] = ids[2, 4] = ids[2, 5] = EOS
    logits = model(ids)
    for row, at in ((0, 4), (2, 5)):
        torch.testing.assert_close(logits[row, at:], model(ids[row, at:][None])[0])
    cache = model.new_cache()
    model(torch.full((3, 4), 5), cache=cache)
    after = model(ids, cache=cache)
    torch.testing.assert_close(after[1], logits[1])  # begins with a text
    torch.testing.assert_close(after[0, 4:], logits[0, 4:])
    assert not torch.allclose(after[0, :4], logits[0, :4])
    endless = build("lstm_lm").double()
    assert not torch.allclose(endless(ids)[0, 4:], endless(ids[:1, 4:])[0])


@pytest.mark.parametrize("case", ["lstm_lm-eos", "char_rnn-gru"])
@pytest.mark.parametrize("side", ["left", "right", "scattered"])
def test_padding_is_skipped_wherever_it_stands(case, side):
    model = build(case).double()
    (ids, _), _ = inputs(case)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, {"left": slice(0, 3), "right": slice(6, 9), "scattered": slice(1, 9, 3)}[side]] = 0
    cache, alone = model.new_cache(), model.new_cache()
    logits = model(ids, mask, cache=cache)
    kept = ids[1][mask[1].bool()][None]
    torch.testing.assert_close(logits[1][mask[1].bool()], model(kept, cache=alone)[0])
    torch.testing.assert_close(logits[0], model(ids)[0])
    for part, expected in zip(cache.parts, alone.parts, strict=True):
        torch.testing.assert_close(part[:, 1:], expected)


def test_labels_are_shifted_or_one_longer():
    model = build("lstm_lm").double()
    (ids, _), _ = inputs("lstm_lm")
    logits = model(ids)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=ids), expected)
    longer = torch.cat([ids, torch.tensor([[7], [-100]])], 1)
    expected = F.cross_entropy(logits.flatten(0, 1), longer[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=longer.int()), expected)


def greedy(model, ids, new):
    """The likeliest continuation of one row, all of it read again for every token."""
    if hasattr(model, "encode"):
        out = model.prefix_of(ids)
        for _ in range(new):
            out = torch.cat([out, model(ids, decoder_input_ids=out)[:, -1:].argmax(-1)], 1)
        return out
    for _ in range(new):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("case", WRITERS)
def test_greedy_generation_is_the_likeliest_token_each_time(case):
    model = build(case).eval().double()
    (ids, mask), _ = inputs(case)
    for seed in range(100):  # until a model of random weights writes more than one token for ever
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.7, generator=generator)
        whole = greedy(model, ids[:1], 6)
        if len(set(whole[0, -6:].tolist())) > 1:
            break
    else:
        pytest.fail("no seed gave a model that writes different tokens")
    out = model.generate(ids, mask, max_new_tokens=6, eos_token_id=())
    assert torch.equal(out[:1], whole)
    assert torch.equal(out[1:, -6:], greedy(model, ids[1:, :6], 6)[:, -6:])
    end = int(whole[0, -3])
    ended = model.generate(ids[:1], max_new_tokens=6, eos_token_id=end, pad_token_id=0)
    assert ended[0, -1] == end
    assert torch.equal(ended, whole[:, : ended.shape[1]])


@pytest.mark.parametrize("case", ["lstm_lm", "char_rnn-gru", "seq2seq-lstm"])
def test_beams_of_a_batch_are_those_of_each_row(case):
    model = build(case).eval().double()
    (ids, mask), _ = inputs(case)
    how = {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": ()}
    out = model.generate(ids, mask, **how)
    assert torch.equal(out[:1], model.generate(ids[:1], **how))
    assert torch.equal(out[1:, -5:], model.generate(ids[1:, :6], **how)[:, -5:])


def test_classifier_reads_both_ways_and_no_padding():
    (ids, mask), _ = inputs("lstm_classifier")
    model = build("lstm_classifier").double()
    logits = model(ids, mask)
    torch.testing.assert_close(logits[1], model(ids[1:, :6])[0])
    torch.testing.assert_close(logits[0], model(ids)[0])
    states, _ = model.rnn(model.tokens(ids[:1]))
    torch.testing.assert_close(logits[0], model.head(states.amax(1))[0])
    assert states.shape[2] == 12


@pytest.mark.parametrize("case", ["lstm_lm", "lstm_classifier", "seq2seq"])
def test_dropout_is_in_training_only(case):
    given, labels = inputs(case)
    model = build(case, dropout=0.3)
    assert model(*given, labels=labels) != model(*given, labels=labels)
    model.eval()
    assert model(*given, labels=labels) == model(*given, labels=labels)


def test_forecaster_says_persistence_before_it_knows_anything():
    model = build("gru_forecaster")
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    (x,), _ = inputs("gru_forecaster")
    assert torch.equal(model(x), x[:, -1:].expand(2, 3, 2))


def test_forecasts_beyond_the_horizon_read_forecasts():
    model = build("gru_forecaster", dropout=0.5).train()
    (x,), _ = inputs("gru_forecaster")
    forecast = model.forecast(x, 7)
    assert model.training
    model.eval()
    first = model(x)
    second = model(torch.cat([x, first], 1)[:, -9:])
    third = model(torch.cat([x, first, second], 1)[:, -9:])
    assert torch.equal(forecast, torch.cat([first, second, third[:, :1]], 1))


def test_decoder_attends_to_tokens_and_not_to_padding():
    model = build("seq2seq-lstm").double()
    (ids, mask), labels = inputs("seq2seq")
    logits = model(ids, mask, decoder_input_ids=labels)
    torch.testing.assert_close(logits[1], model(ids[1:, :6], decoder_input_ids=labels[1:])[0])
    other = ids.clone()
    other[0, 2], other[1, 7] = 3, 3
    changed = model(other, mask, decoder_input_ids=labels)
    assert not torch.allclose(changed[0], logits[0])
    torch.testing.assert_close(changed[1], logits[1])


def test_targets_are_read_shifted_behind_bos():
    model = build("seq2seq").double()
    (ids, mask), labels = inputs("seq2seq")
    labels = labels.clone()  # the source and the target are one tensor
    labels[1, 5:] = -100
    read = torch.cat([torch.full((2, 1), 1), labels[:, :-1]], 1)
    read[read == -100] = 0
    logits = model(ids, mask, decoder_input_ids=read)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(ids, mask, labels=labels), expected)


@pytest.mark.parametrize("case", ["lstm_lm-eos", "char_rnn-rnn", "lstm_classifier", "seq2seq"])
def test_autocast(case):
    given, labels = inputs(case)
    model = build(case).eval()
    exact = model(*given, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*given, labels=labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)


def test_forget_gates_start_open():
    for case in ("lstm_lm", "char_rnn", "seq2seq-lstm"):
        layers = [m for m in build(case).modules() if isinstance(m, torch.nn.LSTM)]
        for layer in layers:
            n = layer.hidden_size
            assert (layer.bias_ih_l0[n : 2 * n] == 1).all()
            assert (layer.bias_ih_l0[:n].abs() < 1).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstm_lm", {**LM, "embedding_size": 5}, "embedding_size=5 is not hidden_size=12, as tie_word"),
        ("lstm_lm", {**LM, "num_layers": -1}, "num_layers is -1; expected 0 or more"),
        ("char_rnn", {"cell": "lstn"}, "cell is 'lstn'; expected 'lstm' or 'gru' or 'rnn'"),
        ("seq2seq", {**SEQ2SEQ, "cell": "elman"}, "seq2seq: cell is 'elman'"),
        ("gru_forecaster", {"horizon": 0}, "horizon is 0; expected 1 or more"),
        (
            "char_rnn",
            {"cell": "gru", "peephole": True},
            "peephole=True is an option of LSTMs; the cell is 'gru'",
        ),
        (
            "seq2seq",
            {**SEQ2SEQ, "proj_size": 2},
            "seq2seq: proj_size=2 is an option of LSTMs; the cell is 'gru'",
        ),
        ("lstm_lm", {**LM, "heads": 5}, "heads must divide the 12 cells, got 5"),
        ("lstm_lm", {**LM, "proj_size": 12}, "smaller than hidden_size; got proj_size=12 and hidden_size=12"),
        (
            "lstm_lm",
            {**LM, "proj_size": 4, "embedding_size": 12},
            "embedding_size=12 is not proj_size=4, as tie",
        ),
        ("lstm_lm", {**LM, "zoneout": 1.5}, "zoneout has to be between 0 and 1, but got 1.5"),
        ("char_rnn", {"cell": "rnn", "zoneout": (0.1, 0.1)}, "zoneout must be a probability, got"),
        (
            "lstm_lm",
            {**LM, "layer_norm": True, "nn": zoo.plain},
            r"lstm_lm: layer_norm=True is an option of kernelzoo\.nn\.LSTM; .* plain PyTorch, whose LSTM has none",
        ),
    ],
)
def test_options_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, **options)


def test_options_that_no_layer_of_the_model_has():
    with pytest.raises(TypeError, match=r"gru_forecaster has no option 'peephole'; it takes .*zoneout=0.0"):
        zoo.create("gru_forecaster", peephole=True)
    with pytest.raises(TypeError, match="did you mean 'layer_norm'"):
        zoo.create("lstm_lm", **LM, layernorm=True)
    with pytest.raises(
        TypeError, match="lstm_lm: no option is called 'layernorm'; expected proj_size, layer_norm"
    ):
        zoo.recurrent.LSTMLM(**LM, layernorm=True)


COMPILED = {**MODELS, "lstm_lm-varied": ("lstm_lm", {**LM, **LSTMS, "eos_token_id": EOS})}
ALWAYS = ("lstm_lm-eos", "gru_forecaster")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in ALWAYS else pytest.mark.slow) for case in COMPILED]
)
def test_compile_and_export(case):
    """One whole graph, at most twice (static, dynamic) whatever lengths, padding and texts follow; its gradients."""
    name, options = COMPILED[case]
    torch.manual_seed(3)
    model = zoo.create(name, **options).double().eval()

    def cut(length):
        given, labels = inputs(case, torch.float64)
        given = tuple(t[:, :length] for t in given)
        return given, labels if labels is None or "classifier" in case else labels[:, :length]

    counter = Counter()
    with compiled_quietly():
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        for length in (9, 7, 8, 5):
            given, labels = cut(length)
            found = []
            for one in (compiled, model):
                loss = loss_of(one, given, labels)
                loss.backward()
                found.append([loss, *(p.grad for p in model.parameters())])
                model.zero_grad()
            torch.testing.assert_close(*found)
        assert counter.graphs <= 2
    with compiled_quietly(), torch.no_grad():
        given, labels = cut(9)
        named = {"decoder_input_ids": labels} if name == "seq2seq" else {}
        names = ("x",) if labels is None else ("input_ids", "attention_mask")
        length = torch.export.Dim("length", min=2, max=64)
        dynamic = {key: {1: length} for key in (*names, *named)}
        program = torch.export.export(model, given, named, dynamic_shapes=dynamic)
        for length in (9, 7):
            given, labels = cut(length)
            named = {"decoder_input_ids": labels} if name == "seq2seq" else {}
            torch.testing.assert_close(program.module()(*given, **named), model(*given, **named))
    assert any("kernelzoo.rnn_fwd" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("case", ["lstm_lm", "lstm_classifier", "seq2seq"])
def test_bad_tokens(case):
    model = build(case)
    ids = torch.ones(2, 5, dtype=torch.int64)
    labels = torch.tensor([0, 1]) if "classifier" in case else ids
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\); expected \(batch, length\)"):
        model(ids[0], labels=labels)
    with pytest.raises(TypeError, match=r"input_ids has dtype torch\.float32"):
        model(ids.float(), labels=labels)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\) but input_ids has \(2, 5\)"):
        model(ids, ids[:, :4], labels=labels)
    with pytest.raises(ValueError, match="a row has no token"):
        model(ids, torch.tensor([[1] * 5, [0] * 5]), labels=labels)
    with pytest.raises(IndexError):
        model(ids + VOCABULARY, labels=labels)


def test_bad_states_and_labels():
    model = build("lstm_lm")
    ids = torch.ones(2, 5, dtype=torch.int64)
    cache = model.new_cache()
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="input_ids has 3 rows but the cache has 2; expected the same"):
        model(ids[:1].expand(3, 5), cache=cache)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 7\) but input_ids has \(2, 5\)"):
        model(ids, labels=torch.ones(2, 7, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"labels has dtype torch\.float32; expected whole numbers"):
        model(ids, labels=ids.float())
    with pytest.raises(ValueError, match="a prompt has no token"):
        model.generate(ids[:, :0])
    with pytest.raises(ValueError, match="neither decoder_input_ids nor labels given"):
        build("seq2seq")(ids)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\); expected \(batch, length, 2\)"):
        build("gru_forecaster")(torch.ones(2, 5))


def test_states_are_reordered():
    state = State((torch.arange(6.0).view(1, 3, 2),))
    state.reorder(torch.tensor([2, 0, 0]))
    assert state.parts[0][0, :, 0].tolist() == [4.0, 0.0, 0.0]
