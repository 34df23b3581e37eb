"""What an epoch-wise run is about: what it reads, the sizes that this fixes, the split, what is shown at the end.

`pipeline.run` asks a problem for `subject` (what was read: task, classes, fingerprint), then `split(model)`; `data`
is what that gave: `training` and `validation`, datasets of batches by (epoch, numbers of rows).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from kernelzoo import zoo

from ..data import InputError, load, load_series, split, split_series
from ..data.images import Augment, load_images, split_images
from ..data.photographs import load_pictures, split_pictures
from . import forecast, segment
from .config import Config, ImageConfig, PictureConfig, SeriesConfig
from .engine import FORECAST, MASK

# sides below which the two 3x3 convolutions and pools of `cnn` leave nothing unless they pad
CNN_SMALLEST = 10
LENET_SIDE, MNIST_SIDE = 32, 28  # what LeNet-5 sees, and what of smaller images is padded to that


class Problem:
    """A table, and what all kinds have in common."""

    unit = "rows"
    takes = "tables of numbers"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.subject = self.read()
        self.data: Any = None

    def read(self) -> Any:
        return load(self.config.data, self.config.target, self.config.task)

    def sizes(self) -> dict[str, Any]:
        """Options of the model that the data fixes."""
        table = self.subject
        return {
            "in_features": len(table.features),
            "out_features": len(table.classes) if table.classes else 1,
        }

    def suited(self) -> dict[str, Any]:
        """Options that suit the data where none are given."""
        return {}

    def options(self) -> dict[str, Any]:
        """The model's options: those given, with the sizes that the data fixes."""
        config = self.config
        try:
            accepted = zoo.options(config.model)
        except ValueError as error:
            raise InputError(str(error)) from None
        sizes = self.sizes()
        if missing := [key for key in sizes if key not in accepted]:
            raise InputError(
                f"{config.model} does not take {self.takes} (it has no option {', '.join(missing)})"
            )
        for key, size in sizes.items():
            given = config.options.get(key, size)
            if given != size:
                raise InputError(
                    f"--set {key}={given}: the data {config.data} needs {key}={size}; leave the option out"
                )
        return {**self.suited(), **config.options, **sizes}

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the settings and the data."""
        return {}

    def split(self, model: torch.nn.Module) -> Any:
        return split(self.subject, self.config.val_fraction, self.config.seed)

    def about(self) -> dict[str, Any]:
        """What the file of weights says of the data."""
        return {"features": self.subject.features, "target": self.subject.target}

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of the data."""
        return {}

    def baselines(self) -> dict[str, dict[str, float]]:
        """name -> metrics of something simple on the same validation rows."""
        return {}

    def pictures(self, trained: Callable[[], torch.nn.Module]) -> dict[str, bytes]:
        """file name -> PNG."""
        return {}

    def verdict(self, result: dict[str, Any]) -> list[str]:
        """Sentences for the end."""
        return []


class SeriesProblem(Problem):
    """A series in time; see `forecast`."""

    def read(self) -> Any:
        return load_series(self.config.data, self.config.target)

    def sizes(self) -> dict[str, Any]:
        return {"in_features": len(self.subject.features)}

    def split(self, model: torch.nn.Module) -> Any:
        return split_series(
            self.subject, self.config.context, model.options["horizon"], self.config.val_fraction
        )

    def about(self) -> dict[str, Any]:
        return {**super().about(), "context": self.config.context}

    def facts(self) -> dict[str, Any]:
        times = self.subject.times
        held_out = {"first": float(times[self.data.first]), "last": float(times[-1])}
        return {"context": self.config.context, "held_out": held_out}

    def baselines(self) -> dict[str, dict[str, float]]:
        return forecast.baselines(self.data)

    def pictures(self, trained: Callable[[], torch.nn.Module]) -> dict[str, bytes]:
        return {FORECAST: forecast.picture(trained(), self.subject, self.data, self.config.model)}

    def verdict(self, result: dict[str, Any]) -> list[str]:
        return [forecast.verdict(result, self.subject, result["options"])]


