"""What a model is judged by on the validation rows: torchmetrics, in the target's own units."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from ..data import Normalization
from ..data.photographs import IGNORED as UNLABELLED
from ..data.tokens import PAD
from ..data.windows import IGNORED

# by task, in the order shown; the first is the one that is drawn
NAMES = {
    "classification": ("accuracy", "precision", "recall", "f1"),
    "regression": ("r2", "mse", "mae"),
    "forecast": ("rmse", "mae"),
    "segmentation": ("iou", "accuracy"),
}


class RegressionMetrics(MetricCollection):
    """Metrics of predictions brought back from the normalised target's scale."""

    def __init__(self, metrics: dict[str, Metric], normalization: Normalization) -> None:
        super().__init__(metrics)
        self.scale, self.shift = normalization.target_std, normalization.target_mean

    def update(self, output: torch.Tensor, y: torch.Tensor) -> None:
        output, y = output.double().flatten(), y.double().flatten()
        super().update(output * self.scale + self.shift, y * self.scale + self.shift)


def make_metrics(subject: Any, normalization: Normalization) -> MetricCollection:
    """By the task of a Table, a Series, Images or Pictures.

    Accuracy over all rows, and precision, recall and F1 averaged over classes; MSE, MAE and R²; RMSE and MAE; the
    intersection over union of pixels averaged over classes, and their accuracy.
    """
    if subject.task == "segmentation":
        return segmentation_metrics(len(subject.classes))
    if subject.classes is not None:
        return classification_metrics(len(subject.classes))
    if subject.task == "forecast":
        return forecast_metrics(normalization)
    metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()}
    return RegressionMetrics(metrics, normalization)


def forecast_metrics(normalization: Normalization) -> MetricCollection:
    metrics = {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}
    return RegressionMetrics(metrics, normalization)


def classification_metrics(n: int) -> MetricCollection:
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(n, average="micro"),
            "precision": MulticlassPrecision(n, average="macro"),
            "recall": MulticlassRecall(n, average="macro"),
            "f1": MulticlassF1Score(n, average="macro"),
        }
    )


def segmentation_metrics(n: int) -> MetricCollection:
    return MetricCollection(
        {
            "iou": MulticlassJaccardIndex(n, ignore_index=UNLABELLED),
            "accuracy": MulticlassAccuracy(n, average="micro", ignore_index=UNLABELLED),
        }
    )


class ExactMatch(Metric):
    """The share of targets that were written token by token, the end included."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, written: torch.Tensor, labels: torch.Tensor) -> None:
        """written (B, T'), PAD after the end, T' no longer than T; labels (B, T), IGNORED after the end."""
        missing = labels.shape[1] - written.shape[1]
        written = torch.nn.functional.pad(written, (0, missing), value=PAD)
        self.right += (written == labels.masked_fill(labels == IGNORED, PAD)).all(1).sum()
        self.total += len(labels)

    def compute(self) -> torch.Tensor:
        return self.right.double() / self.total


def translation_metrics() -> MetricCollection:
    return MetricCollection({"exact_match": ExactMatch()})
