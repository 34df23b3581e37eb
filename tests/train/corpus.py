"""A corpus small enough to train on within a test: two kinds of sentences, a folder each."""

import random

NOUNS = ("kernel", "tile", "tensor", "warp", "cache", "thread", "gradient", "loss")
VERBS = ("reads", "writes", "holds", "splits", "sums", "skips")


def write(folder, files=6, lines=12):
    """`files` files in each of the folders alpha and beta, and one at the top."""
    draw = random.Random(0)

    def sentence(kind):
        a, b, verb = draw.choice(NOUNS), draw.choice(NOUNS), draw.choice(VERBS)
        return f"the {a} {verb} a {b}." if kind == "alpha" else f"def {a}_{b}(x): return {verb}(x)"

    for kind in ("alpha", "beta"):
        for i in range(files):
            path = folder / kind / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(sentence(kind) for _ in range(lines)) + "\n")
    (folder / "top.txt").write_text("the kernel reads a tile.\n")
    return folder


# smallest models that learn something, by name
TINY = {
    "gpt2": {"n_layer": 1, "n_embd": 16, "n_head": 2},
    "llama": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
    "roberta": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
    "lstm_lm": {"hidden_size": 16, "num_layers": 1},
    "char_rnn": {"hidden_size": 16, "embedding_size": 8, "num_layers": 1},
    "lstm_classifier": {"hidden_size": 16, "embedding_size": 16},
    "seq2seq": {"hidden_size": 16, "embedding_size": 16, "dropout": 0.0},
    "bert": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
}
