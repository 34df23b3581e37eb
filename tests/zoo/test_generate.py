"""Generation: token for token the transformers library's."""

import pytest
import torch

from kernelzoo import zoo
from kernelzoo.zoo.generate import filtered

from .models import CASES, foreign, library, saved, theirs

MODELS = ["gpt2", "llama-gqa", "llama3-biases-tied"]
WAYS = {
    "greedy": {},
    "greedy-two-ends": {"eos_token_id": [5, 7, 11]},
    "beams": {"num_beams": 3},
    "beams-two-ends": {"num_beams": 3, "eos_token_id": [5, 7, 11]},
    "beams-early": {"num_beams": 4, "early_stopping": True, "length_penalty": 0.6, "eos_token_id": 7},
    "beams-never": {"num_beams": 2, "early_stopping": "never", "eos_token_id": [5, 7, 11]},
}


def prompts():
    """Three prompts of 9, 5 and 1 tokens, padded on the left."""
    ids = torch.randint(3, 53, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :8] = 0
    return ids.masked_fill(mask == 0, 1), mask


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    case = request.param
    hf = theirs(case, seed=2, eos_token_id=7, pad_token_id=1)
    folder = saved(hf, tmp_path_factory.mktemp(case))
    return hf, zoo.load(CASES[case][0], folder), zoo.load(CASES[case][0], folder, nn=zoo.plain)


@pytest.mark.parametrize("way", WAYS)
def test_token_for_token(pair, way):
    hf, *ours = pair
    ids, mask = prompts()
    with foreign():
        expected = hf.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, **WAYS[way])
    for model in ours:
        assert torch.equal(model.generate(ids, mask, max_new_tokens=10, **WAYS[way]), expected)


def test_cache_gives_the_logits_of_the_whole(pair):
    _, model, _ = pair
    ids, _ = prompts()
    cache = model.new_cache(9)
    parts = [model(ids[:, at], cache=cache) for at in (slice(0, 4), slice(4, 5), slice(5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="1 tokens do not fit into the cache, which has 9 of 9"):
        model(ids[:, :1], cache=cache)


def test_padding_may_stand_anywhere(pair):
    _, model, _ = pair
    ids, mask = prompts()
    left = model.generate(ids, mask, max_new_tokens=6)[:, 9:]
    right = model.generate(ids.flip(1), mask.flip(1), max_new_tokens=6)[:, 9:]
    alone = model.generate(ids[1:2, 4:], max_new_tokens=6)[:, 5:]
    assert torch.equal(left[1, : alone.shape[1]], alone[0])
    assert torch.equal(left[2], right[2])  # one token reads the same from either end


@pytest.mark.parametrize("options", [(0.7, None, 1.0), (1.0, 5, 1.0), (1.3, None, 0.6), (0.9, 7, 0.8)])
def test_filtered_logits_are_the_librarys(options):
    temperature, top_k, top_p = options
    warp = library().generation.logits_process
    logits = torch.randn(4, 53, generator=torch.Generator().manual_seed(1)) * 2
    expected = warp.TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k is not None:
        expected = warp.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = warp.TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(filtered(logits, temperature, top_k, top_p), expected)


def test_draws_follow_the_probabilities(pair):
    _, model, _ = pair
    ids = torch.tensor([[3, 9]]).expand(4000, 2)
    drawn = model.generate(ids, max_new_tokens=1, do_sample=True, temperature=1.5, top_k=6, seed=5)[:, 2]
    p = filtered(model(ids[:1])[:, -1].detach(), 1.5, 6)[0].softmax(-1)
    counts = torch.bincount(drawn, minlength=53)
    assert not counts[p == 0].any()
    allowed = p > 0
    expected = 4000 * p[allowed]
    chi2 = ((counts[allowed] - expected).square() / expected).sum()
    assert chi2 < 20.5  # of 5 degrees of freedom: passed by 99.9 %


def test_a_seed_gives_the_same_draws(pair):
    _, model, _ = pair
    ids, mask = prompts()
    options = {"max_new_tokens": 8, "do_sample": True, "eos_token_id": ()}
    first = model.generate(ids, mask, seed=3, **options)
    assert torch.equal(first, model.generate(ids, mask, seed=3, **options))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, model.generate(ids, mask, generator=generator, **options))
    assert not torch.equal(first, model.generate(ids, mask, seed=4, **options))
    assert model.generate(ids, mask, seed=3, num_beams=2, top_k=1, **options).shape == (3, 17)


def test_mode_is_kept_and_dropout_off(pair):
    _, model, _ = pair
    ids, mask = prompts()
    expected = model.generate(ids, mask)
    model.train()
    assert torch.equal(model.generate(ids, mask), expected)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 32}, r"9 tokens and 32 new ones do not fit into \w+=40"),
        ({"temperature": 0.0, "do_sample": True}, r"temperature is 0.0"),
        ({"top_k": 0, "do_sample": True}, "top_k is 0"),
        ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5"),
        ({"temperature": 0.5}, "expected do_sample=True beside them"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "eos_token_id": range(53)}, "53 tokens in eos_token_id leave beams nothing"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"seed": 1, "generator": torch.Generator(), "do_sample": True}, "seed and generator are both given"),
        ({"attention_mask": torch.zeros(3, 9, dtype=torch.int64)}, "a prompt has no token"),
        ({"attention_mask": torch.ones(3, 8)}, r"attention_mask has shape \(3, 8\)"),
    ],
)
def test_bad_arguments(pair, options, said):
    ids, _ = prompts()
    with pytest.raises(ValueError, match=said):
        pair[1].generate(ids, **options)
