"""The training loop in epochs: one LightningModule for tables, series and images, run by Lightning's Trainer."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.photographs import IGNORED
from . import report
from .config import OPTIMIZERS, Config
from .engine import KEPT_STEP_TIMES, Engine, Fit, Stopped, TrainingError
from .metrics import NAMES, make_metrics

AUXILIARY = 0.3  # share of a classifier on the way: C. Szegedy et al., arXiv:1409.4842, section 5
# what a checkpoint holds besides its run's identity and the weights
STATE = {
    "optimizer": dict,
    "history": list,
    "best": dict,
    "stopper": dict,
    "stopped": bool,
    "step_ms": torch.Tensor,
}


def parts(output: Any) -> list[torch.Tensor]:
    """What a model says at its end, then what its classifiers on the way do; some say so in training alone."""
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, tuple) else [output]


def epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """A 32-bit seed for a stream of random numbers in an epoch (0: dropout, 1: shuffling).

    torch's CPU generator looks at the low 32 bits only, so the three numbers are hashed into them.
    """
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])


class EpochBatches(Sampler):
    """Batches (epoch, shuffled row numbers); the order depends on the seed and the epoch alone.

    A lone last row joins the batch before it: a batch norm has no variance of one row.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, epoch: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, epoch

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch, stream=1))
        order = torch.randperm(self.rows, generator=generator).tolist()
        ends = [min((i + 1) * self.batch_size, self.rows) for i in range(len(self) - 1)] + [self.rows]
        for start, end in zip([0, *ends], ends, strict=False):
            yield self.epoch, order[start:end]

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return max(1, whole + (rest > (1 if self.batch_size > 1 else 0)))


class SupervisedModule(pl.LightningModule):
    """Cross-entropy (classes, of rows or of pixels) or mean squared error on the normalised target, plus L1."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: Config,
        subject: Any,
        data: Any,
        engine: Engine,
        state: dict | None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.engine, self.data = model, config, engine, data
        self.rows = len(data.training)
        self.regression = subject.classes is None
        self.metric_names = NAMES[subject.task]
        self.val_metrics = make_metrics(subject, data.normalization)
        self.history: list[dict[str, float]] = list(state["history"]) if state else []
        self.best: dict[str, Any] = state["best"] if state else {}
        self.optimizer_state = state["optimizer"] if state else None
        self.step_ms = deque(state["step_ms"].tolist() if state else (), maxlen=KEPT_STEP_TIMES)
        self.sampler = EpochBatches(self.rows, config.batch_size, config.seed, len(self.history))
        self.marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.data.training, self.sampler)

    def val_dataloader(self) -> DataLoader:
        size, rows = self.data.val_batch, len(self.data.validation)
        batches = [(0, list(range(i, min(i + size, rows)))) for i in range(0, rows, size)]
        return self.loader(self.data.validation, batches)

    def loader(self, data: Dataset, batches: Any) -> DataLoader:
        # the loader draws a base seed at each epoch: from a generator of its own, not from dropout's
        workers = self.config.workers
        return DataLoader(
            data,
            sampler=batches,
            batch_size=None,
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        name, arguments, *_ = OPTIMIZERS[self.config.optimizer]
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = getattr(self.engine.optim, name)(groups, lr=self.config.lr, **arguments)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def loss(self, output: Any, y: torch.Tensor) -> torch.Tensor:
        """Of what a model says at its end, and of what classifiers on the way say, if there are some."""
        functional = self.engine.functional
        loss = functional.mse_loss if self.regression else functional.cross_entropy
        end, *on_the_way = parts(output)
        total = loss(end, y)
        for part in on_the_way:
            total = total + AUXILIARY * loss(part, y)
        return total

    def on_train_epoch_start(self) -> None:
        epoch = len(self.history)
        self.sampler.epoch = epoch
        torch.manual_seed(epoch_seed(self.config.seed, epoch, stream=0))
        self.train_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.config.decays:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.config.epochs))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = self.loss(self.model(x), y)
        self.train_loss += loss.detach() * len(x)
        if self.config.l1:
            loss = loss + self.config.l1 * sum(p.abs().sum() for p in self.model.parameters() if p.ndim >= 2)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable | None = None
    ) -> None:
        """The step that is timed: forward, loss, backward, update; the batch is on the device already."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            optimizer.step(closure=optimizer_closure)
            end.record()
            self.marks.append((start, end))
        else:
            start_s = time.perf_counter()
            optimizer.step(closure=optimizer_closure)
            self.step_ms.append((time.perf_counter() - start_s) * 1e3)

    def on_validation_epoch_start(self) -> None:
        # the sum of the losses, and of how many values
        self.val_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        x, y = batch
        output = parts(self.model(x))[0]
        values = y.numel() if self.regression else int((y != IGNORED).sum())
        if values:
            self.val_sums += torch.stack(
                [self.loss(output, y).double() * values, self.val_sums.new_tensor(values)]
            )
        self.val_metrics.update(output, y)

    def on_validation_epoch_end(self) -> None:
        self.val_loss = self.val_sums[0] / self.val_sums[1]
        values = self.val_metrics.compute()
        self.val_values = {key: float(values[key]) for key in self.metric_names}
        self.val_metrics.reset()
        self.log("val_loss", self.val_loss)

    def on_train_epoch_end(self) -> None:
        epoch = len(self.history)
        losses = {"train_loss": float(self.train_loss) / self.rows, "val_loss": float(self.val_loss)}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} in epoch {epoch + 1}: training diverged; lower --lr "
                    f"(now {self.config.lr:g})"
                )
        if self.marks:
            torch.cuda.synchronize()
            self.step_ms.extend(start.elapsed_time(end) for start, end in self.marks)
            self.marks.clear()
        self.history.append({**losses, **self.val_values})
        early = self.config.early_stopping is not None
        if early and losses["val_loss"] < self.best.get("val_loss", math.inf):
            weights = {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "val_loss": losses["val_loss"], "weights": weights}


