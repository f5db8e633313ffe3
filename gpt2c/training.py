"""A run in progress: what it consists of, how it is opened, and how it is written down and read again."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt2c import checkpoint, logs, lora, pretrained
from gpt2c.bench import machine
from gpt2c.config import GPT2Config
from gpt2c.data import Source
from gpt2c.distributed import Processes, job
from gpt2c.errors import UserError
from gpt2c.evaluation.hellaswag import read_items
from gpt2c.flops import flops_per_token, peak_flops
from gpt2c.load import load_model, tokenizer_of
from gpt2c.logs import Sink
from gpt2c.model import GPT2
from gpt2c.plan.fits import check_memory
from gpt2c.precision import LossScale, find_precision
from gpt2c.run import METRICS, SAMPLES, Run, recorded_settings
from gpt2c.settings import TrainConfig
from gpt2c.spikes import SpikeGuard
from gpt2c.step import make_optimizer, tell_schedule
from gpt2c.tokenizer import Tokenizer, get_tokenizer, is_own, save_tokenizer
from gpt2c.tokenizer.description import TOKENIZER
from gpt2c.tokenizer.model_ids import write_model_ids
from gpt2c.vocabulary import grow

ADAPTER = "adapter"  # a checkpoint's folder for A and B


@dataclass
class Training:
    """Everything a run consists of, `step` steps after its start, in one of its processes."""

    config: TrainConfig
    processes: Processes
    precision: str
    tokenizer: Tokenizer
    dataset: Source
    run: Run
    model: GPT2
    wrapped: nn.Module  # the model as it is called: distributed, compiled
    optimizer: torch.optim.Optimizer
    guard: SpikeGuard
    loss_scale: LossScale
    step: int
    started: float  # time.monotonic() of the start; later by the time between being stopped and resumed
    best_loss: float  # lowest validation loss of any checkpoint
    checkpoint: Path | None  # the latest one
    went_back_to: Path | None = None  # the checkpoint that the latest rollback took
    sample: str | None = None  # the latest one
    sinks: list[Sink] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds trained so far, those before a resume included."""
        return round(time.monotonic() - self.started, 3)

    def log(self, **row: float | str) -> None:
        """A row of metrics.jsonl, which the first process writes. Numbers that are not finite are left out: JSON has
        none, and an event says what they were."""
        row = {"step": self.step, **row, "seconds": self.seconds}
        row = {name: value for name, value in row.items() if isinstance(value, str) or math.isfinite(value)}
        if self.processes.is_first:
            self.run.add_metrics(row)
            for sink in self.sinks:
                sink.add(row)


def open_training(config: TrainConfig, resume: bool, processes: Processes) -> Training:
    """Check everything that can be wrong before the run folder is made, then make it, or read it to resume."""
    last = checkpoint.latest(config.out) if resume else None
    record = processes.together(lambda: checkpoint.read_record(last) if last else None)
    config, tokenizer, sizes = processes.together(lambda: sizes_of(config, last))
    precision = processes.together(lambda: find_precision(config.precision, processes.device))
    dataset = processes.together(lambda: _open_data(config, tokenizer, processes))
    processes.first_does(lambda: logs.require_packages(config))
    if config.hellaswag:
        processes.first_does(lambda: read_items(config.hellaswag, config.hellaswag_items))  # not only at step 250
    fingerprint, facts = dataset.fingerprint(), facts_of(sizes, config, precision, processes)
    run = Run(config.out)
    if last:
        processes.first_does(lambda: checkpoint.verify(last))
    processes.first_does(lambda: run.check(config, fingerprint) if resume else run.require_empty())
    if processes.device.type == "cpu":
        processes.first_does(lambda: check_memory(config, sizes, precision, processes.world))
    torch.manual_seed(config.seed)
    model = processes.together(
        lambda: read_model(last, config, sizes, tokenizer) if last else new_model(config, sizes, tokenizer)
    )
    if model.config != sizes:
        raise UserError(f"{last} holds a model of {model.config}, expected {sizes} as {run.folder} records")
    if not resume:
        processes.first_does(lambda: Run.create(config, fingerprint, facts))
    model = model.to(processes.device).train()
    model.recompute = config.recompute
    optimizer = make_optimizer(model, config, config.shard_optimizer and processes.world > 1)
    guard, scale = SpikeGuard(config.spike_z), LossScale.of(precision)
    if last:
        processes.together(lambda: restore_state(last, record, model, optimizer, guard, scale))
    before = recorded_settings(config.out, type(config)) if resume and processes.is_first else None
    processes.first_does(lambda: tell_schedule(config, before, record.step if record else 0))
    if resume:
        at, lengths = (record.step, record.files) if record else (0, {METRICS: 0, SAMPLES: 0})
        processes.first_does(lambda: run.rewind(config, fingerprint, facts, at, lengths))
        processes.first_does(lambda: _prune(run, config))
    best = processes.first_does(lambda: checkpoint.best(run.folder))
    best_loss = processes.tell(checkpoint.read_record(best).val_loss if best else math.inf)
    step, seconds = (record.step, record.seconds) if record else (0, 0.0)
    return Training(
        config, processes, precision, tokenizer, dataset, run, model, wrap(model, config, processes), optimizer, guard,
        scale, step, time.monotonic() - seconds, best_loss, last,
    )  # fmt: skip


