"""The memory that training takes at its peak, part by part, from the sizes alone.

Of a parameter: 4 bytes of weight, 4 of gradient, 8 of moments; on a GPU in 16 bits a copy of 2. Of a token and layer
the block keeps 10 C numbers for its backward (gpt2c/ops/block.py), or C with recompute; the head a chunk of logits.
What was fitted to measurements is a constant with a name; `python/plan_check.py` shows plan beside measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2c.config import GPT2Config
from gpt2c.ops.linear_cross_entropy import CHUNK_ROWS
from gpt2c.settings import TrainConfig

KEPT, KEPT_RECOMPUTING = 10, 1  # C numbers of a token and layer
WORK = {"cpu": 16, "cuda": 8}  # fitted: C numbers of a token beside them, in the layer at work
WORK_RECOMPUTING = {"cpu": 26, "cuda": 14}
# Fitted: a CPU's heap has holes that no later tensor fits into, as a share of the activations; torch's allocator on a
# GPU is counted without its own.
HOLES = {"cpu": 0.2, "cuda": 0.0}
HOLES_RECOMPUTING = {"cpu": 1.0, "cuda": 0.0}
CUDA_CONTEXT = 500e6  # of the driver and its libraries, in each process


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak."""

    weights: float
    gradients: float
    moments: float
    activations: float
    logits: float
    process: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations + self.logits + self.process

    def rows(self) -> dict[str, float]:
        """As the command shows them."""
        names = ("weights", "gradients", "moments", "activations", "logits", "process")
        return {name: getattr(self, name) for name in names}


def plan_memory(
    config: TrainConfig, sizes: GPT2Config, device: str, precision: str, process: float, world: int = 1
) -> Memory:
    """What a run takes on `device` ("cpu" or "cuda"), of which `process` bytes are the empty program's.

    world: the number of processes, which share the moments with `shard_optimizer`.
    """
    whole = sizes.num_parameters() + (sizes.padded_vocab_size - sizes.vocab_size) * sizes.n_embd
    learning, layers = learned(config, sizes)
    number = 4 if precision == "fp32" else 2
    tokens = config.batch_size * config.context
    chunk = min(tokens, CHUNK_ROWS[device]) * sizes.padded_vocab_size * number
    # On a GPU gradients and the activations of a step do not meet: the former are freed before a single micro-step.
    meets = device == "cpu" or config.accumulation > world or config.recompute
    merged = 4 * 12 * layers * sizes.n_embd**2 if config.lora_rank else 0
    return Memory(
        weights=4.0 * whole + (number * whole if number == 2 else 0) + merged,
        gradients=4.0 * learning * (0.5 if config.recompute and device == "cuda" else 1) if meets else 0.0,
        moments=8.0 * learning / (world if config.shard_optimizer else 1),
        activations=activations(config, sizes, device, number, layers),
        logits=float(chunk) + (4.0 * sizes.padded_vocab_size * sizes.n_embd if device == "cuda" else 0),
        process=process,
    )


def activations(config: TrainConfig, sizes: GPT2Config, device: str, number: int, layers: int) -> float:
    """Bytes that a micro-step keeps for its backward and works in, of `layers` layers that learn."""
    tokens, C = config.batch_size * config.context, sizes.n_embd
    kept = KEPT_RECOMPUTING if config.recompute else KEPT
    of_token = kept * C * number + 8 * sizes.n_head + 16 + (2 * C if config.dropout else 0)
    work = (WORK_RECOMPUTING if config.recompute else WORK)[device] * C * number
    holes = (HOLES_RECOMPUTING if config.recompute else HOLES)[device]
    return tokens * (layers * of_token + work) * (1 + holes)


def learned(config: TrainConfig, sizes: GPT2Config) -> tuple[int, int]:
    """The number of parameters that learn, the vocabulary's padding included, and of layers that have some."""
    C, layers = sizes.n_embd, sizes.n_layer - config.freeze_layers
    if config.lora_rank:
        return layers * config.lora_rank * (C + 3 * C + C + C + C + 4 * C + 4 * C + C), layers
    embeddings = 0 if config.freeze_layers else (sizes.padded_vocab_size + sizes.n_positions) * C
    return embeddings + layers * (12 * C * C + 13 * C) + 2 * C, layers


def disk(config: TrainConfig, sizes: GPT2Config) -> float:
    """Bytes of the checkpoints at their most: those kept, the best one, and the one that is being written."""
    learning, _ = learned(config, sizes)
    return (4.0 * sizes.num_parameters() + 8.0 * learning) * (config.keep + 2)
