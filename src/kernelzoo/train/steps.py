"""Training in steps: the loop, and what language models do in it, a global batch that (seed, step) alone decides.

AdamW (I. Loshchilov, F. Hutter, arXiv:1711.05101), warm-up and cosine decay (arXiv:1608.03983). The batch is
split over processes and micro-batches; gradients are those of the mean over the whole batch whatever the split.
A plain loop, not Lightning's: its Trainer counts epochs, and shards on CUDA only.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..data import InputError
from ..data.windows import IGNORED, Batch
from . import report
from .distributed import World, full, full_optimizer, full_weights, load_optimizer
from .engine import KEPT_STEP_TIMES, LOSSES, Engine, Fit, Stopped, TrainingError
from .step_config import StepConfig, WindowConfig

VAL_ROWS = 128
LAST_LR = 0.1  # of --lr, at the last step
BETAS = (0.9, 0.95)  # T. Brown et al., arXiv:2005.14165, appendix B
# what a checkpoint holds besides its run's identity and the weights
STATE = {"optimizer": dict, "history": list, "step": int, "sums": torch.Tensor, "step_ms": torch.Tensor}
CARRIED = {"carried": list}  # and of a model that carries its state


def kinds(data: Any) -> dict[str, type]:
    """What a checkpoint of a run on this data holds."""
    return {**STATE, **CARRIED} if getattr(data, "carries", False) else STATE


def asked(batch: Batch, shift: int) -> int:
    """How many tokens (or rows) the mean loss of a batch is over."""
    labels = batch.labels if batch.labels.ndim == 1 else batch.labels[:, shift:]
    return int((labels != IGNORED).sum())


def check_split(config: WindowConfig, world: World) -> None:
    """InputError where the batch does not split into equal parts."""
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"--batch-size {config.batch_size} is the whole of a step and does not split into {world.size} "
            f"process(es) x --accumulate {config.accumulate}; take a multiple of {parts}"
        )


def learning_rate(config: WindowConfig, step: int) -> float:
    """Of step 0, 1, ...: linear to `lr` in `warmup` steps, then a half cosine to a tenth of it."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * share)))


class Stepwise:
    """One contender of `fit`: a model, its optimizers and where it stands; a step is `train_step`.

    losses: see `engine.Fit`. tokens: how many a step reads, 0 where that is no measure. solved: nothing is left to
    learn, whatever the number of steps. step_ms: times of the latest steps. shown: metrics that are said on the way.
    """

    losses = LOSSES
    shown: tuple[str, ...] = ()
    tokens = 0
    solved = False

    def __init__(self, model: torch.nn.Module, config: StepConfig, engine: Engine, world: World) -> None:
        self.model, self.config, self.engine, self.world = model, config, engine, world
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.step_ms: deque[float] = deque(maxlen=KEPT_STEP_TIMES)

    def train_step(self) -> None:
        """Do the next step: `step` is one more, and `step_ms` has its time."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Losses and metrics for a row of the history."""
        raise NotImplementedError

    def record(self) -> dict[str, float]:
        """A row of the history, from the steps since the last one."""
        row = {"step": self.step, **self.validate()}
        for name in self.losses:
            if not math.isfinite(row[name]):
                raise TrainingError(
                    f"{name} is {row[name]} after step {self.step}: training diverged; lower --lr "
                    f"(now {self.config.lr:g})"
                )
        self.history.append(row)
        return row

    @property
    def since(self) -> int:
        """Steps since the last row of the history."""
        return self.step - (self.history[-1]["step"] if self.history else 0)

    def timed(self, start_s: float) -> None:
        """Count a step that began then."""
        if self.world.device != "cpu":
            torch.cuda.synchronize()
        self.step += 1
        self.step_ms.append((time.perf_counter() - start_s) * 1e3)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; all ranks must ask."""
        return {
            "model": full_weights(self.model),
            "history": self.history,
            "step": self.step,
            "step_ms": torch.tensor(self.step_ms, dtype=torch.float64),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave, but for the model's weights."""
        self.history, self.step = list(state["history"]), state["step"]
        self.step_ms.extend(state["step_ms"].tolist())

    def best(self) -> tuple[int, dict[str, torch.Tensor]]:
        """The row of the history whose weights are kept, and these."""
        return len(self.history) - 1, full_weights(self.model)


