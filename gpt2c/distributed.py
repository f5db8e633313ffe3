"""The processes that train one model together: those that torchrun started, or just this one.

Gradients are averaged by torch's DistributedDataParallel; what else the processes tell each other goes through here.
All of them call every method, in the same order.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from gpt2c.errors import ToldElsewhere, UserError, reason
from gpt2c.precision import find_device

T = TypeVar("T")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # how often torchrun has started its processes anew


@dataclass(frozen=True)
class Processes:
    """This process's number, `rank`, of `world`, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """The mean over the processes of each value, the same bits in all of them."""
        values = [float(value) for value in values]
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return (shared / self.world).tolist()

    def largest(self, value: int) -> int:
        """The largest of the processes' values, in all."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def first_does(self, work: Callable[[], T]) -> T | None:
        """The first process's result of `work`, which the others do not do and get None for. A UserError of its is
        raised in all of them, so that none is left waiting."""
        return self.together(work if self.is_first else lambda: None)

    def together(self, work: Callable[[], T]) -> T:
        """This process's result of `work`, which all do: a UserError in one of them is raised in all, and told once."""
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = error
        if self.world == 1:
            if problem is not None:
                raise problem
            return result
        problems: list[UserError | None] = [None] * self.world
        dist.all_gather_object(problems, problem)
        found = next((problem for problem in problems if problem is not None), None)
        if found is not None:
            raise found if self.is_first else ToldElsewhere(str(found))
        return result

    def tell(self, value: T) -> T:
        """The first process's value, in all."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def is_restarted() -> bool:
    """Whether torchrun has started these processes anew after one has failed (`--max-restarts`)."""
    return int(os.environ.get(RESTARTS, "0")) > 0


def job() -> str:
    """The call of torchrun that has started this process, the same for all its attempts; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()}, process {os.getppid()}" if name == "none" else name  # torchrun's default for all


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Joins torchrun's other processes, gloo on CPUs and NCCL on GPUs, or is alone where there are none.

    device: `auto`, `cpu` or `cuda`, see gpt2c.precision.find_device. Raises UserError, also where another process has
    ended while this one waited for it.
    """
    rank, world, local = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing:
        raise UserError(
            f"the environment says WORLD_SIZE={world}, but has no {' and no '.join(missing)}: start the processes with "
            "torchrun, or unset WORLD_SIZE to train in one"
        )
    if rank >= world:
        raise UserError(f"the environment says RANK={rank} and WORLD_SIZE={world}, expected a rank below the size")
    found = find_device(device, local)
    if world == 1:
        yield Processes(0, 1, found)
        return
    _join("nccl" if found.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, found)
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError as error:  # of gloo and NCCL alike, which have no class of their own for it
        if not _is_of_communication(error):
            raise
        raise UserError(
            f'process {rank} of {world} has lost another one ("{reason(error)}"), so training has stopped; go on from '
            "the latest checkpoint with --resume, or let torchrun do so with --max-restarts"
        ) from error


def _number(name: str, least: int) -> int:
    """A variable that torchrun sets; `least` where it is not set."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"the environment says {name}={text}, expected a whole number of at least {least}: unset it")
    return int(text)


def _join(backend: str) -> None:
    """As init_process_group with torchrun's variables, but of processes that were started anew none finds an address of
    those before: torchrun's store outlives them. Raises UserError where they do not meet."""
    try:
        store, rank, world = next(dist.rendezvous("env://"))
        attempt = dist.PrefixStore(f"attempt-{os.environ.get(RESTARTS, '0')}", store)
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:  # the latter of a port that is none
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} and MASTER_PORT={os.environ['MASTER_PORT']}"
        raise UserError(
            f"the environment says {where}, but the processes do not meet there: {reason(error)}; start them with "
            "torchrun, or choose a host that all reach and a port that is free"
        ) from error


def _is_of_communication(error: RuntimeError) -> bool:
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
