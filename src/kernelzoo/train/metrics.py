"""What a model is judged by on the validation rows: torchmetrics, in the target's own units."""

from __future__ import annotations

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from ..data import Normalization, Table

# by task, in the order shown; the first is the one that is drawn
NAMES = {"classification": ("accuracy", "precision", "recall", "f1"), "regression": ("r2", "mse", "mae")}


class RegressionMetrics(MetricCollection):
    """MSE, MAE and R² of predictions brought back from the normalised target's scale."""

    def __init__(self, normalization: Normalization) -> None:
        super().__init__({"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()})
        self.scale, self.shift = normalization.target_std, normalization.target_mean

    def update(self, output: torch.Tensor, y: torch.Tensor) -> None:
        super().update(output.double() * self.scale + self.shift, y.double() * self.scale + self.shift)


def make_metrics(table: Table, normalization: Normalization) -> MetricCollection:
    """Accuracy over all rows, and precision, recall and F1 averaged over classes; or MSE, MAE, R²."""
    if table.classes is None:
        return RegressionMetrics(normalization)
    return classification_metrics(len(table.classes))


def classification_metrics(n: int) -> MetricCollection:
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(n, average="micro"),
            "precision": MulticlassPrecision(n, average="macro"),
            "recall": MulticlassRecall(n, average="macro"),
            "f1": MulticlassF1Score(n, average="macro"),
        }
    )
