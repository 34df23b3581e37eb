"""Training of zoo models: `train.run(train.Config("mlp", "digits"))` on a table,
`train.run(train.SeriesConfig("gru_forecaster", "sunspots"))` on a series in time, and
`train.run(train.LanguageConfig("gpt2", "stdlib"))` on text.

Needs the extra `train` (Lightning, torchmetrics, scikit-learn, tokenizers, safetensors, matplotlib, rich).
"""

from typing import Any

from .config import Config, LanguageConfig, SeriesConfig, configure

__all__ = ["Config", "LanguageConfig", "SeriesConfig", "configure", "run"]


def run(config: Config | LanguageConfig, console: Any = None) -> dict[str, Any]:
    """Train as `config` says; writes into `config.out`, and returns what metrics.json there holds."""
    if isinstance(config, LanguageConfig):
        from . import language as pipeline
    else:
        from . import pipeline
    return pipeline.run(config, console)
