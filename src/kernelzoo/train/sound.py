"""Training on sound: the next µ-law code, in bits a sample, and a sound that the model makes at the end."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from ..data.audio import CODES, load_audio, wav_bytes
from .distributed import World
from .engine import KERNELZOO, SOUND, Engine, probe
from .steps import STATE, Stepwise, Training, check_split, steps_for
from .stepwise import Errand


class SoundTraining(Training):
    """With the validation loss in bits a sample as well."""

    def validate(self) -> dict[str, float]:
        row = super().validate()
        return {**row, "bits_per_sample": row["val_loss"] / math.log(2)}


class Sound(Errand):
    """See `data.audio`."""

    kinds = STATE
    main = "bits_per_sample"

    def read(self) -> dict[str, Any]:
        config = self.config
        self.audio = load_audio(
            config.data, config.val_fraction, config.context, config.sample_rate, config.skip_corrupt
        )
        return {"num_codes": CODES}

    def check(self, world: World) -> None:
        check_split(self.config, world)

    def probe(self, model: torch.nn.Module) -> list[str]:
        rows = self.audio.batch(self.config.seed, 0, 1).to(next(model.parameters()).device)
        return probe(model, self.config.backend, functools.partial(model, rows.input_ids, labels=rows.labels))

    def training(
        self, model: torch.nn.Module, engine: Engine, world: World, state: dict | None = None
    ) -> Stepwise:
        return SoundTraining(model, self.audio, self.config, engine, world, state)

    def steps_for(self, minutes: float, world: World) -> int:
        return steps_for(self.training(self.create(KERNELZOO), KERNELZOO, world), minutes)

    def fingerprint(self) -> str:
        return self.audio.fingerprint()

    def about(self) -> dict[str, Any]:
        return {"rate": self.audio.rate}

    def facts(self) -> dict[str, Any]:
        parts = {"training": self.audio.training, "validation": self.audio.held_out}
        return {
            "rate": self.audio.rate,
            "files": self.audio.names,
            "skipped": self.audio.skipped,
            "seconds": {name: sum(map(len, part)) / self.audio.rate for name, part in parts.items()},
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"by frequency": {"bits_per_sample": self.audio.by_frequency()}}

    def finish(self, model: torch.nn.Module, result: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
        """A second, or so, that goes on from the beginning of the held-out part, of which it holds nothing."""
        config, audio = self.config, self.audio
        longest = max(audio.held_out, key=len)
        prompt = torch.from_numpy(longest[: config.context].astype(np.int64))[None]
        count = max(1, round(config.sample_seconds * audio.rate))
        out = model.generate(
            prompt, max_new_tokens=count, do_sample=True, temperature=config.temperature, seed=config.seed
        )
        codes = out[0, prompt.shape[1] :].numpy()
        ours = result["results"]["kernelzoo"]["metrics"]["bits_per_sample"]
        line = (
            f"{ours:.3f} bits a held-out sample of 8; {result['baselines']['by frequency']['bits_per_sample']:.3f} by "
            f"the codes' frequencies; {SOUND}: {count / audio.rate:.2f} s at {audio.rate} samples a second"
        )
        skipped = [f"skipped: {error}" for error in audio.skipped]
        return {SOUND: wav_bytes(codes, audio.rate)}, [*skipped, line]
