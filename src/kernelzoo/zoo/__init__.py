"""Models by name: `zoo.create("mlp", in_features=64, out_features=10)`, `zoo.list("gpt*")`.

A model is built from layers only and takes the namespace they come from as its last keyword, `nn`:
`kernelzoo.nn` unless told otherwise, `zoo.plain` for the very same model in plain PyTorch (same parameters,
same `state_dict` keys, same initialisation from the same seed).
"""

from . import (
    bert,
    dcgan,
    dqn,
    feedforward,
    gpt2,
    llama,
    plain,
    recurrent,
    roberta,
    seq2seq,
    transformer,
    unet,
    vit,
    wavenet,
)
from .base import CheckpointError
from .checkpoints import save
from .registry import create, load, options, register
from .registry import list_models as list

__all__ = [
    "CheckpointError",
    "bert",
    "create",
    "dcgan",
    "dqn",
    "feedforward",
    "gpt2",
    "list",
    "llama",
    "load",
    "options",
    "plain",
    "recurrent",
    "register",
    "roberta",
    "save",
    "seq2seq",
    "transformer",
    "unet",
    "vit",
    "wavenet",
]
