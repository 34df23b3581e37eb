"""Folders of the transformers library: loaded here, saved here, loaded there; and what is wrong with bad ones."""

import json

import pytest
import torch

from kernelzoo import zoo

from .models import CASES, compare, foreign, inputs, library, output, real, saved, theirs

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
library()


@pytest.mark.parametrize("case", CASES)
def test_output_loss_and_gradients(case, tmp_path):
    hf = theirs(case)
    compare(case, zoo.load(CASES[case][0], saved(hf, tmp_path)), hf)


@pytest.mark.parametrize("case", ["gpt2", "llama-gqa", "bert-mlm"])
def test_without_padding(case, tmp_path):
    hf = theirs(case)
    compare(case, zoo.load(CASES[case][0], saved(hf, tmp_path)), hf, padding=False)


@pytest.mark.parametrize("case", CASES)
def test_what_we_save_the_library_reads(case, tmp_path):
    ours = zoo.load(CASES[case][0], saved(theirs(case), tmp_path / "theirs"))
    zoo.save(ours, tmp_path / "ours")
    kind = getattr(library(), CASES[case][1])
    with foreign():
        hf, about = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not about["unexpected_keys"]
    assert not about["mismatched_keys"]
    # a bare model has a pooler there, and an untied mlm head a bias that takes no part
    assert all("pooler" in key or key == "cls.predictions.bias" for key in about["missing_keys"])
    given, _ = inputs(case)
    again = zoo.load(CASES[case][0], tmp_path / "ours")
    expected = output(ours, given)
    torch.testing.assert_close(real(output(hf.eval(), given), given), real(expected, given))
    assert torch.equal(output(again, given), expected)
    assert again.options == ours.options


@pytest.mark.parametrize("case", ["gpt2", "llama3-biases-tied", "bert-mlm"])
def test_shards(case, tmp_path):
    hf = theirs(case)
    saved(hf, tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    given, _ = inputs(case)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        ours = zoo.load(CASES[case][0], path)
        torch.testing.assert_close(real(output(ours, given), given), real(output(hf, given), given))


def test_a_file_with_config_beside_it(tmp_path):
    saved(theirs("gpt2"), tmp_path)
    whole, file = zoo.load("gpt2", tmp_path), zoo.load("gpt2", tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), file.parameters(), strict=True))


def test_a_bare_model_of_the_library(tmp_path):
    """As openai-community/gpt2 is stored: no prefix, and the causal masks among the weights."""
    hf = theirs("gpt2")
    saved(hf.transformer, tmp_path)
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in weights
    weights["h.0.attn.bias"] = torch.ones(1, 1, 40, 40).tril().bool()
    safetensors.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    given, _ = inputs("gpt2")
    torch.testing.assert_close(
        real(output(zoo.load("gpt2", tmp_path), given), given), real(output(hf, given), given)
    )


def test_names_of_2018(tmp_path):
    """bert-base-uncased calls the weights of its norms gamma and beta."""
    saved(theirs("bert-mlm"), tmp_path)
    expected = zoo.load("bert", tmp_path).state_dict()
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    weights = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for key, t in weights.items()
    }
    safetensors.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert all(torch.equal(expected[key], t) for key, t in zoo.load("bert", tmp_path).state_dict().items())


