"""How long a run takes: from operations and a GPU's data sheet, or from a few steps on this machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from gpt2c.config import GPT2Config
from gpt2c.data import EMBEDDED
from gpt2c.flops import GPUS, flops_per_token
from gpt2c.plan.trial import size_of_trial, try_out
from gpt2c.precision import find_device
from gpt2c.settings import TrainConfig
from gpt2c.step import tokens_per_step
from gpt2c.words import counted

# Seconds of Python for each layer of a micro-step, in which no GPU computes whose own work is shorter: 0.9 ms were
# measured on two cores to start a layer's kernels forward and backward, 0.2 for its updates.
STARTING = 1e-3
EVALUATED = 1 / 3  # of the operations of training on a token: the forward alone


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all processes together, and where the number comes from, as words."""

    rate: float
    source: str


def by_data_sheet(
    config: TrainConfig, sizes: GPT2Config, gpu: str, precision: str, mfu: float, processes: int
) -> Speed:
    """What `processes` GPUs do that reach the share `mfu` of their data sheet's operations a second, unless Python
    takes longer to start them."""
    peak = GPUS[gpu].flops_32 if precision == "fp32" else GPUS[gpu].flops_16
    tokens = config.batch_size * config.context
    computing = tokens * flops_per_token(sizes, config.context) / (mfu * peak)
    starting = STARTING * (sizes.n_layer + 1)
    rate = processes * tokens / max(computing, starting)
    if starting > computing:
        seconds = f"{1e3 * starting:.3g} ms of Python for each micro-step of {counted(sizes.n_layer, 'layer')}"
        return Speed(rate, f"{seconds}; the GPU computes for {1e3 * computing:.2g} of them")
    return Speed(rate, f"{mfu:.0%} of {processes} x {peak / 1e12:.0f} TFLOP/s, {gpu}'s data sheet")


def by_trial(config: TrainConfig, sizes: GPT2Config, steps: int, most: int, processes: int) -> Speed:
    """What at most `steps` steps of one micro-step reach here, of at most `most` windows. UserError if they fail.

    Processes have a GPU each, and share a CPU.
    """
    device = find_device(config.device)
    per_window = flops_per_token(sizes, config.context) * config.context
    windows, steps = size_of_trial(config, per_window, device, steps, most)
    trial = try_out(_alone(dataclasses.replace(config, batch_size=windows, accumulation=1), sizes), steps)
    rate = windows * config.context / trial.seconds * (processes if device.type == "cuda" else 1)
    return Speed(
        rate,
        f"{counted(steps, 'step')} of {windows} x {config.context} tokens measured here, {trial.seconds:.3g} s each",
    )


def hours(config: TrainConfig, rate: float, validation: int | None) -> float:
    """Hours of all steps and evaluations. validation: tokens of the validation split, None where it is not known."""
    evaluations = -(-config.steps // (config.eval_every or config.steps))
    evaluated = config.eval_tokens if validation is None else min(config.eval_tokens, validation)
    tokens = tokens_per_step(config) * config.steps + EVALUATED * evaluated * evaluations
    return tokens / rate / 3600


def _alone(config: TrainConfig, sizes: GPT2Config) -> TrainConfig:
    """The settings for a trial that fetches nothing: on data that are there and, unless updates of low rank need the
    model to start from, from new weights of its sizes."""
    data = config.data if Path(config.data).exists() else EMBEDDED
    named = {name: getattr(sizes, name) for name in ("n_layer", "n_head", "n_embd")}
    return dataclasses.replace(config, data=data, **({} if config.lora_rank else {"init": "", **named}))
