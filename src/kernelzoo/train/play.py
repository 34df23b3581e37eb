"""Training a player by deep Q-learning, an episode a step, and how well it plays when it only plays.

Every random number of an episode follows from the seed and the episode's number, and a checkpoint is taken between
episodes with the moves remembered, so that a resumed run plays on as if it had not stopped.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch

from ..data.tabular import InputError
from ..data.windows import stream
from .distributed import World, full_optimizer, full_weights, load_optimizer
from .engine import Engine, probe
from .step_config import PlayConfig
from .steps import Stepwise
from .stepwise import Errand

ALIASES = {"cartpole": "CartPole-v1"}
REMEMBERED = 20_000  # moves
WATCHED = 500  # moves before the first one is learnt from
GREEDY_AFTER = 4000  # moves, over which the share of random ones falls
RANDOM_AT_LEAST = 0.05
DISCOUNT = 0.99
TARGET_EVERY = 250  # updates, after which the target network becomes a copy
CLIP = 10.0  # largest norm of a gradient
JUDGED, FINAL = 20, 100  # episodes of an evaluation on the way, and at the end
FAR = 2**32  # episodes beyond all that are trained on
STATE = {
    "optimizer": dict,
    "target": dict,
    "memory": dict,
    "best": dict,
    "history": list,
    "step": int,
    "sums": torch.Tensor,
    "step_ms": torch.Tensor,
}


def make_env(name: str) -> Any:
    """An environment of gymnasium with a vector or stacked frames to see and numbered actions to take."""
    try:
        import gymnasium
    except ImportError as error:
        raise InputError(f"--env needs gymnasium ({error}): pip install kernelzoo[train]") from None
    try:
        env = gymnasium.make(ALIASES.get(name, name))
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--env {name}: {reason} (there is {', '.join(ALIASES)}, or an id of gymnasium's)"
        ) from None
    seen, actions = env.observation_space, env.action_space
    if not isinstance(actions, gymnasium.spaces.Discrete) or not isinstance(seen, gymnasium.spaces.Box):
        raise InputError(f"--env {name} shows {seen} and takes {actions}; expected a Box and a Discrete")
    if len(seen.shape) not in (1, 3):
        raise InputError(
            f"--env {name} shows arrays of shape {seen.shape}; expected a vector or (frames, height, width)"
        )
    return env


class Memory:
    """The latest moves: what was seen, what was done, what came of it; `over` where the episode ended by itself."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, capacity: int = REMEMBERED) -> None:
        self.parts = {
            "seen": np.zeros((capacity, *shape), dtype),
            "then": np.zeros((capacity, *shape), dtype),
            "action": np.zeros(capacity, np.int64),
            "reward": np.zeros(capacity, np.float32),
            "over": np.zeros(capacity, np.float32),
        }
        self.capacity, self.moves = capacity, 0

    def __len__(self) -> int:
        return min(self.moves, self.capacity)

    def add(self, **move: Any) -> None:
        for name, value in move.items():
            self.parts[name][self.moves % self.capacity] = value
        self.moves += 1

    def draw(self, rows: int, random: np.random.Generator) -> dict[str, torch.Tensor]:
        at = random.integers(len(self), size=rows)
        return {name: torch.from_numpy(part[at]) for name, part in self.parts.items()}

    def state(self) -> dict[str, Any]:
        parts = {name: torch.from_numpy(part[: len(self)].copy()) for name, part in self.parts.items()}
        return {"moves": self.moves, **parts}

    def restore(self, state: dict[str, Any]) -> None:
        self.moves = state["moves"]
        for name, part in self.parts.items():
            part[: len(self)] = state[name].numpy()


