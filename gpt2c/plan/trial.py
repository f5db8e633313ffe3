"""A few steps of a run in a process of its own: how long one takes, and how much memory at the peak."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from gpt2c.errors import UserError, reason
from gpt2c.flops import product_rate
from gpt2c.settings import TrainConfig

EMPTY = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context": 16, "batch_size": 1, "accumulation": 1, "steps": 2}
SECONDS, LEAST = 60.0, 3
SHARE_OF_PEAK = 0.5  # what training reached of a product's speed on the CPUs at hand, roughly
SHORT = {"warmup_steps": 1, "eval_every": 1000, "sample_every": 0, "log_every": 1, "checkpoint_every": 1000}


@dataclass(frozen=True)
class Trial:
    """The median step's seconds, and the process's peak in bytes."""

    seconds: float
    peak: float


def size_of_trial(
    config: TrainConfig, per_window: float, device: torch.device, steps: int, most: int
) -> tuple[int, int]:
    """How many windows and how many steps a trial takes: the run's micro-batch and `steps` at most.

    On a CPU, whose speed depends little on the micro-batch, as many as are done in about SECONDS, but at least one
    window and LEAST steps. per_window: operations. most: windows that fit into the memory.
    """
    windows = min(config.batch_size, most)
    if device.type != "cpu":
        return windows, steps
    affordable = SECONDS * SHARE_OF_PEAK * product_rate() / per_window
    windows = max(1, min(windows, int(affordable / steps)))
    return windows, min(steps, max(LEAST, int(affordable / windows)))


def try_out(config: TrainConfig, steps: int) -> Trial:
    """Train `steps` steps as the settings say, evaluation, sample and checkpoint included, in a new process.

    UserError if that fails.
    """
    # Spawned: the new process begins empty, and looks for modules where this one does.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    settings = {**SHORT, "steps": steps, "eval_tokens": min(config.eval_tokens, 4 * config.batch_size * config.context)}
    settings |= {"sample_tokens": min(config.sample_tokens, 16), "hellaswag": "", "wandb": "", "tensorboard": False}
    process = context.Process(target=_run, args=(dataclasses.replace(config, **settings), theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process that measured {steps} steps has ended with exit code {process.exitcode}, perhaps for lack of "
            "memory: plan without it, with --trial-steps 0"
        ) from None
    process.join()
    if isinstance(found, str):
        raise UserError(f"the measurement of {steps} steps failed: {found}")
    return found


def empty_process(config: TrainConfig) -> float:
    """Bytes that a process takes which trains next to nothing, with the run's tokenizer and data."""
    small = {**EMPTY, "dropout": 0.0, "lora_rank": 0, "freeze_layers": 0, "init": "", "data": "embedded"}
    return try_out(dataclasses.replace(config, device="cpu", **small), 2).peak


def _run(config: TrainConfig, pipe: Connection) -> None:
    from gpt2c.bench.machine import peak_bytes
    from gpt2c.train import train

    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            run = Path(folder) / "run"
            train(dataclasses.replace(config, out=run))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rates = [row["tok_per_s"] for row in rows if "tok_per_s" in row]
        tokens = config.batch_size * config.context * config.accumulation
        seconds = statistics.median(tokens / rate for rate in rates[1:] or rates)  # the first one warms up
        peak = peak_bytes()
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated()
        pipe.send(Trial(seconds, peak))
    except UserError as error:
        pipe.send(str(error))
    except Exception as error:  # of whatever library
        pipe.send(reason(error))
