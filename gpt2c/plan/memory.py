"""The memory that training takes at its peak, part by part, from the sizes alone.

Of a parameter: 4 bytes of weight, 4 of gradient, 8 of moments; on a GPU in 16 bits a copy of 2. Of a token and layer
the block keeps 10 C numbers for its backward (gpt2c/ops/block.py), or C with recompute; the head a chunk of logits.
What was fitted to measurements is a constant with a name; `python/plan_check.py` shows plan beside measurement.
"""

from __future__ import annotations

import dataclasses
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
# Fitted: between a CPU's micro-steps gradients lie where activations were, so that those of the next find less room.
SCATTERED = 0.7
CUDA_CONTEXT = 500e6  # of the driver and its libraries, in each process
SHARE = 0.95  # of the free memory that a run may plan to take
MOST = 2**20  # windows of a micro-step that are looked at: no data has so many at once
# Steps whose batches are there at once: the one that runs, two that wait (gpt2c/data/prefetch.py), one that is made.
PREFETCHED = 4


@dataclass(frozen=True)
class Place:
    """Where a run takes place: `device` "cpu" or "cuda"; `process` bytes are the empty program's; `world` processes
    share the moments with `shard_optimizer`; `ids` tokens are those of a text, which are held, as shards are not."""

    device: str
    precision: str
    process: float
    world: int = 1
    ids: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak."""

    weights: float
    gradients: float
    moments: float
    activations: float
    logits: float
    data: float
    process: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def rows(self) -> dict[str, float]:
        """As the command shows them."""
        return dataclasses.asdict(self)


def plan_memory(config: TrainConfig, sizes: GPT2Config, place: Place) -> Memory:
    """What a run takes in each of its processes."""
    device, world = place.device, place.world
    whole = sizes.num_parameters() + (sizes.padded_vocab_size - sizes.vocab_size) * sizes.n_embd
    learning, layers = learned(config, sizes)
    number = 4 if place.precision == "fp32" else 2
    tokens = config.batch_size * config.context
    chunk = min(tokens, CHUNK_ROWS[device]) * sizes.padded_vocab_size * number
    merged = 4 * 12 * layers * sizes.n_embd**2 if config.lora_rank else 0
    # The head's gradient, which is there with the loss, unless the embedding is frozen.
    head = 0.0 if config.freeze_layers or config.lora_rank else 4.0 * sizes.padded_vocab_size * sizes.n_embd
    kept = activations(config, sizes, device, number, layers)
    held = 2.0 * place.ids + PREFETCHED * 16.0 * tokens * config.accumulation / world
    return Memory(
        weights=4.0 * whole + (number * whole if number == 2 else 0) + merged,
        gradients=gradients(config, 4.0 * learning, head, kept, device, world),
        moments=8.0 * learning / (world if config.shard_optimizer else 1),
        activations=kept,
        logits=float(chunk) + (head if device == "cuda" else 0.0),
        data=held if device == "cpu" else 0.0,
        process=place.process,
    )


def gradients(config: TrainConfig, whole: float, head: float, kept: float, device: str, world: int) -> float:
    """Bytes of the gradients, `whole` in all and `head` of the head, beside `kept` bytes of activations.

    On a GPU they do not meet in a process that takes a single micro-step: they are freed before it, and in its backward
    come as fast as activations go. Otherwise all are there: those of the micro-step before, of a heap that keeps what
    is freed, or the buckets of several processes. On a CPU those of the micro-step before cost more than their size:
    the head's is there twice, and all are scattered.
    """
    if device == "cpu":
        return whole + (max(head, SCATTERED * min(whole, kept)) if config.accumulation > 1 else 0.0)
    if config.accumulation > 1 or world > 1:
        return whole
    return 0.5 * whole if config.recompute else max(0.0, whole - kept)


def activations(config: TrainConfig, sizes: GPT2Config, device: str, number: int, layers: int) -> float:
    """Bytes that a micro-step keeps for its backward and works in, of `layers` layers that learn."""
    tokens, C = config.batch_size * config.context, sizes.n_embd
    kept = KEPT_RECOMPUTING if config.recompute else KEPT
    of_token = kept * C * number + 8 * sizes.n_head + 16 + (2 * C if config.dropout else 0)
    work = (WORK_RECOMPUTING if config.recompute else WORK)[device] * C * number
    holes = (HOLES_RECOMPUTING if config.recompute else HOLES)[device]
    return tokens * (layers * of_token + work) * (1 + holes)


def largest_batch(config: TrainConfig, sizes: GPT2Config, place: Place, room: float) -> int:
    """The largest micro-batch, in windows, whose peak is within SHARE of `room` bytes; 0 if none is."""

    def fits(batch: int) -> bool:
        return plan_memory(dataclasses.replace(config, batch_size=batch), sizes, place).total <= SHARE * room

    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def learned(config: TrainConfig, sizes: GPT2Config) -> tuple[int, int]:
    """The number of parameters that learn, the vocabulary's padding included, and of layers that have some."""
    C, layers = sizes.n_embd, sizes.n_layer - config.freeze_layers
    if config.lora_rank:
        return layers * config.lora_rank * (C + 3 * C + C + C + C + 4 * C + 4 * C + C), layers
    embeddings = 0 if config.freeze_layers else (sizes.padded_vocab_size + sizes.n_positions) * C
    return embeddings + layers * (12 * C * C + 13 * C) + 2 * C, layers


def checkpoint_bytes(config: TrainConfig, sizes: GPT2Config) -> float:
    """Bytes of a checkpoint: the weights without the vocabulary's padding, and the moments of what learns."""
    learning, _ = learned(config, sizes)
    return 4.0 * sizes.num_parameters() + 8.0 * learning


def disk(config: TrainConfig, sizes: GPT2Config) -> float:
    """Bytes of the checkpoints at their most: those kept, the best one, and the one that is being written."""
    return checkpoint_bytes(config, sizes) * (config.keep + 2)