def _open_data(config: TrainConfig, tokenizer: Tokenizer, processes: Processes) -> Source:
    if config.accumulation % processes.world:
        raise UserError(
            f"--accumulation is {config.accumulation}, expected a multiple of the number of processes, "
            f"{processes.world}, which share a step's micro-steps"
        )
    return config.open_data(tokenizer)


def sizes_of(config: TrainConfig, last: Path | None) -> tuple[TrainConfig, Tokenizer, GPT2Config]:
    """The settings, the tokenizer and the model's sizes. A model to start from decides the latter two, and the settings
    follow; of a run that goes on, both are in its last checkpoint."""
    if config.needs_init and not config.init:
        raise UserError("there is no model to fine-tune: give one to start from with --init")
    if not config.init:
        has_own = last is not None and (last / TOKENIZER).exists()
        tokenizer = get_tokenizer(str(last) if has_own else config.tokenizer)
        return config, tokenizer, config.model_config(tokenizer.vocab_size)
    folder = last or pretrained.find(checkpoint.resolve(config.init))
    found = pretrained.read_config(folder)
    if config.context > found.n_positions:
        raise UserError(
            f"--context is {config.context}, expected at most {found.n_positions}, the positions of {config.init}"
        )
    tokenizer = config.tokenizer_from(tokenizer_of(folder, found.vocab_size))
    sizes = {"n_layer": found.n_layer, "n_head": found.n_head, "n_embd": found.n_embd}
    keeps_name = config.needs_init or (last and is_own(tokenizer))  # and does not take the checkpoint's
    name = config.tokenizer if keeps_name else tokenizer.name
    config = dataclasses.replace(config, tokenizer=name, context=config.context or found.n_positions, **sizes)
    return config, tokenizer, dataclasses.replace(found, vocab_size=tokenizer.vocab_size, dropout=config.dropout)


def new_model(config: TrainConfig, sizes: GPT2Config, tokenizer: Tokenizer) -> GPT2:
    """The model that a run begins with."""
    model = start_model(config, sizes) if config.init else GPT2(sizes)
    lora.freeze(model, config.freeze_layers)
    if config.lora_rank:
        if not config.init:
            raise UserError("--lora-rank needs a model to start from: give it with --init")
        lora.add_lora(model, config.lora_rank, config.lora_alpha)
    learn_special(model, config, tokenizer)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--freeze-layers {config.freeze_layers} leaves nothing to learn, expected fewer")
    return model


def start_model(config: TrainConfig, sizes: GPT2Config) -> GPT2:
    """The model that the settings start from, of these sizes: of those that it has, dropout and vocabulary follow."""
    model = load_model(config.init)[0].float()
    if model.config.vocab_size < sizes.vocab_size:
        grow(model, sizes.vocab_size, config.seed)
    model.config = sizes
    return model