class Training(Stepwise):
    """Windows of tokens: of text, or of sound."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: Any,
        config: WindowConfig,
        engine: Engine,
        world: World,
        state: dict | None = None,
        metrics: Any = None,
    ) -> None:
        super().__init__(model.to(world.device), config, engine, world)
        self.data, self.metrics = data, metrics
        self.tokens = config.batch_size * getattr(data, "row_tokens", config.context)
        if state:
            model.load_state_dict(state["model"])
        self.wrapped = world.wrap(self.model)
        self.share = config.batch_size // (world.size * config.accumulate)
        # of each micro-batch's rows here, the state that the window before left
        self.carried = []
        if getattr(data, "carries", False):
            self.carried = [self.model.new_cache() for _ in range(config.accumulate)]
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = engine.optim.AdamW(groups, lr=config.lr, betas=BETAS)
        # sums of the training loss and of the gradient's norm since the last row of the history
        self.sums = torch.zeros(2, dtype=torch.float64)
        if state:
            load_optimizer(self.optimizer, self.model, state["optimizer"])
            self.restore(state)
            self.sums = state["sums"]
            for micro, cache in enumerate(self.carried):
                cache.parts = tuple(
                    part[:, self.rows_of(micro)].contiguous().to(world.device) for part in state["carried"]
                )
        self.sums = self.sums.to(world.device)
        self.validation = data.validation(VAL_ROWS)

    def rows_of(self, micro: int) -> slice:
        """Which of a step's rows this process has in a micro-batch."""
        first = (micro * self.world.size + self.world.rank) * self.share
        return slice(first, first + self.share)

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "optimizer": full_optimizer(self.optimizer, self.model),
            "sums": self.sums.cpu(),
            **({"carried": self._all_carried()} if self.carried else {}),
        }

    def _all_carried(self) -> list[torch.Tensor]:
        """The carried state of the whole batch, (layers, batch_size, hidden) each, on every rank."""
        whole = []
        for parts in zip(*(cache.parts for cache in self.carried), strict=True):
            shape = (parts[0].shape[0], self.config.batch_size, parts[0].shape[2])
            rows = parts[0].new_zeros(shape)
            for micro, part in enumerate(parts):
                rows[:, self.rows_of(micro)] = part
            whole.append(self.world.sum(rows).cpu())
        return whole

    def autocast(self) -> torch.autocast:
        device = torch.device(self.world.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16")

    def forward(self, batch: Batch, labels: torch.Tensor | None, **how: Any) -> torch.Tensor:
        with self.autocast():
            return self.wrapped(batch.input_ids, attention_mask=batch.attention_mask, labels=labels, **how)

    def backward(self, step: int) -> torch.Tensor:
        """Gradients of the mean loss over the global batch of a step; returns that loss."""
        world, config = self.world, self.config
        batch = self.data.batch(config.seed, step, config.batch_size)
        total = asked(batch, self.data.shift)
        loss = torch.zeros((), device=world.device)
        for micro in range(config.accumulate):
            rows = batch.rows(self.rows_of(micro))
            weight = asked(rows, self.data.shift) / total
            rows = rows.to(world.device)
            # dropout replays when a run is resumed
            entropy = [config.seed, step, micro, world.rank]
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            how = {"cache": self.carried[micro]} if self.carried else {}
            with world.accumulating(self.wrapped, last=micro == config.accumulate - 1):
                part = self.forward(rows, rows.labels, **how).float()
                # the processes' gradients are averaged, so each gives its share of the mean times their number
                (part * (weight * world.size)).backward()
            if self.carried:
                self.carried[micro].detach()
            loss += part.detach() * weight
        return world.sum(loss)

    def train_step(self) -> None:
        start_s = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.wrapped.train()
        loss = self.backward(self.step)
        # over all processes' gradients, sharded or not
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf)
        self.sums += torch.stack([loss, full(norm)])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.timed(start_s)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means since the last time; the loss over the validation windows, and the metrics where the task has some."""
        trained, norm = (self.sums / self.since).tolist()
        self.sums.zero_()
        world, batch = self.world, self.validation
        self.wrapped.eval()
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        # every process takes part as often, as sharded models must: some with a row that counts for nothing
        each = max(1, self.config.batch_size // self.config.accumulate // world.size)
        for start in range(0, len(batch), each * world.size):
            first = start + world.rank * each
            rows = batch.rows(slice(first, min(first + each, len(batch))))
            counted = len(rows) > 0
            rows = (rows if counted else batch.rows(slice(0, 1))).to(world.device)
            if self.config.task == "classify":
                said = self.forward(rows, None).float()
                loss = torch.nn.functional.cross_entropy(said, rows.labels)
            else:
                loss = self.forward(rows, rows.labels).float()
                said = self._written(rows) if self.metrics else None
            if self.metrics is not None and counted:
                self.metrics.update(said, rows.labels)
            if counted:
                total += loss.double() * asked(rows, self.data.shift)
        values = {
            "train_loss": trained,
            "gradient_norm": norm,
            "val_loss": float(world.sum(total)) / asked(batch, self.data.shift),
        }
        if self.metrics is not None:
            values |= {key: float(value) for key, value in self.metrics.compute().items()}
            self.metrics.reset()
        return values

    def _written(self, rows: Batch) -> torch.Tensor:
        """What the model writes for each source, as many tokens as the longest target has."""
        with self.autocast():
            out = self.model.generate(
                rows.input_ids, rows.attention_mask, max_new_tokens=rows.labels.shape[1]
            )
        return out[:, 1:]  # behind the token that it starts from


def fit(training: Stepwise, name: str, console: Console, save: Callable[[dict], None] | None = None) -> Fit:
    """Train to the last step, to `stop_at` or until solved; rank 0 hands a state to `save` every so many steps."""
    config, world = training.config, training.world
    last = min(config.steps, config.stop_at or config.steps)
    bar = report.progress(name, "steps", console)
    task = bar.add_task("", total=config.steps, completed=training.step, result="")
    try:
        with bar:
            while training.step < last and not training.solved:
                training.train_step()
                ended = training.step == config.steps
                if ended or training.step % config.eval_every == 0:
                    row = training.record()
                    said = [f"{word} {row[key]:.4f}" for key, word in reversed(training.losses.items())]
                    said = " ".join(said + [f"{key} {row[key]:.2f}" for key in training.shown])
                    bar.update(task, result=said)
                    if not console.is_terminal:
                        console.print(f"{name} step {training.step} of {config.steps}: {said}")
                if save and (
                    training.step == last or training.solved or training.step % config.checkpoint_every == 0
                ):
                    state = training.state()
                    if world.main:
                        save(state)
                bar.update(task, completed=training.step)
    except KeyboardInterrupt:
        raise Stopped(f"interrupted in step {training.step + 1}") from None
    best, weights = training.best()
    return Fit(weights, training.history, best, list(training.step_ms), training.tokens, training.losses)


def steps_for(training: Training, minutes: float) -> int:
    """How many steps fit into so many minutes, from a few that change nothing."""
    times = []
    training.wrapped.train()
    for _ in range(4):
        start_s = time.perf_counter()
        training.backward(step=0)
        training.optimizer.zero_grad()
        if training.world.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    # the update, validation and checkpoints take a tenth
    return max(1, int(0.9 * minutes * 60 / training.world.slowest(float(np.median(times[1:])))))