class PlayTraining(Stepwise):
    """An episode: each move is remembered, and after it the network learns from a few drawn ones.

    The loss is Huber's, of Q(s, a) - (r + 0.99 Q'(s', argmax Q(s', ·))), Q' a copy of Q that is renewed now and then
    (V. Mnih et al., doi:10.1038/nature14236; the choice by Q: H. van Hasselt et al., arXiv:1509.06461).
    """

    losses = {"train_loss": "temporal difference"}  # noqa: RUF012
    shown = ("return", "training_return")

    def __init__(
        self,
        model: torch.nn.Module,
        config: PlayConfig,
        engine: Engine,
        world: World,
        state: dict | None = None,
    ) -> None:
        super().__init__(model.to(world.device), config, engine, world)
        self.env = make_env(config.env)
        space = self.env.observation_space
        self.memory = Memory(space.shape, np.dtype(space.dtype))
        if state:
            model.load_state_dict(state["model"])
        self.target = copy.deepcopy(self.model)
        self.optimizer = engine.optim.Adam(self.model.parameters(), lr=config.lr)
        self.sums = torch.zeros(3, dtype=torch.float64)  # of losses, of updates, of returns
        self.kept: dict[str, Any] = {}
        if state:
            self.restore(state)
            self.target.load_state_dict(state["target"])
            load_optimizer(self.optimizer, self.model, state["optimizer"])
            self.memory.restore(state["memory"])
            self.kept, self.sums = state["best"], state["sums"]

    @property
    def updates(self) -> int:
        return max(0, self.memory.moves - WATCHED)

    @property
    def solved(self) -> bool:
        goal = self.env.spec.reward_threshold
        return goal is not None and bool(self.history) and self.history[-1]["return"] >= goal

    def train_step(self) -> None:
        start_s = time.perf_counter()
        random = stream(self.config.seed, self.step, 0)
        seen, _ = self.env.reset(seed=episode_seed(self.config.seed, self.step))
        over = cut = False
        total = 0.0
        while not (over or cut):
            share = max(RANDOM_AT_LEAST, 1 - self.memory.moves / GREEDY_AFTER)
            if random.random() < share:
                action = int(random.integers(self.env.action_space.n))
            else:
                with torch.no_grad():
                    action = int(self.model(self._shown(seen[None])).argmax())
            then, reward, over, cut, _ = self.env.step(action)
            self.memory.add(seen=seen, then=then, action=action, reward=reward, over=over)
            seen, total = then, total + float(reward)
            if self.memory.moves > WATCHED:
                self._learn(random)
        self.sums[2] += total
        self.timed(start_s)

    def _shown(self, seen: Any) -> torch.Tensor:
        return shown(seen, self.world.device)

    def _learn(self, random: np.random.Generator) -> None:
        drawn = self.memory.draw(self.config.batch_size, random)
        seen, then = (self._shown(drawn.pop(name)) for name in ("seen", "then"))
        drawn = {name: part.to(self.world.device) for name, part in drawn.items()}
        with torch.no_grad():
            choice = self.model(then).argmax(1, keepdim=True)
            after = self.target(then).gather(1, choice)[:, 0]
            goal = drawn["reward"] + DISCOUNT * (1 - drawn["over"]) * after
        value = self.model(seen).gather(1, drawn["action"][:, None])[:, 0]
        loss = self.engine.functional.smooth_l1_loss(value, goal)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.sums[0] += loss.item()
        self.sums[1] += 1
        if self.updates % TARGET_EVERY == 0:
            self.target.load_state_dict(self.model.state_dict())

    def validate(self) -> dict[str, float]:
        """The mean loss of updates and return of episodes since the last time; the return of episodes only played."""
        losses, updates, returns = self.sums.tolist()
        row = {
            "train_loss": losses / max(1, updates),
            "return": float(np.mean(play(self.model, self.config.env, self.config.seed, FAR, JUDGED))),
            "training_return": returns / max(1, self.since),
        }
        self.sums.zero_()
        return row

    def record(self) -> dict[str, float]:
        row = super().record()
        if not self.kept or row["return"] >= self.kept["return"]:
            self.kept = {
                "row": len(self.history) - 1, "return": row["return"], "weights": full_weights(self.model)
            }  # fmt: skip
        return row

    def best(self) -> tuple[int, dict[str, torch.Tensor]]:
        """The best evaluation, the latest of equals."""
        if not self.kept:
            return super().best()
        return self.kept["row"], self.kept["weights"]

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "optimizer": full_optimizer(self.optimizer, self.model),
            "target": full_weights(self.target),
            "memory": self.memory.state(),
            "best": self.kept,
            "sums": self.sums,
        }


def episode_seed(seed: int, episode: int) -> int:
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


def shown(seen: Any, device: Any) -> torch.Tensor:
    """Observations (B, *shape) as the model takes them: float32, bytes divided by 255."""
    x = torch.as_tensor(seen)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    return x.to(device)


@torch.no_grad()
def play(model: torch.nn.Module, name: str, seed: int, first: int, count: int) -> np.ndarray:
    """(count,) returns of episodes `first`, first + 1, ..., played side by side with no random move."""
    device = next(model.parameters()).device
    envs = [make_env(name) for _ in range(count)]
    seen = [env.reset(seed=episode_seed(seed, first + i))[0] for i, env in enumerate(envs)]
    total, playing = np.zeros(count), list(range(count))
    while playing:
        actions = model(shown(np.stack([seen[i] for i in playing]), device)).argmax(1).tolist()
        still = []
        for i, action in zip(playing, actions, strict=True):
            seen[i], reward, over, cut, _ = envs[i].step(action)
            total[i] += float(reward)
            if not (over or cut):
                still.append(i)
        playing = still
    for env in envs:
        env.close()
    return total


class Play(Errand):
    """See `PlayTraining`."""

    kinds = STATE
    main = "return"

    def read(self) -> dict[str, Any]:
        self.env = make_env(self.config.env)
        shape = self.env.observation_space.shape
        return {
            "num_actions": int(self.env.action_space.n),
            "observation": int(shape[0]) if len(shape) == 1 else tuple(map(int, shape)),
        }

    def probe(self, model: torch.nn.Module) -> list[str]:
        x = shown(self.env.reset(seed=0)[0][None], next(model.parameters()).device)
        return probe(model, self.config.backend, lambda: model(x))

    def training(
        self, model: torch.nn.Module, engine: Engine, world: World, state: dict | None = None
    ) -> Stepwise:
        return PlayTraining(model, self.config, engine, world, state)

    def fingerprint(self) -> str:
        return self.env.spec.id

    def facts(self) -> dict[str, Any]:
        return {"env": self.env.spec.id, "solved_at": self.env.spec.reward_threshold}

    def finish(self, model: torch.nn.Module, result: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
        """A hundred episodes that no weights were chosen by."""
        returns = play(model, self.config.env, self.config.seed, FAR + JUDGED, FINAL)
        result["episodes"] = {
            "count": FINAL,
            "mean": float(returns.mean()),
            "least": float(returns.min()),
            "most": float(returns.max()),
        }
        goal = self.env.spec.reward_threshold
        called = f"; gymnasium calls a mean of {goal:g} solved" if goal is not None else ""
        return {}, [
            f"the best weights over {FINAL} new episodes without a random move: mean return {returns.mean():.1f}, "
            f"least {returns.min():g}, most {returns.max():g}{called}"
        ]
