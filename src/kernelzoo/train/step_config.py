"""What a training run in steps is asked to do, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ..data import InputError
from .config import check, only_task

# what a model of the zoo can learn from text
TASKS: dict[str, tuple[str, ...]] = {
    "gpt2": ("lm",),
    "llama": ("lm",),
    "bert": ("mlm", "classify"),
    "roberta": ("mlm", "classify"),
    "char_rnn": ("lm",),
    "lstm_lm": ("lm",),
    "lstm_classifier": ("classify",),
    "seq2seq": ("translate",),
}
CARRIES = ("char_rnn", "lstm_lm")  # their state from window to window: truncated back-propagation
# by task: steps and learning rate unless told otherwise
SCHEDULES = {"lm": (1000, 2e-3), "mlm": (1000, 1e-3), "classify": (300, 5e-4), "translate": (1000, 2e-3)}
# by model, where the task's learning rate does not suit it
RATES = {"char_rnn": 4e-3, "lstm_lm": 4e-3, "lstm_classifier": 2e-3}
# by model: windows of a step, and their tokens, unless told otherwise. A recurrence takes its tokens one after
# the other, and many rows at once cost a CPU little more than few
WINDOWS = {"char_rnn": (32, 128), "lstm_lm": (32, 64), "lstm_classifier": (32, 128), "seq2seq": (64, 256)}


@dataclass
class StepConfig:
    """A training run counted in steps. stop_at: end there, to be resumed."""

    model: str
    data: str | None = None
    task: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    eval_every: int | None = None
    checkpoint_every: int | None = None
    stop_at: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    compare: str | None = None
    backend: str | None = None
    device: str = "auto"
    usual: ClassVar = (1000, 8, 1e-3)  # steps, rows of a step, learning rate

    def __post_init__(self) -> None:
        if self.compare not in (None, "torch"):
            raise InputError(f"--compare knows torch, got {self.compare!r}")
        check(self)
        steps, batch_size, lr = self.usual
        if self.steps is None and getattr(self, "minutes", None) is None:
            self.steps = steps
        self.batch_size = self.batch_size or batch_size
        self.lr = self.lr or lr
        if self.out is None:
            self.out = Path("runs") / f"{self.model}-{Path(self.data).stem}"

    def scheduled(self, steps: int) -> StepConfig:
        """With the number of steps decided, and what follows from it unless given."""
        every = self.eval_every or max(1, steps // 10)
        return replace(self, steps=steps, eval_every=every, checkpoint_every=self.checkpoint_every or every)

    def identity(self) -> dict[str, Any]:
        """What decides the weights of every step."""
        return {name: getattr(self, name) for name in ("model", "steps", "batch_size", "lr", "seed")}


@dataclass
class GanConfig(StepConfig):
    """A generator and a discriminator against each other, on images. image_size, skip_corrupt: as of images."""

    image_size: int | None = None
    skip_corrupt: bool = False
    val_fraction: float = 0.2
    usual: ClassVar = (2000, 64, 5e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        only_task(self, "makes images")

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "val_fraction": self.val_fraction}


@dataclass
class PlayConfig(StepConfig):
    """A player of an environment; a step is an episode, of at most so many moves as the environment allows.

    env: cartpole, or a name of gymnasium's. batch_size: moves remembered that each move learns from. weights kept are
    those of the best evaluation, and the run ends early once one reaches what the environment calls solved.
    """

    env: str = "cartpole"
    usual: ClassVar = (400, 64, 1e-3)

    def __post_init__(self) -> None:
        if self.out is None:
            self.out = Path("runs") / f"{self.model}-{self.env.lower()}"
        super().__post_init__()
        only_task(self, "plays")

    def scheduled(self, steps: int) -> PlayConfig:
        return replace(super().scheduled(steps), eval_every=self.eval_every or 20)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "env": self.env, "eval_every": self.eval_every}


@dataclass
class WindowConfig(StepConfig):
    """A training run on windows of a sequence.

    batch_size: windows of `context` tokens that a step's gradient is the mean over, in all: split over the processes,
    and over `accumulate` micro-batches. Steps are counted, or as many as fit into `minutes`. weight_decay acts on
    matrices only.
    """

    minutes: float | None = None
    accumulate: int = 1
    context: int | None = None
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int | None = None
    precision: str = "fp32"
    val_fraction: float = 0.1
    strategy: str = "ddp"

    def scheduled(self, steps: int) -> WindowConfig:
        warmup = min(100, max(1, steps // 10)) if self.warmup is None else self.warmup
        return StepConfig.scheduled(replace(self, minutes=None, warmup=warmup), steps)

    def identity(self) -> dict[str, Any]:
        """What decides the weights of every step, but for how the batch is split."""
        names = ("task", "context", "weight_decay", "clip", "warmup", "precision", "val_fraction")
        return {**super().identity(), **{name: getattr(self, name) for name in names}}

    def _check_length(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise InputError("--steps and --minutes both say how long to train; give one")


@dataclass
class SoundConfig(WindowConfig):
    """A training run on sound; `context` counts samples. sample_rate: to which files are resampled; skip_corrupt: leave
    out files that cannot be read. sample_seconds: length of what is generated at the end."""

    sample_rate: int | None = None
    skip_corrupt: bool = False
    sample_seconds: float = 1.0
    temperature: float = 1.0
    usual: ClassVar = (1000, 4, 2e-3)

    def __post_init__(self) -> None:
        self._check_length()
        super().__post_init__()
        only_task(self, "models sound")
        self.context = self.context or 2048


@dataclass
class LanguageConfig(WindowConfig):
    """A training run on text.

    task: "lm" (the next token), "mlm" (hidden tokens), "classify" (a file's top folder) or "translate" (a source's
    target); the model's first unless told. compare: "torch" (the same run in plain PyTorch) or "scratch" (the same run
    without `init_from`).
    """

    vocab_size: int | None = None
    init_from: Path | None = None
    sample_tokens: int = 120
    prompt: str | None = None
    temperature: float = 0.8
    top_k: int | None = 40

    def __post_init__(self) -> None:
        if self.model not in TASKS:
            raise InputError(f"{self.model} does not learn from text; these do: {', '.join(TASKS)}")
        tasks = TASKS[self.model]
        if self.task is None:
            self.task = tasks[0]
        if self.task not in tasks:
            raise InputError(f"--task of {self.model} is {' or '.join(tasks)}, got {self.task!r}")
        self._check_length()
        if self.compare not in (None, "torch", "scratch"):
            raise InputError(f"--compare knows torch and scratch, got {self.compare!r}")
        if self.compare == "scratch" and self.init_from is None:
            raise InputError("--compare scratch compares with the weights of --init-from; name a run")
        if self.prompt is not None and self.task != "lm":
            raise InputError(f"--prompt: a model of task {self.task} goes on from no text")
        if self.vocab_size is not None and self.init_from is not None:
            raise InputError("--vocab-size: the tokenizer comes from --init-from; leave the option out")
        if self.strategy == "fsdp" and self.task == "translate":
            raise InputError(
                "--strategy fsdp: a model that writes while it is validated is not sharded; use ddp"
            )
        check(self)
        if self.batch_size is None:
            self.batch_size = WINDOWS.get(self.model, (8, None))[0]
        if self.lr is None:
            self.lr = RATES.get(self.model, SCHEDULES[self.task][1])
        if self.steps is None and self.minutes is None:
            self.steps = SCHEDULES[self.task][0]
        if self.out is None:
            task = "" if self.task == "lm" or len(tasks) == 1 else f"-{self.task}"
            self.out = Path("runs") / f"{self.model}-{Path(self.data).stem}{task}"