def learn_special(model: GPT2, config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Have new tokens learn also where the embedding does not: their rows are not known yet."""
    first = config.first_new(tokenizer)
    if first is not None and not model.wte.weight.requires_grad:
        lora.learn_rows(model, first)


def read_model(folder: Path, config: TrainConfig, sizes: GPT2Config, tokenizer: Tokenizer) -> GPT2:
    """The model of a checkpoint; with LoRA the adapters on the model that the run began with."""
    model = GPT2.from_pretrained(folder)
    if config.lora_rank:
        whole, model = model, start_model(config, sizes)
        lora.load_adapter(model, folder / ADAPTER)
        learn_special(model, config, tokenizer)
        lora.take_rows(model, whole)
        pairs = zip(lora.merged(model).parameters(), whole.parameters(), strict=True)
        if not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for a, b in pairs):
            raise UserError(f"{folder} was trained from another model than {config.init}: give that one with --init")
        return model
    lora.freeze(model, config.freeze_layers)
    learn_special(model, config, tokenizer)
    return model


def write_model(t: Training, folder: Path) -> None:
    """What the model is loaded from: weights, sizes, a tokenizer of the user's own, and adapters."""
    lora.merged(t.model).save_pretrained(folder)
    if is_own(t.tokenizer):
        save_tokenizer(t.tokenizer, folder, t.model.config.n_positions)
    if is_own(t.tokenizer) or t.tokenizer.facts.ends:
        write_model_ids(folder, t.tokenizer)
    if t.config.lora_rank:
        lora.save_adapter(t.model, folder / ADAPTER, t.config.init)


def wrap(model: GPT2, config: TrainConfig, processes: Processes) -> nn.Module:
    """The model as it is called: its gradients averaged over the processes, and compiled if that is wanted."""
    wrapped: nn.Module = model
    if processes.world > 1:
        devices = [processes.device] if processes.device.type == "cuda" else None
        # Views: the buckets of the all-reduce are the gradients, not a copy of them.
        wrapped = nn.parallel.DistributedDataParallel(model, devices, gradient_as_bucket_view=True)
    return torch.compile(wrapped, dynamic=False) if config.compile else wrapped


def save(t: Training, val_loss: float | None) -> None:
    """Write a checkpoint; the first process does, once the others have sent it their part of the moments."""
    if hasattr(t.optimizer, "consolidate_state_dict"):
        t.optimizer.consolidate_state_dict(to=0)
    path = t.processes.first_does(lambda: _write_checkpoint(t, val_loss))
    t.checkpoint = t.processes.tell(path)
    # Within a row of skips nothing has been learned since a rollback: the weights are those that it took.
    t.went_back_to = t.checkpoint if t.went_back_to and t.guard.in_a_row else None
    if val_loss is not None:
        t.best_loss = min(t.best_loss, val_loss)


def go_back(t: Training) -> None:
    """Put the run back to its latest checkpoint, and the data on to those that were next."""
    assert t.checkpoint is not None
    t.processes.first_does(lambda: checkpoint.verify(t.checkpoint))
    record = checkpoint.read_record(t.checkpoint)
    model = read_model(t.checkpoint, t.config, t.model.config, t.tokenizer)
    with torch.no_grad():
        for ours, saved in zip(t.model.parameters(), model.parameters(), strict=True):
            ours.copy_(saved)
    offset = t.guard.offset + t.step - record.step
    restore_state(t.checkpoint, record, t.model, t.optimizer, t.guard, t.loss_scale)
    t.guard.offset, t.guard.in_a_row = offset, 0
    t.step, t.went_back_to = record.step, t.checkpoint


def restore_state(
    folder: Path,
    record: checkpoint.Record,
    model: GPT2,
    optimizer: torch.optim.Optimizer,
    guard: SpikeGuard,
    scale: LossScale,
) -> None:
    """Moments, guard and loss scale of a checkpoint; the first versions had neither of the latter."""
    checkpoint.restore(folder, model, optimizer)
    if not record.sha256:
        return
    try:
        guard.restore(record.guard)
        scale.restore(record.loss_scale)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / checkpoint.RECORD} is damaged: it lacks the state of the loss's scale") from error


def facts_of(sizes: GPT2Config, config: TrainConfig, precision: str, processes: Processes) -> dict[str, Any]:
    """What run.json says of the model and the machine, for the report of the run."""
    facts = machine.describe(torch.get_num_threads())
    facts |= {"device": str(processes.device.type), "processes": str(processes.world), "precision": precision}
    if processes.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(processes.device)
    return {
        "job": job(),
        "machine": facts,
        "parameters": sizes.num_parameters(),
        "flops_per_token": flops_per_token(sizes, config.context),
        "peak_flops": peak_flops(processes.device, precision, processes.world),
    }


def _write_checkpoint(t: Training, val_loss: float | None) -> Path:
    record = checkpoint.Record(
        t.step, t.tokenizer.name, val_loss, t.seconds, files=t.run.flush(), guard=t.guard.state(),
        loss_scale=t.loss_scale.state(),
    )  # fmt: skip
    path = checkpoint.save(t.run.folder, lambda folder: write_model(t, folder), t.model, t.optimizer, record)
    _prune(t.run, t.config)
    return path


def _prune(run: Run, config: TrainConfig) -> None:
    try:
        checkpoint.prune(run.folder, config.keep)
    except UserError as error:  # a file that cannot be removed, an older record that is damaged
        warnings.warn(f"older checkpoints stay: {error}", stacklevel=2)
