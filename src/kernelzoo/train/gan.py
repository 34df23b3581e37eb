"""Training a generator and a discriminator against each other, and what its images are judged by."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import torch

from ..data.images import Images, load_images
from ..data.tabular import InputError, split_rows
from ..data.windows import stream
from .distributed import World, full_optimizer, load_optimizer
from .engine import SHEET, Engine, probe
from .steps import Stepwise
from .stepwise import Errand

BETAS = (0.5, 0.999)  # A. Radford et al., arXiv:1511.06434, section 4
JUDGED = 1000  # images that a figure is taken over
SIDE = 8  # images are averaged down to it before they are judged
STATE = {
    "generator": dict,
    "discriminator": dict,
    "history": list,
    "step": int,
    "sums": torch.Tensor,
    "step_ms": torch.Tensor,
}


class Judge:
    """Figures of made images beside real ones that no one trained on, on pixels averaged down to at most 8x8.

    frechet: |m - m'|² + tr(C + C' - 2 (C C')^½) of the means m and covariances C of both; 0 for the same
    distribution. class_score: exp of the mean divergence of a classifier's p(class | image) from p(class), at most the
    number of classes: images that it is sure of, of all classes alike. nearest: mean distance to the nearest training
    image; one far below that of real images says that the training images were learnt by heart.
    Sources: M. Heusel et al., arXiv:1706.08500 and T. Salimans et al., arXiv:1606.03498, there on features of a
    network for photographs; the classifier here is a logistic regression on the training images.
    """

    def __init__(
        self, training: torch.Tensor, y: np.ndarray, held_out: torch.Tensor, held_y: np.ndarray
    ) -> None:
        from sklearn.linear_model import LogisticRegression

        self.training, self.held_out = self.features(training), self.features(held_out)
        self.classifier = LogisticRegression(max_iter=2000).fit(self.training, y)
        self.accuracy = float(self.classifier.score(self.held_out, held_y))

    @staticmethod
    def features(images: torch.Tensor) -> np.ndarray:
        """(N, C, H, W) in [-1, 1] -> (N, values) float64."""
        if images.shape[-1] > SIDE:
            images = torch.nn.functional.adaptive_avg_pool2d(images, SIDE)
        return images.flatten(1).double().numpy()

    def figures(self, images: torch.Tensor) -> dict[str, float]:
        return self._figures(self.features(images))

    def real(self) -> dict[str, float]:
        """The same of held-out images, their distance that from the training images."""
        return {**self._figures(self.held_out), "frechet": frechet(self.training, self.held_out)}

    def _figures(self, x: np.ndarray) -> dict[str, float]:
        p = self.classifier.predict_proba(x)
        divergence = (p * (np.log(p + 1e-12) - np.log(p.mean(0) + 1e-12))).sum(1)
        squares = (x**2).sum(1)[:, None] - 2 * x @ self.training.T + (self.training**2).sum(1)
        return {
            "frechet": frechet(x, self.held_out),
            "class_score": float(np.exp(divergence.mean())),
            "nearest": float(np.sqrt(np.maximum(squares.min(1), 0)).mean()),
        }


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Between Gaussians fitted to the rows of a and of b."""
    product = np.cov(a.T) @ np.cov(b.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(product).real, 0)).sum()
    spread = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * root
    return float(np.square(a.mean(0) - b.mean(0)).sum() + spread)


def noise(seed: int, step: int, rows: int, latent: int) -> torch.Tensor:
    """(rows, latent) from N(0, 1), by (seed, step) alone."""
    return torch.from_numpy(stream(seed, step, 3).standard_normal((rows, latent), np.float32))


