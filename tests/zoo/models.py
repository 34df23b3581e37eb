"""Small models of the zoo, the transformers library's beside them, and how the two are compared."""

import contextlib
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
import torch

from kernelzoo import zoo
from kernelzoo.verify import assert_as_good
from kernelzoo.zoo.checkpoints import exported

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 40}
TEXT = {**SIZES, "vocab_size": 53, "max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 53, "n_positions": 40, "n_embd": 24, "n_layer": 2, "n_head": 3}

# id: (zoo's name, the library's class, its config class, config)
CASES = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-options": (
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            **GPT2,
            "n_inner": 31,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "llama": ("llama", "LlamaForCausalLM", "LlamaConfig", TEXT),
    "llama-gqa": ("llama", "LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}),
    "llama3-biases-tied": (
        "llama",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            **TEXT,
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "head_dim": 10,
        },
    ),
    "bert-mlm": ("bert", "BertForMaskedLM", "BertConfig", TEXT),
    "bert-mlm-untied": ("bert", "BertForMaskedLM", "BertConfig", {**TEXT, "tie_word_embeddings": False}),
    "bert-classify": ("bert", "BertForSequenceClassification", "BertConfig", {**TEXT, "num_labels": 5}),
    "bert-none": ("bert", "BertModel", "BertConfig", TEXT),
    "roberta-mlm": ("roberta", "RobertaForMaskedLM", "RobertaConfig", TEXT),
    "roberta-classify": (
        "roberta",
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**TEXT, "num_labels": 5},
    ),
    "roberta-none": ("roberta", "RobertaModel", "RobertaConfig", TEXT),
    "vit": (
        "vit",
        "ViTForImageClassification",
        "ViTConfig",
        {**SIZES, "image_size": 16, "patch_size": 4, "num_labels": 5},
    ),
    "vit-oblong-nobias": (
        "vit",
        "ViTForImageClassification",
        "ViTConfig",
        {**SIZES, "image_size": 16, "patch_size": [4, 2], "num_labels": 5, "qkv_bias": False},
    ),
    "vit-none": ("vit", "ViTModel", "ViTConfig", {**SIZES, "image_size": 16, "patch_size": 4}),
}


@contextlib.contextmanager
def foreign():
    """The transformers library's own deprecation warnings are no errors of ours."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind, module=r"(transformers|huggingface_hub)\b")
        yield


def library():
    with foreign():
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    return transformers


def theirs(case, seed=0, **config):
    """The library's model of a case, every parameter random, in eval mode."""
    transformers = library()
    _, model, kind, options = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    with foreign():
        built = getattr(transformers, model)(getattr(transformers, kind)(**{**options, **config}))
    with torch.no_grad():
        for name, p in built.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 1.0))
            if "norm" in name.lower() and name.endswith("weight"):
                p.add_(1)
    return built.eval()


def saved(model, folder, **options):
    with foreign():
        model.save_pretrained(folder, **options)
    return folder


def inputs(case, padding=True, seed=7):
    """(arguments by name, labels or None where the model has no head), the same for both libraries."""
    name, kind, _, options = CASES[case]
    g = torch.Generator().manual_seed(seed)
    classes = torch.tensor([0, 3, 1]) if "Classification" in kind else None
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=g)}, classes
    ids = torch.randint(3, options["vocab_size"], (3, 13), generator=g)
    given = {"input_ids": ids}
    if padding:
        mask = torch.ones_like(ids)
        mask[1, 9:] = mask[2, 4:] = 0
        given["attention_mask"] = mask
        ids[mask == 0] = 1
    if name == "bert":
        given["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=g)
    if kind.endswith("Model"):
        return given, None
    labels = ids.clone()
    labels[0, 3:6] = -100
    if padding:
        labels[mask == 0] = -100
    return given, classes if classes is not None else labels


def output(model, given):
    y = model(**given)
    return y if isinstance(y, torch.Tensor) else y["logits"] if "logits" in y else y["last_hidden_state"]


def real(y, given):
    """Where there are tokens: what a model says of padding is of no use to anyone."""
    mask = given.get("attention_mask")
    return y if mask is None or y.dim() == 2 else y[mask.bool()]


def compare(case, ours, hf, padding=True):
    """Outputs, loss and every gradient by the rule, against the plain model of the zoo in float64.

    Over four inputs together: the largest error of one small gradient through a whole model is a matter of luck,
    twofold either way.
    """
    oracle = zoo.create(ours.name, nn=zoo.plain, **ours.options).eval().double()
    oracle.load_state_dict(ours.state_dict())
    found = [results(case, (ours, hf, oracle), inputs(case, padding, seed)) for seed in range(4)]
    for key in found[0]:
        parts = [torch.stack(parts) for parts in zip(*(one[key] for one in found), strict=True)]
        if key.endswith(
            "key.bias"
        ):  # moves all scores of a query alike: 0 but for rounding, its weight's measure
            weight = zip(*(one[key.replace("bias", "weight")] for one in found), strict=True)
            parts = [
                torch.cat((b.flatten(), torch.stack(w).flatten())) for b, w in zip(parts, weight, strict=True)
            ]
        assert_as_good(key, *parts)


def results(case, models, given_labels):
    """name -> (ours, theirs, the oracle's) of output, loss and each gradient, by names of checkpoints."""
    given, labels = given_labels
    wide = {key: t.double() if t.is_floating_point() else t for key, t in given.items()}
    all_given = (given, given, wide)
    found = {"output": [real(output(m, x), given) for m, x in zip(models, all_given, strict=True)]}
    if labels is None:
        # no square: what comes from a norm has the same sum of squares whatever went in
        weights = torch.randn(found["output"][0].shape, generator=torch.Generator().manual_seed(8))
        losses = [(y * weights.to(y)).sum() for y in found["output"]]
    else:
        found["loss"] = losses = [
            loss if isinstance(loss, torch.Tensor) else loss["loss"]
            for loss in (m(**x, labels=labels) for m, x in zip(models, all_given, strict=True))
        ]
    for model, loss in zip(models, losses, strict=True):
        model.zero_grad(set_to_none=True)
        loss.backward()
    ours, hf, oracle = models
    mine, exact = (
        dict(exported(m, {key: p.grad for key, p in m.named_parameters()})) for m in (ours, oracle)
    )
    known = {key: p.grad for key, p in renamed(ours, hf)}
    assert mine
    return found | {key: (gradient, known[key], exact[key]) for key, gradient in mine.items()}


def renamed(ours, hf):
    """The library's parameters by the names that it stores them under."""
    for key, p in hf.named_parameters():
        if ours.name == "vit":
            for new, old in (
                ("layers.", "encoder.layer."),
                ("attention.q_proj", "attention.attention.query"),
                ("attention.k_proj", "attention.attention.key"),
                ("attention.v_proj", "attention.attention.value"),
                ("attention.o_proj", "attention.output.dense"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                key = key.replace(new, old)
        yield key, p
        yield ours.prefix + key, p
