"""`gpt2c plan`; its fields are its flags."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from gpt2c import checkpoint, pretrained
from gpt2c.bench.machine import available_bytes
from gpt2c.config import GPT2Config
from gpt2c.data import EMBEDDED, Dataset, load_dataset
from gpt2c.data.inputs import files
from gpt2c.data.shards import SUFFIXES
from gpt2c.errors import UserError
from gpt2c.files import write_atomically, writing
from gpt2c.flops import GPUS, flops_per_token
from gpt2c.plan import summary
from gpt2c.plan.memory import CUDA_CONTEXT, Place, checkpoint_bytes, disk, largest_batch, plan_memory
from gpt2c.plan.speed import Speed, by_data_sheet, by_trial, hours
from gpt2c.plan.trial import empty_process
from gpt2c.precision import find_device, find_precision
from gpt2c.settings import TrainConfig, load_recipe
from gpt2c.step import tokens_per_step
from gpt2c.tokenizer import get_tokenizer
from gpt2c.training import sizes_of

MFU = 0.35  # measured on one H200: 25 % at B16 x T1024, 36 % at B64 x T1024, both 124M in bf16
NO_BF16 = ("T4",)  # GPUs before compute capability 8.0, where `auto` is fp16


def _changes() -> type:
    """A dataclass of the fields of TrainConfig, None, or False, unless they are given: what changes a recipe."""
    note = tyro.conf.arg(help="As in gpt2c train; the recipe's if not given.", help_behavior_hint="")
    kinds = TrainConfig.types()
    optional = {name: bool if kind is bool else kind | None for name, kind in kinds.items()}
    fields = [(name, Annotated[kind, note], False if kind is bool else None) for name, kind in optional.items()]
    return dataclasses.make_dataclass("Changes", fields, frozen=True)


Changes = _changes()


@dataclass(frozen=True)
class Plan:
    """Say what a run will take, before it starts: memory by part, operations, hours, disk.

    Memory is planned from the sizes (docs/planning.md: beside what was measured), hours from a few steps on this
    machine, or with --gpu from its data sheet.
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A recipe of the package, or a TOML file of settings."""
    changes: tyro.conf.OmitArgPrefixes[Changes] = dataclasses.field(default_factory=Changes)
    gpu: str = ""
    """Plan for this GPU, `RTX 3070` or `H100`, instead of this machine."""
    processes: int = 1
    """Processes, one for each GPU, that share the micro-steps."""
    mfu: float = MFU
    """With --gpu, the share of its data sheet's operations that training reaches."""
    trial_steps: int = 10
    """Most steps that are measured on this machine, about a minute's on a CPU; 0 to plan without."""
    json: str = ""
    """File that gets the numbers, too; none if empty."""

    def run(self) -> int:
        """Write tables to the standard output."""
        config, sizes = self._settings()
        dataset, ids = _data(config)
        place, room = self._place(config, ids)
        memory = plan_memory(config, sizes, place)
        other = plan_memory(dataclasses.replace(config, recompute=not config.recompute), sizes, place)
        most = largest_batch(config, sizes, place, room)
        where = self.gpu or place.device
        print(f"{self.recipe}: a GPT-2 of {sizes.num_parameters():,} parameters, {place.precision} on {where}")
        print(f"\n{summary.memory_table(config, memory, other, room, most)}")

        per_token = flops_per_token(sizes, config.context)
        print(f"\n{summary.work_lines(config, per_token, dataset and dataset.sizes[0])}", flush=True)
        found: dict[str, Any] = {"memory": memory.rows() | {"peak": memory.total}}
        found |= {"largest_batch": most, "room": room} if math.isfinite(room) else {}
        found |= {"flops_per_token": per_token, "tokens": tokens_per_step(config) * config.steps}
        if speed := self._speed(config, sizes, place, most):
            found["tokens_per_second"] = speed.rate
            found["hours"] = hours(config, speed.rate, dataset and dataset.sizes[1])
            print(summary.time_lines(speed, found["hours"]))

        found |= {"checkpoint": checkpoint_bytes(config, sizes), "disk": disk(config, sizes)}
        print(f"\n{summary.disk_line(config, found['disk'], found['checkpoint'])}")
        if self.json:
            with writing(Path(self.json)):
                write_atomically(Path(self.json), (json.dumps(found, indent=2) + "\n").encode())
        return 0

    def _settings(self) -> tuple[TrainConfig, GPT2Config]:
        given = {name: value for name, value in vars(self.changes).items() if value is not None and value is not False}
        config = dataclasses.replace(load_recipe(self.recipe), **given)
        if self.processes < 1 or config.accumulation % self.processes:
            raise UserError(
                f"--processes is {self.processes}, expected a divisor of the accumulation, {config.accumulation}"
            )
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is {self.mfu}, expected above 0 and at most 1")
        if self.trial_steps < 0:
            raise UserError(f"--trial-steps is {self.trial_steps}, expected at least 0")
        if config.init == "gpt2" and "init" not in given:  # of a recipe: nothing is fetched for a plan
            return config, GPT2Config.preset("gpt2", dropout=config.dropout)
        if config.init:
            pretrained.find(checkpoint.resolve(config.init))
        config, _, sizes = sizes_of(config, None)
        return config, sizes

    def _place(self, config: TrainConfig, ids: int) -> tuple[Place, float]:
        """Where the run is planned, and the bytes of memory that there are."""
        if self.gpu:
            if self.gpu not in GPUS:
                raise UserError(f"--gpu is {self.gpu!r}, expected one of {', '.join(GPUS)}")
            auto = "fp16" if self.gpu in NO_BF16 else "bf16"
            precision = auto if config.precision == "auto" else config.precision
            return Place("cuda", precision, CUDA_CONTEXT, self.processes), GPUS[self.gpu].memory
        device = find_device(config.device)
        precision = find_precision(config.precision, device)
        if device.type == "cuda":
            # What is free now is what is left beside this process's own context.
            return Place("cuda", precision, CUDA_CONTEXT, self.processes), float(torch.cuda.mem_get_info()[0])
        room = float(available_bytes() or math.inf) / self.processes
        return Place("cpu", precision, empty_process(config), self.processes, ids), room

    def _speed(self, config: TrainConfig, sizes: GPT2Config, place: Place, most: int) -> Speed | None:
        """None where it is not wanted, or cannot be measured, which is said."""
        if self.gpu:
            return by_data_sheet(config, sizes, self.gpu, place.precision, self.mfu, self.processes)
        if self.trial_steps and not most:
            print("speed          not measured: not one window fits into the memory")
        return by_trial(config, sizes, self.trial_steps, most, self.processes) if self.trial_steps and most else None


def _data(config: TrainConfig) -> tuple[Dataset | None, int]:
    """The data, None if they are not there yet, and the number of tokens that they hold in memory; the empty process
    has the embedded ones already."""
    path = Path(config.data)
    if config.data != EMBEDDED and not path.exists():
        return None, 0
    dataset = load_dataset(config.data, get_tokenizer(config.tokenizer), config.val_fraction, config.context)
    on_disk = config.data == EMBEDDED or any(file.suffix in SUFFIXES for file in files(path))
    return dataset, 0 if on_disk else len(dataset.tokens)
