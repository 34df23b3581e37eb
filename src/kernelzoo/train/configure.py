"""Which configuration suits a model."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kernelzoo import zoo

from ..data import InputError
from .config import Config, ImageConfig, PictureConfig, SeriesConfig, flag
from .step_config import TASKS, GanConfig, LanguageConfig, PlayConfig, SoundConfig, StepConfig

FORECASTERS = ("gru_forecaster",)
GENERATORS = ("dcgan",)
SOUND = ("wavenet",)
PLAYERS = ("dqn",)
SEGMENTERS = ("unet", "fcn_resnet50", "deeplabv3_resnet50")


def configure(model: str, **settings: Any) -> Config | StepConfig:
    """The configuration that suits a model; InputError for a setting that says nothing to it."""
    if model in TASKS:
        kind, learns = LanguageConfig, "text"
    elif model in FORECASTERS:
        kind, learns = SeriesConfig, "a series"
    elif model in GENERATORS:
        kind, learns = GanConfig, "images"
    elif model in SOUND:
        kind, learns = SoundConfig, "sound"
    elif model in PLAYERS:
        kind, learns = PlayConfig, "an environment (--env)"
    elif model in SEGMENTERS:
        kind, learns = PictureConfig, "photographs"
    elif {"in_features", "out_features"} <= (options := _options_of(model).keys()):
        kind, learns = Config, "tables"
    elif "num_channels" in options and options & {"num_classes", "num_labels"}:
        kind, learns = ImageConfig, "images"
    else:
        raise InputError(f"{model} is not trained by `kernelzoo train` yet")
    accepted = {field.name for field in fields(kind)} - ({"data"} if kind is PlayConfig else set())
    for name in settings:
        if name not in accepted:
            raise InputError(f"{flag(name)} means nothing to {model}, which learns from {learns}")
    if "data" in accepted and settings.get("data") is None:
        raise InputError(f"--data is missing: {model} learns from {learns}")
    return kind(model, **settings)


def _options_of(model: str) -> dict[str, Any]:
    try:
        return zoo.options(model)
    except ValueError as error:
        raise InputError(str(error)) from None
