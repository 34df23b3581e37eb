"""Training of zoo models on tables: `train.run(train.Config(model="mlp", data="digits"))`.

Needs the extra `train` (Lightning, torchmetrics, scikit-learn, safetensors, matplotlib, rich).
"""

from .config import Config
from .pipeline import run

__all__ = ["Config", "run"]
