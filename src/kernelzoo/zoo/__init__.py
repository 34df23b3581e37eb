"""Models by name: `zoo.create("mlp", in_features=64, out_features=10)`, `zoo.list("gpt*")`.

A model is built from layers only and takes the namespace they come from as its last keyword, `nn`:
`kernelzoo.nn` unless told otherwise, `zoo.plain` for the very same model in plain PyTorch (same parameters,
same `state_dict` keys, same initialisation from the same seed).
"""

from . import (
    bert,
    convnet,
    convnext,
    dcgan,
    densenet,
    dqn,
    feedforward,
    gpt2,
    inception,
    llama,
    mobilenet,
    plain,
    recurrent,
    resnet,
    roberta,
    segmentation,
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
    "convnet",
    "convnext",
    "create",
    "dcgan",
    "densenet",
    "dqn",
    "feedforward",
    "gpt2",
    "inception",
    "list",
    "llama",
    "load",
    "mobilenet",
    "options",
    "plain",
    "recurrent",
    "register",
    "resnet",
    "roberta",
    "save",
    "segmentation",
    "seq2seq",
    "transformer",
    "unet",
    "vit",
    "wavenet",
]