class EpochCheckpoint(Checkpoint):
    """Hands each epoch's final state to `save`; a `Checkpoint`, so that Lightning calls it last."""

    def __init__(self, save: Callable[[dict], None], stopper: EarlyStopping | None) -> None:
        self.save, self.stopper = save, stopper

    def on_train_epoch_end(self, trainer: pl.Trainer, module: SupervisedModule) -> None:
        self.save(
            {
                "model": module.model.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "history": module.history,
                "best": module.best,
                "stopper": self.stopper.state_dict() if self.stopper else {},
                "stopped": bool(trainer.should_stop),
                "step_ms": torch.tensor(module.step_ms, dtype=torch.float64),
            }
        )


class ProgressBar(Callback):
    """One line over all epochs with the latest validation result; where there is no terminal, a line every tenth of
    them."""

    def __init__(self, name: str, main: str, done: int, epochs: int, console: Console) -> None:
        self.name, self.main, self.done, self.epochs, self.console = name, main, done, epochs, console
        self.bar = report.progress(name, "epochs", console)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.task = self.bar.add_task("", total=self.epochs, completed=self.done, result="")
        self.bar.start()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        # callbacks come before the module, which appends this epoch to its history after them
        said = f"{self.main} {module.val_values[self.main]:.4f}"
        self.bar.update(self.task, advance=1, result=said)
        epoch = len(module.history) + 1
        if not self.console.is_terminal and (epoch == self.epochs or epoch % max(1, self.epochs // 10) == 0):
            self.console.print(f"{self.name} epoch {epoch} of {self.epochs}: {said}")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.bar.stop()


def fit(
    model: torch.nn.Module,
    config: Config,
    subject: Any,
    data: Any,
    engine: Engine,
    *,
    state: dict | None = None,
    save: Callable[[dict], None] | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Fit:
    """Train to `config.epochs` or `stop_at`, from `state` (a checkpoint) if given; `save` gets each epoch's end."""
    if state:
        model.load_state_dict(state["model"])
    module = SupervisedModule(model, config, subject, data, engine, state)
    remaining = min(config.epochs, config.stop_at or config.epochs) - len(module.history)
    if remaining > 0 and not (state and state["stopped"]):
        stopper = None
        if config.early_stopping is not None:
            stopper = EarlyStopping("val_loss", patience=config.early_stopping, mode="min")
            if state:
                stopper.load_state_dict(state["stopper"])
        extra = [
            *callbacks,
            *([stopper] if stopper else []),
            *([EpochCheckpoint(save, stopper)] if save else []),
        ]
        _train(module, remaining, config.device, extra)
    last = len(module.history) - 1
    weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    return Fit(
        module.best.get("weights", weights),
        module.history,
        module.best.get("epoch", last),
        list(module.step_ms),
    )


def _train(module: SupervisedModule, epochs: int, device: str, callbacks: list[Callback]) -> None:
    # Lightning logs its choice of hardware and its cloud's offers, and warns of idle cores: the data is in
    # memory, where one process feeds it faster than many
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
        # Lightning 2.6 meets torch 2.13's pytrees
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        module.model.train()
        try:
            trainer.fit(module)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit of its own
            raise Stopped(f"interrupted in epoch {len(module.history) + 1}") from None
