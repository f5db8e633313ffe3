"""Whether a run fits into the memory that is free, told before it begins: afterwards the system ends it by force."""

from __future__ import annotations

import os
import warnings

from gpt2c.bench import machine
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.plan.memory import SHARE, Place, largest_batch, plan_memory
from gpt2c.settings import TrainConfig

TOO_MUCH = 1.1  # how far a plan may be off: tests/test_plan.py holds it within 10 %


def check_memory(config: TrainConfig, sizes: GPT2Config, precision: str, world: int) -> None:
    """Raises UserError where what a run on the CPU will take beside what this process has is more than the free memory
    and the swap space by more than the plan may be off; a note where it is more than the free memory alone.

    world: processes of the run; those of this machine share its memory.
    """
    free = machine.available_bytes()
    if free is None:
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    place = Place("cpu", precision, 0.0, world)
    needed, room = plan_memory(config, sizes, place).total, free / here
    if needed <= SHARE * room:
        return
    of_each = f" in each of {here} processes" if here > 1 else ""
    told = f"training takes about {needed / 1e9:.1f} GB{of_each}, of {free / 1e9:.1f} GB of memory that are free"
    batch = largest_batch(config, sizes, place, room)
    smaller = f"--batch-size {batch} fits, or close other programs" if batch else "take a smaller model"
    advice = f"{smaller}; `gpt2c plan` shows what takes it"
    if needed > TOO_MUCH * (free + machine.swap_bytes()) / here:
        raise UserError(f"{told}: {advice}")
    warnings.warn(f"{told}: it may be slow, or ended by the system; {advice}", stacklevel=2)
