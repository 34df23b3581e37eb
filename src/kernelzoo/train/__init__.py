"""Training of zoo models: `train.run(train.Config("mlp", "digits"))` on a table,
`train.run(train.SeriesConfig("gru_forecaster", "sunspots"))` on a series in time,
`train.run(train.ImageConfig("cnn", "digits"))` on images, `train.run(train.LanguageConfig("gpt2", "stdlib"))` on text.

`configure(model, data=..., ...)` picks the configuration that suits a model.
Needs the extra `train` (Lightning, torchmetrics, scikit-learn, tokenizers, safetensors, matplotlib, rich, ...).
"""

from typing import Any

from .config import Config, ImageConfig, PictureConfig, SeriesConfig
from .configure import configure
from .step_config import GanConfig, LanguageConfig, PlayConfig, SoundConfig, StepConfig
from .wheels import mend_torchvision

__all__ = [
    "Config",
    "GanConfig",
    "ImageConfig",
    "LanguageConfig",
    "PictureConfig",
    "PlayConfig",
    "SeriesConfig",
    "SoundConfig",
    "StepConfig",
    "configure",
    "run",
]

mend_torchvision()  # before anything imports Lightning or torchmetrics


def run(config: Config | StepConfig, console: Any = None) -> dict[str, Any]:
    """Train as `config` says; writes into `config.out`, and returns what metrics.json there holds."""
    if isinstance(config, LanguageConfig):
        from . import language as pipeline
    elif isinstance(config, StepConfig):
        from . import stepwise as pipeline
    else:
        from . import pipeline
    return pipeline.run(config, console)
