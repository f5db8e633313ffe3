"""One side of the training benchmark, in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

import gpt2c
from gpt2c import _native
from gpt2c.bench import machine
from gpt2c.bench.case import COMPILED, OURS, RECOMPUTING
from gpt2c.bench.twin import Twin
from gpt2c.data import load_dataset
from gpt2c.errors import UserError, reason
from gpt2c.evaluate import validation_loss
from gpt2c.settings import TrainConfig
from gpt2c.step import accumulate_gradients, clip_coefficient, learning_rate, make_optimizer, micro_batches
from gpt2c.tokenizer import get_tokenizer

TINY = {"n_layer": 1, "n_head": 1, "n_embd": 8, "context": 8, "batch_size": 1}
STEP, VALIDATE, MEMORY = "step", "validate", "memory"


class SideError(Exception):
    """The side cannot go on; the message says why."""


@dataclass(frozen=True)
class Memory:
    """Bytes: the process's peak, and that of its imports and of whatever libraries load at their first use."""

    peak: int
    imports: int


class Side:
    """The handle on the process that trains `name`'s model as `config` says. Every method raises SideError if it cannot
    go on, and UserError if no side could, since the data cannot be read for example."""

    def __init__(self, name: str, config: TrainConfig, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, config, threads, there), daemon=True)
        self._process.start()
        there.close()  # so that the end of the process is seen

    def ready(self) -> None:
        """Wait for the model."""
        self._receive()

    def step(self, step: int) -> tuple[float, float]:
        """Loss and seconds of an optimizer step, counted from 1."""
        return self._ask(STEP, step)

    def validation_loss(self, batches: int) -> float:
        return self._ask(VALIDATE, batches)

    def memory(self) -> Memory:
        return self._ask(MEMORY)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _ask(self, *request: object) -> Any:
        try:
            self._pipe.send(request)
        except OSError:
            raise SideError("its process has ended, for want of memory perhaps") from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise SideError("its process has ended, for want of memory perhaps") from None
        if isinstance(answer, (SideError, UserError)):
            raise answer
        return answer


class Trainer:
    """A side's model, optimizer and data."""

    def __init__(self, name: str, config: TrainConfig) -> None:
        self.name, self.config = name, config
        self.is_ours = name in (OURS, RECOMPUTING)
        tokenizer = get_tokenizer(config.tokenizer)
        self.dataset = load_dataset(config.data, tokenizer, config.val_fraction, config.context)
        torch.manual_seed(config.seed)
        self.model: nn.Module = gpt2c.GPT2(config.model_config(tokenizer.vocab_size))
        self.optimizer: torch.optim.Optimizer = make_optimizer(self.model, config)
        self.model.recompute = name == RECOMPUTING
        if not self.is_ours:
            self.model = Twin.of(self.model)
            self.optimizer = _torch_optimizer(self.model, config)
        self.run = torch.compile(self.model, dynamic=False) if name == COMPILED else self.model

    def step(self, step: int) -> tuple[float, float]:
        """Loss and seconds."""
        batches = micro_batches(self.dataset, step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        start = time.perf_counter()
        if self.is_ours:
            loss, norm = accumulate_gradients(self.model, self.optimizer, batches)
            self.optimizer.step(grad_scale=clip_coefficient(float(norm), self.config.grad_clip))
        else:
            ((idx, targets),) = batches
            self.optimizer.zero_grad()
            _, loss = self.run(idx, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
            self.optimizer.step()
        return loss.item(), time.perf_counter() - start

    def validation_loss(self, batches: int) -> float:
        tokens = batches * self.config.batch_size * self.config.context
        drawn = self.dataset.val_batches(self.config.batch_size, self.config.context, tokens)
        return validation_loss(self.model, drawn)


def _torch_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """torch's fused AdamW, with weight decay where make_optimizer has it."""
    decays = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    rates = (config.weight_decay, 0.0)
    groups = [{"params": p, "weight_decay": d} for p, d in zip(decays, rates, strict=True)]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _serve(name: str, config: TrainConfig, threads: int, pipe: Connection) -> None:
    """Answer the requests of a Side until it hangs up; an error is an answer, too."""
    torch.set_num_threads(threads)
    try:
        if name == OURS:
            _native.keep_heap()  # as `gpt2c train` does
        Trainer("torch" if name == COMPILED else name, dataclasses.replace(config, **TINY)).step(1)
        imports = machine.peak_bytes()
        trainer = Trainer(name, config)
        pipe.send(None)
        while True:
            request, *args = pipe.recv()
            if request == STEP:
                pipe.send(trainer.step(*args))
            elif request == VALIDATE:
                pipe.send(trainer.validation_loss(*args))
            else:
                pipe.send(Memory(machine.peak_bytes(), imports))
    except EOFError:
        pass
    except UserError as error:
        pipe.send(error)
    except Exception as error:  # of whatever library
        pipe.send(SideError(reason(error)))
