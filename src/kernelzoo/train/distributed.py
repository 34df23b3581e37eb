"""Several processes that train one model: data parallel (each holds the model) or sharded (each a part of it).

`torchrun --nproc-per-node N -m kernelzoo train ...` starts them; without it, everything here is one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from ..data import InputError

STRATEGIES = ("ddp", "fsdp")


class World:
    """This process among all of a run: `rank` of `size`, on `device`."""

    def __init__(self, device: str = "cpu", strategy: str = "ddp", rank: int = 0, size: int = 1) -> None:
        self.device, self.strategy, self.rank, self.size = device, strategy, rank, size

    @property
    def main(self) -> bool:
        return self.rank == 0

    def on_main(self, do: Callable[[], Any]) -> Any:
        """What `do()` returns on rank 0, on every rank; an InputError there is raised on every rank."""
        if self.size == 1:
            return do()
        answer = [None, None]
        if self.main:
            try:
                answer[0] = do()
            except InputError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise InputError(answer[1])
        return answer[0]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """`value` summed over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def slowest(self, seconds: float) -> float:
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value.item()

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What is called to train; gradients come out averaged over the processes.

        fsdp changes the model itself: its parameters become sharded, block by block (FSDP2).
        """
        if self.size == 1:
            return model
        if self.strategy == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            ids = None if self.device == "cpu" else [torch.cuda.current_device()]
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(torch.device(self.device).type, (self.size,))
        for blocks in [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]:
            for block in blocks:
                fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def accumulating(self, wrapped: torch.nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Around a micro-batch: data parallel processes exchange gradients after the last one only."""
        return contextlib.nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()


def full(value: Any) -> Any:
    """The whole of a sharded tensor, on every rank; all ranks must ask. Anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict on the CPU."""
    return {key: full(value).detach().cpu().clone() for key, value in model.state_dict().items()}


def full_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, dict]:
    """The optimizer's state by parameter name, whole, on the CPU: it fits any number of processes."""
    return {
        name: {key: full(value).cpu() for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, state: dict[str, dict]) -> None:
    """What `full_optimizer` gave, spread as the parameters are; nothing for those that no step has changed yet."""
    for name, parameter in model.named_parameters():
        for key, value in state.get(name, {}).items():
            if value.shape == parameter.shape:
                value = value.to(parameter.device)
                if isinstance(parameter, DTensor):
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            optimizer.state[parameter][key] = value


@contextlib.contextmanager
def processes(device: str, strategy: str) -> Iterator[World]:
    """The world that torchrun's environment describes, joined and left."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device, strategy)
        return
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} of this machine has no CUDA device; use --device cpu")
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield World(device, strategy, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