def test_dtype_is_the_files(tmp_path):
    saved(theirs("llama").bfloat16(), tmp_path)
    model = zoo.load("llama", tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.rotary.cos.dtype == torch.float32
    assert not any(t.is_meta for t in model.buffers())


def test_options_win_over_the_config(tmp_path):
    saved(theirs("gpt2"), tmp_path)
    assert zoo.load("gpt2", tmp_path, attn_pdrop=0.3).options["attn_pdrop"] == 0.3


def test_a_new_head_is_asked_for(tmp_path):
    saved(theirs("bert-mlm"), tmp_path)
    with pytest.raises(zoo.CheckpointError, match=r"has no bert.pooler.dense.weight.* new_head=True"):
        zoo.load("bert", tmp_path, head="classify", num_labels=4)
    torch.manual_seed(3)
    model = zoo.load("bert", tmp_path, head="classify", num_labels=4, new_head=True)
    base = zoo.load("bert", tmp_path).state_dict()
    assert model(torch.tensor([[3, 4]])).shape == (1, 4)
    assert model.head.out.weight.std() > 0
    assert all(torch.equal(base[key], t) for key, t in model.state_dict().items() if "head" not in key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_new_head_has_the_files_dtype(tmp_path, dtype):
    saved(theirs("bert-mlm").to(dtype), tmp_path)
    model = zoo.load("bert", tmp_path, head="classify", new_head=True)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(torch.tensor([[3, 4]])).dtype == dtype


def test_a_new_head_for_other_labels(tmp_path):
    saved(theirs("bert-classify"), tmp_path)
    with pytest.raises(zoo.CheckpointError, match=r"classifier.weight in .* \(5, 24\); expected \(3, 24\)"):
        zoo.load("bert", tmp_path, num_labels=3)
    model = zoo.load("bert", tmp_path, num_labels=3, new_head=True)
    assert model(torch.tensor([[3, 4]])).shape == (1, 3)


def own(model, folder):
    """As `kernelzoo train` writes it."""
    about = {"model": model.name, "options": model.options}
    file = folder / "model.safetensors"
    safetensors.save_file(model.state_dict(), file, {"kernelzoo": json.dumps(about)})
    return file


def test_a_new_head_on_our_own_file(tmp_path):
    base = zoo.create("bert", **CASES["bert-mlm"][3])
    file = own(base, tmp_path)
    with pytest.raises(
        zoo.CheckpointError, match=r"holds head\..* does not have; it holds another head: pass"
    ):
        zoo.load("bert", file, head="classify")
    model = zoo.load("bert", file, head="classify", num_labels=3, new_head=True)
    assert model(torch.tensor([[3, 4]])).shape == (1, 3)
    for key, t in model.state_dict().items():
        # both heads have a layer head.dense of the same shape, and nothing of one serves the other
        assert key.startswith("head.") or torch.equal(t, base.state_dict()[key])
    assert not torch.equal(model.head.dense.weight, base.head.dense.weight)
    again = zoo.load("bert", own(model, tmp_path), new_head=True)
    assert torch.equal(again.head.out.weight, model.head.out.weight)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_names_of_labels(name, tmp_path):
    labels = {0: "cat", 1: "dog", 2: "owl", 3: "bee", 4: "elk"}
    hf = theirs(f"{name}-classify" if name == "bert" else name, id2label=labels, num_labels=5)
    model = zoo.load(name, saved(hf, tmp_path / "theirs"))
    assert model.label_names == tuple(labels.values())
    zoo.save(model, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["id2label"] == {str(i): label for i, label in labels.items()}
    assert config["label2id"] == {label: i for i, label in labels.items()}
    assert zoo.load(name, tmp_path / "ours").label_names == model.label_names
    assert zoo.load(name, tmp_path / "ours", num_labels=2, new_head=True).label_names is None


def test_our_own_files(tmp_path):
    model = zoo.create("transformer", vocab_size=19, d_model=8, nhead=2, dim_feedforward=12).eval()
    zoo.save(model, tmp_path)
    again = zoo.load("transformer", tmp_path / "model.safetensors")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(ids, labels=ids), again(ids, labels=ids))
    assert zoo.load("transformer", tmp_path).options == model.options


@pytest.fixture
def folder(tmp_path):
    return saved(theirs("gpt2"), tmp_path)


def edit(folder, change):
    file = folder / "model.safetensors"
    weights = safetensors.load_file(file)
    change(weights)
    safetensors.save_file(weights, file, {"format": "pt"})


def configure(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder, match, name="gpt2"):
    with pytest.raises(zoo.CheckpointError, match=match):
        zoo.load(name, folder)


def test_missing_key(folder):
    edit(folder, lambda w: w.pop("transformer.h.1.attn.c_attn.weight"))
    refused(folder, "has no transformer.h.1.attn.c_attn.weight, which gpt2 needs")


def test_foreign_key(folder):
    edit(folder, lambda w: w.update({"transformer.h.2.ln_1.weight": torch.ones(24)}))
    refused(folder, r"holds transformer.h.2.ln_1.weight of shape \(24,\), which a gpt2 .* does not have")


def test_shape(folder):
    edit(folder, lambda w: w.update({"transformer.wpe.weight": torch.ones(41, 24)}))
    refused(folder, r"transformer.wpe.weight in .* has shape \(41, 24\); expected \(40, 24\)")


def test_dtype(folder):
    edit(folder, lambda w: w.update({"transformer.wpe.weight": torch.ones(40, 24).to(torch.int8)}))
    refused(folder, "transformer.wpe.weight in .* has dtype I8; expected")


def test_options_that_json_writes_as_lists(tmp_path):
    model = zoo.create("mlp", in_features=3, out_features=2, hidden=(4, 5), act=("leaky_relu", 0.2)).eval()
    again = zoo.load("mlp", own(model, tmp_path))
    assert torch.equal(again(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_dtype_of_our_own_file(tmp_path):
    model = zoo.create("mlp", in_features=3, out_features=2, hidden=(4,))
    file = own(model, tmp_path)
    key, weights = next(iter(model.state_dict())), model.state_dict()
    weights[key] = weights[key].int()
    about = {"model": "mlp", "options": model.options}
    safetensors.save_file(weights, file, {"kernelzoo": json.dumps(about)})
    refused(file, f"{key} in .* has dtype I32; expected one of F64, F32", "mlp")
    about["options"]["in_features"] = "3"
    safetensors.save_file(model.state_dict(), file, {"kernelzoo": json.dumps(about)})
    refused(file, "says in_features='3'; mlp expects int", "mlp")
    safetensors.save_file(model.state_dict(), file, {"kernelzoo": json.dumps({"options": 3})})
    refused(file, "says options=3; mlp expects dict", "mlp")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gpt2", {"n_embd": "24"}, "config.json of .* says n_embd='24'; gpt2 expects int"),
        ("gpt2", {"n_layer": 2.5}, "n_layer=2.5; gpt2 expects int"),
        ("gpt2", {"n_layer": None}, "n_layer=None; gpt2 expects int"),
        ("gpt2", {"n_embd": [24]}, r"n_embd=\[24\]; gpt2 expects int"),
        ("gpt2", {"n_embd": -24}, "n_embd|not a multiple"),
        ("gpt2", {"vocab_size": -1}, "build no model .*negative"),
        ("gpt2", {"eos_token_id": "x"}, "eos_token_id='x'; gpt2 expects int . list.int. . None"),
        ("llama", {"rope_parameters": "default"}, "rope_parameters='default'; llama expects dict"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "8"}}, "build no model"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'; llama expects float"),
    ],
)
def test_settings_of_another_kind(tmp_path, name, values, message):
    saved(theirs(name), tmp_path)
    configure(tmp_path, **values)
    with pytest.raises(ValueError, match=message):
        zoo.load(name, tmp_path)


def test_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "truncated or no safetensors file")
    file.write_bytes(b"")
    refused(folder, "truncated or no safetensors file")