class GanTraining(Stepwise):
    """A step: the discriminator on real and on made images, then the generator on what it says of others.

    Losses: binary cross-entropy, of the generator with the made ones called real (I. Goodfellow et al.,
    arXiv:1406.2661, section 3).
    """

    losses = {"generator_loss": "generator", "discriminator_loss": "discriminator"}  # noqa: RUF012
    shown = ("frechet", "class_score")

    def __init__(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        judge: Judge,
        config: Any,
        engine: Engine,
        world: World,
        state: dict | None,
    ) -> None:
        super().__init__(model.to(world.device), config, engine, world)
        self.images, self.judge, self.latent = images, judge, model.options["latent_size"]
        if state:
            model.load_state_dict(state["model"])
        self.sides = {"generator": self.model.generator, "discriminator": self.model.discriminator}
        self.optimizers = {
            name: engine.optim.Adam(side.parameters(), lr=config.lr, betas=BETAS)
            for name, side in self.sides.items()
        }
        self.sums = torch.zeros(2, dtype=torch.float64)
        if state:
            self.restore(state)
            self.sums = state["sums"]
            for name, side in self.sides.items():
                load_optimizer(self.optimizers[name], side, state[name])
        self.sums = self.sums.to(world.device)

    def train_step(self) -> None:
        start_s = time.perf_counter()
        model, device, rows = self.model.train(), self.world.device, self.config.batch_size
        drawn = stream(self.config.seed, self.step, 0).integers(len(self.images), size=rows)
        real = self.images[torch.from_numpy(drawn)].to(device)
        z = noise(self.config.seed, self.step, 2 * rows, self.latent).to(device)
        made = model(z[:rows]).detach()
        against = self._loss(model.discriminate(real), 1.0) + self._loss(model.discriminate(made), 0.0)
        self._update("discriminator", against)
        for_it = self._loss(model.discriminate(model(z[rows:])), 1.0)
        self._update("generator", for_it)
        self.sums += torch.stack([for_it.detach(), against.detach()])
        self.timed(start_s)

    def _loss(self, logits: torch.Tensor, target: float) -> torch.Tensor:
        return self.engine.functional.binary_cross_entropy_with_logits(
            logits, torch.full_like(logits, target)
        )

    def _update(self, side: str, loss: torch.Tensor) -> None:
        self.model.zero_grad()
        loss.backward()
        self.optimizers[side].step()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses since the last time, and the judge's figures of images from noise that is always the same."""
        losses = (self.sums / self.since).tolist()
        self.sums.zero_()
        return {
            **dict(zip(self.losses, losses, strict=True)),
            **self.judge.figures(made_images(self.model, JUDGED, self.config.seed)),
        }

    def state(self) -> dict[str, Any]:
        sides = {name: full_optimizer(self.optimizers[name], side) for name, side in self.sides.items()}
        return {**super().state(), **sides, "sums": self.sums.cpu()}


@torch.no_grad()
def made_images(model: torch.nn.Module, count: int, seed: int) -> torch.Tensor:
    """(count, C, H, W), from noise that no step is trained on."""
    z = noise(seed, 2**32, count, model.options["latent_size"]).to(next(model.parameters()).device)
    model.eval()
    return torch.cat([model(part) for part in z.split(256)]).cpu()


class Gan(Errand):
    """Images of any class; the classes serve the judge alone."""

    kinds = STATE
    main = "frechet"

    def read(self) -> dict[str, Any]:
        config = self.config
        images = load_images(config.data, config.image_size, skip_corrupt=config.skip_corrupt)
        channels, height, width = images.shape
        if height != width:
            raise InputError(
                f"{config.data}: images are {height}x{width}; {config.model} makes square ones (--image-size)"
            )
        self.source: Images = images
        if images.held_out is None:
            train, val = split_rows(images.y, len(images.classes), config.val_fraction, config.seed)
        else:
            train, val = (np.flatnonzero(images.held_out == side) for side in (False, True))
        self.images, self.held_out = (2 * images.pictures(rows) - 1 for rows in (train, val[:JUDGED]))
        self.judge = Judge(self.images, images.y[train], self.held_out, images.y[val[:JUDGED]])
        return {"image_size": height, "num_channels": channels}

    def suited(self) -> dict[str, Any]:
        return {"width": 32, "latent_size": 32} if self.images.shape[-1] <= 16 else {}

    def probe(self, model: torch.nn.Module) -> list[str]:
        z = noise(0, 0, 2, model.options["latent_size"]).to(next(model.parameters()).device)
        return probe(model, self.config.backend, lambda: model.discriminate(model(z)))

    def training(
        self, model: torch.nn.Module, engine: Engine, world: World, state: dict | None = None
    ) -> Stepwise:
        return GanTraining(model, self.images, self.judge, self.config, engine, world, state)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def facts(self) -> dict[str, Any]:
        return {
            "images": {"training": len(self.images), "validation": len(self.held_out)},
            "classifier_accuracy": self.judge.accuracy,
            "skipped": self.source.skipped,
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"real, held out": self.judge.real()}

    def finish(self, model: torch.nn.Module, result: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
        ours, real = result["results"]["kernelzoo"]["metrics"], result["baselines"]["real, held out"]
        line = (
            f"Fréchet distance to held-out images {ours['frechet']:.2f} (training images {real['frechet']:.2f}); class "
            f"score {ours['class_score']:.2f} of {len(self.source.classes)} (held-out images "
            f"{real['class_score']:.2f}, by a classifier that is right on {self.judge.accuracy:.1%} of them)"
        )
        return {SHEET: sheet(made_images(model, 100, self.config.seed + 1), self.held_out[:20])}, [line]


def sheet(made: torch.Tensor, real: torch.Tensor) -> bytes:
    """PNG: made images, twenty a row, and a row of real ones below a line, each enlarged to about 32 pixels."""
    from PIL import Image

    scale = max(1, round(32 / made.shape[-1]))
    border = torch.nn.functional.pad

    def tiled(images: torch.Tensor) -> torch.Tensor:
        images = border(
            images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), (1, 1, 1, 1), value=1.0
        )
        rows = [torch.cat(list(row), 2) for row in images.split(20) if len(row) == 20]
        return torch.cat(rows, 1)

    top, below = tiled(made), tiled(real)
    gap = torch.ones(top.shape[0], 8, top.shape[2])
    whole = torch.cat([top, gap, below], 1) if len(real) == 20 else top
    pixels = ((whole + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()
