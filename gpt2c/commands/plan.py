"""`gpt2c plan`; its fields are its flags."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gpt2c import checkpoint, pretrained
from gpt2c.bench.machine import available_bytes
from gpt2c.config import GPT2Config
from gpt2c.data import load_dataset
from gpt2c.errors import UserError
from gpt2c.files import write_atomically, writing
from gpt2c.flops import GPUS, flops_per_token
from gpt2c.plan.memory import CUDA_CONTEXT, Memory, disk, plan_memory
from gpt2c.plan.trial import empty_process, try_out
from gpt2c.precision import find_device, find_precision
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.step import tokens_per_step
from gpt2c.tokenizer import get_tokenizer
from gpt2c.training import sizes_of

MFU = 0.35  # measured on one H100: 24 % at B16 x T1024, 35 % at B64 x T1024, both 124M in bf16
SHARE = 0.95  # of the free memory that a run may plan to take
MOST = 1024  # windows of a micro-step that are looked at


@dataclass(frozen=True)
class Plan:
    """Say what a run will take, before it starts: memory by part, operations, hours, disk.

    Memory is planned from the sizes (docs/planning.md: beside what was measured), hours from a few steps on this
    machine, or with --gpu from its data sheet.
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A recipe of the package, or a TOML file of settings."""
    data: str = ""
    """Data, instead of the recipe's, to say how often they are seen; the recipe's if empty, as in the next four."""
    init: str = ""
    """Model to start from, whose sizes are taken."""
    batch_size: int = 0
    """Windows in one micro-step."""
    accumulation: int = 0
    """Micro-steps per optimizer step, of all processes together."""
    steps: int = 0
    """Optimizer steps."""
    recompute: bool = False
    """Keep less for the backward and compute it again."""
    gpu: str = ""
    """Plan for this GPU, `RTX 3070` or `H100`, instead of this machine."""
    processes: int = 1
    """Processes, one for each GPU, that share the micro-steps."""
    mfu: float = MFU
    """With --gpu, the share of its data sheet's operations that training reaches."""
    trial_steps: int = 10
    """Steps that are measured on this machine; 0 to plan without."""
    json: str = ""
    """File that gets the numbers, too; none if empty."""

    def run(self) -> int:
        """Write tables to the standard output."""
        config, sizes = self._settings()
        device, precision, room, process = self._machine(config)
        memory = plan_memory(config, sizes, device, precision, process, self.processes)
        other = dataclasses.replace(config, recompute=not config.recompute)
        without = plan_memory(other, sizes, device, precision, process, self.processes)
        most = largest_batch(config, sizes, device, precision, process, self.processes, room)
        found: dict[str, Any] = {"memory": memory.rows() | {"peak": memory.total}, "largest_batch": most, "room": room}
        print(f"{self.recipe}: a GPT-2 of {sizes.num_parameters():,} parameters, {precision} on {self.gpu or device}")
        _show_memory(memory, without, config, room, most)
        found |= self._work(config, sizes, precision)
        found["disk"] = disk(config, sizes)
        print(
            f"\ndisk           {gb(found['disk'])} for checkpoints: {config.keep} latest, the best, one being written"
        )
        if self.json:
            with writing(Path(self.json)):
                write_atomically(Path(self.json), (json.dumps(found, indent=2) + "\n").encode())
        return 0

    def _settings(self) -> tuple[TrainConfig, GPT2Config]:
        config = load_recipe(self.recipe)
        names = ("data", "init", "batch_size", "accumulation", "steps")
        changes: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name)}
        config = dataclasses.replace(config, recompute=config.recompute or self.recompute, **changes)
        if self.processes < 1 or config.accumulation % self.processes:
            raise UserError(
                f"--processes is {self.processes}, expected a divisor of the accumulation, {config.accumulation}"
            )
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is {self.mfu}, expected above 0 and at most 1")
        if config.init == "gpt2" and not self.init:  # of a recipe: nothing is fetched for a plan
            return config, GPT2Config.preset("gpt2", dropout=config.dropout)
        if config.init:
            pretrained.find(checkpoint.resolve(config.init))
        config, _, sizes = sizes_of(config, None)
        return config, sizes

    def _machine(self, config: TrainConfig) -> tuple[str, str, float, float]:
        """Device, precision, and the bytes that there are and that the program itself takes."""
        if self.gpu:
            if self.gpu not in GPUS:
                raise UserError(f"--gpu is {self.gpu!r}, expected one of {', '.join(GPUS)}")
            precision = config.precision if config.precision != "auto" else "fp16" if self.gpu == "T4" else "bf16"
            return "cuda", precision, GPUS[self.gpu].memory, CUDA_CONTEXT
        device = find_device(config.device)
        precision = find_precision(config.precision, device)
        if device.type == "cuda":
            import torch

            return "cuda", precision, float(torch.cuda.mem_get_info()[0]), CUDA_CONTEXT
        return "cpu", precision, float(available_bytes() or math.inf), empty_process(config)

    def _work(self, config: TrainConfig, sizes: GPT2Config, precision: str) -> dict[str, Any]:
        """Operations, tokens and hours."""
        tokens, per_token = tokens_per_step(config), flops_per_token(sizes, config.context)
        total = float(tokens) * config.steps
        print(f"\noperations     {per_token / 1e9:.3g} GFLOP a token, {per_token * total:.3g} FLOP in all")
        print(f"tokens         {tokens:,} a step, {total:,.0f} in {config.steps:,} steps{self._epochs(config, total)}")
        if self.gpu:
            peak = GPUS[self.gpu].flops_32 if precision == "fp32" else GPUS[self.gpu].flops_16
            rate = peak * self.mfu / per_token * self.processes
            how = f"{self.mfu:.0%} of {self.processes} x {peak / 1e12:.0f} TFLOP/s, {self.gpu}'s data sheet"
        elif self.trial_steps:
            data = config.data if Path(config.data).exists() else "embedded"
            single = dataclasses.replace(config, accumulation=1, data=data)
            trial = try_out(single, self.trial_steps)
            rate = config.batch_size * config.context / trial.seconds
            how = f"{self.trial_steps} steps of one micro-step measured here, {trial.seconds:.3g} s each"
        else:
            return {"flops_per_token": per_token, "tokens": total}
        hours = total / rate / 3600
        print(f"speed          {rate:,.0f} tokens a second: {how}")
        print(f"time           {hours:,.1f} hours" + (f", {hours / 24:,.1f} days" if hours > 48 else ""))
        return {"flops_per_token": per_token, "tokens": total, "tokens_per_second": rate, "hours": hours}

    def _epochs(self, config: TrainConfig, total: float) -> str:
        if config.data != "embedded" and not Path(config.data).exists():
            return f"; {config.data} is not there yet"
        dataset = load_dataset(config.data, get_tokenizer(config.tokenizer), config.val_fraction, config.context)
        return f", {total / dataset.sizes[0]:.3g} times the data"


def largest_batch(
    config: TrainConfig, sizes: GPT2Config, device: str, precision: str, process: float, world: int, room: float
) -> int:
    """The largest micro-batch, in windows, whose peak is within SHARE of the room; 0 if none is."""

    def fits(batch: int) -> bool:
        changed = dataclasses.replace(config, batch_size=batch)
        return plan_memory(changed, sizes, device, precision, process, world).total <= SHARE * room

    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _show_memory(memory: Memory, other: Memory, config: TrainConfig, room: float, most: int) -> None:
    names = ("with recompute", "as it is") if config.recompute else ("as it is", "with recompute")
    print(f"\nmemory         {names[0]:>14}  {'without' if config.recompute else names[1]:>14}")
    for name, size in memory.rows().items():
        print(f"  {name:12} {gb(size):>14}  {gb(other.rows()[name]):>14}")
    print(f"  {'peak':12} {gb(memory.total):>14}  {gb(other.total):>14}   of {gb(room)}")
    state = "fits" if memory.total <= SHARE * room else "does not fit"
    at_most = f"at most {most} windows" if most else "not one window"
    print(f"  {config.batch_size} windows of {config.context} tokens in a micro-step: {state}; {at_most} would")