def test_tied_but_different(folder):
    edit(folder, lambda w: w.update({"lm_head.weight": torch.ones(53, 24)}))
    refused(folder, "holds lm_head.weight, different from transformer.wte.weight")


def test_tied_and_stored_under_the_other_name(folder):
    expected = zoo.load("gpt2", folder).tokens.weight
    edit(folder, lambda w: w.update({"lm_head.weight": w.pop("transformer.wte.weight")}))
    assert torch.equal(zoo.load("gpt2", folder).tokens.weight, expected)


def test_config(folder):
    refused(folder, "says model_type 'gpt2'; bert reads 'bert'", "bert")
    refused(folder, "the transformers library, which has no model like 'mlp'", "mlp")
    configure(folder, add_cross_attention=True)
    refused(folder, "says add_cross_attention=True; gpt2 computes only False")
    configure(folder, add_cross_attention=False, quantization_config={"bits": 4})
    refused(folder, "quantization_config")
    configure(folder, quantization_config=None, activation_function="quick_gelu")
    with pytest.raises(ValueError, match="unknown activation 'quick_gelu'; expected one of gelu"):
        zoo.load("gpt2", folder)
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is not JSON")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_rope_that_is_not_computed(tmp_path):
    saved(theirs("llama"), tmp_path)
    configure(tmp_path, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0})
    with pytest.raises(ValueError, match="rope_type 'yarn'; expected one of default, linear, llama3"):
        zoo.load("llama", tmp_path)


def test_rope_as_version_4_wrote_it(tmp_path):
    saved(theirs("llama3-biases-tied"), tmp_path)
    expected = zoo.load("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(zoo.load("llama", tmp_path).rotary.cos, expected.rotary.cos)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "nameless"])
def test_pickles_are_refused(folder, name):
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.ones(2)}, folder / name)
    for path in (folder, folder / name):
        refused(path, "is a pickle, and opening one runs whatever code.*safetensors.torch.save_file")


def test_header_that_begins_as_a_pickle_does(tmp_path):
    # its length, 1152 = 0x480, is written as the bytes 80 04
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = zoo.create("mlp", in_features=2, out_features=1, hidden=())
    path = tmp_path / "w.safetensors"
    for padding in range(1200):
        save_file(model.state_dict(), path, {"padding": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x04":
            break
    else:
        pytest.fail("no header was 1152 bytes long")
    loaded = zoo.load("mlp", path, in_features=2, out_features=1, hidden=())
    assert torch.equal(loaded.head.weight, model.head.weight)
    # what does begin as one and goes on as a pickle is one
    path.write_bytes(b"\x80\x04\x95" + bytes(20))
    refused(path, "is a pickle", name="mlp")


def test_missing_shard(tmp_path):
    saved(theirs("gpt2"), tmp_path, max_shard_size="8KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"{shard.name} is missing; it holds ")


def test_index_that_points_elsewhere(tmp_path):
    saved(theirs("gpt2"), tmp_path, max_shard_size="8KB")
    for name in ("../model.safetensors", "/etc/model.safetensors", "a/model.safetensors", "..", 3):
        index = {"weight_map": {"wte.weight": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(tmp_path, "expected a safetensors file beside it")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere; nothing is downloaded"):
        zoo.load("gpt2", tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    refused(tmp_path, "has no model.safetensors nor model.safetensors.index.json; there is nothing")