class ImageProblem(Problem):
    """Images with a class each."""

    unit, takes = "images", "images"
    config: ImageConfig

    def read(self) -> Any:
        config = self.config
        images = load_images(config.data, config.image_size, skip_corrupt=config.skip_corrupt)
        self.augment = images.usual_augment if config.augment is None else Augment.parse(config.augment)
        if config.workers is None:
            config.workers = min(4, os.cpu_count() or 1) if images.parallel else 0
        return images

    def sizes(self) -> dict[str, Any]:
        channels, height, width = self.subject.shape
        accepted = zoo.options(self.config.model)
        classes = "num_labels" if "num_labels" in accepted else "num_classes"
        sizes = {classes: len(self.subject.classes), "num_channels": channels}
        if "image_size" in accepted:
            sizes["image_size"] = height if height == width else (height, width)
        return sizes

    def suited(self) -> dict[str, Any]:
        model, side = self.config.model, min(self.subject.shape[1:])
        if model == "cnn" and side < CNN_SMALLEST:
            return {"padding": "same"}
        if model == "lenet" and MNIST_SIDE <= side < LENET_SIDE:
            return {"padding": -((side - LENET_SIDE) // 2)}
        return {}

    def identity(self) -> dict[str, Any]:
        return {"augment": repr(self.augment)}

    def split(self, model: torch.nn.Module) -> Any:
        return split_images(self.subject, self.config.val_fraction, self.config.seed, self.augment)

    def about(self) -> dict[str, Any]:
        return {"shape": self.subject.shape}

    def facts(self) -> dict[str, Any]:
        images = self.subject
        return {
            "augment": {"crop": self.augment.crop, "flip": self.augment.flip},
            "shape": images.shape,
            "classes": images.classes,
            "skipped": images.skipped,
            "left_out": images.left_out,
            "held_out": "as their maker did" if images.held_out is not None else "of each class its share",
        }

    def verdict(self, result: dict[str, Any]) -> list[str]:
        lines = [f"skipped: {error}" for error in self.subject.skipped]
        if self.subject.left_out:
            lines.append(f"left out: {self.subject.left_out} files that are no images by their names")
        return lines


class PictureProblem(Problem):
    """Photographs with a class for each pixel; see `segment`."""

    unit, takes = "tiles", "photographs"
    config: PictureConfig

    def read(self) -> Any:
        config = self.config
        self.augment = Augment.parse(config.augment or "crop,flip")
        if not self.augment.crop:
            raise InputError(f"--augment {config.augment}: tiles are drawn at random, crop or crop,flip")
        return load_pictures(config.data, config.val_fraction, config.tile)

    def sizes(self) -> dict[str, Any]:
        return {"num_classes": len(self.subject.classes), "num_channels": 3}

    def suited(self) -> dict[str, Any]:
        # 64 channels and more are for larger sets than two photographs. A batch norm puts a crop's colours, which the
        # classes are about, in relation to those of the batch's other crops: after 60 epochs at a rate of 3e-3 its
        # training loss was 0.21, without it after 20 at 2e-3 0.10
        return {"width": 16, "depth": 3, "batch_norm": False} if self.config.model == "unet" else {}

    def identity(self) -> dict[str, Any]:
        return {"augment": repr(self.augment), "tile": self.config.tile}

    def split(self, model: torch.nn.Module) -> Any:
        return split_pictures(self.subject, self.config.tile, self.config.seed, self.augment)

    def about(self) -> dict[str, Any]:
        return {"rule": self.subject.rule}

    def facts(self) -> dict[str, Any]:
        return {
            "tile": self.config.tile,
            "classes": self.subject.classes,
            "rule": self.subject.rule,
            "held_out": {p.name: f"columns from {p.cut} on" for p in self.subject.pictures},
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        return segment.baselines(self.subject)

    def pictures(self, trained: Callable[[], torch.nn.Module]) -> dict[str, bytes]:
        return {MASK: segment.picture(trained(), self.subject, self.data)}

    def verdict(self, result: dict[str, Any]) -> list[str]:
        return [segment.verdict(result)]


PROBLEMS = {
    SeriesConfig: SeriesProblem,
    ImageConfig: ImageProblem,
    PictureConfig: PictureProblem,
    Config: Problem,
}
